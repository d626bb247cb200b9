from __future__ import annotations

import re
import resource
import time

import pytest
import turbohtml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from justhtml import JustHTML

from cm3kit_tokenizers import Image, Markup, Page, PageError, Text
from cm3kit_tokenizers.html.spans import MAX_BYTES, RAW_TEXT, elements, parse_tree, runs, view
from cm3kit_tokenizers.vocab import MARKUP

PIECES = [
    b"<mask>", b"<MASK/>", b"<mask></mask>", b'alt="<mask>"', b"<img alt='a <mask> b' src=\"<mask>\">",
    b"<p class=a>", b"</p>", b"<p CLASS='b' class=c ID=d>", b"<title>t<mask>", b"</title>", b"<a href>",
    b"<a href=x title=<mask>", b"</a>", b"\r\n", b"\n", b"\r", b"\x00", b"<", b">", b'"', b"'", b"&", b"&am",
    b"&lt;", b"\xff\xfe",
    b"\xc3\xa9", b"\xc3", b"=",
    b"<!--c <b> -->", b"<!--", b"-->", b"<![CDATA[x]]>", b"<svg>", b"</svg>", b"<IMG SRC = x ALT= >",
    b"<img alt>",
    b"<b>", b"</b>", b"<table>", b"<tr>", b"<td>", b"</table>", b"<script>", b"</script>", b"<pre>", b"text",
    b" ", b"/",
    b"<textarea>", b"</textarea>", b"<ul>", b"<li>", b"<select>", b"<option>", b"<template>",
    b"</template>", b"<br/>",
]  # fmt: skip
HOSTILE = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=20).map(b"".join),
    st.lists(st.one_of(st.sampled_from(PIECES), st.binary(max_size=3)), max_size=12).map(b"".join),
)
EVIL = st.one_of(
    st.text(max_size=12),
    st.lists(
        st.sampled_from(
            ["<", ">", '"', "'", "&", "</p>", "</title>", "<script>", "-->", " onload=x", "amp;",
             "lt;", "#1", "=",
             "b", "\n",
             "\x00", "\r", "]]>", "/", "é", "\ud800", "\ufeff", "</mask>", "<mask>", "`"]
        ),
        max_size=6,
    ).map("".join),
)  # fmt: skip
SELECTORS = ["p", "img", "img@alt", "p@class", "li", "a@href", "b", "td", "a@data-x", "title"]
SETTINGS = settings(
    max_examples=500, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)


def parsed(data: bytes, selectors: list[str]) -> Page | None:
    """The page with as many of the selectors as it takes, or None where it is refused."""
    try:
        page = Page.parse(data)
    except PageError:
        return None
    for selector in selectors:
        try:
            page = page.select(selector)
        except PageError as error:
            assert "\n" not in str(error)
    return page


def other_bytes(page: Page) -> list[bytes]:
    cuts = [0, *(edge for gap in page.gaps for edge in (gap.start, gap.end)), len(page.data)]
    return [page.data[a:b] for a, b in zip(cuts[::2], cuts[1::2], strict=True)]


@SETTINGS
@given(HOSTILE, st.lists(st.sampled_from(SELECTORS), max_size=2), st.lists(EVIL, min_size=1, max_size=4))
@example(b"<p>\r\n<mask>\r\n</p>", ["p@class"], ["x"])
@example(b"\xef\xbb\xbf<!DOCTYPE html>\r\n<img alt=\r\n>", ["img@alt"], ["x"])
def test_every_other_byte_stays(data: bytes, selectors: list[str], fills: list[str]) -> None:
    page = parsed(data, selectors)
    if page is None:
        return
    assert page.splice({}) == data
    written = page.splice({gap.index: fills[gap.index % len(fills)] for gap in page.gaps})
    at = 0
    for n, kept in enumerate(other_bytes(page)):
        found = written.find(kept, at) if n else 0
        assert found >= at and written[found : found + len(kept)] == kept
        at = found + len(kept)
    marked = page.splice({gap.index: "(Q" for gap in page.gaps})
    for gap in reversed(page.gaps):
        piece = (gap.before + "(Q" + gap.after).encode()
        start = gap.start + sum(
            len(page.splice({earlier.index: "(Q"})) - len(data) for earlier in page.gaps[: gap.index]
        )
        assert marked[start : start + len(piece)] == piece
        marked = marked[:start] + data[gap.start : gap.end] + marked[start + len(piece) :]
    assert marked == data


