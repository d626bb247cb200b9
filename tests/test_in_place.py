"""Pages in place: which pictures are seen, what is said where one is not, and what browsers show of what is written."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import browser as browsers
import numpy as np
import pytest
from PIL import Image

import cm3kit
from cm3kit.batch.companions import companions
from cm3kit.fill.sight import Sight
from cm3kit.images import png_marks
from cm3kit.provenance.recipes import sidecar
from cm3kit_cli.main import run
from cm3kit_tokenizers import Markup, Page, PageError, PictureError, Text
from cm3kit_tokenizers.document import Picture
from cm3kit_tokenizers.patch import patchable, patched

ROOT = Path(__file__).parents[1]
RED = (255, 0, 0)


def saved(size: tuple[int, int] = (40, 32), colour: tuple[int, ...] = RED, form: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB" if len(colour) == 3 else "RGBA", size, colour).save(out, form)
    return out.getvalue()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A site with pages in a folder and pictures in another, and pictures under odd names."""
    for folder in ("pages/img", "img"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("pages/a.png", "pages/img/b.png", "img/banana.png", "pages/ü x.png"):
        (tmp_path / name).write_bytes(saved())
    (tmp_path / "pages/q.png?resize=300").write_bytes(saved((40, 40)))
    (tmp_path / "pages/w.png@v=2").write_bytes(saved((41, 41)))
    (tmp_path / "pages/pc%20t.png").write_bytes(saved((33, 33)))
    (tmp_path / "pages/link.png").symlink_to(tmp_path / "img/banana.png")
    return tmp_path


# Addresses as pages write them, and what they mean with the page's folder alone and with the site's.
FOUND = [
    ("<img alt='<mask>' src=a.png>", "a.png"),
    ("<img alt='<mask>' src=' ./img/../a.png '>", "./img/../a.png"),
    ("<img alt='<mask>' src='img\\b.png'>", "img/b.png"),
    ("<img alt='<mask>' src=/img/b.png>", "/img/b.png"),
    ("<img alt='<mask>' src='%C3%BC%20x.png'>", "%C3%BC%20x.png"),
    ("<img alt='<mask>' src='q.png?resize=300'>", "q.png?resize=300"),
    ("<img alt='<mask>' src='w.png?v=2'>", "w.png?v=2"),
    ("<img alt='<mask>' src='pc%20t.png#x'>", "pc%20t.png#x"),
    ("<base href='img/'><img alt='<mask>' src=b.png>", "img/b.png"),
    ("<base href='https://e.org/'><img alt='<mask>' src=a.png>", "a.png"),
    ("<img alt='<mask>' data-src=a.png src='data:,'>", "a.png"),
    ("<img alt='<mask>' srcset='gone.png 1x, a.png 2x'>", "a.png"),
    ("<img alt='<mask>' data-srcset='a.png 300w, img/b.png 900w'>", "a.png"),
    ("<picture><source srcset=a.png><img alt='<mask>' src=gone.png></picture>", "a.png"),
    ("<img alt='<mask>' src='a\n.png'>", "a.png"),
]
DOT = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7"
LOST = [
    ("<img alt='<mask>' src=../img/banana.png>", "picture_outside", "--root"),
    ("<img alt='<mask>' src=link.png>", "picture_outside", "--root"),
    ("<img alt='<mask>' src=https://e.org/a.png>", "picture_outside", "nothing is downloaded"),
    ("<img alt='<mask>' src=//e.org/a.png>", "picture_outside", "nothing is downloaded"),
    ("<img alt='<mask>' src=gone.png>", "no_file", "gone.png"),
    ("<img alt='<mask>' src='data:image/svg+xml,<svg/>'>", "bad_picture", "svg"),
    ("<img alt='<mask>' src=/a/b.png>", "no_file", "/a/b.png"),
    ("<base href='/else/'><img title='<mask>' src=b.png alt=x>", "no_file", ""),
    ("<img alt='<mask>'>", "no_file", "no address"),
    ("<img alt='<mask>' srcset='gone.png 2x'>", "no_file", "gone.png"),
    ("<figure><img src=gone.png><figcaption><mask></figcaption></figure>", "no_file", "gone.png"),
    (f"<img alt='<mask>' data-src=gone.png src='{DOT}'>", "no_file", "gone.png"),
    (f"<img alt='<mask>' src='{DOT}'><noscript><img src=gone.png></noscript>", "bad_picture", "1x1"),
    ("<img alt='<mask>' ng-src=gone.png>", "no_file", "gone.png"),
    ("<svg><image href=a.png /><title><mask></title></svg>", "bad_picture", "<svg>"),
    ("<figure><video src=a.mp4></video><figcaption>A <mask></figcaption></figure>", "bad_picture", "<video>"),
    ("<figure><svg></svg><figcaption><mask></figcaption></figure>", "bad_picture", "<svg>"),
]  # fmt: skip


@pytest.mark.parametrize(("html", "src"), FOUND)
def test_pictures_are_found_by_the_rules_of_training(site: Path, html: str, src: str) -> None:
    page = Page.parse(html.encode(), site / "pages")
    sight = Sight(page)
    assert [node.src for node in sight.nodes if isinstance(node, Picture)] == [src] and not sight.warnings


@pytest.mark.parametrize(("html", "src"), FOUND)
def test_training_finds_the_same_pictures(site: Path, html: str, src: str) -> None:
    from cm3kit.web.record import Record, html_to_record
    from cm3kit_tokenizers.site import Site

    filled = html.replace("<mask>", "words")
    record = html_to_record(filled.encode(), Site(site / "pages", site / "pages"))
    assert isinstance(record, Record) and [each.src for each in record.pictures] == [src]


@pytest.mark.parametrize(("html", "code", "words"), LOST)
def test_a_caption_alone_without_its_picture_is_refused(site: Path, html: str, code: str, words: str) -> None:
    with pytest.raises(PictureError, match="Line 1") as error:
        Sight(Page.parse(html.encode(), site / "pages"))
    assert error.value.code == code and words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("html", "code", "words"), LOST)
