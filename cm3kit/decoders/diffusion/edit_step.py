"""What editors replace after a pass has written: by the masks of what stands then, the likeliest first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cm3kit.decoders.diffusion.board import Board, Put, refuse_unsound, tell
from cm3kit.decoders.diffusion.mask_table import MaskTable
from cm3kit.decoders.diffusion.modifiers import Block, ByLikeliest, Editor, by_likeliest
from cm3kit.decoders.diffusion.readout import Reading, Row
from cm3kit.decoders.diffusion.settings import DiffusionConfig
from cm3kit_tokenizers.errors import ConfigError


def edit(config: DiffusionConfig, table: MaskTable, boards: Sequence[Board]) -> set[int]:
    """Replace what the editors want of the slots that were written before the pass; numbers of the rows they changed.

    Raises:
        ModelError: no allowed id of a slot has a finite score (`bad_checkpoint`).
        ConfigError: an editor names a slot that it was not given (`bad_value`).
    """
    editing = [(board, *board.edits) for board in boards if board.edits is not None]
    if not editing:
        return set()
    boards = [board for board, *_ in editing]
    masks = [board.job.instead(slot) for board in boards for slot in board.written]
    parts, sizes = [board.of(board.written) for board in boards], [len(board.written) for board in boards]
    reading = Reading(config, table, parts, masks)
    reading.read([likeliest] if all(by_likeliest(editor) for _, editor, _ in editing) else [])
    refuse_unsound(boards, sizes, reading)
    written, start = list[list[Put]](), 0
    for (board, editor, block), size in zip(editing, sizes, strict=True):
        written.append(_replace(board, editor, block, reading.row(start, start + size)))
        start += size
    tell(reading, [put for puts in written for put in puts])
    for board, puts in zip(boards, written, strict=True):
        if puts:
            logprobs = [board.job.logprobs[put.slot] for put in puts]
            board.job.log([put.slot for put in puts], logprobs, [put.sure for put in puts], "edit")
    return {board.job.row for board, puts in zip(boards, written, strict=True) if puts}


def likeliest(logp_NV: Tensor, picks_N: Tensor) -> Tensor:
    """Id and log-probability (N, 2) of the likeliest id."""
    best_N = logp_NV.max(-1)
    return torch.stack([best_N.indices.double(), best_N.values.double()], 1)


def _replace(board: Board, editor: Editor, block: Block, row: Row) -> list[Put]:
    """Write what the editor of one row wants, as far as the ids before allow it."""
    job, puts = board.job, list[Put]()
    for at, id, sure in _wanted(editor, block, torch.tensor(board.written), row):
        slot = board.written[at]
        if not puts or bool(job.instead(slot)[id]):
            job.take(slot)
            job.put(slot, id)
            puts.append(Put(board, slot, id, row.start + at, sure))
    return puts


def _wanted(editor: Editor, block: Block, slots_M: Tensor, row: Row) -> list[tuple[int, int, float]]:
    """Places among the slots, new ids and their probabilities, the likeliest first."""
    if by_likeliest(editor) and isinstance(editor, ByLikeliest):
        best_M2 = row.of(likeliest)
        ids_M, logp_M = best_M2[:, 0].long(), best_M2[:, 1].float()
        at_K = _places(slots_M, editor.doubted(block, slots_M, ids_M, logp_M))
        ids_K, sure_K = ids_M[at_K], logp_M[at_K].exp()
    else:
        logp_MV = row.logp()
        slots_K, ids_K = editor.edits(block, slots_M, logp_MV)
        at_K = _places(slots_M, slots_K)
        sure_K = logp_MV[at_K, ids_K].exp()
    rank_K = sure_K.sort(descending=True, stable=True).indices
    return list(zip(at_K[rank_K].tolist(), ids_K[rank_K].tolist(), sure_K[rank_K].tolist(), strict=True))


def _places(slots_M: Tensor, slots_K: Tensor) -> Tensor:
    at_K = torch.searchsorted(slots_M, slots_K).clamp(max=len(slots_M) - 1)
    if not torch.equal(slots_M[at_K], slots_K):
        raise ConfigError(
            f"an editor wants slots {slots_K.tolist()[:8]}, of which some are none of those that it was given.",
            code="bad_value",
        )
    return at_K
