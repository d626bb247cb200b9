"""How each sampler writes one block of a canvas: which slots a pass scores, and which it writes.

`Confidence` is the loop of LLaDA (arXiv:2502.09992, alg. 5) with schedule, order and accept rule exchangeable.
`Reverse` simulates the reverse process, in steps or event by event.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Literal, Protocol

import torch
from torch import Generator, Tensor

from cm3kit.decoders.diffusion import accepts, axes, orders, schedules  # noqa: F401  (they register themselves)
from cm3kit.decoders.diffusion.modifiers import Block, Editor, Remasker, make
from cm3kit.decoders.diffusion.scores import Scores
from cm3kit.decoders.diffusion.settings import DiffusionConfig
from cm3kit_tokenizers.errors import ConfigError


class Phase(Protocol):
    """The state of one block of one canvas.

    Attributes:
        blanks: slots that were open at its start.
        step: index of the step that comes next, of `steps` that are planned.
        reopened: written slots that the current step opens again, once it has written.
        alphas: what share is planned to be written before and after the next step; None says 1 - t.
    """

    blanks: int
    step: int
    steps: int
    reopened: list[int]

    @property
    def alphas(self) -> tuple[float, float] | None:
        """See above."""

    @property
    def lasting(self) -> bool:
        """Whether steps are left in which written slots may open again; `want` is then given the block."""

    def time(self, left: int) -> float:
        """Diffusion time of the block at the pass that was asked for last, with `left` slots open."""

    def want(self, slots: Sequence[int], rng: Generator, block: Block | None = None) -> list[int]:
        """Which of the block's open slots the next step must score; none only where it is `lasting`."""

    def choose(self, scores: Scores) -> tuple[Tensor, Tensor]:
        """Of the scored slots those to write now: indices (K,), best first, and the scores (M,) of all."""


Opener = Callable[[int, bool], Phase]
"""`opener(blanks, later)`: the phase of a block with so many open slots; `later` is that of `plan_block`."""


class Confidence:
    """Score every open slot, and write the best of them.

    Args:
        plan: how many slots each step writes for good.
        order: scores the slots.
        accept: which of them are written.
        remasker: opens slots again; each step writes as many more.
        alphas: whether the shares of the plan hold for the remasker, or its own do.
    """

    def __init__(
        self,
        plan: Sequence[int],
        order: Callable[[Scores], Tensor],
        accept: Callable[[Tensor, int], Tensor],
        remasker: Remasker | None = None,
        alphas: bool = False,
    ) -> None:
        self._plan, self._order, self._accept, self._remasker = plan, order, accept, remasker
        self.blanks, self.steps, self.step = sum(plan), len(plan), 0
        self.reopened: list[int] = []
        self._alphas, self._planned = alphas, 0

    @property
    def alphas(self) -> tuple[float, float] | None:
        """The shares of the plan."""
        if not self._alphas:
            return None
        done = sum(self._plan[: self.step])
        return done / self.blanks, (done + sum(self._plan[self.step : self.step + 1])) / self.blanks

    @property
    def lasting(self) -> bool:
        """Whether the remasker has steps left."""
        return self._remasker is not None and self.step < self.steps

    def time(self, left: int) -> float:
        """The share of the block that is open."""
        return left / self.blanks

    def want(self, slots: Sequence[int], rng: Generator, block: Block | None = None) -> list[int]:
        """All of them, where the step writes any."""
        again = self._remasker.reopen(block, rng).tolist() if self._remasker and block else []
        self.reopened = again
        # After the planned steps the last count holds until nothing is open.
        planned = self._plan[self.step] if self.step < self.steps else max(1, self._plan[-1])
        self._planned = min(planned + len(again), len(slots))
        if self._planned:
            return list(slots)
        self.step += 1
        return []

    def choose(self, scores: Scores) -> tuple[Tensor, Tensor]:
        """The accepted ones."""
        score_M = self._order(scores)
        accepted_M = self._accept(score_M, self._planned)
        self.step += 1
        ranked_M = score_M.sort(descending=True, stable=True).indices
        # A plug-in rule that accepts nothing would loop forever.
        return ranked_M[accepted_M[ranked_M]] if bool(accepted_M.any()) else ranked_M[:1], score_M


