"""The task of `train rl`: a decoder, trained by rewards of its answers.

A step is an update. Its batch is made of the policy as it is: at the first update of a round answers are written and
judged, at every one the estimator's views of them are scored without gradients, and the loss is differentiated with
respect to these scores. What the loop then sees are rows of the model with a weight for each log-probability, whose
sum has the gradient of the loss. So a batch may be cut into forward passes of any size, over any number of processes,
whatever the loss couples: the memory holds `rows` rows at a time, and the result is the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from cm3kit.fill.finding import find
from cm3kit.fill.folder import fingerprints, load_parts
from cm3kit.fill.kit import Kit
from cm3kit.rng import generator, stream
from cm3kit.training.parallel import whole
from cm3kit.training.precision import computes_bf16
from cm3kit.training.precision import processes as launched
from cm3kit.training.rl.drawing import draw_groups
from cm3kit.training.rl.estimators import Estimator, Plan, known
from cm3kit.training.rl.losses import Scores
from cm3kit.training.rl.model import PolicyModel, score
from cm3kit.training.rl.policy import Policy, Row, inputs
from cm3kit.training.rl.preview import preview
from cm3kit.training.rl.prompts import Item, read_items, split
from cm3kit.training.rl.recipe import RLRecipe, options_of
from cm3kit.training.rl.rewards import RewardContext, Rewards
from cm3kit.training.rl.rollouts import check_options, order_of
from cm3kit.training.rl.rounds import Round, figures_of
from cm3kit.training.rl.trials import try_out
from cm3kit_tokenizers.errors import Cm3kitError, ConfigError, DataError

MASKS = 2  # stream of random numbers
FEW = 3  # rounds in a row of too little variety
# Nats by which a score may differ from itself, in fp32 and where products are in bf16.
EXACTLY, ROUGHLY = 2e-3, 0.25


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows whose weighed log-probabilities have the gradient of the loss, and `loss`, their part of its value."""

    rows: list[Row]
    loss: float
    figures: dict[str, float]


@dataclass(frozen=True, slots=True)
class _Asked:
    """Views of all answers of a round, as plans and as rows, and what numbers the tokens have."""

    plans: list[Plan]
    rows: list[Row]
    count: int
    rows_K: Tensor
    steps_K: Tensor


