"""Trials on held-out prompts: one answer to each, by the decoders that the policy is for."""

from __future__ import annotations

from collections.abc import Sequence

from cm3kit.fill.kit import Kit
from cm3kit.rng import stream
from cm3kit.training.rl.prompts import Item
from cm3kit.training.rl.recipe import RLRecipe
from cm3kit.training.rl.rewards import Rewards
from cm3kit.training.rl.rollouts import order_of, roll_out


def try_out(kit: Kit, items: Sequence[Item], rewards: Rewards, recipe: RLRecipe) -> dict[str, float]:
    """By trial, the reward and its parts on average, and passes; nothing without items.

    A part that says nothing of single answers, as `variety`, is left out of the sum.
    """
    out: dict[str, float] = {}
    for name, options in recipe.trials.items() if items else ():
        asked = [
            (item, order_of(item, options, stream(recipe.loop.seed, 4, number), 0), number)
            for number, item in enumerate(items)
        ]
        rollouts = roll_out(kit, asked)
        judged = rewards([each.sample for each in rollouts], [item.name for item in items])
        before = f"{name} " if name else ""
        total, weights = 0.0, rewards.weights
        for part, values in judged.parts.items():
            known = [each for each in values if each is not None]
            if known:
                mean = sum(known) / len(known)
                total += weights[part] * mean
                out |= {f"{before}reward {part}": mean} if len(judged.parts) > 1 else {}
        out[f"{before}reward"] = total
        out[f"{before}passes"] = sum(each.passes for each in rollouts) / len(rollouts)
    return out
