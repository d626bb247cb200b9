"""From a board's logits to what is written on it: guidance, masks, picks, and one commit after the other."""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cm3kit.decoders.diffusion.job import Job
from cm3kit.decoders.diffusion.modifiers import Block, Editor
from cm3kit.decoders.diffusion.samplers import Phase
from cm3kit.decoders.diffusion.scores import Scores
from cm3kit.decoders.diffusion.settings import DiffusionConfig
from cm3kit.decoders.token_sampling import draw
from cm3kit.types import Commit
from cm3kit_tokenizers.errors import ModelError

# Lower than any score of an order that is finite; trajectories are saved as JSON, which has no infinity.
LOWEST = -sys.float_info.max

Ways = tuple[Tensor, Tensor, Tensor]
"""Temperature, top-k and top-p (M,) of each slot."""


@dataclass(frozen=True, slots=True)
class Scored:
    """Slots of one board, ascending, and what the model says of them.

    Attributes:
        slots: M places.
        logits_MV: of the model.
        mixed_MV: the same after guidance.
    """

    slots: list[int]
    logits_MV: Tensor
    mixed_MV: Tensor

    def of(self, slots: Sequence[int]) -> Scored:
        """Some of them."""
        if len(slots) == len(self.slots):
            return self
        index_K = torch.tensor([bisect_left(self.slots, slot) for slot in slots], dtype=torch.long)
        return Scored(list(slots), self.logits_MV[index_K], self.mixed_MV[index_K])


