"""How long the text of a gap should be: try several exact lengths, and keep what the model finds likeliest.

A gap of n ids is laid out as n masked positions with `<eoss>` given behind them, and filled. Then all behind the answer
is opened again, and the model says how likely the end is there. The score of n is the mean over n + 1 ids,

    (log p(x_1) + … + log p(x_n) + log p(<eoss> | x_1 … x_n)) / (n + 1),

each x_i given what stood on the canvas when it was written. The best score wins, and of equal ones the shortest
answer. Gaps are taken in order; while one is tried, those before have the length that was found for them, and
those behind end where they like.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from cm3kit.decoders.diffusion.blocks import block_of
from cm3kit.decoders.diffusion.denoiser import Ask, Denoiser
from cm3kit.decoders.diffusion.settings import EXACT, DiffusionConfig
from cm3kit.fill.fillers import Progress, sum_costs
from cm3kit.types import Canvas, Cost, Result
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.vocab import Vocab

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)

Write = Callable[[Sequence[Canvas], Progress], list[Result]]


@dataclass(frozen=True, slots=True)
class LengthSearch:
    """Fills canvases in several lengths.

    Args:
        write: fills canvases.
        check: raises ConfigError where no answer fits a canvas.
        denoiser: scores ends.
    """

    write: Write
    check: Callable[[Canvas], object]
    denoiser: Denoiser
    vocab: Vocab
    config: DiffusionConfig

    def fill(
        self, canvases: Sequence[Canvas], most: Callable[[str], int], progress: Progress
    ) -> list[Result]:
        """Fill canvases whose spans of unknown length have room for an `<eoss>` behind their longest answer.

        Args:
            canvases: all with as many spans.
            most: the longest answer of a gap by its kind.

        Returns:
            The result of the best lengths, with the cost of the whole search.

        Raises:
            ConfigError: no length of a gap can hold an answer (`bad_value`).
        """
        unknown = [index for index, each in enumerate(canvases[0].spans) if not each.exact]
        if not unknown:
            return self.write(canvases, progress)
        found: list[Result] = []
        costs = [Cost() for _ in canvases]
        for turn, number in enumerate(unknown):

            def share(done: int, total: int, turn: int = turn) -> None:
                progress(turn * total + done, len(unknown) * total)

            found = self._try(canvases, number, most, share)
            costs = [sum_costs((cost, each.cost)) for cost, each in zip(costs, found, strict=True)]
            canvases = [replace(each.canvas, guides=()) for each in found]
        return [replace(each, cost=cost) for each, cost in zip(found, costs, strict=True)]

    def _try(
        self, canvases: Sequence[Canvas], number: int, most: Callable[[str], int], progress: Progress
    ) -> list[Result]:
        """The best length of one gap of each canvas."""
        rivals = [self._rivals(canvas, number, most) for canvas in canvases]
        written = iter(self.write([rival for each in rivals for rival in each], progress))
        found = []
        for canvas, each in zip(canvases, rivals, strict=True):
            tried = [next(written) for _ in each]
            scores = [self._score(result, canvas, number) for result in tried]
            best = scores.index(max(scores))
            cost, length = sum_costs(result.cost for result in tried), len(tried[best].ids)
            for _ in tried:
                cost.add(length, length)
            found.append(replace(tried[best], cost=cost))
        return found

    def _rivals(self, canvas: Canvas, number: int, most: Callable[[str], int]) -> list[Canvas]:
        rivals: list[Canvas] = []
        problem: ConfigError | None = None
        for size in SIZES:
            if size > most(canvas.spans[number].kind):
                break
            rival = shortened(canvas, number, size)
            try:
                self.check(rival)
            except ConfigError as error:
                problem = error
            else:
                rivals.append(rival)
        if not rivals and problem is not None:
            raise problem
        return rivals

    def _score(self, result: Result, before: Canvas, number: int) -> float:
        """Mean log-probability of the ids of one gap and of its end."""
        where = result.canvas.flatten(self.vocab.mask).ranges[number]
        ranges = before.flatten(self.vocab.mask).ranges
        end = self._end(result.ids, where.stop, ranges[number].stop, ranges)
        return (result.fills[number].logprob + end) / (len(where) + 1)

    def _end(self, ids: Sequence[int], place: int, stop: int, ranges: Sequence[range]) -> float:
        """Log-probability of `<eoss>` at a position of the canvas, with all up to `stop` masked."""
        opened = torch.tensor([[*ids[:place], *[self.vocab.mask] * (stop - place), *ids[stop:]]])
        block, within = None, range(len(ids))
        if self.config.cache in EXACT:
            causal = self.config.cache == "causal"
            block = (place, place + 1) if causal else block_of(place, 0, self.config.block_size, len(ids))
            within = range(*block)
        slots = [slot for each in ranges for slot in each if slot in within]
        times = (sum(place <= slot < stop for slot in slots) / len(slots),)
        ask = Ask(opened, (len(ids),), (torch.tensor([place]),), times, block)
        logits_V = self.denoiser.logits(ask)[0][0].float().cpu()
        logits_V[self.vocab.mask] = -torch.inf
        return float(logits_V.log_softmax(-1)[self.vocab.eoss])


def shortened(canvas: Canvas, number: int, size: int) -> Canvas:
    """The canvas with a span of exactly `size` ids, and its end given behind them."""
    spans = list(canvas.spans)
    spans[number] = replace(spans[number], max_tokens=size, exact=True)
    return replace(canvas, spans=tuple(spans))
