"""Random shifts of training pictures, and what a reconstruction costs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cm3kit.config import resolve
from cm3kit.training.reconstruct import LossWeights, Reconstruction
from cm3kit.training.vqgan import VqganRecipe, VqganTask, _shift
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.vq.losses import psnr
from cm3kit_tokenizers.vq.model import to_signed

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


def test_the_logarithm_of_the_error_is_the_mean_psnr_but_for_a_factor() -> None:
    rng = torch.Generator().manual_seed(0)
    pixels = torch.randint(60, 196, (3, 3, SIDE, SIDE), dtype=torch.uint8, generator=rng)
    noise = (
        torch.randint(-40, 40, pixels.shape, generator=rng) * torch.tensor([1, 4, 20]).view(3, 1, 1, 1) // 20
    )
    again = (pixels + noise).to(torch.uint8)
    none = {name: 0.0 for name in ("l1", "l2", "laplacian", "ssim")}
    loss, _ = Reconstruction(LossWeights(**none, log_l2=1.0))(to_signed(pixels), to_signed(again))
    scores = psnr(pixels, again)
    assert float(scores.max() - scores.min()) > 10
    assert float(loss) == pytest.approx(math.log(4) - float(scores.mean()) * math.log(10) / 10, abs=1e-4)


def test_the_commitment_weighs_the_encoders_side_unless_it_is_swapped() -> None:
    commitment, moved = torch.tensor(3.0), torch.tensor(5.0)
    assert float(LossWeights(commitment=0.5).bottleneck(commitment, moved)) == 0.5 * 3 + 5
    assert float(LossWeights(commitment=0.5, swapped=True).bottleneck(commitment, moved)) == 3 + 0.5 * 5
