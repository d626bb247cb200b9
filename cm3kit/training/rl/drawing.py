"""Groups of answers for a round: prompts are drawn, answered by the policy and rewarded, by all processes together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from cm3kit.fill.kit import Kit
from cm3kit.fill.options import GenerateOptions
from cm3kit.rng import generator, stream
from cm3kit.training.rl.prompts import Item
from cm3kit.training.rl.recipe import RLRecipe
from cm3kit.training.rl.rewards import Rewards
from cm3kit.training.rl.rollouts import Rollout, order_of, roll_out
from cm3kit.training.rl.rounds import Group
from cm3kit.training.rl.together import shared

DRAW = 1  # stream of random numbers


def draw_groups(
    kit: Kit, items: Sequence[Item], rewards: Rewards, options: GenerateOptions, recipe: RLRecipe, number: int
) -> list[Group]:
    """Groups of a round: as many with some spread as it takes, if `tries` more draws can find them, and the others."""
    rng = generator(recipe.loop.seed, DRAW, number)
    order: list[int] = []
    groups: list[Group] = []
    for _ in range(recipe.tries + 1):
        missing = recipe.groups - sum(group.spread for group in groups)
        if missing <= 0:
            break
        while len(order) < len(groups) + missing:
            order += torch.randperm(len(items), generator=rng).tolist()
        slots = range(len(groups), len(groups) + missing)
        drawn = [(slot, items[order[slot]]) for slot in slots]
        names = [item.name for _, item in drawn]
        groups += shared(drawn, partial(_answered, kit, rewards, options, recipe, number, names))
    return groups


def _answered(
    kit: Kit, rewards: Rewards, options: GenerateOptions, recipe: RLRecipe, number: int, names: Sequence[str],
    chosen: Sequence[tuple[int, Item]],
) -> list[Group]:  # fmt: skip
    size = recipe.group
    asked = [
        (item, order_of(item, options, stream(recipe.loop.seed, DRAW, number, slot), index), slot)
        for slot, item in chosen
        for index in range(size)
    ]
    rollouts = roll_out(kit, asked) if asked else []
    judged = rewards([each.sample for each in rollouts], names)
    out = []
    for place, (slot, item) in enumerate(chosen):
        part = slice(place * size, (place + 1) * size)
        parts = {key: tuple(values[part]) for key, values in judged.parts.items()}
        seen = tuple(map(_seen, rollouts[part]))
        out.append(Group(item.name, slot, seen, tuple(judged.totals[part]), parts))
    return out


def _seen(rollout: Rollout) -> Rollout:
    """Without the picture, which is not needed any more."""
    return replace(rollout, sample=replace(rollout.sample, image=None))
