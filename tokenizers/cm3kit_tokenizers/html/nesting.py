"""Nesting rules of minimal HTML, so that written HTML parses back to the same tree.

The rules are the tree-construction rules of the WHATWG HTML standard, sec. 13.2.6, for the kept elements.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cm3kit_tokenizers.document import Markup, Node, Text
from cm3kit_tokenizers.vocab import ATTRIBUTES, PLAIN, VOID

INLINE = frozenset({"em", "strong", "code", "a"})
TEXT_ONLY = frozenset({"title", "option", "select", "textarea"})
OUTSIDE = "(outside)"

_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
_CLOSES_P = frozenset(PLAIN) - INLINE - {"title", "tr", "td", "th"}
_CELLS = frozenset({"td", "th", "caption", "applet", "marquee", "object", "template", OUTSIDE})
_P_SCOPE = _CELLS | {"table", "html", "button"}
# Elements that end the search for an open list item; all "special" ones except address, div and p.
_ITEM_SCOPE = _P_SCOPE | frozenset(
    "article aside blockquote body center dd details dir dl dt fieldset figcaption figure footer form h1 h2"
    " h3 h4 h5 h6 header hgroup li main menu nav ol pre search section select summary tbody tfoot thead tr"
    " ul".split()
)
# Elements that a start tag closes, if they are open with no element of the second set open inside.
_CLOSED: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "p": (frozenset({"p"}), _P_SCOPE),
    "li": (frozenset({"li"}), _ITEM_SCOPE),
    "dt": (frozenset({"dt", "dd"}), _ITEM_SCOPE),
    "a": (frozenset({"a"}), _CELLS),
}
_CLOSED_BY: dict[str, tuple[str, ...]] = {
    **{name: ("p",) for name in _CLOSES_P},
    "li": ("p", "li"),
    "dt": ("p", "dt"),
    "dd": ("p", "dt"),
    "a": ("a",),
}
ROW_PARENT = {"tr": frozenset({"table", "tbody", "thead", "tfoot"}), "td": {"tr"}, "th": {"tr"}}


GROUPS = tuple(_CLOSED)
CLOSED_BY: dict[str, tuple[int, ...]] = {
    name: tuple(map(GROUPS.index, groups)) for name, groups in _CLOSED_BY.items()
}
"""Per start tag, the groups (indices in `Stack.closes`) that it closes."""
TOUCHY = _HEADINGS | {"table", "tr"}
"""Elements that a start tag of another group closes if they are innermost."""

Closes = tuple[int | None, int | None, int | None, int | None]
NOTHING: Closes = (None, None, None, None)


def _modes() -> dict[str, tuple[int, ...]]:
    """Effect of opening an element on each group: keep the open one (0), hide it (1), become it (2)."""
    names = {name for sets in _CLOSED.values() for names in sets for name in names}
    return {
        name: tuple(2 if name in closed else 1 if name in scope else 0 for closed, scope in _CLOSED.values())
        for name in names
    }


MODES = _modes()
"""Elements whose opening changes what a start tag closes, and how."""
_STARTS = frozenset().union(*(closed for closed, _ in _CLOSED.values()))


class Stack:
    """The open elements, outermost first, and per group of `_CLOSED` the one that a tag would close."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names: list[str] = []
        self.closes: list[Closes] = []
        for name in names:
            self.push(name)

    def __len__(self) -> int:
        return len(self.names)

    def push(self, name: str) -> None:
        """Open an element."""
        above = self.closes[-1] if self.closes else NOTHING
        if name in MODES and (above is not NOTHING or name in _STARTS):
            place = len(self.names)
            p, item, term, link = above
            hide_p, hide_item, hide_term, hide_link = MODES[name]
            above = (
                place if hide_p == 2 else None if hide_p else p,
                place if hide_item == 2 else None if hide_item else item,
                place if hide_term == 2 else None if hide_term else term,
                place if hide_link == 2 else None if hide_link else link,
            )
            if above == NOTHING:
                above = NOTHING
        self.closes.append(above)
        self.names.append(name)

    def pop(self) -> str:
        """Close the innermost element."""
        self.closes.pop()
        return self.names.pop()

    def allowed(self, name: str) -> bool:
        """Whether a start tag is kept at all: rows in tables, cells in rows, nothing in a title."""
        top = self.names[-1] if self.names else ""
        return top not in TEXT_ONLY and top in ROW_PARENT.get(name, (top,))

    def conflict(self, name: str) -> int | None:
        """Index of the open element that a parser would close at `<name>`, or None."""
        if not self.names:
            return None
        for group in CLOSED_BY.get(name, ()):
            if (index := self.closes[-1][group]) is not None:
                return index
        if name in _HEADINGS and self.names[-1] in _HEADINGS:
            return len(self.names) - 1
        return None if name in ROW_PARENT else self.misplaced()

    def misplaced(self) -> int | None:
        """Index of the table or row that text or an inline element would be moved out of, or None."""
        above, top = ("", "", *self.names)[-2:] if len(self.names) < 2 else self.names[-2:]
        if top == "table" or (top == "tr" and above != "table"):
            return len(self.names) - 1
        return len(self.names) - 2 if top == "tr" else None


