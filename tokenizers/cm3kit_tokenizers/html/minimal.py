"""CM3's minimal HTML as a flat list of nodes, and back to text (arXiv:2201.07520, sec. 3.1)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import turbohtml

from cm3kit_tokenizers.document import Gap, Image, Markup, Node, Picture, Text
from cm3kit_tokenizers.errors import PageError
from cm3kit_tokenizers.html.escape import escape_attribute, escape_text
from cm3kit_tokenizers.html.gaps import PageGap
from cm3kit_tokenizers.html.nesting import INLINE
from cm3kit_tokenizers.html.outline import SPACES, Event, Frame, Outline
from cm3kit_tokenizers.html.spans import is_html
from cm3kit_tokenizers.vocab import ATTRIBUTES, MARKUP, PLAIN, VOID

RENAMED = {"b": "strong", "i": "em"}
HIDDEN = frozenset({"script", "style", "template", "iframe", "noembed", "noframes", "textarea", "input"})
# Dropped with what is in them, unless a gap is.
BARE = frozenset(
    "header footer nav dialog noscript button select option optgroup datalist output progress meter label"
    " legend".split()
)
# Unwrapped, but what they hold does not run into the text before and after.
BLOCKS = frozenset(
    "address article aside body center details dir fieldset form hgroup hr listing main menu search section"
    " summary xmp caption plaintext".split()
)
# Lone surrogates: no bytes of a page and no character reference decode to them.
_MARK = re.compile("\ud800([0-9]+)\ud801")


def keep_all(src: str) -> bool:
    """Every picture's address is kept."""
    return True


def mark(index: int) -> str:
    """What stands for a gap while a page is parsed."""
    return f"\ud800{index}\ud801"


def minimal_nodes(tree: Any, gaps: Sequence[PageGap], usable: Callable[[str], bool]) -> list[Node]:
    """Minimal HTML of a tree whose gaps are written as `mark(index)`.

    Raises:
        PageError: gap_place for a gap in an element or attribute that minimal HTML drops.
    """
    walk = _Walk(gaps, usable)
    stack: list[Any] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, Frame):
            walk.outline.close(node)
        elif node is None:
            walk.outline.space()
        elif isinstance(node, turbohtml.Text):
            walk.text(str(node.data))
        elif isinstance(node, turbohtml.Element):
            walk.element(node, stack)
        elif isinstance(node, _Rest):
            walk.enter(node.element, node.children, stack)
        elif isinstance(node, turbohtml.Document):
            stack.extend(reversed(list(node.children)))
    writer = _Writer()
    for event in walk.outline.finish():
        writer.write(event)
    nodes = writer.nodes
    _all_there(nodes, gaps)
    return nodes


def _all_there(nodes: Iterable[Node], gaps: Sequence[PageGap]) -> None:
    found = {node.index for node in nodes if isinstance(node, Gap)}
    found |= {node.gap for node in nodes if isinstance(node, Picture) and node.gap is not None}
    for gap in gaps:
        if gap.index not in found:
            place = f"attribute {gap.attribute!r} of <{gap.element}>" if gap.attribute else f"<{gap.element}>"
            raise PageError(
                f"Line {gap.line}: a gap in the {place} cannot be filled by a model: minimal HTML drops it."
                " Fill text, or alt, src, title, href or a meta's content.",
                code="gap_place",
            )


@dataclass(frozen=True, slots=True)
class _Rest:
    """A table whose captions have been taken out in front of it."""

    element: Any
    children: list[Any]