def test_beside_other_gaps_it_is_said(site: Path, html: str, code: str, words: str) -> None:
    sight = Sight(Page.parse((html + "<p><mask></p>").encode(), site / "pages"))
    assert len(sight.warnings) == 1 and words in sight.warnings[0]
    assert not any(isinstance(node, Picture) for node in sight.nodes)


def test_a_placeholder_that_is_read_is_named(site: Path) -> None:
    page = Page.parse(b"<img alt='<mask>' data-src=gone.png src=a.png><p>x", site / "pages")
    sight = Sight(page)
    assert [node.src for node in sight.nodes if isinstance(node, Picture)] == ["a.png"]
    (line,) = sight.warnings
    assert "gone.png" in line and "placeholder 'a.png'" in line
    page = Page.parse(b"<img alt='<mask>' data-src=img/b.png src=a.png>", site / "pages")
    assert not Sight(page).warnings


def test_the_site_s_folder_opens_what_the_page_s_does_not(site: Path) -> None:
    for src in ("../img/banana.png", "/img/banana.png", "link.png", f"file://{site}/img/banana.png"):
        page = Page.parse(f"<img alt='<mask>' src='{src}'>".encode(), site / "pages", site)
        assert any(isinstance(node, Picture) for node in Sight(page).nodes), src
    for src in ("../../x.png", "/../x.png", "file:///etc/passwd", "..\\..\\x.png"):
        with pytest.raises(PictureError) as error:
            Sight(Page.parse(f"<img alt='<mask>' src='{src}'>".encode(), site / "pages", site))
        assert error.value.code == "picture_outside"
    with pytest.raises(PictureError, match="below"):
        Page.parse(b"<mask>", site / "pages", site / "img")