def shape(text: str, page: Page) -> list[tuple[object, ...]]:
    """Every tag and attribute but those that are gaps, by turbohtml."""
    gone = {(gap.element, gap.attribute) for gap in page.gaps if gap.attribute}
    found: list[tuple[object, ...]] = []
    for element in turbohtml.parse(text).iter_elements():
        attributes = [(name, element.attr(name)) for name in element.attrs if (element.tag, name) not in gone]
        found.append((element.tag, *attributes))
    return found


def shape_by_justhtml(text: str, page: Page) -> list[tuple[object, ...]]:
    gone = {(gap.element, gap.attribute) for gap in page.gaps if gap.attribute}
    found: list[tuple[object, ...]] = []
    stack = [JustHTML(text, sanitize=False).root]
    while stack:
        node = stack.pop()
        stack.extend(reversed(getattr(node, "children", None) or []))
        attributes = getattr(node, "attrs", None) or {}
        found.append((node.name, *((k, v) for k, v in attributes.items() if (node.name, k) not in gone)))
    return [entry for entry in found if not str(entry[0]).startswith("#")]


@SETTINGS
@given(HOSTILE, st.lists(st.sampled_from(SELECTORS), max_size=2), EVIL)
@example(b"a &am<mask>p; b", [], "p;<x>")
@example(b"<title>x<mask></title>", [], "</title><script>")
@example(b"<img alt=x src=y>", ["img@alt"], '" onerror="')
def test_generated_text_changes_no_tag_and_no_attribute(data: bytes, selectors: list[str], evil: str) -> None:
    page = parsed(data, selectors)
    if page is None or not page.gaps:
        return
    calm = page.splice({gap.index: "QQ" for gap in page.gaps}).decode("latin-1")
    wild = page.splice({gap.index: "Q" + evil for gap in page.gaps}).decode("latin-1")
    assert shape(wild, page) == shape(calm, page)
    wild = page.splice({gap.index: evil + "Q" for gap in page.gaps}).decode("latin-1")
    assert shape(wild, page) == shape(calm, page)


@settings(SETTINGS, max_examples=250)
@given(HOSTILE, EVIL)
def test_an_independent_parser_agrees_that_no_tag_changes(data: bytes, evil: str) -> None:
    page = parsed(data, ["p@class"])
    if page is None or not page.gaps:
        return
    calm = page.splice({gap.index: "QQ" for gap in page.gaps}).decode("latin-1")
    wild = page.splice({gap.index: "Q" + evil for gap in page.gaps}).decode("latin-1")
    assert shape_by_justhtml(wild, page) == shape_by_justhtml(calm, page)


@SETTINGS
@given(
    HOSTILE,
    st.lists(st.one_of(st.sampled_from([Markup(piece) for piece in MARKUP]), EVIL.map(Text)), max_size=10),
)
def test_generated_markup_changes_no_other_tag(data: bytes, nodes: list[Markup | Text]) -> None:
    page = parsed(data, [])
    if page is None or not page.gaps:
        return
    fills: dict[int, str | bytes | tuple[Markup | Text, ...]] = {}
    for gap in page.gaps:
        fills[gap.index] = tuple(nodes) if gap.kind == "content" else "QQ"
    try:
        written = page.splice(fills)
    except ValueError:
        return
    # Nothing at all in the gaps of content: words in a list would bring their own item.
    nothing = {gap.index: () if gap.kind == "content" else "QQ" for gap in page.gaps}
    calm = page.splice(nothing).decode("latin-1")
    rest = shape(written.decode("latin-1"), page)
    # The page's own tags are still there, in order, among the generated ones.
    position = iter(rest)
    assert all(entry in position for entry in shape(calm, page))