class RLTask:
    """Reinforcement learning of one decoder; implements `cm3kit.training.loop.Task`."""

    def __init__(self, recipe: RLRecipe) -> None:
        self.recipe, self.notes = recipe, list[str]()
        folder = find(recipe.model)
        parts = load_parts(folder)
        self._options = options_of(recipe.sampling)
        apart = recipe.loop.shard and launched() > 1
        self._made = PolicyModel(parts, self._options, recipe.lora, recipe.loop.seed, apart)
        self.model: Policy = self._made.policy
        kind = known()[recipe.estimator.name]
        if kind.decoder != self._made.decoder:
            raise ConfigError(
                f"the estimator {recipe.estimator.name!r} is for the decoder {kind.decoder!r}, and"
                f" {self._made.decoder!r} writes; choose another estimator, or sampling.decoder.",
                code="bad_value",
            )
        self._estimator: Estimator = kind(recipe.estimator)
        self._items, self._held = self._read()
        self._rewards = Rewards(recipe.rewards, RewardContext(folder, "cpu"))
        own = recipe.loss.needs_reference and not self._made.adapted
        self._reference = self._made.reference() if own else None
        self._fingerprints = fingerprints(folder)
        self._step, self._few = 0, list[float]()
        self._round: Round | None = None
        self._first: tuple[int, Tensor, Tensor] | None = None

    def _read(self) -> tuple[list[Item], list[Item]]:
        recipe = self.recipe
        found = read_items(recipe.prompts, recipe.task, recipe.hold_out)
        mine = [each for each in found if each.meta.get("split", "train") == "train"]
        if len(mine) < len(found):
            self.notes.append(
                f"{len(found) - len(mine)} rows of {recipe.prompts} are of another split than train"
            )
        items = self._fitting(mine, recipe.prompts)
        if recipe.held is not None:
            held = read_items(recipe.held, recipe.task, recipe.hold_out)
            return items, self._fitting(held, recipe.held)
        learned, held = split(items, recipe.held_share)
        return learned or items, held

    def _fitting(self, items: Sequence[Item], source: Path) -> list[Item]:
        """Those that fit the model's window; the others are left out, and noted."""
        kit = self._made.kit(self.model)
        check_options(kit.filler(self._options), self._options, self._made.timed)
        kept, last = list[Item](), ""
        for item in items:
            try:
                kit.filling(order_of(item, self._options, 0, 0)).next_canvas()
            except Cm3kitError as error:
                if error.code != "too_long":
                    raise type(error)(
                        f"{item.name!r} of {source}: {error.args[0]}", code=error.code
                    ) from error
                last = str(error.args[0])
            else:
                kept.append(item)
        if not kept:
            raise DataError(f"no prompt of {source} fits the model: {last}", code="too_long")
        if len(kept) < len(items):
            self.notes.append(
                f"{len(items) - len(kept)} of {len(items)} prompts of {source} left out: {last}"
            )
        return kept

    def seek(self, step: int, size: int, process: int, processes: int) -> None:
        """Record the step."""
        self._step = step

    def fingerprint(self) -> str:
        """Of the prompts, and of the model that training begins with."""
        told = [sorted(each.key for each in self._items), self._fingerprints]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    def names(self, rng: Generator, size: int) -> list[str]:
        """The prompts of the step's round."""
        number = self._step // self.recipe.updates
        return self._round.names if self._round is not None and self._round.number == number else []

    def batch_rows(self, batch: Batch) -> tuple[int, int]:
        """Rows of a batch, and how many go through the model at once."""
        return len(batch.rows), self.recipe.rows

    def share(self, batch: Batch, rows: slice) -> Batch:
        """Some of its rows, which have their share of the loss."""
        mine = batch.rows[rows]
        return Batch(mine, batch.loss * len(mine) / max(1, len(batch.rows)), batch.figures)

    def batch(self, rng: Generator, size: int) -> Batch:
        """The rows of the step; at the first update of a round answers are written first."""
        self.model.eval()
        number, update = divmod(self._step, self.recipe.updates)
        if self._round is None or self._round.number != number:
            self._sync()
            self._round = self._begin(number)
        made = self._round
        asked = self._asked(made, update)
        if not asked.count:
            return Batch([], 0.0, dict(made.figures))
        logp_N, entropy_N = self._now(made, update, asked)
        answers_N = logp_N.clone().requires_grad_()
        loss, figures = self._estimator.loss(self._scores(made, update, asked, answers_N), self.recipe.loss)
        loss.backward()  # type: ignore[no-untyped-call]
        self._check_start(figures)
        assert answers_N.grad is not None
        for row in asked.rows:
            row.weights, row.expected = answers_N.grad[row.answers].tolist(), logp_N[row.answers].tolist()
        figures = {**made.figures, **figures, "entropy": float(entropy_N.mean())}
        return Batch(asked.rows, float(loss.detach()), figures)

    def loss(
        self, model: nn.Module, batch: Batch, step: int, rng: Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """The weighed log-probabilities, with the value of the loss.

        Raises:
            DataError: scores are not what they were a moment ago, so that ratios mean nothing (`unstable`).
        """
        self.model.eval()  # no dropout, so that a score is reproducible
        device = next(self.model.parameters()).device
        logp_N, _ = model(*inputs(batch.rows, device))
        weights_N = logp_N.new_tensor([each for row in batch.rows for each in row.weights])
        expected_N = logp_N.new_tensor([each for row in batch.rows for each in row.expected])
        drift = float((logp_N.detach() - expected_N).abs().max()) if len(expected_N) else 0.0
        if not drift <= self._tolerance(device):
            raise DataError(
                f"a score differs from itself by {drift:.3g} nats between two passes of step {step + 1}; set"
                " loop.precision=fp32 and loop.compile=false, and draw no random numbers in the model.",
                code="unstable",
            )
        total = (weights_N * logp_N).sum()
        return total + (batch.loss - total.detach()), batch.figures

    def _begin(self, number: int) -> Round:
        """Answers to the prompts of a round, and their scores by the policy and the reference."""
        recipe = self.recipe
        # Engines have matrices and caches of their own number format; only modules are told another.
        with self._autocast() if self._made.writes_by_module else nullcontext():
            groups = draw_groups(self._kit(), self._items, self._rewards, self._options, recipe, number)
        useful = [group for group in groups if group.spread][: recipe.groups]
        answers = [each for group in useful for each in group.answers(recipe.loss.advantage)]
        figures = {**figures_of(groups), "groups": float(len(groups))}
        self._watch_variety(figures["distinct"])
        made = Round(number, answers, figures, [group.name for group in groups])
        for update in range(recipe.updates if self._estimator.redraws else 1):
            asked = self._asked(made, update)
            logp_N, entropy_N = self._score(self.model, asked)
            if not update:
                self._first = number, logp_N, entropy_N
            made.old.append(self._estimator.combine(asked.plans, logp_N))
            if recipe.loss.needs_reference:
                made.ref.append(self._estimator.combine(asked.plans, self._by_reference(asked)))
        return made

    def _by_reference(self, asked: _Asked) -> Tensor:
        with self._made.without_adapters() if self._reference is None else nullcontext():
            policy = self.model if self._reference is None else self._reference
            return self._score(policy.to(next(self.model.parameters()).device), asked)[0]

    def _asked(self, made: Round, update: int) -> _Asked:
        """The plans of the estimator for the answers, with the random numbers of this update and of each answer."""
        plans, prefixes, owners, steps = list[Plan](), list[int](), list[int](), list[int]()
        drawn = update if self._estimator.redraws else 0
        for number, answer in enumerate(made.answers):
            for place, episode in enumerate(answer.episodes):
                rng = generator(self.recipe.loop.seed, MASKS, made.number, drawn, answer.seed, place)
                plan = self._estimator.plan(episode, rng)
                plans.append(plan)
                prefixes.append(episode.prefix)
                owners += [number] * len(plan.steps)
                steps += plan.steps
        rows = self._made.reading.rows(plans, prefixes)
        count = sum(len(row.answers) for row in rows)
        # Rows of about one length share a pass, whatever their number.
        rows.sort(key=lambda row: len(row.ids))
        return _Asked(
            plans, rows, count, torch.tensor(owners, dtype=torch.long), torch.tensor(steps, dtype=torch.long)
        )

    def _score(self, policy: Policy, asked: _Asked) -> tuple[Tensor, Tensor]:
        with self._autocast():
            return score(policy, asked.rows, self.recipe.rows, asked.count)

    def _now(self, made: Round, update: int, asked: _Asked) -> tuple[Tensor, Tensor]:
        """Scores by the policy as it is; at the first update they are those of the rollout."""
        if not update and self._first is not None and self._first[0] == made.number:
            return self._first[1], self._first[2]
        return self._score(self.model, asked)

    def _scores(self, made: Round, update: int, asked: _Asked, answers_N: Tensor) -> Scores:
        drawn = update if self._estimator.redraws else 0
        now_K = self._estimator.combine(asked.plans, answers_N)
        advantages_R = torch.tensor([each.advantage for each in made.answers], dtype=torch.float64)
        ref_K = made.ref[drawn] if made.ref else None
        return Scores(now_K, made.old[drawn], ref_K, asked.rows_K, asked.steps_K, advantages_R)

    def _sync(self) -> None:
        """Make the policy the reference, where that is due."""
        every = self.recipe.loss.sync_every
        if self._reference is not None and every and self._step and self._step % every == 0:
            state = {name: whole(each).detach() for name, each in self.model.state_dict().items()}
            self._reference.load_state_dict(state)

    def _check_start(self, figures: Mapping[str, float]) -> None:
        """At the very first update policy and reference are one; DataError where they are not."""
        away = figures.get("kl", 0.0)
        if self._step == 0 and away > self._tolerance(next(self.model.parameters()).device):
            raise DataError(
                f"before the first update the policy is {away:.3g} nats from its reference, which it should be;"
                " draw no random numbers in the model.",
                code="unstable",
            )

    def _watch_variety(self, distinct: float) -> None:
        self._few = [*self._few, distinct][-FEW:]
        if len(self._few) == FEW and max(self._few) < self.recipe.min_distinct:
            raise DataError(
                f"answers to a prompt have become the same: {distinct:.0%} of a group are distinct, under"
                f" min_distinct = {self.recipe.min_distinct:g} for {FEW} rounds; raise sampling.temperature,"
                " add the reward variety, or take the checkpoint before.",
                code="unstable",
            )

    def _tolerance(self, device: torch.device) -> float:
        half = next(self.model.parameters()).dtype != torch.float32
        return ROUGHLY if half or torch.is_autocast_enabled(device.type) or self._fast(device) else EXACTLY

    def _fast(self, device: torch.device) -> bool:
        precision = self.recipe.loop.precision
        return computes_bf16(device.type == "cpu") if precision == "auto" else precision == "bf16"

    def _autocast(self) -> torch.autocast:
        device = next(self.model.parameters()).device
        return torch.autocast(device.type, torch.bfloat16, enabled=self._fast(device))

    def _kit(self) -> Kit:
        return self._made.kit(self.model)

    def validate(self, model: nn.Module, count: int) -> dict[str, float]:
        """Rewards of answers to held-out prompts; none where none are held out."""
        return try_out(self._kit(), self._held[:count], self._rewards, self.recipe)

    def preview(self, model: nn.Module, path: Path) -> None:
        """Answers to a few prompts, with their rewards."""
        self._preview(self._kit(), path)

    def preview_before(self, path: Path) -> None:
        """The same of the policy before training, in the main process alone."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._preview(self._made.kit_before(), path)

    def _preview(self, kit: Kit, path: Path) -> None:
        items = (self._held or self._items)[: self.recipe.previews]
        preview(kit, items, self._rewards, self._options, stream(self.recipe.loop.seed, 3), path)

    def export(self, model: nn.Module, folder: Path) -> None:
        """A model folder with the trained decoder."""
        self._made.export(self.model, folder)

    def extra_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The current round, and a reference that was updated."""
        tensors, told = self._round.state() if self._round is not None else ({}, None)
        if self._reference is not None and self.recipe.loss.sync_every:
            tensors |= {f"reference.{name}": each for name, each in self._reference.state_dict().items()}
        return tensors, {"round": told, "few": self._few}

    def load_extra_state(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take it up again."""
        self._first, self._few = None, list(state.get("few", ()))
        told = state.get("round")
        self._round = Round.from_state(tensors, told) if told is not None else None
        moved = {
            name.removeprefix("reference."): each
            for name, each in tensors.items()
            if name.startswith("reference.")
        }
        if self._reference is not None and moved:
            self._reference.load_state_dict(moved)