class Reverse:
    """The reverse process of alpha = 1 - t, in which every slot is written at a uniform time of its own.

    In `steps` steps from t = 1 - i/S to s = 1 - (i + 1)/S an open slot is written with probability 1 - s/t
    (ancestral sampling; MDLM, arXiv:2406.07524, eq. 7): those whose time lies between s and t, with the model
    at t. Without steps each is written at its own time, and the next of n slots comes at t u^(1/n)
    (first-hitting sampling, arXiv:2409.02908, alg. 2). The times do not depend on the model, so that steps
    that write nothing need no pass even where the model looks at the time, and at 0 nothing is open.
    """

    def __init__(self, blanks: int, steps: int | None = None) -> None:
        self.blanks, self.steps, self.step = blanks, steps or blanks, 0
        self.reopened: list[int] = []
        self._grid = steps
        self._time = 1.0
        self._when: dict[int, float] = {}
        self._written: list[float] = []

    @property
    def alphas(self) -> None:
        """The shares are 1 - t."""

    @property
    def lasting(self) -> bool:
        """What is written stays."""
        return False

    def time(self, left: int) -> float:
        """The time t of the step, or that of the slot."""
        return self._time

    def want(self, slots: Sequence[int], rng: Generator, block: Block | None = None) -> list[int]:
        """Those that the next step writes."""
        new = [slot for slot in slots if slot not in self._when]
        dice = torch.rand(len(new), generator=rng, dtype=torch.float64).tolist()
        self._when.update((slot, 1 - die) for slot, die in zip(new, dice, strict=True))
        self._time = max(self._tick(self._when[slot]) for slot in slots)
        chosen = [slot for slot in slots if self._tick(self._when[slot]) == self._time]
        self._written = [self._when.pop(slot) for slot in chosen]
        self.step += 1
        return chosen

    def choose(self, scores: Scores) -> tuple[Tensor, Tensor]:
        """All that were scored, in the order of their times."""
        score_M = torch.tensor(self._written, dtype=torch.float64)
        return score_M.sort(descending=True, stable=True).indices, score_M

    def _tick(self, when: float) -> float:
        return max(1, math.ceil(when * self._grid)) / self._grid if self._grid else when


class Remasked:
    """Ancestral steps that open slots again (ReMDM, arXiv:2503.00307, alg. 1), each slot by a draw of its own."""

    alphas = None

    def __init__(self, blanks: int, steps: int, remasker: Remasker) -> None:
        self.blanks, self.steps, self.step, self._remasker = blanks, steps, 0, remasker
        self.reopened: list[int] = []
        self._dice = torch.empty(0, dtype=torch.float64)

    @property
    def lasting(self) -> bool:
        """Whether there are steps left."""
        return self.step < self.steps

    def time(self, left: int) -> float:
        """The share of the block that is open, which is t on average unless the remasker says otherwise."""
        return left / self.blanks

    def want(self, slots: Sequence[int], rng: Generator, block: Block | None = None) -> list[int]:
        """Those that the next step writes; after the last one whatever is left."""
        chance = 1.0
        self.reopened = []
        if block is not None:
            self.reopened = self._remasker.reopen(block, rng).tolist()
            chance = self._remasker.unmask(block) if self.step < self.steps - 1 else 1.0
        dice_M = torch.rand(len(slots), generator=rng, dtype=torch.float64)
        self.step += 1
        written_M = dice_M < chance
        self._dice = dice_M[written_M]
        return [slots[index] for index in written_M.nonzero()[:, 0].tolist()]

    def choose(self, scores: Scores) -> tuple[Tensor, Tensor]:
        """All that were scored, in the order of their draws."""
        score_M = 1 - self._dice
        return score_M.sort(descending=True, stable=True).indices, score_M