@SETTINGS
@given(HOSTILE)
def test_spans_cover_the_source(data: bytes) -> None:
    if not data:
        return
    text = view(data)
    assert len(text) == len(data)
    try:
        tree = parse_tree(text)
    except PageError:
        return
    found = list(runs(text, tree))
    assert [run.start for run in found] == [0, *(run.end for run in found[:-1])] and found[-1].end == len(
        text
    )
    for element in elements(text, tree):
        start, end = element.start
        assert re.match(r"<[a-zA-Z]", text[start:end]) and text[end - 1] == ">"
        if element.end:
            assert re.fullmatch(r"</[a-zA-Z][^>]*>", text[slice(*element.end)], re.S) or "=" in text
        for name, attribute in element.attributes.items():
            value = "" if attribute.value is None else text[slice(*attribute.value)]
            if not re.search(r"[&\x00\r]", value):
                assert element.handle.attr(name) == value


def test_runs_tell_comments_from_text_and_ignored_tags() -> None:
    text = "a<!--x > y--><p b='>'>c</i>d<title><!--t--></title><!doctype html><script>'<!--'</script>e"
    found = [(run.kind, text[run.start : run.end]) for run in runs(text, parse_tree(text))]
    assert found == [
        ("text", "a"), ("comment", "<!--x > y-->"), ("tag", "<p b='>'>"), ("text", "c"),
        ("tag", "</i>"), ("text", "d"),
        ("tag", "<title>"), ("text", "<!--t-->"), ("tag", "</title>"), ("comment", "<!doctype html>"),
        ("tag", "<script>"), ("text", "'<!--'"), ("tag", "</script>"), ("text", "e"),
    ]  # fmt: skip


def test_gaps_in_source_order() -> None:
    data = b"<title><mask></title>\r\n<p>a <MASK/> b</p>\n<img alt='x <mask> y' src=\"<mask>\"><mask></mask>"
    page = Page.parse(data)
    assert [(gap.kind, gap.element, gap.attribute, gap.line) for gap in page.gaps] == [
        ("content", "title", None, 1),
        ("content", "p", None, 2),
        ("attribute", "img", "alt", 3),
        ("image", "img", "src", 3),
        ("content", "body", None, 3),
    ]
    assert [data[gap.start : gap.end] for gap in page.gaps] == [
        b"<mask>", b"<MASK/>", b"<mask>", b"<mask>", b"<mask></mask>",
    ]  # fmt: skip
    assert page.splice({0: "T", 3: b"\x89PNG", 4: "end"}) == (
        b"<title>T</title>\r\n<p>a <MASK/> b</p>\n"
        b"<img alt='x <mask> y' src=\"data:image/png;base64,iVBORw==\">end"
    )


def test_fills_are_escaped_for_their_place() -> None:
    page = Page.parse(b"<p><mask></p><img alt='<mask>' title=\"<mask>\">")
    assert page.splice({0: "a<b>&\"'", 1: "a<b>&\"'", 2: "a<b>&\"'"}) == (
        b"<p>a&lt;b&gt;&amp;\"'</p>"
        b"<img alt='a&lt;b&gt;&amp;&quot;&#39;' title=\"a&lt;b&gt;&amp;&quot;&#39;\">"
    )


