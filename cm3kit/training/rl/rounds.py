"""A round: answers to some prompts, their rewards, and their scores by the policy that wrote them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from torch import Tensor

from cm3kit.training.rl.episode import Episode
from cm3kit.training.rl.losses import AdvantageName, advantages
from cm3kit.training.rl.rollouts import Rollout


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that counts, by its episodes and its advantage; `seed` numbers its draws in the round."""

    episodes: tuple[Episode, ...]
    advantage: float
    seed: int


@dataclass(slots=True)
class Round:
    """What a few updates learn from.

    Attributes:
        number: of the round, from 0.
        answers: those with an advantage.
        figures: of all that were written.
        old: scores (K,) at each update, by the policy that wrote; one tensor where all updates ask alike.
        ref: those by the reference; empty without one.
        names: of the prompts.
    """

    number: int
    answers: list[Answer]
    figures: dict[str, float]
    names: list[str]
    old: list[Tensor] = field(default_factory=list)
    ref: list[Tensor] = field(default_factory=list)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and JSON, for a checkpoint between updates."""
        tensors = {f"old.{number}": each for number, each in enumerate(self.old)}
        tensors |= {f"ref.{number}": each for number, each in enumerate(self.ref)}
        answers = [
            {
                "episodes": [each.as_dict() for each in answer.episodes],
                "advantage": answer.advantage,
                "seed": answer.seed,
            }
            for answer in self.answers
        ]
        return tensors, {
            "number": self.number, "answers": answers, "figures": self.figures, "names": self.names,
        }  # fmt: skip

    @classmethod
    def from_state(cls, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Self:
        """What `state` gave."""

        def listed(name: str) -> list[Tensor]:
            count = sum(key.startswith(f"{name}.") for key in tensors)
            return [tensors[f"{name}.{number}"] for number in range(count)]

        answers = [
            Answer(tuple(map(Episode.from_dict, each["episodes"])), each["advantage"], each["seed"])
            for each in state["answers"]
        ]
        figures = {str(name): float(value) for name, value in state["figures"].items()}
        return cls(state["number"], answers, figures, list(state["names"]), listed("old"), listed("ref"))


@dataclass(frozen=True, slots=True)
class Group:
    """Answers to one prompt: rollouts, and their rewards."""

    name: str
    seed: int
    rollouts: tuple[Rollout, ...]
    rewards: tuple[float | None, ...]
    parts: Mapping[str, tuple[float | None, ...]]

    @property
    def spread(self) -> bool:
        """Whether their rewards differ."""
        known = [each for each in self.rewards if each is not None]
        return len(known) > 1 and max(known) > min(known)

    @property
    def distinct(self) -> float:
        """The share of distinct answers: 1 where no two are the same."""
        return len({each.sample.key for each in self.rollouts}) / len(self.rollouts)

    def answers(self, name: AdvantageName) -> list[Answer]:
        """Those with an advantage."""
        found = zip(self.rollouts, advantages(self.rewards, name), strict=True)
        return [
            Answer(rollout.episodes, advantage, self.seed * len(self.rollouts) + number)
            for number, (rollout, advantage) in enumerate(found)
            if advantage
        ]


def figures_of(groups: Sequence[Group]) -> dict[str, float]:
    """Metrics of a round, over all samples in it.

    `reward` and each by name are means; `no reward` is the share of answers that had none, `no spread` that of groups
    from which nothing can be learned, `distinct` that of distinct answers in a group; `ended` and `length` (ids) are of
    answers, `passes` are those of the model, `ar-ness` is the share of writes into the leftmost open position.
    """
    rollouts = [each for group in groups for each in group.rollouts]
    rewards = [each for group in groups for each in group.rewards]
    out = {"reward": _mean([each for each in rewards if each is not None])}
    names = list(groups[0].parts) if groups else []
    for name in names if len(names) > 1 else ():
        values = [each for group in groups for each in group.parts[name] if each is not None]
        out[f"reward {name}"] = _mean(values)
    return out | {
        "no reward": _mean([each is None for each in rewards]),
        "no spread": _mean([not group.spread for group in groups]),
        "distinct": _mean([group.distinct for group in groups]),
        "length": _mean([each.sample.tokens for each in rollouts]),
        "ended": _mean([each.sample.ended for each in rollouts]),
        "passes": _mean([each.passes for each in rollouts]),
        "ar-ness": _mean([share for each in rollouts for share in leftmost(each.episodes)]),
    }


def leftmost(episodes: Sequence[Episode]) -> list[float]:
    """For each write, in order, whether it is the leftmost open position: global AR-ness at 1 (arXiv:2506.20639)."""
    out: list[float] = []
    for episode in episodes:
        order, written, first = sorted(episode.open), set[int](), 0
        for write in episode.writes:
            if write.kind == "remask":
                written -= {*write.positions}
                first = 0
            for position in write.positions if write.kind == "write" else ():
                while first < len(order) and order[first] in written:
                    first += 1
                out.append(float(order[first : first + 1] == [position]))
                written.add(position)
    return out


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
