"""What each element of minimal HTML may hold so that an HTML5 parser sees the tree that was written.

A part of the content models of the HTML Standard, sec. 4; "" stands for text.
"""

from __future__ import annotations

HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
PHRASING = frozenset({"", "a", "br", "code", "em", "img", "strong"})
FLOW = PHRASING | {
    *HEADINGS, "blockquote", "div", "dl", "figure", "ol", "p", "pre", "table", "ul",
}  # fmt: skip
TOP = FLOW | {"meta", "title"}

CONTENT: dict[str, frozenset[str]] = {
    "title": frozenset({""}),
    **dict.fromkeys((*HEADINGS, "a", "code", "dt", "em", "p", "pre", "strong"), PHRASING),
    **dict.fromkeys(("blockquote", "dd", "div", "figcaption", "li", "td", "th"), FLOW),
    "figure": FLOW | {"figcaption"},
    "ul": frozenset({"li"}),
    "ol": frozenset({"li"}),
    "dl": frozenset({"dd", "dt"}),
    "table": frozenset({"tr"}),
    "tr": frozenset({"td", "th"}),
}
