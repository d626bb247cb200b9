"""Pages and prompts laid out for a decoder: windows of a long page, pages by task, guidance prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from cm3kit.objectives import CausalMask
from cm3kit.types import Blank, Posed, Row
from cm3kit_tokenizers.document import Gap, Image, Markup, Node, Text
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.sequence import PageTokenizer
from cm3kit_tokenizers.vocab import Vocab

MAX_TOKENS = {"attribute": 48, "content": 96, "document": 256}


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch `start:stop` of a page's ids whose gaps are filled together."""

    start: int
    stop: int


def gaps_of(ids: Sequence[int | Gap]) -> Iterator[tuple[int, Gap]]:
    """Each gap with its place."""
    return ((place, each) for place, each in enumerate(ids) if isinstance(each, Gap))


def windows(
    ids: Sequence[int | Gap], longest: dict[int, int], window: int, around: int = 2
) -> list[Window]:  # fmt: skip
    """Cut a page around its gaps so that page and answers fit `window`; gaps that fit together stay together.

    Args:
        longest: for each place of a gap in `ids`, the most ids that its answer can take.
        around: ids that an answer takes besides, the place of the gap not counted: sentinel and end, or -1
            where the answer takes the gap's own place.

    Raises:
        ConfigError: the pieces of one picture do not fit (`too_long`).
    """
    groups: list[list[int]] = []
    for place in sorted(longest):
        group = [*groups[-1], place] if groups else [place]
        needs = sum(longest[each] + around for each in group) + group[-1] - group[0] + 1
        same = bool(groups) and _same_gap(ids[groups[-1][-1]], ids[place])
        if groups and (same or needs + 2 <= window - window // 4):
            groups[-1] = group
        else:
            groups.append([place])
    return [_around(ids, group, sum(longest[each] + around for each in group), window) for group in groups]


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


def picture_row(vocab: Vocab, ids: Sequence[int | Gap], codes: int, guided: bool) -> Row:
    """The page up to its picture, and the whole picture to write; the guide hides words (arXiv:2309.02591, 2.2)."""
    place, _ = next(gaps_of(ids))
    prompt = [vocab.eod, *(each for each in ids[:place] if isinstance(each, int))]
    words = [index for index, each in enumerate(prompt) if each in vocab.text]
    hidden = (*prompt[: words[0]], vocab.sentinel(0), *prompt[words[-1] + 1 :]) if words and guided else ()
    return Row(tuple(prompt), (Blank("image", codes, length=codes),), (hidden,) if hidden else ())


def image_nodes(text: str) -> list[Node]:
    """A picture whose words are given."""
    return [
        Markup("<img"), Markup(' alt="'), Text(text), Markup('"'),
        Markup(' src="'), Gap(0, "image"), Markup('"'), Markup(">"),
    ]  # fmt: skip


def title_nodes(text: str) -> list[Node]:
    """The start of a page about something."""
    return [Markup("<title>"), Text(text), Markup("</title>")]


def pair_nodes(text: str) -> list[Node]:
    """A picture and its words, both missing; of some kind of things where there is `text`."""
    pair: list[Node] = [
        Markup("<img"), Markup(' alt="'), Gap(0, "attribute"), Markup('"'),
        Markup(' src="'), Gap(1, "image"), Markup('"'), Markup(">"),
    ]  # fmt: skip
    if not text:
        return pair
    head: list[Node] = [*title_nodes(text), Markup("<h2>"), Text(text), Markup("</h2>")]
    return [*head, Markup("<figure>"), *pair, Markup("</figure>")]


def caption_nodes(codes: Sequence[int]) -> list[Node]:
    """A picture whose alt text is missing: CM3's masked caption prompt (arXiv:2201.07520, sec. 4.2.3)."""
    return [
        Markup("<img"), Markup(' alt="'), Gap(0, "attribute"), Markup('"'),
        Markup(' src="'), Image(tuple(codes)), Markup('"'), Markup(">"),
    ]  # fmt: skip


def paragraph_nodes(text: str) -> list[Node]:
    """A page about something whose paragraph is missing."""
    heading: list[Node] = [*title_nodes(text), Markup("<h1>"), Text(text), Markup("</h1>")]
    return [*heading, Markup("<p>"), Gap(0, "content"), Markup("</p>")]


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