def test_markup_fills_keep_to_their_place() -> None:
    nodes = (Markup("<p>"), Text("a<"), Markup("<em>"), Text("b"), Markup("</em>"), Markup("</p>"))
    assert Page.parse(b"<div><mask></div>").splice({0: nodes}) == b"<div><p>a&lt;<em>b</em></p></div>"
    assert Page.parse(b"<p><mask></p>").splice({0: nodes}) == b"<p>a&lt;<em>b</em></p>"
    assert Page.parse(b"<title><mask></title>").splice({0: nodes}) == b"<title>a&lt;b</title>"
    image = (Markup("<img"), Markup(' src="'), Image((1,)), Markup('"'), Markup(">"))
    assert Page.parse(b"<p><mask></p>").splice({0: image}, lambda _: "a&b") == b'<p><img src="a&amp;b"></p>'


def test_fills_of_the_wrong_kind_are_refused() -> None:
    page = Page.parse(b'<p><mask></p><img alt="<mask>">')
    with pytest.raises(TypeError, match="gap 0"):
        page.splice({0: b"x"})
    with pytest.raises(TypeError, match="gap 1"):
        page.splice({1: (Text("x"),)})
    with pytest.raises(KeyError, match="no gap 2"):
        page.splice({2: "x"})


def test_a_leading_line_break_in_pre_survives() -> None:
    written = Page.parse(b"<pre><mask></pre>").splice({0: "\nx"})
    assert turbohtml.parse(written.decode()).select("pre")[0].text == "\nx"


@pytest.mark.parametrize(
    ("data", "selector", "written"),
    [
        (b"<p class=intro>old <em>x</em></p>", "p.intro", b"<p class=intro>N</p>"),
        (b"<img class=hero>", "img.hero@alt", b'<img alt="N" class=hero>'),
        (b"<img\nclass=hero/>", "img@alt", b'<img alt="N"\nclass=hero/>'),
        (b"<img alt class=hero>", "img@alt", b'<img alt="N" class=hero>'),
        (b"<img alt= >", "img@alt", b'<img alt="N" >'),
        (b"<img alt\r\n=>", "img@alt", b'<img alt\r\n="N">'),
        (b"<IMG ALT=old>", "img@alt", b'<IMG ALT="N">'),
        (b"<img alt = 'old'>", "img@alt", b"<img alt = 'N'>"),
        (b"<img src=a.png>", "img", b'<img src="N">'),
        (b"<ul><li>a\n<li>b</ul>", "li:first-child", b"<ul><li>N\n<li>b</ul>"),
        (b"<ul><li>a <b>c</b></ul>d", "li", b"<ul><li>N</ul>d"),
        (b"<p>a", "p", b"<p>N"),
        (b"<p></p>", "p", b"<p>N</p>"),
        ("<p class=é>a</p>".encode(), "p.é", "<p class=é>N</p>".encode()),
        (
            b"<meta charset=windows-1251><p class=\xe9>a</p>",
            "p.й",
            b"<meta charset=windows-1251><p class=\xe9>N</p>",
        ),
        (b"<a href='x@y'>l</a>", "a[href='x@y']", b"<a href='x@y'>N</a>"),
    ],
)
def test_pointing_at_gaps(data: bytes, selector: str, written: bytes) -> None:
    page = Page.parse(data).select(selector)
    assert page.splice({0: "N"}) == written