def test_what_the_command_says(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = site / "pages/p.html"
    page.write_text("<p>A <mask>.</p><img alt='<mask>' src=../img/banana.png>", encoding="utf-8")
    asked = ["infill", str(page), "--seed", "1", "--max-tokens", "3", "--json", "-o"]
    assert run([*asked, str(site / "pages/o1.html")]) == 0
    out, err = capsys.readouterr()
    (line,) = json.loads(out)["warnings"]
    assert "banana.png" in line and "--root" in line and line in err
    assert json.loads(sidecar(site / "pages/o1.html").read_text())["warnings"] == [line]
    assert run([*asked, str(site / "pages/o2.html"), "--root", str(site)]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == []
    assert run(["reproduce", str(site / "pages/o2.html"), "--check"]) == 0
    assert run([*asked, str(site / "o3.html"), "--root", str(site / "none")]) == 1
    capsys.readouterr()
    page.write_text("<img alt='<mask>' src=../img/banana.png>", encoding="utf-8")
    assert run([*asked, str(site / "o3.html")]) == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "picture_outside"
    assert not (site / "o3.html").exists()


# What browsers show instead of src, and what is left of it once it is taken away.
COVERED = [
    ('<picture><source srcset="old.png"><img src="<mask>" alt=x></picture>', "<source>"),
    ('<img srcset="old.png 1x, old.png 2x" src="<mask>">', "srcset"),
    ('<img src="<mask>" sizes=10px srcset="old.png 10w">', "srcset"),
    ('<picture><source media="(min-width: 1px)" srcset=old.png><img src="<mask>"></picture>', "<source>"),
]
SHOWN = [
    '<picture><img src="<mask>"><source srcset="old.png"></picture>',
    '<picture><source srcset=" , "><source srcset><source src="old.png"><img src="<mask>"></picture>',
    '<p><source srcset="old.png"><img src="<mask>"></p>',
    '<picture><source srcset="old.png"><span><img src="<mask>"></span></picture>',
]


@pytest.mark.parametrize(("html", "name"), COVERED)
def test_what_hides_a_drawn_picture_is_said_or_taken_away(html: str, name: str) -> None:
    page = Page.parse(html.encode())
    (line,) = page.covered()
    assert name in line and "--uncover" in line
    assert page.splice({0: "new.png"}) == html.replace("<mask>", "new.png").encode()
    bare = page.uncovered()
    assert bare.covered() == ()
    assert b"old.png" not in bare.splice({0: "new.png"}) and b"new.png" in bare.splice({0: "new.png"})
    for before in (b"", b"<p>caf\xe9 <mask></p>"):
        page = Page.parse(before + html.encode() + b"<p>more <mask></p>").uncovered()
        written, spans = page.splice_spans({gap.index: "new" for gap in page.gaps})
        assert [written[slice(*span)] for span in spans] == [b"new"] * len(page.gaps)


@pytest.mark.parametrize("html", SHOWN)
def test_what_hides_nothing_is_left_alone(html: str) -> None:
    page = Page.parse(html.encode())
    assert page.covered() == () and page.uncovered().covers == ()


@pytest.fixture(scope="module")
def chromium() -> Iterator[browsers.Browser]:
    page = browsers.Browser(400, 300)
    yield page
    page.close()


CHROMIUM = pytest.mark.skipif(browsers.PROGRAM is None, reason="Chromium is not installed")


def loaded(chromium: browsers.Browser, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    chromium.call("Page.navigate", url=path.as_uri())
    chromium.wait(f"document.readyState === 'complete' && location.href === {json.dumps(path.as_uri())}", 20)


@CHROMIUM
def test_browsers_agree_on_what_is_shown(chromium: browsers.Browser, tmp_path: Path) -> None:
    (tmp_path / "old.png").write_bytes(saved((10, 10)))
    (tmp_path / "new.png").write_bytes(saved((20, 20)))
    shown = "document.images[0].currentSrc.split('/').pop()"
    for place, html in enumerate([*(html for html, _ in COVERED), *SHOWN]):
        page = Page.parse(html.encode())
        for each, name in ((page, "old.png" if page.covered() else "new.png"), (page.uncovered(), "new.png")):
            loaded(chromium, tmp_path / f"{place}-{len(each.covers)}.html", each.splice({0: "new.png"}))
            assert chromium.run(shown) == name, html


LABELS = (
    "utf8 latin1 iso-8859-1 windows-1251 koi8-r koi8-u x-mac-cyrillic macintosh gbk gb2312 big5 shift_jis euc-jp"
    " euc-kr iso-8859-2 iso-8859-15 iso-8859-9 iso-8859-11 utf-16 utf-7 bogus ascii ibm866 windows-874 windows-1258"
).split()


@CHROMIUM
def test_browsers_agree_on_encodings(chromium: browsers.Browser, tmp_path: Path) -> None:
    import encodings.aliases as aliases

    def plain(name: str) -> str:
        name = name.lower().replace("windows-", "cp").replace("-", "_")
        name = {"gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "big5": "big5hkscs"}.get(
            name, name
        )
        name = {"ibm866": "cp866", "macintosh": "mac_roman", "x_mac_cyrillic": "mac_cyrillic"}.get(name, name)
        return aliases.aliases.get(name, name).replace("utf8", "utf_8").replace("iso8859_8_i", "iso8859_8")

    pages = [f"<meta charset={label}><p>caf".encode() + b"\xe9 <mask></p>" for label in LABELS]
    pages += [
        b"<p>caf\xe9 <mask></p>",
        b"<!-- <meta charset=koi8-r> --><p>\xe9 <mask>",
        b"<meta http-equiv=content-type content='text/html; charset = koi8-r'><p>\xe9 <mask>",
        b"<meta content='text/html; charset=koi8-r'><p>\xe9 <mask>",
        b"<meta name=a>" * 100 + b"<meta charset=koi8-r><p>\xe9 <mask>",
        b"<!--" + b"-" * 1100 + b"--><p>x</p><meta charset=koi8-r><p>\xe9 <mask>",
        b"<p title='<meta charset=koi8-r>'><p>\xe9 <mask>",
        b"\xef\xbb\xbf<meta charset=koi8-r><p><mask>",
    ]
    for place, data in enumerate(pages):
        loaded(chromium, tmp_path / f"{place}.html", data)
        ours = Page.parse(data).codec.replace("-", "_").replace("iso8859_", "iso8859_")
        there = plain(chromium.run("document.characterSet"))
        assert ours == there, (data, ours, there)


# Content for elements that hold no text of their own: the element it has to be in, and how the words read there.
ROOMS = [
    ("<table><mask></table>", None, "TD"),
    ("<table><tr><mask></tr></table>", None, "TD"),
    ("<table><tbody><mask></tbody></table>", None, "TD"),
    ("<table><tr><td>x</td><mask></tr></table>", None, "TD"),
    ("<table><tr><th>x<tr><mask></table>", None, "TD"),
    ("<table><tr><td><mask></td></tr></table>", None, "TD"),
    ("<table><caption><mask></caption></table>", None, "CAPTION"),
    ("<table><tr><td>a<td>b</table>", "table", "TD"),
    ("<table><tr><td>a<td>b</tr></table>", "tr", "TD"),
    ("<table><thead><tr><td>a</thead></table>", "thead", "TD"),
    ("<ul><li>a</ul>", "ul", "LI"),
    ("<ul><mask></ul>", None, "LI"),
    ("<dl><mask></dl>", None, "DD"),
    ("<p>a</p>", "p", "P"),
]


def with_gaps(html: str, css: str | None) -> Page:
    page = Page.parse(html.encode())
    return page.select(css) if css else page


@CHROMIUM
@pytest.mark.parametrize(("html", "css", "element"), ROOMS)
def test_words_stay_in_their_element(
    chromium: browsers.Browser, tmp_path: Path, html: str, css: str | None, element: str
) -> None:
    page = with_gaps(html, css)
    page.nodes()
    nodes = (Markup("<p>"), Text("ONE"), Markup("</p>"), Markup("<p>"), Text("TWO"), Markup("</p>"))
    for name, fill in (("nodes", nodes), ("text", "ONE TWO")):
        loaded(chromium, tmp_path / f"{name}.html", page.splice({0: fill}))
        found = chromium.run(
            "(() => { const walk = document.createTreeWalker(document.body, 4), found = [];"
            " while (walk.nextNode()) if (/ONE|TWO/.test(walk.currentNode.data)) {"
            f" const e = walk.currentNode.parentElement.closest('{element}');"
            " found.push(e ? e.tagName : '?'); } return found; })()"
        )
        assert found and set(found) == {element}
        assert "ONETWO" not in chromium.run("document.body.innerText")


@pytest.mark.parametrize(
    ("html", "css", "words"),
    [
        ("<head><mask></head>", None, "<head>"),
        ("<table><colgroup><mask></colgroup></table>", None, "colgroup"),
        ("<select><option>a</select>", "select", "<select>"),
        ("<picture><img src=a></picture>", "picture", "<picture>"),
        ("<video></video>", "video", "<video>"),
        ("<p>x</p></mask>", None, "ends no gap"),
        ("<mask><b>banana</b></mask>", None, "ends no gap"),
        ("<p>a", "body", "no tag in the page"),
    ],
)
def test_what_holds_no_text_is_refused_in_a_line(html: str, css: str | None, words: str) -> None:
    with pytest.raises(PageError) as error:
        with_gaps(html, css)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("html", "gaps", "left"),
    [
        ("<p>A <mask>banana</mask> here</p>", ["<mask>banana</mask>"], "<p>A X here</p>"),
        ("<mask size=3>two words</MASK >!", ["<mask size=3>two words</MASK >"], "X!"),
        ("<title><mask>x</mask></title>", ["<mask>x</mask>"], "<title>X</title>"),
        ("<p title='a <mask>b</mask> <mask>'>", ["<mask>b</mask>", "<mask>"], "<p title='a X X'>"),
        ("<img src='<mask>old.png</mask>'>", ["<mask>old.png</mask>"], "<img src='X'>"),
        ("<mask>a<mask>b</mask>", ["<mask>", "<mask>b</mask>"], "XaX"),
        ("<svg><mask id=m><path/></mask></svg><mask>", ["<mask>"], "<svg><mask id=m><path/></mask></svg>X"),
        ("<!-- </mask> --><mask>", ["<mask>"], "<!-- </mask> -->X"),
        ("<script>'</mask>'</script><mask>", ["<mask>"], "<script>'</mask>'</script>X"),
    ],
)
def test_the_end_tag_of_a_gap_goes_with_it(html: str, gaps: list[str], left: str) -> None:
    page = Page.parse(html.encode())
    assert [html[gap.start : gap.end] for gap in page.gaps] == gaps
    assert page.splice({gap.index: "X" for gap in page.gaps}) == left.encode()


@CHROMIUM
def test_selectors_match_as_in_a_browser(chromium: browsers.Browser, tmp_path: Path) -> None:
    html = (
        "<template><p>t</p><div><p>u</p></div></template><p>a</p><noscript><p>n</p><img src=a></noscript>"
        "<div class='x y'><p id=b>b<i>c</i></p></div><img src=b><svg><p/></svg><ul><li>1<li>2</ul>"
    )
    loaded(chromium, tmp_path / "p.html", html.encode())
    for css in (
        "p",
        "img",
        ".x p",
        "p:first-child",
        "li:nth-child(2)",
        "p ~ div",
        "div > *",
        "p:not(#b)",
        "[class~=y]",
    ):
        there = chromium.run(f"document.querySelectorAll({json.dumps(css)}).length")
        page = Page.parse(html.encode()).select(css)
        assert len(page.gaps) + len(page.notes) == there, css
    with pytest.raises(PageError, match="matches"):
        Page.parse(html.encode()).select("template p")


def test_what_lies_in_another_match_is_left_out_and_named() -> None:
    page = Page.parse(b"<ul><li>a<ul><li>b</li></ul></li><li>c</li></ul>").select("li")
    assert page.splice({gap.index: "X" for gap in page.gaps}) == b"<ul><li>X</li><li>X</li></ul>"
    (note,) = page.notes
    assert "skips a match" in note and "<li>" in note
    assert Sight(page).warnings == (note,)


def test_one_match_that_cannot_be_filled_does_not_refuse_the_others() -> None:
    page = Page.parse(b"<p class=a>x</p><script class=a>y</script><svg class=a></svg>").select(".a")
    assert [gap.element for gap in page.gaps] == ["p"] and len(page.notes) == 2
    assert all("skips a match" in note for note in page.notes)


BOX = (4, 6, 10, 8)


def drawn(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(patched(data, Image.new("RGB", BOX[2:], (10, 200, 30)), BOX, png_marks())))


def kept(before: Image.Image, after: Image.Image) -> bool:
    """Whether every pixel outside of the box has the value that it had, and some inside has another."""
    old, new = np.array(before), np.array(after)
    x, y, width, height = BOX
    inside = np.zeros(old.shape[:2], bool)
    inside[y : y + height, x : x + width] = True
    same = (old == new).reshape(*old.shape[:2], -1).all(-1)
    return bool(same[~inside].all() and not same[inside].all())


def noise(mode: str) -> Image.Image:
    rng = np.random.default_rng(7)
    bands = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,)}.get(mode, ())
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65536, (32, 40), dtype=np.uint16))
    if mode == "1":
        return Image.fromarray(rng.integers(0, 2, (32, 40)).astype(bool))
    pixels = Image.fromarray(
        rng.integers(0, 256, (32, 40, *bands), dtype=np.uint8), None if mode == "P" else mode
    )
    return pixels


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "I;16", "P", "P-clear", "RGB-clear"])
def test_outside_the_box_nothing_changes(mode: str) -> None:
    out = io.BytesIO()
    picture = noise(mode.partition("-")[0])
    more: dict[str, object] = {}
    if mode.startswith("P"):
        picture = noise("RGB").quantize(13)
        more = {"transparency": bytes([0, 128, 255])} if "-" in mode else {}
    elif "-" in mode:
        more = {"transparency": (10, 200, 30)}
    picture.save(out, "PNG", icc_profile=b"profile" * 10, **more)
    data = out.getvalue()
    before, after = Image.open(io.BytesIO(data)), drawn(data)
    assert (after.mode, after.size, after.format) == (before.mode, before.size, "PNG")
    assert data[24:26] == after.fp.getvalue()[24:26] if after.fp else True
    assert after.info.get("icc_profile") == before.info["icc_profile"]
    assert after.info.get("transparency") == before.info.get("transparency")
    assert kept(before, after)
    x, y, width, height = BOX
    rgba = np.array(after.convert("RGBA").crop((x, y, x + width, y + height)))
    assert (rgba[..., 3] == 255).all()


