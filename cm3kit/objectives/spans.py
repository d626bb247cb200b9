"""Distributions of masked spans: laws of their number and position, and presets (arXiv:2201.07520, sec. 2).

A law of number is a function of one uniform number; a law of position draws at most n disjoint, non-empty spans
of 0..size, where size is the number of possible cuts.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Generator

from cm3kit.registry import Registry, span_law
from cm3kit.types import Span

CountLaw = Callable[[float, int, int], int]
count_law: Registry[CountLaw] = Registry("count law")

TRIES = 64


def _poisson(u: float) -> int:
    """Inverse distribution function of Poisson(1)."""
    count, term = 0, math.exp(-1.0)
    total = term
    while u >= total and count < 1000:
        count += 1
        term /= count
        total += term
    return count


def _poisson_below(count: int) -> float:
    """P(Poisson(1) < count)."""
    return sum(math.exp(-1.0) / math.factorial(k) for k in range(min(count, 30)))


@count_law("clamped_poisson")
def clamped_poisson(u: float, least: int, most: int) -> int:
    """Poisson(1), clipped to least..most."""
    return min(max(_poisson(u), least), most)


@count_law("truncated_poisson")
def truncated_poisson(u: float, least: int, most: int) -> int:
    """Poisson(1), conditional on least..most."""
    low, high = _poisson_below(least), _poisson_below(most + 1)
    return min(max(_poisson(low + u * (high - low)), least), most)


@count_law("one")
def one(u: float, least: int, most: int) -> int:
    """Always one span."""
    return 1


def _uniform(count: int, rng: Generator) -> list[float]:
    return torch.rand(count, generator=rng, dtype=torch.float64).tolist()


def _whole_set(
    n: int, size: int, rng: Generator, pair: Callable[[float, float, int], Span]
) -> tuple[Span, ...] | None:
    """Draw n spans until none are empty and none overlap, up to 64 times; then retry with one fewer."""
    for count in range(n, 0, -1):
        tries = TRIES
        while tries:
            chunk = min(tries, 8)
            tries -= chunk
            draws = iter(_uniform(2 * count * chunk, rng))
            for _ in range(chunk):
                drawn = [pair(next(draws), next(draws), size) for _ in range(count)]
                spans = sorted(drawn, key=lambda span: span.start)
                if all(span.start < span.stop for span in spans) and all(
                    left.stop <= right.start for left, right in pairwise(spans)
                ):
                    return tuple(spans)
    return None


def _two_ends(u: float, v: float, size: int) -> Span:
    low, high = (u, v) if u < v else (v, u)
    return Span(int(low * (size + 1)), int(high * (size + 1)))


def _length_then_start(u: float, v: float, size: int) -> Span:
    length = 1 + int(u * size)
    start = int(v * (size - length + 1))
    return Span(start, start + length)


@span_law("ordered_uniform")
def ordered_uniform(n: int, size: int, rng: Generator) -> tuple[Span, ...] | None:
    """Both ends uniform on 0..size; the set is redrawn if a span is empty or two overlap (CM3, sec. 2)."""
    return _whole_set(n, size, rng, _two_ends)


@span_law("uniform_length")
def uniform_length(n: int, size: int, rng: Generator) -> tuple[Span, ...] | None:
    """Length uniform on 1..size, then the start; the set is redrawn if two overlap (InCoder, sec. 2.1)."""
    return _whole_set(n, size, rng, _length_then_start)


@span_law("distinct_cuts")
def distinct_cuts(n: int, size: int, rng: Generator) -> tuple[Span, ...] | None:
    """2n distinct cuts of 0..size, paired in order; fewer if size is small."""
    n = min(n, (size + 1) // 2)
    if n < 1:
        return None
    cuts: list[int] = torch.randperm(size + 1, generator=rng)[: 2 * n].tolist()
    cuts.sort()
    return tuple(Span(start, stop) for start, stop in zip(cuts[::2], cuts[1::2], strict=True))


@span_law("greedy")
def greedy(n: int, size: int, rng: Generator) -> tuple[Span, ...] | None:
    """n² candidates floor(u·size) to floor(v·size + ½), accepted in order unless they overlap (metaseq).

    As there, the ends are rounded before they are ordered, so that a span with u > v is an id shorter on average than
    one with u < v. Empty candidates are skipped; in metaseq they overwrite an id. May return fewer than n.
    """
    draws = _uniform(2 * n * n, rng)
    kept: list[Span] = []
    for u, v in zip(draws[::2], draws[1::2], strict=True):
        start, stop = sorted((int(u * size), int(v * size + 0.5)))
        if start < stop and not any(start < each.stop and each.start < stop for each in kept):
            kept.append(Span(start, stop))
            if len(kept) == n:
                break
    return tuple(sorted(kept, key=lambda span: span.start)) or None


@dataclass(frozen=True, slots=True)
class Preset:
    """Distribution of masked spans, and their loss weights.

    Args:
        count: name of the law of the number of spans, with its `least` and `most`.
        law: name of the law of their position, for the policy `free`.
        p_ar: share of documents without masked spans.
        end: id that ends a span: `<eoss>` after each, or `<eod>` after the last only.
        sentinel_weight: loss weight of targets that are sentinels.
        p_spm: of the documents with one free span, the share in which the prefix is masked too, so that the
            suffix comes first (arXiv:2207.14255, app. D, variant 2).
        max_base: the first sentinel is drawn from 0..max_base, so that high ones are trained too.
        split_images: whether free spans may cut through a picture.
        clamp: whether free spans are clipped to the picture, or the segment between pictures, they overlap most.
        policies: weights of the kinds of spans that the document can have (see `units`).
    """

    count: str = "truncated_poisson"
    least: int = 1
    most: int = 16
    law: str = "distinct_cuts"
    p_ar: float = 0.0
    end: Literal["eoss", "eod"] = "eoss"
    sentinel_weight: float = 0.0
    p_spm: float = 0.0
    max_base: int = 0
    split_images: bool = False
    clamp: bool = False
    policies: tuple[tuple[str, float], ...] = (("free", 1.0),)


PRESETS: Registry[Preset] = Registry("preset")
"""All presets mask one document at a time, before packing, and never truncate a span or its end; metaseq and CM3Leon
mask packed blocks and may. Pictures are only split by `split_images` or a policy."""

# arXiv:2201.07520, sec. 2: spans have no end id but the end of the document.
PRESETS("cm3-paper")(
    Preset(count="clamped_poisson", least=1, most=16, law="ordered_uniform", end="eod")
)  # fmt: skip
# facebookresearch/metaseq, cm3_dataset.py: 37 % are unmasked; sentinels are ordinary targets.
PRESETS("metaseq")(
    Preset(count="clamped_poisson", least=0, most=511, law="greedy", sentinel_weight=1.0)
)  # fmt: skip
# arXiv:2309.02591, sec. 2.2: no span crosses a break. Its rule that the first id is never masked always holds
# here, as that id is `<eod>`. `full_segment` is its full-document rotation, off by default there.
PRESETS("cm3leon")(
    Preset(count="clamped_poisson", least=0, most=511, law="greedy", sentinel_weight=1.0, clamp=True)
)  # fmt: skip
# arXiv:2204.05999, sec. 2.1. Its extra sentinel at the end of a prompt is not needed: its training often truncated
# `<eoss>`, this one never does.
PRESETS("incoder")(Preset(count="truncated_poisson", least=1, most=256, law="uniform_length"))
# arXiv:2207.14255: one span in half of the documents, half of those suffix first. Cuts are between ids.
PRESETS("fim")(Preset(count="one", law="ordered_uniform", p_ar=0.5, sentinel_weight=1.0, p_spm=0.5))
PRESETS("recommended")(
    Preset(
        p_ar=0.3,
        policies=(
            ("free", 0.2),
            ("attribute_value", 0.3),
            ("image_full", 0.2),
            ("element", 0.1),
            ("text_only", 0.1),
            ("image_box", 0.1),
        ),
    )
)
