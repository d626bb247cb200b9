"""Previews of a policy's answers: a sheet of pictures, a page that was filled, or a page of texts."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from cm3kit.fill.kit import Kit
from cm3kit.fill.options import GenerateOptions
from cm3kit.images import grid
from cm3kit.training.rl.prompts import Item
from cm3kit.training.rl.rewards import Rewards
from cm3kit.training.rl.rollouts import Rollout, order_of, roll_out

EACH = 2  # answers to a prompt


def preview(
    kit: Kit, items: Sequence[Item], rewards: Rewards, options: GenerateOptions, seed: int, path: Path
) -> None:
    """Write `path`.png where there are pictures, and `path`.html where there is text; the same seed every time."""
    if not items:
        return
    asked = [
        (item, order_of(item, options, seed, index), number)
        for number, item in enumerate(items)
        for index in range(EACH)
    ]
    rollouts = roll_out(kit, asked)
    worth = rewards([each.sample for each in rollouts], [item.name for item in items]).totals
    told = ["no reward" if each is None else f"{each:.2f}" for each in worth]
    pictures = [
        (each.sample.image, f"{each.sample.prompt} {value}")
        for each, value in zip(rollouts, told, strict=True)
        if each.sample.image is not None
    ]
    if pictures:
        grid([picture for picture, _ in pictures], captions=[words for _, words in pictures]).save(
            path.with_suffix(".png")
        )
    if any(each.sample.texts for each in rollouts):
        path.with_suffix(".html").write_text(_page(rollouts, told), encoding="utf-8")


def _page(rollouts: Sequence[Rollout], told: Sequence[str]) -> str:
    """A table of prompts, answers and rewards, as escaped text."""
    rows = "".join(
        f"<tr><td>{escape(each.sample.prompt)}</td><td>{escape(' | '.join(each.sample.texts))}</td>"
        f"<td>{escape(value)}</td></tr>\n"
        for each, value in zip(rollouts, told, strict=True)
    )
    head = '<!DOCTYPE html>\n<meta charset="utf-8">\n<title>Answers</title>\n'
    return f"{head}<table>\n<tr><th>prompt</th><th>answer</th><th>reward</th></tr>\n{rows}</table>\n"