@pytest.mark.parametrize(
    ("form", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("WEBP", "RGBA"), ("BMP", "RGB"), ("GIF", "P")]
)
def test_other_formats_become_a_png_of_the_same_pixels(form: str, mode: str) -> None:
    out = io.BytesIO()
    (noise("RGB").quantize(20) if mode == "P" else noise(mode)).save(out, form)
    before = Image.open(io.BytesIO(out.getvalue()))
    after = drawn(out.getvalue())
    assert after.mode == before.mode and kept(before, after)


def test_turned_pictures_are_upright_outside_the_box() -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    noise("RGB").save(out, "PNG", exif=exif)
    before = ImageOps.exif_transpose(Image.open(io.BytesIO(out.getvalue())))
    after = drawn(out.getvalue())
    assert after.size == (32, 40) == before.size and kept(before, after) and not after.getexif().get(0x0112)


def refused_pictures() -> Iterator[tuple[str, bytes]]:
    frames = [noise("RGB"), noise("RGB").rotate(90)]
    for form in ("GIF", "PNG", "WEBP", "AVIF"):
        out = io.BytesIO()
        frames[0].save(out, form, save_all=True, append_images=frames[1:])
        yield "frames", out.getvalue()
    out = io.BytesIO()
    noise("RGB").convert("CMYK").save(out, "JPEG")
    yield "CMYK", out.getvalue()
    wide = bytearray(saved())
    wide[24] = 16
    import zlib

    def chunk(name: bytes, content: bytes) -> bytes:
        return len(content).to_bytes(4) + name + content + zlib.crc32(name + content).to_bytes(4)

    head = (40).to_bytes(4) + (32).to_bytes(4)
    rows = b"".join(b"\0" + bytes(40 * 6) for _ in range(32))
    yield (
        "16 bits",
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head + b"\x10\x02\0\0\0")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b""),
    )
    rows = b"".join(b"\0" + bytes(10) for _ in range(32))
    yield (
        "2 bits",
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head + b"\x02\0\0\0\0")
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b""),
    )


