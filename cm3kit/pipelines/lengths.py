"""How long the text of a gap should be: try several exact lengths, and keep what the model finds likeliest.

A gap of n ids is laid out as n open slots with `<eoss>` given behind them, and filled. Then all behind the answer
is opened again, and the model says how likely the end is there. The score of n is the mean over n + 1 ids,

    (log p(x_1) + … + log p(x_n) + log p(<eoss> | x_1 … x_n)) / (n + 1),

each x_i given what stood on the board when it was written. The best score wins, and of equal ones the shortest
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
from cm3kit.decoders.diffusion.written import Cost, Written
from cm3kit.pipelines.ways import Watch, sum_costs
from cm3kit.types import Board
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.vocab import Vocab

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)

Write = Callable[[Sequence[Board], Watch], list[Written]]


@dataclass(frozen=True, slots=True)
class Found:
    """A board with the best lengths, how it was filled, and what that and the search for them cost."""

    board: Board
    written: Written
    cost: Cost


@dataclass(frozen=True, slots=True)
class LengthSearch:
    """Fills boards in several lengths.

    Args:
        write: fills boards.
        check: raises ConfigError where no answer fits a board.
        denoiser: says how likely an end is.
    """

    write: Write
    check: Callable[[Board], object]
    denoiser: Denoiser
    vocab: Vocab
    config: DiffusionConfig

    def fill(self, boards: Sequence[Board], most: Callable[[str], int], watch: Watch) -> list[Found]:
        """Fill boards whose padded stretches have room for an `<eoss>` behind their longest answer.

        Args:
            boards: all with as many stretches.
            most: the longest answer of a gap by its kind.

        Raises:
            ConfigError: no length of a gap can hold an answer (`bad_value`).
        """
        padded = [index for index, each in enumerate(boards[0].stretches) if each.padded]
        if not padded:
            return [
                Found(*each, each[1].cost) for each in zip(boards, self.write(boards, watch), strict=True)
            ]
        found: list[Found] = []
        costs = [Cost() for _ in boards]
        for turn, number in enumerate(padded):

            def share(done: int, total: int, turn: int = turn) -> None:
                watch(turn * total + done, len(padded) * total)

            found = self._try(boards, number, most, share)
            costs = [sum_costs((cost, each.cost)) for cost, each in zip(costs, found, strict=True)]
            boards = [each.board for each in found]
        return [replace(each, cost=cost) for each, cost in zip(found, costs, strict=True)]

    def _try(
        self, boards: Sequence[Board], number: int, most: Callable[[str], int], watch: Watch
    ) -> list[Found]:
        """The best length of one gap of each board."""
        rivals = [self._rivals(board, number, most) for board in boards]
        written = iter(self.write([rival for each in rivals for rival in each], watch))
        found = []
        for board, each in zip(boards, rivals, strict=True):
            tried = [(rival, next(written)) for rival in each]
            scores = [self._score(rival, wrote, board, number) for rival, wrote in tried]
            best = scores.index(max(scores))
            cost = sum_costs(wrote.cost for _, wrote in tried)
            for _ in tried:
                cost.add(len(board.ids), len(board.ids))
            found.append(Found(*tried[best], cost))
        return found

    def _rivals(self, board: Board, number: int, most: Callable[[str], int]) -> list[Board]:
        stretch, rivals = board.stretches[number], []
        problem: ConfigError | None = None
        for size in SIZES:
            if size > most(stretch.kind):
                break
            rival = shortened(board, number, size, self.vocab.eoss)
            try:
                self.check(rival)
            except ConfigError as error:
                problem = error
            else:
                rivals.append(rival)
        if not rivals and problem is not None:
            raise problem
        return rivals

    def _score(self, board: Board, wrote: Written, before: Board, number: int) -> float:
        """Mean log-probability of the ids of one gap and of its end."""
        stretch, whole = board.stretches[number], before.stretches[number]
        end = self._end(wrote.ids, stretch.stop, whole.stop, before)
        size = stretch.stop - stretch.start
        return (wrote.fills[number].logprob + end) / (size + 1)

    def _end(self, ids: Sequence[int], place: int, stop: int, before: Board) -> float:
        """Log-probability of `<eoss>` at a place of the board, with all up to `stop` open."""
        opened = torch.tensor([[*ids[:place], *[self.vocab.mask] * (stop - place), *ids[stop:]]])
        block, within = None, range(len(ids))
        if self.config.cache in EXACT:
            causal = self.config.cache == "causal"
            block = (place, place + 1) if causal else block_of(place, 0, self.config.block_size, len(ids))
            within = range(*block)
        slots = [slot for each in before.stretches for slot in range(each.start, each.stop) if slot in within]
        times = (sum(place <= slot < stop for slot in slots) / len(slots),)
        ask = Ask(opened, (len(ids),), (torch.tensor([place]),), times, block)
        logits_V = self.denoiser.logits(ask)[0][0].float().cpu()
        logits_V[self.vocab.mask] = -torch.inf
        return float(logits_V.log_softmax(-1)[self.vocab.eoss])


def shortened(board: Board, number: int, size: int, eoss: int) -> Board:
    """The board with a padded stretch of exactly `size` slots, and `<eoss>` given behind them."""
    stretch = board.stretches[number]
    stop = stretch.start + size
    ids = (*board.ids[:stop], *[eoss] * (stretch.stop - stop), *board.ids[stretch.stop :])
    stretches = list(board.stretches)
    stretches[number] = replace(stretch, stop=stop, padded=False)
    return replace(board, ids=ids, stretches=tuple(stretches))
