"""Answers by the policy: written by the project's own decoders, kept as episodes, and passed to rewards as samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from cm3kit.decoders.diffusion.settings import EXACT, DiffusionConfig
from cm3kit.fill.batching import Filling, Order
from cm3kit.fill.fillers import Filler, modality_of
from cm3kit.fill.kit import Filled, Kit, Result
from cm3kit.fill.options import GenerateOptions
from cm3kit.training.rl.episode import Episode, causal_episode, diffusion_episode
from cm3kit.training.rl.prompts import Item
from cm3kit.training.rl.rewards import Sample
from cm3kit.types import Canvas
from cm3kit.types import Result as Written
from cm3kit_tokenizers.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Rollout:
    """One answer: its episodes (more than one where a long page has several windows), passes, and its results."""

    episodes: tuple[Episode, ...]
    sample: Sample
    passes: int


def order_of(item: Item, options: GenerateOptions, seed: int, index: int) -> Order:
    """What is asked of the decoder."""
    if item.page is not None:
        return Order(seed=seed, index=index, options=options, page=item.page)
    assert item.task is not None
    return Order(item.prompt, item.task, seed, index, options)


def roll_out(kit: Kit, asked: Sequence[tuple[Item, Order, int]]) -> list[Rollout]:
    """Carry out orders, those that can be together; each with its item and the number of its group.

    Raises:
        ConfigError: the options are not those of a policy (`check_options`), or do not fit the model or a prompt.
    """
    fillings = [kit.filling(order) for _, order, _ in asked]
    found: list[list[Written]] = [[] for _ in asked]
    while True:
        waiting: dict[object, list[tuple[int, Canvas]]] = {}
        for number, (filling, (_, order, _)) in enumerate(zip(fillings, asked, strict=True)):
            if (canvas := filling.next_canvas()) is not None:
                filler = kit.filler(order.options)
                key = (type(filler).__name__, filler.batch_key(canvas, order.options))
                waiting.setdefault(key, []).append((number, canvas))
        if not waiting:
            break
        for group in waiting.values():
            options = asked[group[0][0]][1].options
            results = kit.filler(options).fill(
                [canvas for _, canvas in group], options, lambda done, of: None
            )
            for (number, _), result in zip(group, results, strict=True):
                fillings[number].take(result)
                found[number].append(result)
    return [
        _rollout(kit, item, order, group, filling, written)
        for (item, order, group), filling, written in zip(asked, fillings, found, strict=True)
    ]


def _rollout(
    kit: Kit, item: Item, order: Order, group: int, filling: Filling, written: Sequence[Written]
) -> Rollout:
    filler = kit.filler(order.options)
    episodes = tuple(episode_of(kit, filler, result, order.options) for result in written)
    tokens = sum(len(fill.ids) for result in written for fill in result.fills)
    sample = sample_of(item, filling.result(), group, tokens)
    if sample.image is None:  # of a filled page, whose pictures are in its bytes
        sample = replace(sample, **_picture(kit, written))
    return Rollout(episodes, sample, sum(result.cost.forwards for result in written))


def _picture(kit: Kit, written: Sequence[Written]) -> dict[str, Any]:
    """The first whole picture that was drawn."""
    height, width = kit.image.grid
    for result in written:
        for span, fill in zip(result.canvas.spans, result.fills, strict=True):
            if span.kind == "image" and len(fill.ids) == height * width:
                codes = tuple(kit.codes(fill.ids))
                return {"codes": codes, "image": kit.pictures([codes])[0]}
    return {}


def episode_of(kit: Kit, filler: Filler, result: Written, options: GenerateOptions) -> Episode:
    """How a canvas was filled."""
    vocab = kit.vocab
    if result.commits is None:
        return causal_episode(result, vocab.mask)
    config = filler.settings(modality_of(result.canvas.spans), options)
    assert isinstance(config, DiffusionConfig)
    return diffusion_episode(result, vocab.mask, vocab.eoss, config)


def check_options(filler: Filler, options: GenerateOptions, timed: bool = False) -> None:
    """Refuse options of which a replay is not exact.

    Args:
        timed: whether the model looks at the time, which samplers of the reverse process do not write down.

    Raises:
        ConfigError: guidance, gaps in parallel, lengths that are tried out, a cache that approximates (`bad_value`).
    """
    wrong = []
    for modality in ("image", "text", "mixed"):
        config = filler.settings(modality, options)
        if getattr(config, "guidance", 1) != 1:
            wrong.append(f"guidance {getattr(config, 'guidance', 1)}")
        if timed and getattr(config, "sampler", "confidence") != "confidence":
            wrong.append(f"sampler {getattr(config, 'sampler', '')!r} of a time-conditioned model")
        cache = getattr(config, "cache", "none")
        if cache not in ("none", *EXACT):
            wrong.append(f"cache {cache!r}")
        if getattr(config, "repetition_penalty", 1) != 1 or getattr(config, "eoss_bias", 0):
            wrong.append("a penalty or bias of ids")
    wrong += ["parallel gaps"] if options.parallel else []
    wrong += ["length 'auto'"] if options.length == "auto" else []
    if wrong:
        raise ConfigError(
            f"sampling has {wrong[0]}, with which scores cannot be recomputed; leave it out.",
            code="bad_value",
        )


def sample_of(item: Item, made: Result | Filled, group: int, tokens: int) -> Sample:
    """What rewards see of a result."""
    if isinstance(made, Filled):
        gaps = made.gaps
        html = made.html.decode(item.page.codec if item.page else "utf-8", "replace")
        hints = tuple(gap.size for gap in item.page.gaps) if item.page else ()
        texts = tuple("" if gap.kind == "image" else gap.text.strip() for gap in gaps)
        ended = all(gap.ended for gap in gaps)
        return Sample(item.name, group, texts, item.answers, ended, tokens, hints, html=html, meta=item.meta)
    texts = () if made.text is None else (made.text,)
    return Sample(
        item.name,
        group,
        texts,
        item.answers,
        made.ended,
        tokens,
        (),
        made.image,
        made.codes,
        made.html,
        item.meta,
    )
