from __future__ import annotations

import itertools
import random
import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cm3kit_tokenizers import Gap, Image, Markup, Node, Page, PageError, Picture, Text
from cm3kit_tokenizers.html import walk
from cm3kit_tokenizers.html.minimal import render
from cm3kit_tokenizers.html.nesting import fit
from cm3kit_tokenizers.html.outline import collapse
from cm3kit_tokenizers.vocab import MARKUP, VOID

NAMES = (
    "p div span b i em strong code a h1 h2 ul ol li dl dt dd table caption tr td th tbody pre section button"
    " object header nav title blockquote figure figcaption svg select option form label script style template"
    " br hr img meta input center font u textarea foreignObject math mi noscript iframe col colgroup html"
    " body head"
).split()
TAGS = st.builds(
    lambda name, attributes: "<" + name + "".join(attributes) + ">",
    st.sampled_from(NAMES),
    st.lists(
        st.sampled_from(
            [
                ' alt="x &amp; y"',
                " src=a.png",
                " href='u?a&b'",
                ' title="t\n\n t"',
                " class=k",
                " name=n",
                ' content="c"',
            ]
        ),
        max_size=2,
    ),
)
SOUP = st.lists(
    st.one_of(
        TAGS,
        TAGS,
        st.sampled_from(NAMES).map(lambda name: f"</{name}>"),
        st.sampled_from(
            [
                "a",
                " ",
                "\n",
                "x  y",
                "&lt;p&gt;",
                "&#13;",
                "&nbsp;",
                "&#xfeff;",
                "é",
                "\x00",
                "<",
                "&",
                "<!--c-->",
                "\r\n",
            ]
        ),
    ),
    max_size=25,
).map("".join)


def balanced(nodes: list[Node]) -> bool:
    opened: list[str] = []
    for node in nodes:
        if isinstance(node, Markup):
            piece = node.piece
            if piece.startswith("</"):
                if not opened or opened.pop() != piece[2:-1]:
                    return False
            elif piece.startswith("<") and piece.strip("<>") not in VOID:
                opened.append(piece.strip("<>"))
    return not opened


@settings(max_examples=700, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(SOUP, st.sampled_from(["", "<!DOCTYPE html>"]))
@example("<p><object><p>a<div>b</div>c</object>d</p>", "")
@example("<table><caption>a<a href=u>b</caption><tr><td><a href=u>c</table>", "")
@example("<li><section><li>a<li>b</section>c", "")
@example("<pre>\n\n a<section>b</section></pre><pre><table>\n<tr><td>x</table></pre>", "")
@example("<em><em><em><em><em><p>x</em>y</p>z</em>", "")
@example("<a href=u><b><p>x</a>y</b>z", "")
def test_minimal_html_is_its_own_minimal_html(soup: str, doctype: str) -> None:
    nodes = Page.parse((doctype + soup + "<p>end").encode()).nodes()
    assert all(node.piece in MARKUP for node in nodes if isinstance(node, Markup))
    assert balanced(nodes)
    assert not any(isinstance(a, Text) and isinstance(b, Text) for a, b in itertools.pairwise(nodes))
    text = render(nodes)
    if not text:
        assert nodes == []
        return
    assert Page.parse(text.encode()).nodes() == nodes
    assert Page.parse(b"<!DOCTYPE html>" + text.encode()).nodes() == nodes


def nodes_of(html: str) -> list[Node]:
    return Page.parse(html.encode()).nodes()


def minimal(html: str) -> str:
    return render(Page.parse(html.encode()).nodes())


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<p id=x>a <b>b</b> <i>c</i></p>", "<p>a <strong>b</strong> <em>c</em></p>"),
        ("<div><div><div><p>x</p></div></div></div>", "<div><p>x</p></div>"),
        ("<div><div>a</div><div>b</div></div>", "<div><div>a</div><div>b</div></div>"),
        ("<img title=t src=s.png alt=a width=3>", '<img alt="a" src="s.png" title="t">'),
        (
            "<meta property='og:title' content=T><meta charset=utf-8>",
            '<meta content="T" property="og:title">',
        ),
        ("<p>a<script>b</script><style>c</style><svg><text>d</text></svg>", "<p>a</p>"),
        ("<header>h</header><footer>f</footer><nav>n</nav><dialog open>d</dialog>m", "m"),
        ("<p> </p><ul><li><br></li></ul>x", "x"),
        ("a<span>b</span><section>c</section>d", "ab c d"),
        ("<p>a\n <em> b </em> c</p>", "<p>a <em>b</em> c</p>"),
        ("<pre>\n  a\n  b</pre>", "<pre>  a\n  b</pre>"),
        ("<pre>\n\na</pre>", "<pre>\n\na</pre>"),
        ("<p>caf&eacute; &lt;b&gt; &amp;</p>", "<p>café &lt;b&gt; &amp;</p>"),
        (
            "<table><caption>C</caption><tr><td>a<th>b</table>",
            "C<table><tr><td>a</td><th>b</th></tr></table>",
        ),
        ("<a name=n>x</a><a href=u title=t>y</a>", 'x<a href="u" title="t">y</a>'),
        ("<form><label>l</label><input value=v><button>b</button>text</form>", "text"),
        ("<title> T\n t </title>", "<title>T t</title>"),
    ],
)
def test_what_is_kept(html: str, expected: str) -> None:
    assert minimal(html) == expected