def test_every_match_is_a_gap_and_two_attributes_can_be_inserted() -> None:
    page = Page.parse(b"<img><p>a</p><p>b</p>").select("p").select("img@title").select("img@alt")
    assert page.splice({0: "0", 1: "1", 2: "2", 3: "3"}) == b'<img alt="0" title="1"><p>2</p><p>3</p>'


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (b"", "empty_file", "empty"),
        (b"<script>\nx='<mask>'</script>", "gap_place", "Line 2: a gap is in a <script>"),
        (b"<style><mask></style>", "gap_place", "<style>"),
        (b"<textarea><mask></textarea>", "gap_place", "<textarea>"),
        (b"<!-- <mask> -->", "gap_place", "comment"),
        (b"<p <mask>=1>", "gap_place", "attribute's name"),
        (b"<p<mask>>", "gap_place", "name"),
        (b"<img alt=<mask>>", "gap_place", "unquoted"),
        (b'<img src="a/<mask>.png">', "gap_place", "part of src"),
        (b"a <<mask>b>", "gap_place", "directly follows"),
        ("<p>x <mask>".encode("utf-16"), "not_html", "UTF-16"),
        ("<p>x <mask>".encode("utf-16-le"), "not_html", "UTF-16"),
        ("<p>x <mask>".encode("utf-16-be"), "not_html", "UTF-16"),
        ("<p>x <mask>".encode("utf-32-be"), "not_html", "UTF-16"),
        (b"<meta charset=iso-2022-jp><mask>", "not_html", "iso-2022-jp"),
        (b"x" * (MAX_BYTES + 1), "page_too_large", "limit"),
        (b"<div>" * 100_000, "page_too_deep", "nested"),
    ],
)
def test_bad_pages_get_one_line(data: bytes, code: str, words: str) -> None:
    with pytest.raises(PageError) as error:
        Page.parse(data)
    assert error.value.code == code and words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("selector", "code", "words"),
    [
        ("p[", "bad_selector", "selector"),
        ("p.intr", "bad_selector", "'.intro'"),
        ("figur", "bad_selector", "'figure'"),
        ("#mian", "bad_selector", "'#main'"),
        ("br", "bad_selector", "br@name"),
        ("script", "gap_place", "<script>"),
        ("circle", "gap_place", "SVG"),
        ("p.intro", "gap_overlap", "overlaps"),
        ("h6", "gap_place", "closed in order"),
    ],
)
def test_bad_selectors_get_one_line(selector: str, code: str, words: str) -> None:
    page = Page.parse(
        b"<main id=main><p class=intro>a <mask></p><figure>f</figure><br><svg><circle/></svg>"
        b"<script>1</script><table><h6>x</table></main>"
    )
    with pytest.raises(PageError) as error:
        page.select(selector)
    assert error.value.code == code and words in str(error.value) and "\n" not in str(error.value)


def test_svg_keeps_its_own_mask() -> None:
    assert Page.parse(b"<svg><mask id=m><rect/></mask><defs><mask></mask></defs></svg>").gaps == ()
    assert len(Page.parse(b"<svg><foreignObject><p><mask></p></foreignObject></svg>").gaps) == 1
    assert Page.parse(b"<p>&lt;mask&gt; masked <masked> mask</p>").gaps == ()


def test_a_written_gap_encloses_nothing() -> None:
    page = Page.parse(b"<p><mask> a <em>b</em></p>").select("p > em")
    assert [gap.element for gap in page.gaps] == ["p", "em"]


@pytest.mark.parametrize(
    ("meta", "codec", "written"),
    [
        (b"", "cp1252", b"\xe9\x80&#1046;"),
        (b"<p>\xc3\xa9<!--" + b"-" * 2000 + b"--><meta charset=koi8-r>", "cp1252", b"\xe9\x80&#1046;"),
        (b"<meta name=x>" * 100 + b"<meta charset=koi8-r>", "koi8_r", b"&#233;&#8364;\xf6"),
        (b"<!--<meta charset=koi8-r>-->", "cp1252", b"\xe9\x80&#1046;"),
        (b"<meta charset=x-mac-cyrillic>", "mac_cyrillic", b"&#233;\xff\x86"),
        (b"<meta charset=latin1>", "cp1252", b"\xe9\x80&#1046;"),
        (b"<meta charset='windows-1251'>", "cp1251", b"&#233;\x88\xc6"),
        (
            b'<meta http-equiv=content-type content="text/html; charset=Shift_JIS">',
            "cp932",
            b"&#233;&#8364;\x84G",
        ),
        (b"<meta charset=utf-16>", "utf-8", "é€Ж".encode()),
        (b"<meta charset=utf-16><meta charset=koi8-r>", "utf-8", "é€Ж".encode()),
        (b"<meta charset=iso8859-2>", "iso8859-2", b"\xe9&#8364;&#1046;"),
        (b"<meta charset=bogus><meta charset=KOI8_R>", "koi8_r", b"&#233;&#8364;\xf6"),
        (b"\xef\xbb\xbf<meta charset=latin1>", "utf-8", "é€Ж".encode()),
    ],
)
def test_fills_are_written_in_the_encoding_of_the_page(meta: bytes, codec: str, written: bytes) -> None:
    page = Page.parse(meta + b"\xe9<p><mask></p>")
    assert page.codec == codec
    assert page.splice({0: "é€Ж"}) == meta + b"\xe9<p>" + written + b"</p>"