def test_a_picture_that_cannot_be_kept_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    for words, data in refused_pictures():
        with pytest.raises(PictureError, match=words):
            patchable(data)
        (tmp_path / "a.png").write_bytes(data)
        with pytest.raises(PictureError, match=words) as error:
            Page.parse(b"<img src=a.png>", tmp_path).region("a.png", BOX)
        assert error.value.code == "bad_picture" and "\n" not in str(error.value)


def test_a_region_is_redrawn_in_the_page(site: Path) -> None:
    out = io.BytesIO()
    noise("RGBA").save(out, "PNG")
    (site / "pages/clear.png").write_bytes(out.getvalue())
    page = Page.parse(b"<base href=./><p>x<img src='/clear.png?v'></p>", site / "pages")
    page = page.region("clear.png?v", BOX)
    html = cm3kit.load("pictures").infill(page, seed=1)[0].html
    address = html.split(b"src='")[1].split(b"'")[0].decode()
    from cm3kit_tokenizers.pictures import resolve_src

    assert kept(noise("RGBA"), Image.open(io.BytesIO(resolve_src(address, None))))


def test_what_a_page_needs_beside_it_is_copied_or_named(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = site / "pages"
    (pages / "css").mkdir()
    (pages / "css/s.css").write_text(
        "@import 'more.css'; p{background:url(../a.png)} q{background:url( 'x.ttf' )}"
        "i{background:image-set('../set.png' type('image/png') 1x, url(../set2.png) 2x)}"
    )
    (pages / "css/more.css").write_text("b{background:url(https://e.org/x.png)}")
    (pages / "css/x.ttf").write_bytes(b"font")
    (pages / "j.js").write_text("1")
    (pages / "secret.env").write_text("key")
    for name in ("set.png", "set2.png", "early.png"):
        (pages / name).write_bytes(saved())
    page = pages / "p.html"
    page.write_text(
        "<link rel='stylesheet' href=css/s.css><link rel=preload imagesrcset='early.png 2x'>"
        "<script src=j.js></script><script src=secret.env></script>"
        "<img srcset='img/b.png 2x' src=gone.png alt=x><img src='q.png?resize=300'><img src=../img/banana.png>"
        "<link rel=stylesheet href=https://e.org/far.css><a href=other.html>o</a><p style='background:url(\"a.png\")'>"
        "<mask></p>",
        encoding="utf-8",
    )
    found = companions(Page.parse(page.read_bytes(), pages), site / "o")
    names = sorted(str(path.relative_to(site / "o")) for path, _ in found.files)
    assert names == [
        "a.png",
        "css/more.css",
        "css/s.css",
        "css/x.ttf",
        "early.png",
        "img/b.png",
        "j.js",
        "q.png?resize=300",
        "set.png",
        "set2.png",
    ]
    assert (
        len(found.left) == 2 and "secret.env" in " ".join(found.left) and "banana.png" in " ".join(found.left)
    )

    asked = ["infill", str(page), "--seed", "1", "--max-tokens", "3", "--json", "-o"]
    (site / "o/css").mkdir(parents=True)
    (site / "o/css/s.css").write_text("mine")
    assert run([*asked, f"{site}/o/"]) == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert (site / "o/css/more.css").is_file() and (site / "o/css/s.css").read_text() == "mine"
    assert any("s.css exists and is not overwritten" in line for line in warnings)
    assert run([*asked, f"{site}/one/p.html"]) == 0
    warnings = json.loads(capsys.readouterr().out)["warnings"]
    assert any("7 more" in line for line in warnings) and not (site / "one/j.js").exists()
    assert run([*asked, str(page), "--force"]) == 0
    assert not any("beside" in line for line in json.loads(capsys.readouterr().out)["warnings"])


def test_fills_are_written_in_the_page_s_own_encoding() -> None:
    page = Page.parse(b"<p>caf\xe9 <mask></p>")
    assert page.nodes()[1] == Text("café ") and page.splice({0: "crème"}) == b"<p>caf\xe9 cr\xe8me</p>"
    assert replace(page, gaps=()).splice({}) == b"<p>caf\xe9 <mask></p>"