def test_plain_text_is_one_node() -> None:
    assert nodes_of("one two &amp; three") == [Text("one two & three")]


def test_picture_nodes_in_order() -> None:
    assert nodes_of('<img src="a.png" alt="A">') == [
        Markup("<img"), Markup(' alt="'), Text("A"), Markup('"'),
        Markup(' src="'), Picture("a.png"), Markup('"'), Markup(">"),
    ]  # fmt: skip


def test_unusable_pictures_keep_their_words() -> None:
    page = Page.parse(b'<img src="http://x/a.png" alt=A><img src="//x/b.png"><img src=c.png>')
    assert render(page.nodes(usable=lambda src: "//" not in src)) == '<img alt="A"><img src="c.png">'


def test_gaps_stand_where_they_were_written() -> None:
    page = Page.parse(b'<title>a <mask></title><p>b <mask> c</p><img src="<mask>" alt="x <mask>">')
    nodes = page.nodes()
    gaps = [node for node in nodes if isinstance(node, Gap)]
    assert [(gap.index, gap.kind) for gap in gaps] == [
        (0, "content"),
        (1, "content"),
        (3, "attribute"),
        (2, "image"),
    ]
    assert render(nodes) == '<title>a <mask></title><p>b <mask> c</p><img alt="x <mask>" src="<mask>">'


def test_an_element_of_a_gap_is_not_empty_and_a_header_with_one_stays() -> None:
    assert (
        minimal("<header><b>old</b><p><mask></p></header><nav>n</nav>") == "<strong>old</strong><p><mask></p>"
    )


def test_a_region_is_a_picture_with_a_box() -> None:
    page = Page.parse(b'<p>x</p><img src="d/a.png" alt=A>').region("a.png", (1, 2, 3, 4))
    assert Picture("d/a.png", (1, 2, 3, 4), 0) in page.nodes()


def test_a_gap_that_minimal_html_drops_is_refused() -> None:
    with pytest.raises(PageError, match="class") as error:
        Page.parse(b'<p>x</p>\n<p class="<mask>">y</p>').nodes()
    assert error.value.code == "gap_place" and "Line 2" in str(error.value)


def test_a_copied_element_asks_its_gap_once() -> None:
    nodes = Page.parse(b'<a href="<mask>">x<p>y</a>z</p>').nodes()
    assert [node for node in nodes if isinstance(node, Gap)] == [Gap(0, "attribute")]


def test_what_the_parser_takes_away_would_have_left_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    cleared, chance = walk.CLEAR, random.Random(6)
    assert not set(cleared.split(",")) & set(walk._RULES)
    names = (*NAMES, *cleared.split(","))
    bits = [
        *(f"<{name}>" for name in names),
        *(f"</{name}>" for name in names),
        *["a ", " b", "\n", "<mask>"] * 12,
    ]
    nested = 0
    for _ in range(1500):
        data = "".join(chance.choice(bits) for _ in range(chance.randrange(30))).encode()
        found = []
        for names_ in (cleared, "no-such-element"):
            monkeypatch.setattr(walk, "CLEAR", names_)
            try:
                found.append(Page.parse(data or b" ").nodes())
            except PageError as error:
                found.append([Text(str(error))])
        assert found[0] == found[1], data
        nested += len(found[0]) > 4
    assert nested > 300


@given(st.text(alphabet=" \t\n\f\r\x0b\u00a0\u2028ab\u00e9", max_size=20))
def test_runs_of_white_space_become_one_space(text: str) -> None:
    assert collapse(text) == re.sub(r"[ \t\n\f\r]+", " ", text)


@pytest.mark.parametrize(
    "nodes",
    [
        [Markup("<p>")],
        [Markup("</p>")],
        [Markup("<p>"), Markup("</div>")],
        [Markup("<img"), Text("x"), Markup(' alt="')],
        [Markup("<script>")],
        [Markup("<a"), Markup("<p>")],
        [Image((1, 2))],
    ],
)
def test_render_refuses_markup_that_is_not_balanced(nodes: list[Node]) -> None:
    with pytest.raises(ValueError, match=r"."):
        render(nodes)


def test_render_asks_for_the_address_of_an_image() -> None:
    nodes: list[Node] = [Markup("<img"), Markup(' src="'), Image((1, 2)), Markup('"'), Markup(">")]
    assert render(nodes, lambda image: f'{image.codes[0]}".png') == '<img src="1&quot;.png">'


def test_fit_drops_what_the_place_cannot_hold() -> None:
    inner = (Markup("<p>"), Text("a"), Markup("</p>"), Markup("<em>"), Text("b"))
    assert fit(inner, ("html", "body", "p")) == (
        Text("a"), Text(" "), Markup("<em>"), Text("b"), Markup("</em>"),
    )  # fmt: skip
    assert fit(inner, ("html", "head", "title")) == (Text("a"), Text(" "), Text("b"))
    assert fit((Markup("<li>"), Text("a"), Markup("</li>")), ("ul", "li", "em")) == (Text("a"),)
    assert fit((Markup("<p>"), Markup("<div>"), Text("a"), Markup("</div>"), Markup("</p>")), ()) == (
        Markup("<p>"), Markup("</p>"), Markup("<div>"), Text("a"), Markup("</div>"),
    )  # fmt: skip
