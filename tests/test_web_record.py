"""From a page to its record: what is kept, in which form, and why the rest is not."""

from __future__ import annotations

import io
import json
import re

import pytest
import turbohtml
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow
from pydantic import ValidationError

from cm3kit.config import resolve
from cm3kit.web.language import language_of, readable
from cm3kit.web.picture import store
from cm3kit.web.reasons import REASONS, Refused
from cm3kit.web.record import ADDRESS, About, Dropped, Record, html_to_record, read_nodes, read_pieces
from cm3kit.web.settings import HTLM, PictureRules, WebSettings
from cm3kit_tokenizers.document import Markup, Text
from cm3kit_tokenizers.errors import ConfigError, PictureError
from cm3kit_tokenizers.html.addresses import candidates
from cm3kit_tokenizers.html.cutting import without
from cm3kit_tokenizers.html.minimal import keep_all, minimal_pieces, render, settled
from cm3kit_tokenizers.html.scan import scan
from cm3kit_tokenizers.html.spans import parse_tree


def png(
    width: int = 60, height: int = 40, colour: object = "red", kind: str = "PNG", mode: str = "RGB"
) -> bytes:
    buffer = io.BytesIO()
    Pillow.new(mode, (width, height), colour).save(buffer, kind)  # type: ignore[arg-type]
    return buffer.getvalue()


FILES = {
    "a.png": png(), "b.png": png(colour="blue"), "small.png": png(8, 8), "long.png": png(400, 40),
    "wide.png": png(640, 480, "green"), "broken.png": png()[:60], "img/c.png": png(colour="black"),
}  # fmt: skip


def find(address: str) -> bytes:
    if address not in FILES:
        code = "picture_outside" if ":" in address or ".." in address else "no_file"
        raise PictureError(f"no {address}", code=code)
    return FILES[address]


def made(html: str | bytes, about: About | None = None, **rules: object) -> Record:
    found = html_to_record(data(html), find, resolve(WebSettings, [rules]), key="k", about=about)
    assert isinstance(found, Record), found
    return found


def reason(html: str | bytes, about: About | None = None, **rules: object) -> str:
    found = html_to_record(data(html), find, resolve(WebSettings, [rules]), key="k", about=about)
    assert isinstance(found, Dropped) and found.key == "k"
    return found.reason


def data(html: str | bytes) -> bytes:
    return html if isinstance(html, bytes) else html.encode()


def shown(record: Record) -> str:
    """The record's HTML with the original addresses."""
    html = record.html
    for each in record.pictures:
        html = html.replace(ADDRESS + each.sha256, each.src)
    return html


GERMAN = "<p>Wer den Pfennig nicht ehrt, ist des Talers nicht wert, und das gilt auch für die kleinen Dinge."


def test_a_page_becomes_minimal_html_with_pictures_by_content() -> None:
    page = made(
        "<!doctype html><html lang=en-GB><title>T</title><nav>menu</nav><div><div><p class=x>One <b>two</b>"
        "<img title=t src=a.png alt=A onerror=evil()></p></div></div><script>x</script><footer>f</footer>"
    )
    assert shown(page) == (
        '<title>T</title><div><p>One <strong>two</strong><img alt="A" src="a.png" title="t"></p></div>'
    )
    (picture,) = page.pictures
    opened = Pillow.open(io.BytesIO(picture.data))
    assert opened.size == (picture.width, picture.height) == (40, 40) and opened.format == "WEBP"
    assert page.lang == "en-GB" and page.chars == len("T") + len("One two") + len("A") + len("t")
    assert render(page.nodes()) == page.html


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("<img src=a.png>", "a.png"),
        ("<img data-src=b.png src=data:image/gif;base64,AAAA>", "b.png"),
        ("<img srcset='a.png 100w, wide.png 640w' src=b.png>", "wide.png"),
        ("<img srcset='a.png, wide.png 2x'>", "a.png"),
        ("<img srcset='gone.png 400w' src=b.png>", "b.png"),
        ("<picture><source srcset='wide.png 640w'><img src=a.png></picture>", "wide.png"),
        ("<img src='broken.png' data-original=' a.png '>", "a.png"),
    ],
)
def test_the_best_address_of_a_picture_that_is_there_is_taken(tag: str, expected: str) -> None:
    assert [each.src for each in made(f"<p>x{tag}").pictures] == [expected]


def test_addresses_are_joined_to_the_base() -> None:
    assert [each.src for each in made("<base href=img/><p>x<img src=c.png>").pictures] == ["img/c.png"]
    page = made("<base href=https://e.org/><p>x<img src=a.png>")
    assert [each.src for each in page.pictures] == ["a.png"], "a local copy of a page names its old home"
    assert made("<base href='http://[bad'><p>x<img src=a.png>").pictures


