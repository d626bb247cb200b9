"""Training where weights are on a GPU and data in memory: tensors without data play the GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from cm3kit.rng import generator
from cm3kit.training.vqgan import VqganRecipe, VqganTask
from cm3kit_tokenizers.vq.model import ImageTokenizer, ImageTokenizerConfig

TINY: dict[str, Any] = dict(
    resolution=16, channels=(8, 8, 8), codes=32, code_dim=4, latent_channels=8, norm_groups=8, attention=False
)


@pytest.fixture
def task(tmp_path: Path) -> VqganTask:
    for number in range(22):
        pixels = torch.randint(0, 256, (16, 16, 3), generator=generator(number), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{number:02}.png")
    return VqganTask(VqganRecipe(data=tmp_path, tokenizer=ImageTokenizerConfig(**TINY)))


def to_pretended_gpu(model: nn.Module) -> None:
    """Inside a `FakeTensorMode`: weights and buffers of the same shapes on `cuda`."""
    for module in model.modules():
        for name, each in list(module._parameters.items()):
            if each is not None:
                module._parameters[name] = nn.Parameter(
                    torch.empty(each.shape, device="cuda"), each.requires_grad
                )
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")


@pytest.fixture
def met(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Devices of pictures and of weights, each time that these two meet."""
    latents, found = ImageTokenizer.latents, list[tuple[str, str]]()

    def noted(self: ImageTokenizer, x_BCHW: torch.Tensor) -> torch.Tensor:
        found.append((x_BCHW.device.type, self.codebook_KD.device.type))
        return latents(self, x_BCHW)

    def drawn(self: ImageTokenizer, codes_BN: torch.Tensor) -> torch.Tensor:
        # Looking codes up is more than a pretended GPU can do.
        return torch.empty(len(codes_BN), 3, 16, 16, dtype=torch.uint8, device=codes_BN.device)

    # Tensors without data have no inference mode.
    encode = ImageTokenizer.encode.__wrapped__  # type: ignore[attr-defined]
    monkeypatch.setattr(ImageTokenizer, "latents", noted)
    monkeypatch.setattr(ImageTokenizer, "encode", torch.no_grad()(encode))
    monkeypatch.setattr(ImageTokenizer, "decode", drawn)
    return found


@pytest.mark.parametrize("started", [False, True])
def test_held_out_pictures_go_to_the_weights_and_come_back(
    task: VqganTask, started: bool, met: list[tuple[str, str]]
) -> None:
    held_BCHW = task.pictures.held_out(2)
    with FakeTensorMode(allow_non_fake_inputs=True):
        to_pretended_gpu(task.model)
        # Tensors without data cannot say whether codes have started.
        del task.model.codebook._buffers["started"]
        task.model.codebook.__dict__["started"] = started
        again_BCHW = task._reconstruct(held_BCHW)
    assert met == [("cuda", "cuda")]
    assert (again_BCHW.device.type, again_BCHW.shape) == ("cpu", held_BCHW.shape)


def test_an_image_tokenizer_takes_pictures_from_where_they_are(
    task: VqganTask, met: list[tuple[str, str]]
) -> None:
    held_BCHW = task.pictures.held_out(2)
    # A preview takes the tokenizer to the GPU, and held-out pages are encoded afterwards.
    with FakeTensorMode(allow_non_fake_inputs=True):
        to_pretended_gpu(task.model)
        codes_BN = task.model.tokenizer.encode(held_BCHW)
    assert met == [("cuda", "cuda")] and codes_BN.device.type == "cuda"
