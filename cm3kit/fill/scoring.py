"""How likely answers are in the gaps of a page, and whole pages: what `Kit.score` does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cm3kit.decoders.scoring import Method, Scored
from cm3kit.fill.answers import Answer, answer_ids
from cm3kit.fill.fillers import Ids, LoadedModel, Progress, ScoreHow
from cm3kit.fill.filling import Filled, PageFiller
from cm3kit.fill.layouts import put_in
from cm3kit.fill.options import ANSWER_TOKENS, GenerateOptions, chosen_style
from cm3kit.fill.sight import Sight
from cm3kit.fill.styles import spelling
from cm3kit.rng import stream
from cm3kit.types import Canvas, MaskSpan
from cm3kit_tokenizers.document import Gap
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.page import Page
from cm3kit_tokenizers.pictures import load_picture

Answers = Mapping[int, Answer]
"""Answers by the index of the gap."""


@dataclass(frozen=True, slots=True)
class Score:
    """How likely one answer is, or several gaps' together, or a page.

    Attributes:
        logprob: log p in nats, with the ends of the answers.
        tokens: ids that were scored, ends included.
        method: "exact"; "left-to-right", which is exact for writing in that order; or "bound", a lower one.
        stderr: standard error of a bound, 0 where nothing was estimated.
        gaps: for each gap that was answered its log-probability; None under a bound, which is of all together.
        logprobs: id by id, gap by gap; empty under a bound.
        prior: log p of the same answer on the page without its words and pictures, where that was asked for.
        prior_stderr: its standard error.
        windows: canvases that the page took.
        warnings: lines on what the model does not see of the page.
    """

    logprob: float
    tokens: int
    method: Method
    stderr: float = 0.0
    gaps: Mapping[int, float | None] | None = None
    logprobs: tuple[tuple[float, ...], ...] = ()
    prior: float | None = None
    prior_stderr: float = 0.0
    windows: int = 1
    warnings: tuple[str, ...] = ()

    @property
    def pmi(self) -> float | None:
        """log p(answer | page) - log p(answer), where the latter was asked for."""
        return None if self.prior is None else self.logprob - self.prior

    def record(self) -> dict[str, Any]:
        """For JSON."""
        told: dict[str, Any] = {
            "logprob": self.logprob, "tokens": self.tokens, "method": self.method, "windows": self.windows,
        }  # fmt: skip
        told |= {} if self.method != "bound" else {"stderr": self.stderr}
        told |= {} if self.gaps is None else {"gaps": {str(gap): value for gap, value in self.gaps.items()}}
        if self.prior is not None:
            told |= {"prior": self.prior, "pmi": self.pmi}
            told |= {} if self.method != "bound" else {"prior_stderr": self.prior_stderr}
        return told


@dataclass(slots=True)
class _Candidate:
    """The answers of one candidate, by gap and piece, on their way through the windows of a page."""

    answers: dict[tuple[int, int], tuple[int, ...]]
    ids: Ids
    parts: list[Scored]
    done: set[tuple[int, int]] = field(default_factory=set)


class PageScorer:
    """Scores answers in the gaps of one page; those of one window share what the model computes of the page."""

    def __init__(
        self,
        kit: LoadedModel,
        page: Page,
        candidates: Sequence[Answers],
        options: GenerateOptions,
        how: ScoreHow,
    ) -> None:
        self._kit, self._how = kit, how
        self._filler = PageFiller(kit, page, options, writes=False)
        known = {gap.index: gap for gap in page.gaps}
        for answers in candidates:
            if not answers or (wrong := [index for index in answers if index not in known]):
                what = f"gap {wrong[0]}" if answers else "no gap"
                raise ConfigError(
                    f"an answer is for {what}, and the page has gaps 0 to {len(known) - 1}; answer these.",
                    code="bad_value",
                )
        self._answers: list[dict[tuple[int, int], tuple[int, ...]]] = [
            {
                (index, part): ids
                for index, answer in answers.items()
                for part, ids in enumerate(answer_ids(kit, self._filler, known[index], answer))
            }
            for answers in candidates
        ]
        texts = {index for index, gap in known.items() if gap.kind != "image"}
        self._options = self._roomy(options, texts)

    def _roomy(self, options: GenerateOptions, texts: set[int]) -> GenerateOptions:
        """The options with room for the longest answer: all are scored on one and the same canvas."""
        if options.length is not None:
            return options
        sizes = [len(ids) + 1 for each in self._answers for (index, _), ids in each.items() if index in texts]
        least = min(ANSWER_TOKENS["attribute"].causal, ANSWER_TOKENS["attribute"].diffusion)
        longest = max(sizes, default=0)
        if longest <= (options.max_tokens or least):
            return options
        return replace(options, max_tokens=longest)

    @classmethod
    def of_fills(
        cls, kit: LoadedModel, page: Page, fills: Sequence[Filled], options: GenerateOptions, how: ScoreHow
    ) -> PageScorer:
        """Scores what was written into a page, id by id as it was written."""
        made = cls(kit, page, (), options, how)
        made._answers = [dict(each.answers) for each in fills]
        made._options = made._roomy(options, {gap.index for gap in page.gaps if gap.kind != "image"})
        return made

    def score(self, pmi: bool, progress: Progress) -> list[Score]:
        """The score of each candidate, in order."""
        shares = 2 if pmi else 1

        def share(turn: int) -> Progress:
            return lambda done, total: progress(turn * total + done, shares * total)

        found = self._run(self._filler.ids, share(0))
        priors = self._run(self._bare(), share(1)) if pmi else []
        scores = [self._joined(each) for each in found]
        for number, prior in enumerate(map(self._joined, priors)):
            scores[number] = replace(scores[number], prior=prior.logprob, prior_stderr=prior.stderr)
        return scores

    def _bare(self) -> Ids:
        """The page without its words and pictures: markup, and the gaps that have answers."""
        vocab, wanted = self._kit.vocab, {index for each in self._answers for index, _ in each}
        return [
            each
            for each in self._filler.ids
            if (each.index in wanted if isinstance(each, Gap) else each < vocab.text.start)
        ]

    def _run(self, ids: Ids, progress: Progress) -> list[_Candidate]:
        """Each candidate with the scores of its windows."""
        filler, options = self._kit.filler(self._options), self._options
        candidates = [_Candidate(answers, ids, []) for answers in self._answers]
        waiting, seed = candidates, stream(0, 0)
        while waiting := [each for each in waiting if self._left(each)]:
            # Most pages have one window, which is then the same for all.
            laid: dict[int, Canvas] = {}
            for each in waiting:
                if id(each.ids) not in laid:
                    laid[id(each.ids)] = filler.window(each.ids, options, seed)
            canvases = [laid[id(each.ids)] for each in waiting]
            given = [_given(each, canvas) for each, canvas in zip(waiting, canvases, strict=True)]
            asked = [number for number, canvas in enumerate(given) if canvas is not None]
            batch = [canvas for canvas in given if canvas is not None]
            scored = filler.score(batch, options, self._how, progress) if batch else []
            for number, result in zip(asked, scored, strict=True):
                waiting[number].parts.append(result)
            for each, canvas in zip(waiting, canvases, strict=True):
                spans = {(span.gap, span.part) for span in canvas.spans}
                if each.answers.keys() - spans - each.done:
                    each.ids = put_in(each.ids, _fills(each, canvas))
                each.done |= spans
        return candidates

    def _left(self, candidate: _Candidate) -> bool:
        """Whether an answer is not scored yet."""
        return bool(candidate.answers.keys() - candidate.done)

    def _joined(self, candidate: _Candidate) -> Score:
        parts = candidate.parts
        bound = any(part.method == "bound" for part in parts)
        keys = iter(sorted(candidate.answers))
        gaps: dict[int, float | None] = {}
        for part in parts:
            for fill in part.fills:
                index, _ = next(keys)
                gaps[index] = None if bound else (gaps.get(index) or 0.0) + fill.logprob
        fills = [fill for part in parts for fill in part.fills]
        single = len(gaps) == 1
        total, warnings = sum(part.logprob for part in parts), self._filler.warnings
        method: Method = "bound" if bound else parts[0].method
        tokens = sum(len(fill.ids) for fill in fills) + sum(
            1 for index in candidate.answers if self._ends(index[0])
        )
        logprobs = () if bound else tuple(fill.logprobs for fill in fills)
        return Score(
            total, tokens, method, sum(part.stderr**2 for part in parts) ** 0.5,
            dict.fromkeys(gaps, total) if single else gaps, logprobs, windows=len(parts), warnings=warnings,
        )  # fmt: skip

    def _ends(self, index: int) -> bool:
        """Whether answers to a gap are scored with an end."""
        kinds = {each.index: each for each in self._filler.ids if isinstance(each, Gap)}
        return kinds[index].kind != "image" and not isinstance(self._options.length, int)


def _given(candidate: _Candidate, canvas: Canvas) -> Canvas | None:
    """The canvas with the candidate's answers; None where it has none of these gaps'."""
    spans = tuple(replace(span, answer=candidate.answers.get((span.gap, span.part))) for span in canvas.spans)
    return replace(canvas, spans=spans, guides=()) if any(span.answer is not None for span in spans) else None


def _fills(candidate: _Candidate, canvas: Canvas) -> dict[tuple[int, int], tuple[int, ...]]:
    """What stands in the gaps of a canvas for the windows that follow; nothing where there is no answer."""
    keys = [(span.gap, span.part) for span in canvas.spans]
    return {key: candidate.answers.get(key, ()) for key in keys}


def score_page(
    kit: LoadedModel, page: Page, options: GenerateOptions, how: ScoreHow, progress: Progress
) -> Score:
    """How likely a page is, in CM3's minimal HTML or as the model reads it.

    One that is longer than the window is scored piece by piece, each behind as much of what comes before as fits.
    """
    sight = Sight(page, sees=bool(kit.vocab.image_size))
    ids = kit.tokenizer.encode(
        sight.nodes, lambda picture: (kit.encode_picture(load_picture(sight.read(picture.src))), None)
    )
    context, row = spelt(kit, [each for each in ids if isinstance(each, int)], options)
    return score_sequence(kit, context, row, options, how, progress, warnings=sight.warnings)


def spelt(
    kit: LoadedModel, ids: Sequence[int], options: GenerateOptions, at: int = 0, ends: bool = True
) -> tuple[list[int], list[int]]:
    """A page as the model reads it: its first `at` ids behind what opens it, and the others to the end of the page.

    Args:
        ends: whether the page ends behind the ids, or goes on.
    """
    parts, vocab = kit.parts, kit.vocab
    style = chosen_style(parts.defaults, options)
    spelling_of = spelling(style, parts.text, vocab, parts.defaults.chat)
    if spelling_of is None:
        return [vocab.eod, *ids[:at]], [*ids[at:], *([vocab.eod] if ends else [])]
    row, places = spelling_of.spell([vocab.eod, *ids, vocab.eod])
    start, stop = places[1 + at], len(row) if ends else places[-1]
    return row[:start], row[start:stop]


def score_words(
    kit: LoadedModel,
    pairs: Sequence[tuple[str, str]],
    options: GenerateOptions,
    how: ScoreHow,
    progress: Progress,
) -> list[Score]:
    """How likely each second text is right behind the first, with no page around them."""
    found = []
    for number, (before, after) in enumerate(pairs):
        context, ids = word_ids(kit, before, after)
        found.append(score_sequence(kit, context, ids, options, how, lambda done, total: None))
        progress(number + 1, len(pairs))
    return found


def word_ids(kit: LoadedModel, before: str, after: str) -> tuple[list[int], list[int]]:
    """The ids of two texts, the first behind what opens a page.

    A token may hold the end of one text and the start of the other; then each is read by itself.
    """
    ids, context = kit.tokenizer.text_ids(before + after), kit.tokenizer.text_ids(before)
    split = ids[len(context) :] if ids[: len(context)] == context else kit.tokenizer.text_ids(after)
    return [kit.vocab.eod, *context], split


def score_sequence(
    kit: LoadedModel, context: Sequence[int], ids: Sequence[int], options: GenerateOptions, how: ScoreHow,
    progress: Progress, warnings: tuple[str, ...] = (),
) -> Score:  # fmt: skip
    """How likely ids are behind others."""
    canvases = sequence_canvases(kit.parts.defaults.window, context, ids, kit.vocab.eoss)
    parts = kit.filler(options).score(canvases, options, replace(how, spelt=True), progress)
    bound = any(part.method == "bound" for part in parts)
    logprobs = () if bound else tuple(fill.logprobs for part in parts for fill in part.fills)
    return Score(
        sum(part.logprob for part in parts), len(ids), "bound" if bound else parts[0].method,
        sum(part.stderr**2 for part in parts) ** 0.5, None, logprobs, windows=len(parts), warnings=warnings,
    )  # fmt: skip


def sequence_canvases(window: int, context: Sequence[int], ids: Sequence[int], end: int) -> list[Canvas]:
    """Canvases that score each id once, behind as much of what comes before as fits."""
    if not ids:
        raise ConfigError("there is nothing to score; give some words.", code="bad_value")
    out: list[Canvas] = []
    known, left = list(context), list(ids)
    while left:
        # A piece behind another has half of the window for what comes before it.
        known = known[-(window - 1) :] if not out else known[-(window - window // 2) :]
        piece, left = left[: window - len(known)], left[window - len(known) :]
        span = MaskSpan(
            "document", len(known), len(piece), True, len(piece), end=end, answer=tuple(piece)
        )  # fmt: skip
        out.append(Canvas(tuple(known), (span,), seed=stream(0, len(out))))
        known = [*known, *piece]
    return out
