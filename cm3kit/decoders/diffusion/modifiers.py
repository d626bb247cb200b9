"""Modifiers: rules that remask or replace ids that were written already. Given ids never change.

ReMDM (arXiv:2503.00307) opens written slots again before a pass; LLaDA 2.1's editing replaces ids after one.
`make` builds a modifier; by its methods it is a `Remasker` or an `Editor`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from cm3kit.decoders.diffusion.axes import Choice, bind, modifier, number, whole


@dataclass(frozen=True, slots=True)
class Block:
    """One block of one row, between two passes.

    Attributes:
        slots_N: places of the block that the decoder itself writes, ascending.
        ids_N: ids at these positions.
        written_N: whether each is written, or open.
        confidence_N: float64 probability of each id when it was written; not read where a slot is open.
        step: index of the step that comes next, of `steps` in all. It goes from time t = 1 - step / steps to
            s = 1 - (step + 1) / steps.
        alphas: share of the slots that is planned to be written at t and at s, where schedules plan it;
            otherwise a modifier's own schedule says.
    """

    slots_N: Tensor
    ids_N: Tensor
    written_N: Tensor
    confidence_N: Tensor
    step: int
    steps: int
    alphas: tuple[float, float] | None = None

    @property
    def time(self) -> float:
        """The time t; 0 after the last step."""
        return max(0.0, 1.0 - self.step / self.steps)

    @property
    def next_time(self) -> float:
        """The time s."""
        return max(0.0, 1.0 - (self.step + 1) / self.steps)


@runtime_checkable
class Remasker(Protocol):
    """Opens slots again; it needs no logits, so a step that changes nothing needs no pass.

    Of the slots that were open before, the step writes the schedule and as many more as it opens (as far as
    there are any), or each with the chance `unmask` (ancestral). So the plan of what is open holds, by
    count or on average.
    """

    def reopen(self, block: Block, rng: Generator) -> Tensor:
        """Written slots (K,) of the block to open after this step, ascending."""

    def unmask(self, block: Block) -> float:
        """Chance that the step writes a slot that is open."""

    def plan(self, blanks: int, steps: int) -> list[int]:
        """How many slots each step writes for good, by the schedule; 0 where it only rewrites."""


@runtime_checkable
class Editor(Protocol):
    """Replaces ids.

    Attributes:
        post_steps: passes at most, once nothing is open. A pass without an edit is the last of them.
    """

    @property
    def post_steps(self) -> int:
        """See above."""

    def edits(self, block: Block, slots_M: Tensor, logp_MV: Tensor) -> tuple[Tensor, Tensor]:
        """Slots (K,) among these, and their new ids (K,).

        Args:
            slots_M: slots of the block that the pass has scored; those that are open are left alone.
            logp_MV: log-probabilities there, -inf where an id may not stand.
        """


@runtime_checkable
class ByLikeliest(Protocol):
    """An editor that looks at nothing but the likeliest id of each slot; for others all is copied to the host."""

    def doubted(self, block: Block, slots_M: Tensor, ids_M: Tensor, logp_M: Tensor) -> Tensor:
        """Slots (K,) whose id gives way to the likeliest one, by that and its log-probability (M,)."""


def by_likeliest(editor: Editor) -> bool:
    """Whether `doubted` says what `edits` does: a class that changes `edits` alone no longer means the other."""
    for each in type(editor).__mro__:
        if "doubted" in vars(each) or "edits" in vars(each):
            return "doubted" in vars(each)
    return False


def make(choice: Choice) -> Remasker | Editor:
    """The modifier that a setting names.

    Raises:
        ConfigError: the name is unknown (`unknown_name`), or an option is unknown or out of range (`bad_config`).
    """
    made: Remasker | Editor = bind(modifier, choice)()
    return made


@dataclass(frozen=True, kw_only=True)
class _ReMDM:
    """A written slot opens with chance σ, and an open one is written with (α_s - (1 - σ) α_t) / (1 - α_t).

    The share that is written at s is α_s for every σ, and σ = 0 is MDLM (arXiv:2503.00307, sec. 3).
    """

    eta: float

    def __post_init__(self) -> None:
        number("eta", self.eta, 0.0, 1.0)

    def alpha(self, time: float) -> float:
        """Share that is written at a time."""
        return 1.0 - time

    def sigma(self, block: Block) -> float:
        """Chance of a written slot to open."""
        raise NotImplementedError

    def reopen(self, block: Block, rng: Generator) -> Tensor:
        """Each written slot by a draw of its own. None at the last step, where everything is to be written."""
        # A number is drawn for every slot, written or not, so that the draw of one does not depend on the others.
        dice_N = torch.rand(len(block.slots_N), generator=rng, dtype=torch.float64, device=rng.device)
        opened_N = dice_N.to(block.slots_N.device) < self._sigma_N(block)
        return block.slots_N[opened_N & block.written_N]

    def unmask(self, block: Block) -> float:
        """Chance that the step writes a slot that is open."""
        now, then = self._alphas(block)
        if now >= 1.0:
            return 1.0
        return min(1.0, (then - (1.0 - self._open_sigma(block)) * now) / (1.0 - now))

    def plan(self, blanks: int, steps: int) -> list[int]:
        """The schedule in whole slots, rounded down: what is done by s, less what is done by t."""
        done = [int(blanks * self.alpha(1.0 - step / steps) + 1e-9) for step in range(steps)] + [blanks]
        return [done[step + 1] - done[step] for step in range(steps)]

    def _sigma_N(self, block: Block) -> Tensor:
        return torch.full_like(block.confidence_N, self.sigma(block), dtype=torch.float64)

    def _open_sigma(self, block: Block) -> float:
        return self.sigma(block)

    def _alphas(self, block: Block) -> tuple[float, float]:
        return block.alphas or (self.alpha(block.time), self.alpha(block.next_time))

    def _most(self, block: Block) -> float:
        """The largest σ that leaves α_s in reach."""
        now, then = self._alphas(block)
        return min(1.0, (1.0 - then) / now) if now > 0.0 else float(then < 1.0)


@modifier("remdm-cap")
@dataclass(frozen=True, kw_only=True)
class Cap(_ReMDM):
    """σ = min(eta, σ_max)."""

    eta: float = 0.008

    def sigma(self, block: Block) -> float:
        """Chance of a written slot to open."""
        return min(self.eta, self._most(block))


@modifier("remdm-rescale")
@dataclass(frozen=True, kw_only=True)
class Rescale(_ReMDM):
    """σ = eta σ_max."""

    eta: float = 0.015

    def sigma(self, block: Block) -> float:
        """Chance of a written slot to open."""
        return self.eta * self._most(block)


@modifier("remdm-conf")
@dataclass(frozen=True, kw_only=True)
class Conf(_ReMDM):
    """σ_max, distributed over the written slots by softmax(-confidence), times eta.

    At most one slot per step opens on average, with the highest chance where confidence is lowest. As released,
    an open slot's own share is 0, so it is written with the chance that it has without remasking.
    """

    eta: float = 1.0

    def sigma(self, block: Block) -> float:
        """Chances of all written slots together."""
        return self.eta * self._most(block)

    def _sigma_N(self, block: Block) -> Tensor:
        unsure_N = (-block.confidence_N.double()).masked_fill(~block.written_N, -torch.inf)
        # With nothing written the softmax of nothing would be NaN.
        share_N = unsure_N.softmax(0) if bool(block.written_N.any()) else torch.zeros_like(unsure_N)
        return share_N * self.sigma(block)

    def _open_sigma(self, block: Block) -> float:
        return 0.0


@modifier("remdm-loop")
@dataclass(frozen=True, kw_only=True)
class Loop(_ReMDM):
    """Write up to the share `alpha_on` by `t_on`, rewrite at that share with σ = eta until `t_off`, then finish.

    The share is piecewise linear in time. σ stays below σ_max, which matters in the one step that leaves
    the loop.
    """

    eta: float = 0.02
    t_on: float = 0.55
    t_off: float = 0.05
    alpha_on: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        number("alpha_on", self.alpha_on, 0.0, 1.0)
        number("t_on", self.t_on, 0.0, 1.0)
        number("t_off", self.t_off, 0.0, self.t_on)

    def alpha(self, time: float) -> float:
        """Share that is written at a time."""
        if time >= 1.0:
            return 0.0
        if time > self.t_on:
            return (1.0 - time) * self.alpha_on / (1.0 - self.t_on)
        if time > self.t_off:
            return self.alpha_on
        return 1.0 - time * (1.0 - self.alpha_on) / self.t_off if self.t_off else 1.0

    def sigma(self, block: Block) -> float:
        """Chance of a written slot to open."""
        looping = self.t_off < block.time <= self.t_on
        return min(self.eta, self._most(block)) if looping else 0.0


@modifier("edit")
@dataclass(frozen=True, kw_only=True)
class Edit:
    """Put the likeliest id in the place of another one, where it is likelier than `threshold` (LLaDA 2.1).

    Ids that the pass itself has written are left: the same logits have chosen them.
    """

    threshold: float = 0.9
    post_steps: int = 16

    def __post_init__(self) -> None:
        number("threshold", self.threshold, 0.0, 1.0)
        whole("post_steps", self.post_steps, 0)

    def edits(self, block: Block, slots_M: Tensor, logp_MV: Tensor) -> tuple[Tensor, Tensor]:
        """Slots (K,) and their new ids (K,)."""
        best_M = logp_MV.max(-1)
        slots_K = self.doubted(block, slots_M, best_M.indices, best_M.values)
        return slots_K, best_M.indices[torch.searchsorted(slots_M, slots_K)]

    def doubted(self, block: Block, slots_M: Tensor, ids_M: Tensor, logp_M: Tensor) -> Tensor:
        """Slots (K,) whose id gives way to the likeliest one, by that and its log-probability (M,)."""
        at_M = torch.searchsorted(block.slots_N, slots_M)
        surer_M = logp_M.double().exp() > self.threshold
        return slots_M[block.written_N[at_M] & (ids_M != block.ids_N[at_M]) & surer_M]