def test_srcset_is_read_as_browsers_do() -> None:
    assert candidates("a.png 1x, b.png 2x") == [("a.png", 320), ("b.png", 640)]
    assert candidates(" data:image/png;base64,AA== 40w ,c") == [
        ("data:image/png;base64,AA==", 40),
        ("c", 320),
    ]
    assert candidates(",,,") == candidates("") == []


@pytest.mark.parametrize(
    ("src", "why"),
    [
        ("gone.png", "no_file"), ("small.png", "too_small"), ("long.png", "too_long"), ("broken.png", "bad_picture"),
        ("http://e.org/a.png", "remote"), ("//e.org/a.png", "no_file"), ("ftp://e.org/a.png", "remote"),
        ("file:///etc/passwd", "outside"), ("../../etc/passwd", "outside"), ("", "no_address"),
    ],
)  # fmt: skip
def test_every_picture_that_is_dropped_has_a_reason_and_leaves_its_alt(src: str, why: str) -> None:
    page = made(f'<p>x<img alt=A src="{src}">')
    assert page.html == '<p>x<img alt="A"></p>' and not page.pictures
    assert [each[1] for each in page.dropped] == [why] and why in REASONS
    assert made(f'<p>x<img alt=A src="{src}">', pictures={"missing": "drop"}).html == "<p>x</p>"


def test_pictures_over_the_number_and_those_of_boilerplate_are_not_opened() -> None:
    opened = []

    def watching(address: str) -> bytes:
        opened.append(address)
        return find(address)

    page = html_to_record(
        b"<p>x<img src=a.png><img src=b.png></p><form><img src=wide.png></form>", watching,
        resolve(WebSettings, [{"pictures": {"most": 1}}]),
    )  # fmt: skip
    assert isinstance(page, Record) and page.dropped == (("b.png", "too_many"),) and opened == ["a.png"]


def test_equal_pictures_have_one_name_and_sizes_and_places_are_as_said() -> None:
    page = made("<p>x<img src=a.png alt=1><img src=b.png><img src=a.png>")
    one, other, again = page.pictures
    assert one.sha256 == again.sha256 != other.sha256
    half = Pillow.new("RGB", (200, 100), "red")
    half.paste("blue", (100, 0, 200, 100))
    buffer = io.BytesIO()
    half.save(buffer, "PNG")
    for fit, size in (("center", (32, 32)), ("random", (32, 32)), ("whole", (32, 16))):
        rules = PictureRules(size=32, fit=fit, format="png")  # type: ignore[arg-type]
        found = store(buffer.getvalue(), "x", rules)
        assert (found.width, found.height) == size and found == store(buffer.getvalue(), "x", rules)
    middle = Pillow.open(io.BytesIO(store(buffer.getvalue(), "x", PictureRules(size=32, format="png")).data))
    assert middle.getpixel((2, 16)) == (255, 0, 0) and middle.getpixel((29, 16)) == (0, 0, 255)


@pytest.mark.parametrize(
    ("html", "rules", "expected"),
    [
        ('<p>a<a href="/wiki/Red_apple#x">b</a>', {"links": "entity"}, '<p>a<a href="Red_apple">b</a></p>'),
        ('<p>a<a href="/x">b</a>', {"links": "entity"}, "<p>ab</p>"),
        ('<p>a<a href="/x" title=T>b</a>', {"links": "title"}, '<p>a<a title="T">b</a></p>'),
        ('<p>a<a href="/x" title=T>b</a>', {"links": "none"}, "<p>ab</p>"),
        ('<p>a<a href="javascript:x()">b</a>', {}, "<p>ab</p>"),
        ("<meta property=og:title content=t><p>a", {}, '<meta content="t" property="og:title"><p>a</p>'),
        ("<meta name=viewport content=v><p>a", {}, "<p>a</p>"),
        ("<p>a<table><tr><td>b</table>", {"elements": {"table": "drop"}}, "<p>a</p>"),
        ("<p>a<em>b</em>", {"elements": {"em": "unwrap"}}, "<p>ab</p>"),
        ("<p>a<img alt=x src=a.png>", {"attributes": {"img": ["src"]}}, '<p>a<img src="a.png"></p>'),
        ("<div class='page-copyright'>c</div><p>most of the text</p>", {}, "<p>most of the text</p>"),
        ("<div class='copyright'>most is here</div><p>a</p>", {}, "<div>most is here</div><p>a</p>"),
    ],
)  # fmt: skip
def test_rules_of_elements_attributes_and_links(html: str, rules: dict[str, object], expected: str) -> None:
    assert shown(made(html, page=rules)) == expected


