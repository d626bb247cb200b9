"""CM3: spans of a page move behind it, and the page is read left to right (arXiv:2201.07520, sec. 2).

A document D0 S0 D1 S1 D2 is laid out as

    <eod> D0 <mask:0> D1 <mask:1> D2 <eod> <mask:0> S0 <eoss> <mask:1> S1 <eoss>

The closing `<eod>` is at the end of the page, not of the row, so the model has the end of a page before it fills
the first gap, and a page that is generated from its start ends in the same way. As every span keeps its `<eoss>`,
a prompt needs no extra sentinel to end fills (unlike arXiv:2204.05999, sec. 2.2). If the preset ends spans only
with `<eod>`, that id follows the last span instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, ClassVar, Self

import torch
from pydantic import Field
from torch import Generator

from cm3kit.objectives.contract import Objective, ObjectiveSettings, TokenizerParts, Use
from cm3kit.objectives.hints import WIDTH, HintLaw, SizeHints
from cm3kit.objectives.masked_spans import MaskedSpans
from cm3kit.objectives.next_token import NextToken
from cm3kit.objectives.spans import PRESETS, Preset, count_law
from cm3kit.objectives.units import Units, cuts, policy, runs, segments, too_small, units, window
from cm3kit.registry import objective, span_law
from cm3kit.types import Example, Span
from cm3kit_tokenizers.errors import ConfigError, DataError
from cm3kit_tokenizers.vocab import Vocab


def halves(
    ids: Sequence[int], spans: Sequence[Span], vocab: Vocab, base: int = 0, end: int | None = Vocab.eoss
) -> tuple[list[int], list[int]]:
    """The document with sentinels for spans, and the spans, each after its sentinel and before `end`.

    >>> vocab = Vocab(9, 0)
    >>> halves([50, 51, 52], [Span(1, 2)], vocab) == ([50, 8, 52], [8, 51, vocab.eoss])
    True
    """
    document: list[int] = []
    moved: list[int] = []
    ending = [] if end is None else [end]
    place = 0
    for index, span in enumerate(spans, start=base):
        number = vocab.sentinel(index)
        document += [*ids[place : span.start], number]
        moved += [number, *ids[span.start : span.stop], *ending]
        place = span.stop
    return [*document, *ids[place:]], moved


class CausalMaskSettings(ObjectiveSettings):
    """Settings of the span masking.

    `preset` names the causal masking, `p_ar` replaces its share of documents without a span; `hints` are size hints of
    its spans.
    """

    name: str = "cm3"
    preset: str = "recommended"
    p_ar: float | None = Field(None, ge=0, le=1)
    hints: HintLaw = HintLaw()


@objective("cm3")
@dataclass(frozen=True)
class CausalMask:
    """Causal masking: replace spans of a page by sentinels and append them.

    Args:
        preset: the law of the spans: a name of `PRESETS`, or a `Preset`.
        continues: for each text id, whether it starts inside a UTF-8 character; no span starts or
            stops before such an id.
        image_length: codes of a whole picture; by default those of `grid`.
        grid: (rows, columns) of a picture's codes, needed for boxes.
        hints: write size hints after sentinels; off by default.
        preset_name: the name of the preset, which is saved with models.

    Raises:
        ConfigError: a name is unknown, or `grid` and `image_length` differ.
    """

    Settings: ClassVar[type[ObjectiveSettings]] = CausalMaskSettings
    copies: ClassVar[int] = 1
    masks: ClassVar[bool] = False

    vocab: Vocab
    preset: Preset | str = "recommended"
    continues: Sequence[bool] | None = None
    image_length: int = 0
    grid: tuple[int, int] | None = None
    hints: SizeHints | None = None
    preset_name: str = "recommended"
    chosen: Preset = field(init=False, repr=False)

    def __post_init__(self) -> None:
        chosen = PRESETS[self.preset] if isinstance(self.preset, str) else self.preset
        count_law[chosen.count]
        span_law[chosen.law]
        for name, _ in chosen.policies:
            if name != "free":
                policy[name]
        codes = self.grid[0] * self.grid[1] if self.grid else self.image_length
        if self.image_length not in (0, codes):
            raise ConfigError(
                f"image_length = {self.image_length}, but grid {self.grid} has {codes} codes.",
                code="bad_config",
            )
        if isinstance(self.preset, str):
            object.__setattr__(self, "preset_name", self.preset)
        object.__setattr__(self, "chosen", chosen)
        object.__setattr__(self, "image_length", codes)

    @classmethod
    def build(cls, settings: Any, parts: TokenizerParts) -> Self:
        """The objective from settings with the fields of `CausalMaskSettings`."""
        preset = PRESETS[settings.preset]
        if settings.p_ar is not None:
            preset = replace(preset, p_ar=settings.p_ar)
        hints = SizeHints.of(parts.vocab, parts.text, settings.hints) if settings.hints.share else None
        return cls(
            parts.vocab, preset, parts.continues, grid=parts.grid, hints=hints, preset_name=settings.preset
        )

    def uses(self, window: int) -> tuple[Use, ...]:
        """Infill behind the page, from left to right."""
        name, hints = self.preset_name, self.hints is not None
        asked = {"name": "cm3", "preset": name}
        return (Use(window=window, hints=hints, preset=name, objective=asked),)

    def validation(self) -> Mapping[str, Objective]:
        """The unmasked page, and the masked spans."""
        return {"": NextToken(self.vocab, self.continues), "fill_": MaskedSpans(self, self.vocab)}

    def make_examples(self, documents: Sequence[Sequence[int]], rng: Generator, budget: int) -> list[Example]:
        """An `example` of each document."""
        return [self.make_example(ids, rng, budget) for ids in documents]

    def make_example(self, ids: Sequence[int], rng: Generator, budget: int) -> Example:
        """Mask spans of one document (ids without `<eod>`), in at most `budget` ids.

        A document that is too long is sliced between pictures and characters; a slice has `<eod>` only
        where it reaches an end of the document. `spans` are positions in the whole document.

        Raises:
            ConfigError: `budget` is under 3, or the only picture of a document does not fit into it.
        """
        chosen = self.chosen
        keep, many, first, order, where = _draw(5, rng)
        growth = (3 if chosen.end == "eoss" else 2) + (WIDTH if self.hints else 0)
        n = (
            0
            if keep < chosen.p_ar or len(ids) < 2
            else count_law[chosen.count](many, chosen.least, chosen.most)
        )
        # Every span masks at least one id.
        n = min(n, self.vocab.sentinels, (budget - 2) // (growth + 1))
        part = self._slice(ids, budget - 2 - growth * n, where) or self._slice(ids, budget - 2, where)
        if part is None:
            raise too_small(budget)
        slice_ = ids[part.start : part.stop]
        spans: tuple[Span, ...] = ()
        room = min((budget - 2 - len(slice_)) // growth, self.vocab.sentinels)
        if min(n, room) > 0 and len(slice_) > 1:
            spans = self._spans(slice_, min(n, room), room, rng)
        if len(spans) == 1 and order < chosen.p_spm:
            spans = (Span(0, spans[0].stop),)
        base = min(int(first * (chosen.max_base + 1)), self.vocab.sentinels - len(spans))
        out = self._lay_out(slice_, spans, base, part, len(ids))
        hidden = [slice_[span.start : span.stop] for span in spans]
        return self.hints.put_in(out, hidden, base, rng) if self.hints else out

    def _slice(self, ids: Sequence[int], size: int, u: float) -> Span | None:
        if len(ids) <= size:
            return Span(0, len(ids))
        return window(cuts(ids, self.vocab, self.continues), size, u) if size > 0 else None

    def _lay_out(
        self, ids: Sequence[int], spans: tuple[Span, ...], base: int, part: Span, size: int
    ) -> Example:
        eod = self.vocab.eod
        per_span = self.chosen.end == "eoss"
        document, moved = halves(ids, spans, self.vocab, base, self.vocab.eoss if per_span else None)
        ending = [eod] if part.stop == size or (spans and not per_span) else []
        body = [*document, *ending, *moved] if per_span else [*document, *moved, *ending]
        out = [eod, *body] if part.start == 0 else body
        sentinels, weigh = self.vocab.sentinel_range, self.chosen.sentinel_weight
        low, high = sentinels.start, sentinels.stop
        weights = [weigh if low <= id < high else 1.0 for id in out]
        weights[0] = 0.0
        placed = tuple(Span(span.start + part.start, span.stop + part.start) for span in spans)
        return Example(out, weights, placed)

    def _spans(self, ids: Sequence[int], n: int, room: int, rng: Generator) -> tuple[Span, ...]:
        """Draw the policy of each of n spans, then its position; at most `room` spans, in order."""
        chosen = self.chosen
        if len(chosen.policies) == 1 and chosen.policies[0][0] == "free":
            return self._free(ids, n, rng)
        found = units(ids, self.vocab, self.continues)
        pools = {name: policy[name].pool(found, self.grid) for name, _ in chosen.policies if name != "free"}
        possible = [(name, weight) for name, weight in chosen.policies if name == "free" or pools[name]]
        names, totals = [name for name, _ in possible], list(accumulate(weight for _, weight in possible))
        if not totals or totals[-1] <= 0:
            return ()
        draws = iter(_draw(6 * n, rng))
        taken: list[Span] = []
        free = 0
        for left in range(n - 1, -1, -1):
            pick = next(draws) * totals[-1]
            name = names[next(index for index, total in enumerate(totals) if pick < total)]
            if name == "free":
                free += 1
                continue
            pool = [unit for unit in pools[name] if not _meets(unit, taken)] if taken else pools[name]
            if pool:
                unit = pool[int(next(draws) * len(pool))]
                taken += policy[name].shape(unit, found, self.grid, room - len(taken) - left - free, draws)
        if free:
            taken += [span for span in self._free(ids, free, rng, found) if not _meets(span, taken)]
        return tuple(sorted(taken, key=lambda span: span.start))

    def _free(
        self, ids: Sequence[int], n: int, rng: Generator, found: Units | None = None
    ) -> tuple[Span, ...]:
        chosen = self.chosen
        if found is None or chosen.split_images:
            places = cuts(ids, self.vocab, self.continues, chosen.split_images)
        else:
            places = found.cuts
        drawn = span_law[chosen.law](n, len(places) - 1, rng) or ()
        spans = tuple(Span(places[span.start], places[span.stop]) for span in drawn)
        if not chosen.clamp or not spans:
            return spans
        return tuple(_clamp(span, segments(runs(ids, self.vocab.image), len(ids))) for span in spans)

    def unmask(self, ids: Sequence[int], warn: Callable[[str], None] = lambda line: None) -> list[int]:
        """Put moved spans back, and drop `<eod>` and hints: the inverse of `make_example`.

        `warn` is called if records are out of order.

        Raises:
            DataError: a record has no end, a sentinel has no record, a record has no sentinel or two.
        """
        vocab, sentinels = self.vocab, self.vocab.sentinel_range
        document = list(ids)
        seen: set[int] = set()
        place = len(document)
        for index, id in enumerate(document):
            if id in seen:
                place = index
                break
            if id in sentinels:
                seen.add(id)
        records = self._records(document[place:])
        numbers = [number for number, _ in records]
        fills = dict(records)
        for number in numbers:
            if number not in seen:
                raise _damaged(f"span {number - sentinels.start} has no sentinel on the page")
            if numbers.count(number) > 1:
                raise _damaged(f"span {number - sentinels.start} occurs twice")
        if numbers != sorted(numbers):
            warn("spans are out of order")
        out: list[int] = []
        page = document[:place]
        for id in self.hints.without(page) if self.hints else page:
            if id in sentinels and id not in fills:
                raise _damaged(f"sentinel {id - sentinels.start} has no span")
            out += fills[id] if id in sentinels else [] if id == vocab.eod else [id]
        return out

    def _records(self, ids: list[int]) -> list[tuple[int, list[int]]]:
        """Each moved span: its sentinel and its ids."""
        sentinels, per_span = self.vocab.sentinel_range, self.chosen.end == "eoss"
        out: list[tuple[int, list[int]]] = []
        ended = True
        for id in ids:
            if id in sentinels and (ended or not per_span):
                out.append((id, []))
                ended = False
            elif ended or id in sentinels:
                raise _damaged(
                    "a span has no end" if id in sentinels else f"id {id} follows the end of a span"
                )
            elif id == (self.vocab.eoss if per_span else self.vocab.eod):
                ended = True
            else:
                out[-1][1].append(id)
        if not ended:
            raise _damaged("the last span has no end")
        return out


def _draw(count: int, rng: Generator) -> list[float]:
    return torch.rand(count, generator=rng, dtype=torch.float64).tolist()


def _meets(span: Span, others: Sequence[Span]) -> bool:
    return any(span.start < each.stop and each.start < span.stop for each in others)


def _clamp(span: Span, parts: Sequence[Span]) -> Span:
    """The largest intersection of a span with one of the parts."""
    common = [Span(max(span.start, part.start), min(span.stop, part.stop)) for part in parts]
    return max(common, key=lambda each: each.stop - each.start)


def _damaged(what: str) -> DataError:
    return DataError(f"the masked document is damaged: {what}.", code="bad_data")