def test_invalid_bytes_are_read_as_replacement_characters_and_kept() -> None:
    page = Page.parse(b"\xef\xbb\xbf<p>a\xff\xc3(<mask></p>")
    assert page.nodes()[1] == Text("a\ufffd\ufffd(")
    assert page.splice({0: "x"}) == b"\xef\xbb\xbf<p>a\xff\xc3(x</p>"
    # Without a mark or a name such bytes are windows-1252's; those without a character are controls, as in browsers.
    page = Page.parse(b"<p>a\xff\x81(<mask></p>")
    assert page.nodes()[1] == Text("a\xff\x81(") and page.splice({0: "ü"}) == b"<p>a\xff\x81(\xfc</p>"


def test_regions() -> None:
    page = Page.parse(b"<img src='d/a.png'><img src=b.png><img src=c/b.png>")
    gap = page.region("a.png", (0, 0, 4, 4)).gaps[0]
    assert (gap.kind, gap.box, page.data[gap.start : gap.end]) == ("image", (0, 0, 4, 4), b"d/a.png")
    assert (
        page.region("b.png", (0, 0, 4, 4)).splice({0: "n.png"}).count(b'<img src="n.png"><img src=c/b.png>')
        == 1
    )
    for name, box, code in [
        ("png", (0, 0, 1, 1), "bad_selector"),
        ("e.png", (0, 0, 1, 1), "bad_selector"),
        ("a.png", (0, 0, 0, 1), "bad_box"),
        ("a.png", (-1, 0, 1, 1), "bad_box"),
    ]:
        with pytest.raises(PageError) as error:
            page.region(name, box)
        assert error.value.code == code
    with pytest.raises(PageError, match="overlaps"):
        page.region("a.png", (0, 0, 1, 1)).region("a.png", (2, 2, 1, 1))


@pytest.mark.parametrize(
    "data",
    [
        b"<" * 10_000_000, b"<div>" * 1_000_000, b"<!--" * 1_000_000, b"<p " + b"a=b " * 500_000 + b">", 
        b"<mask" * 100_000,
        b"<mask>" * 400, b"&" * 2_000_000, b"<b><p>" * 100, b"<title>" * 200_000, b"<table>" * 400,
        b"</" * 1_000_000,
        b"<p <mask> " * 50_000, b"<a href='<mask>'>" * 900, b"&am<mask>" * 400, b" <br> " * 30_000,
        b"<div>" * 400 + b"<p></p>" * 20_000, b"<p><table><td>" + b"<em>" * 400 + b"<div></div>" * 10_000,
    ],
    ids=lambda data: data[:12].decode(),
)  # fmt: skip
def test_hostile_sizes_end_soon(data: bytes) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    try:
        page = Page.parse(data)
        page.splice({gap.index: "x" for gap in page.gaps})
        page.nodes()
    except PageError as error:
        assert "\n" not in str(error)
    assert time.process_time() - started < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000


def test_raw_text_elements_are_those_of_the_standard() -> None:
    for name in RAW_TEXT:
        assert turbohtml.parse(f"<{name}><b>").select("b") == []