def test_captions_become_alt_where_asked_for() -> None:
    html = "<figure><img src=a.png><figcaption>A  red\nthing</figcaption></figure>"
    assert 'alt="A red thing"' in made(html, pictures={"alt_from": ["title", "figcaption"]}).html
    assert "alt=" not in made(html).html


def test_htlm_thresholds_drop_short_blocks_and_keep_what_holds_a_long_one() -> None:
    long, medium = "word " * 30, "word " * 15
    page = made(
        f"<title>T</title><h1>H</h1><p>short</p><div><p>{long}</p><p>short <a href=x>too</a></p></div>"
        f"<ul><li>{medium}</li><li>no</li></ul><div><h2>alone</h2><p>no</p></div><p>x<img src=a.png></p>",
        **HTLM,
    )  # fmt: skip
    assert shown(page) == (
        f"<title>T</title><h1>H</h1><div><p>{long.strip()}</p></div><ul><li>{medium.strip()}</li></ul>"
        '<p>x<img src="a.png"></p>'
    )
    # Text that links cut up counts as one.
    cut = "".join(f"<a href=x>{'w' * 30}</a>" for _ in range(5))
    assert made(f"<p>{cut}</p>", page={"min_text": 128}).chars >= 150


@pytest.mark.parametrize(
    ("html", "rules", "why"),
    [
        (b"", {}, "empty_file"),
        ("<p> </p><script>x</script>", {}, "too_short"),
        ("<p>short</p>", {"min_chars": 10}, "too_short"),
        ("<p>x</p>", {"need_picture": True}, "no_picture"),
        ("<p>x<img src=gone.png></p>", {"need_picture": True}, "no_picture"),
        ("<html lang=de><p>Wort</p>", {"languages": ["en"]}, "language"),
        (GERMAN, {"languages": ["en"], "detect": "unsaid"}, "language"),
        (f"<html lang=en>{GERMAN}", {"languages": ["en"], "detect": "always"}, "language"),
        ("<ul><li>a<li>b<li>c</ul>", {"min_ratio": 0.46}, "low_ratio"),
        ("<meta name=robots content='noindex, NoAI'><p>x</p>", {}, "opted_out"),
        ("<meta name=tdm-reservation content=1><p>x</p>", {}, "opted_out"),
        ("<p>x</p>", {"max_bytes": 4}, "page_too_large"),
        ("<div>" * 600 + "x", {}, "page_too_deep"),
        ("<meta charset=utf-8><p>" + "x", {}, ""),
        (b"<meta charset=utf-8><p>" + bytes(range(128, 256)) * 20, {}, "bad_encoding"),
        ("<p>\u00e4".encode("utf-16-le"), {}, "not_html"),
        (b"<meta charset=hz-gb-2312><p>x", {}, "not_html"),
    ],
)  # fmt: skip
def test_every_page_that_is_dropped_has_a_reason(
    html: str | bytes, rules: dict[str, object], why: str
) -> None:
    if why:
        assert reason(html, page=rules) == why and why in REASONS
    else:
        assert made(html, page=rules).chars == 1


@pytest.mark.parametrize(
    ("page", "headers"),
    [
        ("<p>größer</p>".encode(), {}),
        ("<p>größer</p>".encode("cp1252"), {}),
        ("<meta charset=iso-8859-15><p>größer</p>".encode("iso-8859-15"), {}),
        ("<meta charset=utf-8><p>größer</p>".encode("cp1250"), {"Content-Type": "text/html; charset=windows-1250"}),
        (b"\xef\xbb\xbf" + "<meta charset=latin1><p>größer</p>".encode(), {}),
        ("\ufeff<p>größer</p>".encode("utf-16-le"), {}),
        ("\ufeff<p>größer</p>".encode("utf-16-be"), {}),
    ],
)  # fmt: skip
def test_encodings_by_mark_header_meta_and_guess(page: bytes, headers: dict[str, str]) -> None:
    assert made(page, About(headers=headers)).html == "<p>größer</p>"


