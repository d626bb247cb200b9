"""Random shifts of training pictures move them over white, and never out of sight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cm3kit.config import resolve
from cm3kit.training.vqgan import VqganRecipe, VqganTask, _shift
from cm3kit_tokenizers.errors import ConfigError

SIDE = 8


def task(folder: Path, shift: int) -> VqganTask:
    rng = np.random.default_rng(0)
    for index in range(3):
        picture = rng.integers(0, 200, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(picture).save(folder / f"{index}.png")
    small = {"resolution": SIDE, "channels": [32], "codes": 4, "code_dim": 2}
    return VqganTask(resolve(VqganRecipe, [{"data": str(folder), "tokenizer": small, "shift": shift}]))


@pytest.mark.parametrize("down", [-7, -2, 0, 3, 7])
@pytest.mark.parametrize("right", [-7, 0, 1, 7])
def test_a_shift_is_that_of_numpy_over_white(down: int, right: int) -> None:
    pixels = torch.randint(0, 255, (3, SIDE, SIDE), dtype=torch.uint8)
    wide = np.full((3, 3 * SIDE, 3 * SIDE), 255, np.uint8)
    wide[:, SIDE + down : 2 * SIDE + down, SIDE + right : 2 * SIDE + right] = pixels.numpy()
    assert (_shift(pixels, down, right).numpy() == wide[:, SIDE : 2 * SIDE, SIDE : 2 * SIDE]).all()


def test_the_largest_shift_leaves_something_of_every_picture(tmp_path: Path) -> None:
    pixels = task(tmp_path, SIDE - 1).batch(torch.Generator().manual_seed(0), 200)
    assert pixels.shape == (200, 3, SIDE, SIDE)
    assert all(bool((each < 255).any()) for each in pixels)


@pytest.mark.parametrize("shift", [SIDE, SIDE + 1, 1000])
def test_a_shift_out_of_the_picture_is_refused(tmp_path: Path, shift: int) -> None:
    with pytest.raises(ConfigError, match=rf"shift = {shift}: .*resolution, {SIDE}\.") as caught:
        task(tmp_path, shift)
    assert caught.value.code == "bad_config"
