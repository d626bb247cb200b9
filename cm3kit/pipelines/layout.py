"""Pages and prompts as rows for a decoder: windows of a long page, guidance prompts, prompts by task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from cm3kit.objectives import CausalMask
from cm3kit.types import Blank, Posed, Row
from cm3kit_tokenizers.document import Gap, Image, Markup, Node, Text
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.sequence import PageTokenizer

MAX_TOKENS = {"attribute": 48, "content": 96, "document": 256}


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch `start:stop` of a page's ids whose gaps are filled together."""

    start: int
    stop: int


def windows(ids: Sequence[int | Gap], longest: dict[int, int], window: int) -> list[Window]:
    """Cut a page around its gaps so that prompt and answers fit `window`; gaps that fit together stay together.

    Args:
        longest: for each place of a gap in `ids`, the most ids that its answer can take.

    Raises:
        ConfigError: the pieces of one picture do not fit (`too_long`).
    """
    groups: list[list[int]] = []
    for place in sorted(longest):
        group = [*groups[-1], place] if groups else [place]
        needs = sum(longest[each] + 2 for each in group) + group[-1] - group[0] + 1
        same = bool(groups) and _same_gap(ids[groups[-1][-1]], ids[place])
        if groups and (same or needs + 2 <= window - window // 4):
            groups[-1] = group
        else:
            groups.append([place])
    return [_around(ids, group, sum(longest[each] + 2 for each in group), window) for group in groups]


def _same_gap(first: int | Gap, second: int | Gap) -> bool:
    return isinstance(first, Gap) and isinstance(second, Gap) and first.index == second.index


def _around(ids: Sequence[int | Gap], group: list[int], answers: int, window: int) -> Window:
    room = window - 2 - answers - (group[-1] - group[0] + 1)
    if room < 0:
        raise ConfigError(
            f"a gap needs {window - room} ids, but the model's window is {window}; lower --max-tokens or"
            " choose a smaller box.",
            code="too_long",
        )
    before = min(group[0], max(room // 2, room - (len(ids) - group[-1] - 1)))
    after = min(len(ids) - group[-1] - 1, room - before)
    return Window(group[0] - before, group[-1] + 1 + after)


def trim(ids: Sequence[int | Gap], window: Window, pictures: range) -> Window:
    """Narrow a window whose ends fall inside a picture's codes to the picture's edges."""
    start, stop = window.start, window.stop
    if start and _is_code(ids[start - 1], pictures):
        while start < stop and _is_code(ids[start], pictures):
            start += 1
    if stop < len(ids) and _is_code(ids[stop], pictures):
        while stop > start and _is_code(ids[stop - 1], pictures):
            stop -= 1
    gaps = [place for place in range(window.start, window.stop) if isinstance(ids[place], Gap)]
    return Window(min(start, gaps[0]), max(stop, gaps[-1] + 1))


def _is_code(id: int | Gap, pictures: range) -> bool:
    return isinstance(id, int) and id in pictures


def pose_window(
    objective: CausalMask, ids: Sequence[int | Gap], window: Window, max_tokens: int, seed: int
) -> Posed:
    """Lay a window out; like a slice in training it shows an end of the page only where it reaches one."""
    posed = objective.pose(ids[window.start : window.stop], max_tokens, seed)
    prompt = posed.row.prompt
    if window.stop < len(ids) and prompt[-1] == objective.vocab.eod:
        prompt = prompt[:-1]
    if window.start > 0:
        prompt = prompt[1:]
    return replace(posed, row=replace(posed.row, prompt=prompt))


def image_row(tokenizer: PageTokenizer, text: str, codes: int, seed: int, guided: bool) -> Row:
    """`<img alt="text" src="` and a whole picture to write; unguided by a hidden alt (arXiv:2309.02591, sec. 2.2)."""
    vocab = tokenizer.vocab
    alt, quote, src = (vocab.markup_id(piece) for piece in (' alt="', '"', ' src="'))
    head = (vocab.eod, vocab.markup_id("<img"), alt)
    hidden = (*head, vocab.sentinel(0), quote, src)
    prompt = (*head, *tokenizer.text_ids(text), quote, src)
    return Row(prompt, (Blank("image", codes, length=codes),), (hidden,) if guided else (), seed)


def document_row(tokenizer: PageTokenizer, text: str, max_tokens: int, seed: int) -> Row:
    """`<title>text</title>` and the rest of a page to write."""
    nodes: list[Node] = [Markup("<title>"), Text(text), Markup("</title>")]
    ids = [each for each in tokenizer.encode(nodes) if isinstance(each, int)]
    return Row((tokenizer.vocab.eod, *ids), (Blank("document", max_tokens),), (), seed)


def caption_nodes(codes: Sequence[int]) -> list[Node]:
    """A picture whose alt text is missing: CM3's masked caption prompt (arXiv:2201.07520, sec. 4.2.3)."""
    return [
        Markup("<img"), Markup(' alt="'), Gap(0, "attribute"), Markup('"'),
        Markup(' src="'), Image(tuple(codes)), Markup('"'), Markup(">"),
    ]  # fmt: skip


def paragraph_nodes(text: str) -> list[Node]:
    """A page about something whose paragraph is missing."""
    return [
        Markup("<title>"), Text(text), Markup("</title>"), Markup("<h1>"), Text(text), Markup("</h1>"),
        Markup("<p>"), Gap(0, "content"), Markup("</p>"),
    ]  # fmt: skip


def without_words(tokenizer: PageTokenizer, ids: Sequence[int | Gap]) -> list[int | Gap]:
    """Only the pictures that have gaps, without alt or title: what guidance compares a page with."""
    vocab = tokenizer.vocab
    opening, src, quote, closing = (vocab.markup_id(piece) for piece in ("<img", ' src="', '"', ">"))
    out: list[int | Gap] = []
    for place, each in enumerate(ids):
        if each != src:
            continue
        end = next((i for i in range(place + 1, len(ids)) if ids[i] == quote), len(ids))
        value = list(ids[place + 1 : end])
        if any(isinstance(part, Gap) for part in value):
            out += [opening, src, *value, quote, closing]
    return out