def test_licence_robots_and_mining_fields_are_carried_along() -> None:
    page = made(
        "<link rel=license href=https://l.org/by><meta name=robots content=noimageai><p>x<img alt=A src=a.png>",
        About(
            "https://e.org/p",
            "warc",
            "2026-01-02",
            {"X-Robots-Tag": "noarchive", "TDM-Policy": "p"},
            {"n": 1},
        ),
    )
    assert (page.license, page.robots, page.tdm, page.tdm_policy) == (
        "https://l.org/by", "noimageai, noarchive", "", "p",
    )  # fmt: skip
    assert (page.url, page.source, page.fetched_at, json.loads(page.meta)) == (
        "https://e.org/p", "warc", "2026-01-02", {"n": 1},
    )  # fmt: skip
    assert page.dropped == (("https://e.org/a.png", "opted_out"),)
    carried = made("<meta name=tdm-reservation content=1><p>x</p>", page={"opt_out": "carry"})
    assert carried.tdm == "1"


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="min_txt is unknown; did you mean"):
        resolve(WebSettings, [{"page": {"min_txt": 1}}])
    with pytest.raises(ValidationError, match="invalid CSS selector"):
        WebSettings.model_validate({"page": {"drop": ["p["]}})
    with pytest.raises(KeyError):
        Refused("because")


BITS = (
    "< > / = \" ' & &amp; &#0; &#x110000; <p> </p> <div> <a href= <img src=a.png <img srcset= cm3:// cm3://0 <table>"
    " cm3://sha256/00 <tr> <td> <select> <svg> <math> <template> <!-- --> <![CDATA[ <script> </script> <pre> \n <i>"
    " <base href=// <b> <meta charset=utf-16> <frameset> <plaintext> <picture> <source srcset= <figure> <mask>"
    " <figcaption> <title> \x00 \ud800"
).split(" ")
HOSTILE = st.lists(st.sampled_from(BITS) | st.text(max_size=8), max_size=30)


@settings(max_examples=150, deadline=None)
@given(HOSTILE, st.integers(0, 2**30))
def test_pieces_that_lost_pictures_settle_as_if_they_were_parsed(parts: list[str], lost: int) -> None:
    soup = "".join(parts).encode("utf-8", "replace").decode().replace("<img src=a.png", "<img src=a.png>")
    whole = minimal_pieces(parse_tree(soup), (), keep_all)
    gone: set[int] = set()
    for place, piece in enumerate(whole):
        if piece == Markup("<img") and lost >> place % 30 & 1:
            gone |= set(range(place, whole.index(Markup(">"), place) + 1))
    left = [piece for place, piece in enumerate(whole) if place not in gone]
    assert settled(left) == minimal_pieces(parse_tree(render(left)), (), keep_all)
    starts = [place for place in gone if whole[place] == Markup("<img")]
    cuts = [(start, whole.index(Markup(">"), start) + 1) for start in sorted(starts)]
    assert without(whole, cuts) == settled(left)


@pytest.mark.parametrize(
    "html",
    [
        "<p>x</b>", "<p class='x'>y</p>", "<P>x</P>", "<p>&nbsp;</p>", "<p>&</p>", "<a href=x>y</a>", "a < b",
        "<pre>\r</pre>", "<pre>\nx</pre>",
    ],
)  # fmt: skip
def test_what_is_not_written_as_records_are_is_parsed(html: str) -> None:
    assert scan(html) is None
    assert [Text(each) if isinstance(each, str) else each for each in read_pieces(html)] == read_nodes(html)


def test_the_language_of_a_page_is_that_of_its_text_where_it_is_asked_for() -> None:
    assert made(GERMAN).lang == ""
    assert made(GERMAN, page={"detect": "unsaid", "languages": ["de"]}).lang == "de"
    said = made(f"<html lang=en-GB>{GERMAN}", page={"detect": "unsaid", "languages": ["en"]})
    assert said.lang == "en-GB", "what a page says of itself stands"
    # Neither what is in attributes and code nor a few letters say anything.
    assert language_of("x1") == ""
    text = readable(read_pieces('<p>eins</p><pre>two</pre><a href="three">vier <code>five</code> sechs</a>'))
    assert text.split() == ["eins", "vier", "sechs"]


@settings(max_examples=150, deadline=None)
@given(HOSTILE)
def test_whatever_the_page_the_answer_is_a_record_or_a_reason(parts: list[str]) -> None:
    page = "".join(parts).encode("utf-8", "surrogatepass")
    found = html_to_record(page, find, resolve(WebSettings, [{"page": {"min_text": len(parts) % 3}}]))
    if isinstance(found, Dropped):
        assert found.reason in REASONS
        return
    assert render(found.nodes()) == found.html, "it parses back to itself"
    assert [Text(each) if isinstance(each, str) else each for each in scan(found.html) or ()] == found.nodes()
    addresses = re.findall(r'src="([^"]*)"', found.html)
    assert {ADDRESS + each.sha256 for each in found.pictures} == set(addresses)
    assert not turbohtml.parse(found.html).select("script,style,form,iframe,[onerror]")