class Writer:
    """Writes one step of one board; it is the same for every sampler.

    Args:
        config: how ids are drawn.
        mask: id of an open slot, which is never written.
        image: ids of image codes.
    """

    def __init__(self, config: DiffusionConfig, mask: int, image: range) -> None:
        self._config, self._image = config, image
        self._mask_1 = torch.tensor([mask])

    def write(self, job: Job, phase: Phase, scored: Scored) -> Commit:
        """Write what the phase chooses of these open slots.

        Raises:
            ModelError: no allowed id of a slot has a finite score (`bad_checkpoint`).
        """
        masked_MV = self._restrict(job, scored.mixed_MV, job.constraint.allowed(scored.slots))
        ways = self._ways(masked_MV)
        picks_M = self._draw(job, masked_MV, ways)
        logp_MV = masked_MV.log_softmax(-1)
        if self._config.confidence == "tempered":
            logp_MV = drawn_from(masked_MV, *ways)
        at, steps = job.counted(min(phase.step, phase.steps - 1), phase.steps)
        asked = self._config.steps or 0
        scores = Scores(torch.tensor(scored.slots), logp_MV, picks_M, at, steps, job.rng, asked)
        chosen_K, score_M = phase.choose(scores)
        where = self._put(job, scored, chosen_K, scores)
        values = [max(score, LOWEST) for score in score_M[chosen_K].tolist()]
        # While slots may be masked again, open ones may still be written and an end id taken back.
        if self._config.early_exit and not phase.lasting:
            closed = job.close()
            values += [min(0.0, *values)] * len(closed)
            where += closed
        return job.log(where, [job.logprobs[slot] for slot in where], values)

    def _put(self, job: Job, scored: Scored, chosen_K: Tensor, scores: Scores) -> list[int]:
        """Write the picks of the chosen slots, one after the other; those slots."""
        base_KV = self._unmasked(scored.logits_MV[chosen_K]).log_softmax(-1)
        where: list[int] = []
        touched: set[int] = set()
        for index, base_V in zip(chosen_K.tolist(), base_KV, strict=True):
            slot, id = scored.slots[index], int(scores.picks_M[index])
            if job.span_of(slot) in touched and not job.independent(slot):
                id = self._again(job, slot, id, scored.mixed_MV[index])
            touched.add(job.span_of(slot))
            job.put(slot, id, float(base_V[id]), float(scores.logp_MV[index, id].exp()))
            where.append(slot)
        return where

    def edit(self, job: Job, editor: Editor, block: Block, scored: Scored) -> Commit | None:
        """Replace what the editor wants of these written slots, the likeliest first.

        Args:
            job: the board, with what this pass has written.
            editor: what replaces ids.
            block: the block as it was before the pass.
            scored: its written slots.
        """
        allowed_MV = torch.stack([job.instead(slot) for slot in scored.slots])
        logp_MV = self._restrict(job, scored.mixed_MV, allowed_MV).log_softmax(-1)
        slots_K, ids_K = editor.edits(block, torch.tensor(scored.slots), logp_MV)
        index_K = torch.searchsorted(torch.tensor(scored.slots), slots_K)
        sure_K = logp_MV[index_K, ids_K].exp()
        base_KV = self._unmasked(scored.logits_MV[index_K]).log_softmax(-1)
        where: list[int] = []
        values: list[float] = []
        for at in sure_K.sort(descending=True, stable=True).indices.tolist():
            slot, id, sure = int(slots_K[at]), int(ids_K[at]), float(sure_K[at])
            if not where or bool(job.instead(slot)[id]):
                job.take(slot)
                job.put(slot, id, float(base_KV[at, id]), sure)
                where.append(slot)
                values.append(sure)
        return job.log(where, [job.logprobs[slot] for slot in where], values, "edit") if where else None

    def _again(self, job: Job, slot: int, id: int, mixed_V: Tensor) -> int:
        """The pick, or another one where what this step wrote before does not allow it any more."""
        allowed_1V = job.constraint.allowed([slot])
        if bool(allowed_1V[0, id]):
            return id
        masked_1V = self._restrict(job, mixed_V[None], allowed_1V)
        return int(self._draw(job, masked_1V, self._ways(masked_1V))[0])

    def _restrict(self, job: Job, mixed_MV: Tensor, allowed_MV: Tensor) -> Tensor:
        masked_MV = self._unmasked(torch.where(allowed_MV, mixed_MV, -torch.inf))
        if not bool(masked_MV.amax(-1).isfinite().all()):
            raise ModelError(
                f"The model's scores of row {job.row} are not finite; train or copy it again.",
                code="bad_checkpoint",
            )
        return masked_MV

    def _unmasked(self, logits_MV: Tensor) -> Tensor:
        # The mask itself has probability 0 (arXiv:2406.07524, sec. 3.2.3).
        return logits_MV.index_fill(-1, self._mask_1, -torch.inf)

    def _ways(self, masked_MV: Tensor) -> Ways:
        """Those of images where nothing but codes may stand."""
        open_MV = masked_MV > -torch.inf
        other_M = open_MV[:, : self._image.start].any(-1) | open_MV[:, self._image.stop :].any(-1)
        ways = [self._config.text if other else self._config.image for other in other_M.tolist()]
        heat_M = torch.tensor([way.temperature for way in ways], dtype=torch.float64)
        top_k_M = torch.tensor([way.top_k for way in ways])
        return heat_M, top_k_M, torch.tensor([way.top_p for way in ways], dtype=torch.float64)

    def _draw(self, job: Job, masked_MV: Tensor, ways: Ways) -> Tensor:
        uniforms_M = torch.rand(len(masked_MV), generator=job.rng, dtype=torch.float64)
        return draw(masked_MV, uniforms_M, *ways)


def drawn_from(masked_MV: Tensor, heat_M: Tensor, top_k_M: Tensor, top_p_M: Tensor) -> Tensor:
    """Log-probabilities (M, V) of the distribution that `draw` draws from; temperature 0 counts as 1.

    At low temperatures many of them round to 0, and an order that reads them becomes left to right.
    """
    heat_M1 = torch.where(heat_M == 0, 1.0, heat_M)[:, None].float()
    logp_MV, ids_MV = (masked_MV / heat_M1).log_softmax(-1).sort(dim=-1, descending=True, stable=True)
    rank_V = torch.arange(logp_MV.shape[1])
    limit_M1 = torch.where(top_k_M == 0, logp_MV.shape[1], top_k_M)[:, None]
    top_MV = torch.where(rank_V < limit_M1, logp_MV, -torch.inf).double().softmax(-1)
    before_MV = top_MV.cumsum(-1) - top_MV
    kept_MV = (rank_V < limit_M1) & ((before_MV < top_p_M[:, None]) | (rank_V == 0))
    cut_MV = torch.where(kept_MV, logp_MV, -torch.inf).log_softmax(-1)
    return torch.empty_like(cut_MV).scatter_(-1, ids_MV, cut_MV)
