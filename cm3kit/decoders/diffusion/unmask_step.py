"""From a pass to what is written: picks under masks, and one commit after the other in each row."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from cm3kit.decoders.diffusion.board import Board, Put, refuse_unsound, tell
from cm3kit.decoders.diffusion.denoiser import masks_of
from cm3kit.decoders.diffusion.edit_step import edit
from cm3kit.decoders.diffusion.mask_table import MaskTable
from cm3kit.decoders.diffusion.readout import Reading, Row
from cm3kit.decoders.diffusion.samplers import Phase
from cm3kit.decoders.diffusion.scores import Scores, Statistic, picked
from cm3kit.decoders.diffusion.settings import DiffusionConfig

# Lower than any score of an order that is finite; trajectories are saved as JSON, which has no infinity.
LOWEST = -sys.float_info.max


class Writer:
    """Writes one step of some boards; it is the same for every sampler.

    Args:
        config: how ids are drawn.
        mask: id of an open slot, which is never written.
        image: ids of image codes.
    """

    def __init__(self, config: DiffusionConfig, mask: int, image: range) -> None:
        self._config, self._mask, self._image = config, mask, image
        self._table: MaskTable | None = None
        # What orders asked of the pass before comes with the picks of the next one.
        self._usual: tuple[Statistic, ...] = (picked,)

    def step(self, boards: Sequence[Board]) -> None:
        """Write, edit and remask by the logits of one pass, or of two with guidance.

        Raises:
            ModelError: no allowed id of a slot has a finite score (`bad_checkpoint`).
        """
        logits_MV = boards[0].part.logits_MV
        if self._table is None or not self._table.fits(logits_MV):
            self._table = MaskTable(logits_MV.device, logits_MV.shape[1], self._mask, self._image)
        self._table.trim()
        writing = [(board, board.writes) for board in boards]
        self._write([(board, phase) for board, phase in writing if phase is not None], self._table)
        edited = edit(self._config, self._table, boards)
        for board in boards:
            board.close(board.job.row in edited)

    def _write(self, writing: Sequence[tuple[Board, Phase]], table: MaskTable) -> None:
        """Write what the phases choose of the open slots."""
        if not writing:
            return
        boards = [board for board, _ in writing]
        masks = [mask for board in boards for mask in masks_of(board.job.constraint, board.wanted)]
        parts, sizes = [board.of(board.wanted) for board in boards], [len(board.wanted) for board in boards]
        reading = Reading(self._config, table, parts, masks, self._config.confidence == "tempered")
        reading.read(self._usual, torch.cat([_dice(board, len(board.wanted)) for board in boards]))
        refuse_unsound(boards, sizes, reading)
        written, start = list[tuple[list[Put], list[float]]](), 0
        for (board, phase), size in zip(writing, sizes, strict=True):
            written.append(self._choose(board, phase, reading.row(start, start + size), table))
            start += size
        tell(reading, [put for puts, _ in written for put in puts])
        self._usual = tuple({picked: None} | reading.used)
        for (board, phase), (puts, values) in zip(writing, written, strict=True):
            self._log(board, phase, [put.slot for put in puts], values)

    def _choose(
        self, board: Board, phase: Phase, row: Row, table: MaskTable
    ) -> tuple[list[Put], list[float]]:
        """Write the picks of the slots that the phase chooses, one after the other; these, with their scores."""
        job, picks_M, asked = board.job, row.picks(), self._config.steps or 0
        at, steps = job.counted(min(phase.step, phase.steps - 1), phase.steps)
        scores = Scores(torch.tensor(board.wanted), row, picks_M, at, steps, job.rng, asked)
        chosen_K, score_M = phase.choose(scores)
        picks, sure = picks_M.tolist(), scores.picked_M.exp().tolist()
        puts: list[Put] = []
        touched: set[int] = set()
        for index in chosen_K.tolist():
            put = Put(board, board.wanted[index], picks[index], row.start + index, sure[index])
            if job.span_of(put.slot) in touched and not job.independent(put.slot):
                self._again(put, row.reading, table)
            touched.add(job.span_of(put.slot))
            job.put(put.slot, put.id)
            puts.append(put)
        return puts, [max(score, LOWEST) for score in score_M[chosen_K].tolist()]

    def _again(self, put: Put, reading: Reading, table: MaskTable) -> None:
        """Take another pick where what this step wrote before does not allow it any more."""
        allowed = masks_of(put.board.job.constraint, [put.slot])
        if bool(allowed[0][put.id]):
            return
        other = Reading(self._config, table, [put.board.of([put.slot])], allowed)
        other.read((), _dice(put.board, 1))
        refuse_unsound([put.board], [1], other)
        put.id = int(other.picks_N[0])
        put.sure = reading.probability(put.at, put.id)

    def _log(self, board: Board, phase: Phase, where: list[int], values: list[float]) -> None:
        """Write the padding behind ends, and record the step."""
        job = board.job
        # While slots may be masked again, open ones may still be written and an end id taken back.
        if self._config.early_exit and not phase.lasting:
            closed = job.close()
            values = values + [min(0.0, *values)] * len(closed)
            where = where + closed
        job.log(where, [job.logprobs[slot] for slot in where], values)


def _dice(board: Board, count: int) -> torch.Tensor:
    return torch.rand(count, generator=board.job.rng, dtype=torch.float64)
