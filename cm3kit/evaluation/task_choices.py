"""How likely each candidate of a row is: in its gap, behind what is left of it, or with all that follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from cm3kit.evaluation.task_files import TaskSpec
from cm3kit.fill.answers import answer_ids
from cm3kit.fill.fillers import ScoreHow
from cm3kit.fill.filling import PageFiller
from cm3kit.fill.kit import GenerateOptions, Kit
from cm3kit.fill.scoring import sequence_canvases, spelt
from cm3kit.types import Canvas
from cm3kit_tokenizers.page import Page


def values_of(
    kit: Kit, page: Page, candidates: Sequence[str], spec: TaskSpec, options: GenerateOptions
) -> tuple[list[float], str]:
    """What the candidates for the gap of a page are compared by, in nats, and the kind of score that it is.

    Raises:
        Cm3kitError: as `Kit.score`.
    """
    if spec.scored == "gap":
        scores = kit.score(
            page, candidates, pmi=spec.pmi, method=spec.method, rounds=spec.rounds, options=options
        )
        return [each.logprob if each.pmi is None else each.pmi for each in scores], scores[0].method
    if spec.scored == "left" or spec.scored == "page":
        return _read_on(kit, page, candidates, spec, options)
    assert_never(spec.scored)


def _read_on(
    kit: Kit, page: Page, candidates: Sequence[str], spec: TaskSpec, options: GenerateOptions
) -> tuple[list[float], str]:
    """Candidates as a plain language model has them: read on behind what is before the gap, in the page's own place.

    log p of what is before the gap is the same for all, and left out.
    """
    filler = PageFiller(kit, page, options, writes=False)
    ids = filler.ids
    at = next(place for place, each in enumerate(ids) if not isinstance(each, int))
    before, after = ([each for each in part if isinstance(each, int)] for part in (ids[:at], ids[at + 1 :]))
    whole = spec.scored == "page"
    canvases: list[Canvas] = []
    counts: list[int] = []
    for candidate in candidates:
        answer = [id for piece in answer_ids(kit, filler, page.gaps[0], candidate) for id in piece]
        # What stands behind the gap says that the answer ends.
        row = [*before, *answer, *(after if whole else after[:1])]
        context, asked = spelt(kit, row, options, at=len(before), ends=whole or not after)
        pieces = sequence_canvases(kit.parts.defaults.window, context, asked, kit.vocab.eoss)
        canvases += pieces
        counts.append(len(pieces))
    how = ScoreHow(spec.method, spec.rounds, spelt=True)
    scored = iter(kit.filler(options).score(canvases, options, how, lambda done, total: None))
    parts = [[next(scored) for _ in range(count)] for count in counts]
    return [sum(each.logprob for each in found) for found in parts], parts[0][0].method