class _Walk:
    """Turns elements and text of a tree into an outline."""

    def __init__(self, gaps: Sequence[PageGap], usable: Callable[[str], bool]) -> None:
        self.gaps = gaps
        self.usable = usable
        self.outline = Outline()
        self.seen: set[int] = set()

    def text(self, text: str) -> None:
        """Add a run of text, with the gaps in it."""
        for node in self._split(text):
            if isinstance(node, Text):
                self.outline.text(node.content)
            else:
                self.outline.atom("gap", (node,))

    def element(self, element: Any, stack: list[Any]) -> None:
        """Add a void element, or open one and put its children on the stack."""
        html = is_html(element)
        name = RENAMED.get(element.tag, element.tag)
        if html and name == "hr":
            self.outline.space()
        elif html and name in VOID:
            self._void(name, element)
        elif not html or name not in HIDDEN:
            children = list(element.children)
            captions = [child for child in children if _is_caption(child)] if name == "table" else []
            if captions:
                rest = [child for child in children if not _is_caption(child)]
                stack.append(_Rest(element, rest))
                stack.extend(reversed(captions))
            else:
                self.enter(element, children, stack)

    def enter(self, element: Any, children: list[Any], stack: list[Any]) -> None:
        """Open an element; its end and its children go on the stack."""
        html = is_html(element)
        name = RENAMED.get(element.tag, element.tag)
        frame: Frame | None = None
        if (html and name in BARE) or (not html and name == "svg"):
            frame = self.outline.open_unless_bare()
        elif html and name in PLAIN:
            frame = self.outline.open(name, (Markup(f"<{name}>"),))
        elif html and name == "a":
            pieces = self._attributes(name, element)
            frame = self.outline.open(name, (Markup("<a"), *pieces, Markup(">"))) if pieces else None
        if frame is not None:
            stack.append(frame)
        elif html and (name in BLOCKS or (name in PLAIN and name not in INLINE)):
            self.outline.space()
            stack.append(None)
        stack.extend(reversed(children))

    def _void(self, name: str, element: Any) -> None:
        if name == "br":
            self.outline.atom(name, (Markup("<br>"),), solid=False)
            return
        pieces = self._attributes(name, element)
        meant = name == "img" or Markup(' content="') in pieces
        if pieces and meant:
            self.outline.atom(name, (Markup(f"<{name}"), *pieces, Markup(">")))

    def _attributes(self, name: str, element: Any) -> tuple[Node, ...]:
        """Kept attributes in alphabetical order; an empty one is left out."""
        pieces: list[Node] = []
        for attribute in ATTRIBUTES[name]:
            value = element.attr(attribute)
            nodes = self._value(name, attribute, SPACES.sub(" ", str(value))) if value else ()
            if nodes:
                pieces += [Markup(f' {attribute}="'), *nodes, Markup('"')]
        return tuple(pieces)

    def _value(self, name: str, attribute: str, value: str) -> tuple[Node, ...]:
        nodes = self._split(value.strip(" "))
        gaps = [node for node in nodes if isinstance(node, Gap)]
        # The parser copies a misnested element with its attributes; a gap is asked once.
        if any(gap.index in self.seen for gap in gaps):
            return ()
        self.seen.update(gap.index for gap in gaps)
        if (name, attribute) != ("img", "src"):
            return tuple(nodes)
        src = "".join(node.content for node in nodes if isinstance(node, Text))
        if gaps:
            box = self.gaps[gaps[0].index].box
            return (Picture(src, box, gaps[0].index),) if box else (gaps[0],)
        return (Picture(src),) if src and self.usable(src) else ()

    def _split(self, text: str) -> list[Text | Gap]:
        nodes: list[Text | Gap] = []
        for i, part in enumerate(_MARK.split(text)):
            if i % 2:
                nodes.append(Gap(int(part), self.gaps[int(part)].kind))
            elif part:
                nodes.append(Text(part))
        return nodes


def _is_caption(node: Any) -> bool:
    return isinstance(node, turbohtml.Element) and node.tag == "caption"


