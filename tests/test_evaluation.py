"""Metrics against closed forms and brute force."""

from __future__ import annotations

import random

import pytest
import torch

from cm3kit.evaluation.retrieval import Index, lab, top
from cm3kit.evaluation.words import compare, edit_distance, same_caption


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [
        ((255, 255, 255), (100.0, 0.0, 0.0)),
        ((0, 0, 0), (0.0, 0.0, 0.0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((128, 128, 128), (53.59, 0.0, 0.0)),
    ],
)
def test_lab_of_known_colours(rgb: tuple[int, ...], expected: tuple[float, ...]) -> None:
    pixels = torch.tensor(rgb, dtype=torch.uint8).view(1, 3, 1, 1)
    assert torch.allclose(lab(pixels).flatten(), torch.tensor(expected), atol=0.05)


def test_a_picture_is_its_own_nearest_and_noise_is_not() -> None:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (40, 3, 32, 32), generator=rng, dtype=torch.uint8)
    names = [f"picture {number}" for number in range(40)]
    index = Index.build(names, pixels)
    assert index.ranks(pixels, names).tolist() == [0] * 40
    shifted = index.ranks(pixels, names[1:] + names[:1])
    assert (shifted > 0).all()
    near = (pixels.int() + torch.randint(-9, 10, pixels.shape, generator=rng)).clamp(0, 255).to(torch.uint8)
    assert top(index.ranks(near, names), 1) == 1.0


def test_exact_duplicates_of_the_named_picture_count_as_it() -> None:
    pixels = torch.zeros(3, 3, 16, 16, dtype=torch.uint8)
    pixels[2] = 200
    index = Index.build(["a", "twin of a", "b"], pixels)
    assert index.ranks(pixels[:1], ["twin of a"]).tolist() == [0]


def slow_distance(first: str, second: str) -> int:
    if not first or not second:
        return len(first) + len(second)
    return min(
        slow_distance(first[1:], second) + 1,
        slow_distance(first, second[1:]) + 1,
        slow_distance(first[1:], second[1:]) + (first[0] != second[0]),
    )


def test_edit_distance_is_the_recursive_one() -> None:
    rng = random.Random(0)
    for _ in range(60):
        first, second = ("".join(rng.choices("ab c", k=rng.randrange(6))) for _ in range(2))
        assert edit_distance(first, second) == slow_distance(first, second)


def test_compare_counts_shares() -> None:
    match = compare(["red apple ", "dog"], ["red apple", "dig"], [True, False])
    assert (match.count, match.exact, match.ended) == (2, 0.5, 0.5)
    assert match.similarity == pytest.approx((1 + 2 / 3) / 2)


def test_captions_are_the_same_but_for_case_punctuation_and_the_artist() -> None:
    artists = ["Twemoji", "Fluent 3D"]
    for text in ("red apple", "Red-apple.", "red apple, Fluent 3D", "Red apple by Twemoji", "red &#97;pple"):
        assert same_caption(text, "red apple", artists), text
    for text in ("", "apple", "red apples", "red apple, Noto", "Twemoji red apple", "a red apple"):
        assert not same_caption(text, "red apple", artists), text
