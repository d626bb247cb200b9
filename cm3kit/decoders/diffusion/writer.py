"""From a board's logits to what is written on it: guidance, masks, picks, and one commit after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cm3kit.decoders.diffusion.job import Job
from cm3kit.decoders.diffusion.phases import Phase
from cm3kit.decoders.diffusion.scores import Scores
from cm3kit.decoders.diffusion.settings import DiffusionConfig
from cm3kit.decoders.pick import draw
from cm3kit.types import Commit
from cm3kit_tokenizers.errors import ModelError


class Writer:
    """Writes one step of one board; it is the same for every sampler.

    Args:
        config: how ids are drawn.
        mask: id of an open slot, which is never written.
        image: ids of image codes.
    """

    def __init__(self, config: DiffusionConfig, mask: int, image: range) -> None:
        self._config, self._mask, self._image = config, mask, image

    def write(
        self, job: Job, phase: Phase, slots: Sequence[int], logits_MV: Tensor, mixed_MV: Tensor
    ) -> Commit:
        """Write what the phase chooses of these slots.

        Args:
            logits_MV: of the model.
            mixed_MV: the same after guidance.

        Raises:
            ModelError: no allowed id of a slot has a finite score (`bad_checkpoint`).
        """
        masked_MV = self._restrict(mixed_MV, job.constraint.allowed(slots))
        if not bool(masked_MV.amax(-1).isfinite().all()):
            raise ModelError(
                f"The model's scores of row {job.row} are not finite; train or copy it again.",
                code="bad_checkpoint",
            )
        picks_M = self._draw(job, masked_MV)
        logp_MV = self._confidence(masked_MV)
        at = min(phase.step, phase.steps - 1)
        scores = Scores(torch.tensor(slots), logp_MV, picks_M, at, phase.steps, job.rng)
        chosen_K, score_M = phase.choose(scores)
        return self._commit(job, slots, chosen_K, score_M, picks_M, logits_MV, mixed_MV)

    def _commit(
        self,
        job: Job,
        slots: Sequence[int],
        chosen_K: Tensor,
        score_M: Tensor,
        picks_M: Tensor,
        logits_MV: Tensor,
        mixed_MV: Tensor,
    ) -> Commit:
        base_KV = self._unmasked(logits_MV[chosen_K]).log_softmax(-1)
        where: list[int] = []
        values = [score_M[index].item() for index in chosen_K.tolist()]
        touched: set[int] = set()
        for index, base_V in zip(chosen_K.tolist(), base_KV, strict=True):
            slot, id = slots[index], int(picks_M[index])
            if job.stretch_of(slot).start in touched and not job.independent(slot):
                id = self._again(job, slot, id, mixed_MV[index])
            touched.add(job.stretch_of(slot).start)
            job.put(slot, id, float(base_V[id]))
            where.append(slot)
        if self._config.early_exit:
            closed = job.close()
            values += [min(0.0, *values)] * len(closed)
            where += closed
        return job.log(where, [job.logprobs[slot] for slot in where], values)

    def _again(self, job: Job, slot: int, id: int, mixed_V: Tensor) -> int:
        """The pick, or another one where what this step wrote before does not allow it any more."""
        allowed_1V = job.constraint.allowed([slot])
        if bool(allowed_1V[0, id]):
            return id
        return int(self._draw(job, self._restrict(mixed_V[None], allowed_1V))[0])

    def _restrict(self, mixed_MV: Tensor, allowed_MV: Tensor) -> Tensor:
        return self._unmasked(torch.where(allowed_MV, mixed_MV, -torch.inf))

    def _unmasked(self, logits_MV: Tensor) -> Tensor:
        # The mask itself has probability 0 (arXiv:2406.07524, sec. 3.2.3).
        return logits_MV.index_fill(-1, torch.tensor([self._mask]), -torch.inf)

    def _ways(self, masked_MV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Temperature, top-k and top-p (M,) of each slot: those of images where nothing but codes may stand."""
        open_MV = masked_MV > -torch.inf
        codes_M = open_MV.sum(-1) == open_MV[:, self._image.start : self._image.stop].sum(-1)
        ways = [self._config.image if code else self._config.text for code in codes_M.tolist()]
        heat_M = torch.tensor([way.temperature for way in ways], dtype=torch.float64)
        top_k_M = torch.tensor([way.top_k for way in ways])
        return heat_M, top_k_M, torch.tensor([way.top_p for way in ways], dtype=torch.float64)

    def _draw(self, job: Job, masked_MV: Tensor) -> Tensor:
        uniforms_M = torch.rand(len(masked_MV), generator=job.rng, dtype=torch.float64)
        return draw(masked_MV, uniforms_M, *self._ways(masked_MV))

    def _confidence(self, masked_MV: Tensor) -> Tensor:
        if self._config.confidence == "base":
            return masked_MV.log_softmax(-1)
        return drawn_from(masked_MV, *self._ways(masked_MV))


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