class _Writer:
    """Writes events as nodes and collapses white space as a browser does."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.pre = 0
        self.pending = False
        self.fresh = True

    def write(self, event: Event) -> None:
        """Add one event."""
        if event.kind == "text":
            self._text(event.text)
        elif event.kind == "atom":
            self._atom(event)
        elif event.name in INLINE:
            if event.kind == "open":
                self._flush()
            self.nodes += event.nodes or (Markup(f"</{event.name}>"),)
        else:
            self.pending, self.fresh = False, True
            self.pre += (event.name == "pre") * (1 if event.kind == "open" else -1)
            self.nodes += event.nodes or (Markup(f"</{event.name}>"),)

    def _atom(self, event: Event) -> None:
        if event.name == "br":
            self.pending, self.fresh = False, True
        elif event.name != "meta":
            self._flush()
            self.fresh = False
        self.nodes += event.nodes

    def _text(self, text: str) -> None:
        if self.pre:
            self._append(text)
            return
        text = SPACES.sub(" ", text)
        core = text.strip(" ")
        self.pending = self.pending or (text.startswith(" ") and not self.fresh)
        if core:
            self._flush()
            self._append(core)
            self.fresh, self.pending = False, text.endswith(" ")

    def _flush(self) -> None:
        if self.pending:
            self._append(" ")
            self.fresh = True
        self.pending = False

    def _append(self, text: str) -> None:
        last = self.nodes[-1] if self.nodes else None
        if isinstance(last, Text):
            self.nodes[-1] = Text(last.content + text)
        else:
            self.nodes.append(Text(text))


def render(nodes: Iterable[Node], image_src: Callable[[Image], str] | None = None) -> str:
    """Nodes as HTML, every text escaped for its place; a gap is written `<mask>`.

    Args:
        nodes: balanced minimal HTML.
        image_src: gives the address of an encoded picture.

    Raises:
        ValueError: for unbalanced or unknown markup, or an `Image` without `image_src`.
    """
    out: list[str] = []
    opened: list[str] = []
    last: Node | None = None
    quoted = False
    for node in nodes:
        if isinstance(node, Markup):
            quoted = _markup(node.piece, opened, quoted)
            out.append(node.piece)
        elif isinstance(node, Gap):
            out.append("<mask>")
        else:
            text = _plain(node, image_src)
            if last == Markup("<pre>") and text.startswith("\n"):
                out.append("\n")
            out.append(escape_attribute(text) if quoted else escape_text(text))
        last = node
    if opened or quoted:
        raise ValueError(f"markup is not closed: {opened}")
    return "".join(out)


def _plain(node: Text | Image | Picture, image_src: Callable[[Image], str] | None) -> str:
    if isinstance(node, Text):
        return node.content
    if isinstance(node, Picture):
        return node.src
    if image_src is None:
        raise ValueError("nodes hold an Image; give image_src")
    return image_src(node)


def _markup(piece: str, opened: list[str], quoted: bool) -> bool:
    """Track what is open; returns whether an attribute value is."""
    if piece not in _PIECES:
        raise ValueError(f"{piece!r} is no piece of minimal HTML")
    top = opened[-1] if opened else ""
    in_tag = top.startswith("<")
    kind = _PIECES[piece]
    if quoted != (kind == "unquote") or in_tag != (kind in ("unquote", "attribute", "end")):
        raise ValueError(f"{piece!r} cannot stand here")
    if kind == "attribute":
        return True
    if kind in ("open", "begin"):
        opened.append(piece if kind == "begin" else piece[1:-1])
    elif kind == "end":
        opened.pop()
        opened.extend([top[1:]] if top[1:] not in VOID else [])
    elif kind == "close":
        if top != piece[2:-1]:
            raise ValueError(f"{piece!r} closes {top!r}")
        opened.pop()
    return False


def _kind(piece: str) -> str:
    if piece in ('"', ">"):
        return "unquote" if piece == '"' else "end"
    if piece.startswith(" "):
        return "attribute"
    if piece.startswith("</"):
        return "close"
    if not piece.endswith(">"):
        return "begin"
    return "void" if piece[1:-1] in VOID else "open"


_PIECES = {piece: _kind(piece) for piece in MARKUP}