def make_opener(config: DiffusionConfig, ends: Collection[int], remasker: Remasker | None = None) -> Opener:
    """How blocks are begun under these settings.

    Args:
        config: the settings.
        ends: end ids, which `config.eoser` ranks lower.
        remasker: opens slots again.

    Raises:
        ConfigError: an axis is unknown (`unknown_name`), or one of its options is, or the sampler has no use
            for `eoser`, a remasker or ascending blocks (`bad_config`).
    """
    if config.eoser is not None and config.sampler != "confidence":
        raise ConfigError(
            f"eoser ranks slots, and sampler {config.sampler!r} ranks none; leave one of them out.",
            code="bad_config",
        )
    if config.ascending_blocks is not None:
        _fit_for_ascending_blocks(config, remasker)
    if config.sampler == "first-hitting":
        if remasker is not None:
            raise ConfigError(
                "sampler 'first-hitting' has no steps at which slots could open again; use 'ancestral'.",
                code="bad_config",
            )
        return lambda blanks, later: Reverse(blanks)
    if config.sampler == "ancestral":
        if remasker is not None:
            return lambda blanks, later: Remasked(blanks, config.steps or blanks, remasker)
        return lambda blanks, later: Reverse(blanks, config.steps or blanks)
    order, accept = axes.bind(axes.order, config.order), axes.bind(axes.accept, config.accept)
    if config.eoser is not None:
        order = orders.eoser(order, config.eoser, ends)
    shares = not _own_schedule(config)
    return lambda blanks, later: Confidence(
        plan_block(config, blanks, remasker, later), order, accept, remasker, shares
    )


def _fit_for_ascending_blocks(config: DiffusionConfig, remasker: Remasker | None) -> None:
    schedule = config.schedule if isinstance(config.schedule, str) else config.schedule.get("name")
    wrong = {
        f"sampler {config.sampler!r}": config.sampler != "confidence",
        f"schedule {schedule!r}": schedule != "ascending",
        "block_size": config.block_size is not None,
        f"cache {config.cache!r}": config.cache != "none",
        "a modifier that opens slots again": remasker is not None,
    }
    found = [name for name, here in wrong.items() if here]
    if found:
        raise ConfigError(
            f"ascending_blocks deals out the steps of schedule 'ascending', and does not go with {found[0]}.",
            code="bad_config",
        )


def make_modifiers(config: DiffusionConfig) -> tuple[Remasker | None, Editor | None]:
    """What opens slots again and what replaces ids.

    Raises:
        ConfigError: a modifier is unknown (`unknown_name`), or one of its options, or there are two that do
            the same (`bad_config`).
    """
    made = [make(choice) for choice in config.modifiers]
    remaskers = [each for each in made if isinstance(each, Remasker)]
    editors = [each for each in made if isinstance(each, Editor)]
    if len(remaskers) > 1 or len(editors) > 1:
        raise ConfigError(
            f"{len(remaskers)} modifiers open slots again and {len(editors)} edit; give one of each at most.",
            code="bad_config",
        )
    return next(iter(remaskers), None), next(iter(editors), None)


def _own_schedule(config: DiffusionConfig) -> bool:
    """Whether a remasker goes by its own schedule: with equal schedules, which are what most of these say."""
    return config.schedule in ("uniform", {"name": "uniform"})


def plan_block(
    config: DiffusionConfig, blanks: int, remasker: Remasker | None = None, later: bool = False
) -> list[int]:
    """How many of a block's slots each step is to write for good; ancestral steps are taken at their mean.

    0 stands for a step that only rewrites. `later` says that the block is not the first of ascending ones: these
    are written in one step each.
    """
    if config.ascending_blocks is not None:
        # The first of several has all powers of two, and one that is alone the schedule as it was released.
        mode: Literal["clip", "paper"] = "clip" if config.ascending_blocks > 1 else "paper"
        return [blanks] if later else schedules.ascending(blanks, 1, mode=mode)
    steps = config.steps or blanks
    if config.sampler == "first-hitting":
        return [1] * blanks
    if remasker is not None and (config.sampler == "ancestral" or _own_schedule(config)):
        return remasker.plan(blanks, steps)
    if config.sampler == "ancestral":
        counts = [blanks // steps + (step < blanks % steps) for step in range(steps)]
    else:
        counts = axes.bind(axes.schedule, config.schedule)(blanks, steps)
    if sum(counts) != blanks or min(counts, default=0) < 0:
        raise ConfigError(
            f"schedule {config.schedule!r} gives {counts} for {blanks} positions; it must sum to them, and none"
            " be negative.",
            code="bad_config",
        )
    # A step that writes nothing would be a pass for nothing.
    return [count for count in counts if count]