# Element into which text in a list is wrapped, and elements allowed there.
_ITEMS = {"ul": ("li",), "ol": ("li",), "menu": ("li",), "dl": ("dd", "dt")}


@dataclass(slots=True)
class _Open:
    name: str
    written: bool


class _Fitter:
    """Fits nodes into a context: closes and drops tags as a parser would."""

    def __init__(self, inside: tuple[str, ...]) -> None:
        self.out: list[Node] = []
        self.stack = Stack(inside)
        self.locked = len(inside)
        self.opened: list[_Open] = []
        self.written: list[_Open] = []
        self.parted = False
        self.item = _ITEMS.get(inside[-1] if inside else "")

    def text(self, node: Text) -> None:
        """Add a text, wrapped in an item if directly in a list."""
        if self.item and not self.written:
            if not node.content.strip():
                return
            self.open(self.item[0], [Markup(f"<{self.item[0]}>")])
        self.out.append(node)

    def open(self, name: str, pieces: list[Node]) -> None:
        if self.item and not self.written and name not in self.item and name != "br":
            self.open(self.item[0], [Markup(f"<{self.item[0]}>")])
        entry = _Open(name, self._make_room(name))
        if entry.written:
            self.out += pieces
        elif name not in INLINE:
            self._part()
        if name in VOID:
            return
        self.opened.append(entry)
        if entry.written:
            self.stack.push(name)
            self.written.append(entry)

    def _part(self) -> None:
        """A space at the start or end of a dropped block, so that words stay separate."""
        last = self.out[-1] if self.out else None
        if isinstance(last, Text) and not last.content[-1:].isspace():
            self.out.append(Text(" "))
            self.parted = True

    def _make_room(self, name: str) -> bool:
        while (index := self.stack.conflict(name)) is not None:
            if index < self.locked:
                return False
            self._close_to(index - self.locked)
        return self.stack.allowed(name)

    def _close_to(self, depth: int) -> None:
        while len(self.written) > depth:
            entry = self.written.pop()
            entry.written = False
            self.out.append(Markup(f"</{entry.name}>"))
            self.stack.pop()

    def close(self, name: str) -> None:
        """Close the innermost open `name`; no action if none is open."""
        if not any(entry.name == name for entry in self.opened):
            return
        while True:
            entry = self.opened.pop()
            if entry.written:
                self._close_to(next(i for i, open_ in enumerate(self.written) if open_ is entry))
            elif name not in INLINE:
                self._part()
            if entry.name == name:
                return

    def finish(self) -> tuple[Node, ...]:
        self._close_to(0)
        while self.parted and self.out and self.out[-1] == Text(" "):
            self.out.pop()
        return tuple(self.out)


def fit(nodes: Sequence[Node], inside: tuple[str, ...]) -> tuple[Node, ...]:
    """Nodes that close none of the elements `inside` (outermost first) when written inside them.

    Tags that are not allowed there are dropped and their content kept; open elements are closed; other nodes outside
    of attribute values are dropped.
    """
    fitter = _Fitter(inside)
    at = 0
    while at < len(nodes):
        node = nodes[at]
        end = at + 1
        if isinstance(node, Text):
            fitter.text(node)
        elif isinstance(node, Markup) and node.piece.startswith("</"):
            fitter.close(node.piece[2:-1])
        elif isinstance(node, Markup) and node.piece[1:] in ATTRIBUTES:
            end = _tag_end(nodes, at)
            if nodes[end - 1] == Markup(">"):
                fitter.open(node.piece[1:], list(nodes[at:end]))
        elif isinstance(node, Markup) and node.piece.startswith("<"):
            fitter.open(node.piece[1:-1], [node])
        at = end
    return fitter.finish()


def _tag_end(nodes: Sequence[Node], at: int) -> int:
    """The index after a start tag with attributes that begins at `at`."""
    return next((end + 1 for end in range(at, len(nodes)) if nodes[end] == Markup(">")), len(nodes))
