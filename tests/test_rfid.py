"""Inception against values of pytorch-fid, and the Fréchet distance against closed forms."""

from __future__ import annotations

import hashlib
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cm3kit.evaluation import reconstruction
from cm3kit.evaluation.frechet import Moments, frechet
from cm3kit.evaluation.inception import Inception
from cm3kit.rng import generator
from cm3kit_cli.main import run
from cm3kit_tokenizers.errors import ModelError
from cm3kit_tokenizers.vq.model import ImageTokenizer, ImageTokenizerConfig

torch.set_num_threads(1)


def moments(x_ND: Tensor, batch: int = 64) -> Moments:
    made = Moments()
    for each in torch.split(x_ND, batch):
        made.add(each)
    return made


def exact(mean_D: Tensor, root_DD: Tensor, count: int) -> Tensor:
    """Samples whose mean and covariance are exactly these: whitened noise, coloured."""
    x_ND = torch.randn(count, len(mean_D), dtype=torch.float64, generator=generator(count))
    x_ND = x_ND - x_ND.mean(0)
    white_ND = x_ND @ torch.linalg.inv(torch.linalg.cholesky(x_ND.T @ x_ND / (count - 1))).T
    return white_ND @ root_DD.T + mean_D


@cache
def weights() -> dict[str, Tensor]:
    """Random weights by a rule that was followed with pytorch-fid's network as well."""
    rng, made = torch.Generator().manual_seed(5), {}
    with torch.device("meta"):
        shapes = {name: each.shape for name, each in Inception().state_dict().items()}
    for name in sorted(shapes):
        if name.endswith("num_batches_tracked"):
            continue
        draw = torch.randn(shapes[name], generator=rng)
        if name.endswith("conv.weight"):
            made[name] = draw * math.sqrt(2 / math.prod(shapes[name][1:]))
        elif name.endswith("running_var"):
            made[name] = 1 + 0.5 * draw.abs()
        else:
            made[name] = 0.2 * draw + (1 if name.endswith("bn.weight") else 0)
    return made


def test_moments_are_those_of_all_features_at_once() -> None:
    x_ND = torch.randn(300, 7, generator=generator(1)) @ torch.randn(7, 7, generator=generator(2)) + 1000
    found, all_ND = moments(x_ND), x_ND.double().numpy()
    assert found.count == 300
    assert np.allclose(found.mean_D, all_ND.mean(0), rtol=1e-12)
    assert np.allclose(found.covariance_DD, np.cov(all_ND, rowvar=False), rtol=1e-9, atol=1e-9)


def test_gaussians_with_shared_axes_have_the_closed_form() -> None:
    axes_DD = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=generator(3)))[0]
    one_D, other_D = torch.arange(1.0, 7).double(), torch.tensor([0.5, 4, 1, 0.1, 9, 2]).double()
    mean_D = torch.linspace(-1, 2, 6).double()
    first = moments(exact(torch.zeros(6).double(), axes_DD * one_D, 50))
    second = moments(exact(mean_D, axes_DD * other_D, 80))
    expected = float(mean_D.square().sum() + (one_D - other_D).square().sum())
    assert frechet(first, second) == pytest.approx(expected, rel=1e-9)
    assert frechet(second, first) == pytest.approx(expected, rel=1e-9)
    assert frechet(first, first) == pytest.approx(0, abs=1e-9)


def test_any_gaussians_have_the_trace_of_a_general_root() -> None:
    first, second = (
        moments(torch.randn(90, 5, generator=generator(i)) @ torch.randn(5, 5, generator=generator(i + 9)))
        for i in (1, 2)
    )
    a, b = first.covariance_DD.numpy(), second.covariance_DD.numpy()
    shared = np.sqrt(np.linalg.eigvals(a @ b)).real.sum()
    apart = float((first.mean_D - second.mean_D).square().sum()) + np.trace(a) + np.trace(b) - 2 * shared
    assert frechet(first, second) == pytest.approx(apart, rel=1e-9)


def test_singular_covariances_stay_real() -> None:
    x_ND = torch.randn(8, 30, generator=generator(4))
    assert frechet(moments(x_ND), moments(x_ND)) == pytest.approx(0, abs=1e-6)
    assert frechet(moments(x_ND), moments(x_ND + 1)) == pytest.approx(30, rel=1e-6)


def test_tensors_are_those_of_the_known_file() -> None:
    with torch.device("meta"):
        network = Inception()
    state = network.state_dict()
    lines = "\n".join(f"{name} {tuple(each.shape)}" for name, each in sorted(state.items()))
    assert len(state) == 566 and sum(each.numel() for each in network.parameters()) == 23_850_960
    known = "760681d791cb624e1bf7a2e802a68933dd17aa5e3109fcf498d9dfa521bc10d7"  # of torchvision's network
    assert hashlib.sha256(lines.encode()).hexdigest() == known


def test_features_are_those_of_pytorch_fid(tmp_path: Path) -> None:
    lines: list[str] = []
    torch.save(weights(), tmp_path / "inception.pth")
    network = Inception.open(tmp_path / "inception.pth", lines.append)
    assert len(lines) == 1 and "are not comparable with published ones" in lines[0]
    pixels_BCHW = torch.randint(
        0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(6), dtype=torch.uint8
    )
    features_BD = network(pixels_BCHW)
    # Computed by pytorch_fid.inception.InceptionV3([3]) of 0.3.0 on torchvision 0.28.0, with the same weights.
    theirs = torch.tensor(
        [
            [0.0709, 0.0582, 0.04766, 0.0, 0.02591, 0.11986, 0.56161, 8e-05],
            [0.07099, 0.05783, 0.04718, 0.0, 0.02577, 0.1202, 0.56125, 5e-05],
        ]
    )
    assert features_BD.shape == (2, 2048) and not features_BD.requires_grad
    assert torch.allclose(features_BD[:, 128::256], theirs, atol=2e-5)


def test_other_networks_are_refused(tmp_path: Path) -> None:
    torchvision = weights() | {"fc.weight": torch.zeros(1000, 2048), "AuxLogits.fc.weight": torch.zeros(2)}
    torch.save(torchvision, tmp_path / "inception.pth")
    with pytest.raises(ModelError, match=r"2 tensors\).*AuxLogits.*not pt_inception-2015-12-05") as caught:
        Inception.open(tmp_path / "inception.pth")
    assert caught.value.code == "bad_checkpoint"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = ImageTokenizerConfig(
        resolution=16, channels=(8, 8), codes=24, code_dim=4, latent_channels=6, norm_groups=4
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        ImageTokenizer(config).save(tmp_path / "model")
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for index in range(8):
        picture = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f"pictures/{index}.png")
    return tmp_path


class Means(torch.nn.Module):
    """Stands for Inception: four means of pixels."""

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        return torch.cat(
            [pixels_BCHW.float().mean((2, 3)), pixels_BCHW.float()[:, 0, :, :8].mean((1, 2))[:, None]], 1
        )


def test_the_distance_is_between_pictures_and_reconstructions(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reconstruction, "FEATURES", 4)
    monkeypatch.setattr(Inception, "open", classmethod(lambda cls, path, warn: Means()))
    lines: list[str] = []
    figures = reconstruction.reconstruction(
        folder / "pictures", folder / "model", batch=3, inception=Path("x"), device="cpu", warn=lines.append
    )
    tokenizer = ImageTokenizer.load(folder / "model")
    x_BCHW = tokenizer.pixels([Image.open(folder / f"pictures/{index}.png") for index in range(8)])
    a, b = (
        Means()(x_BCHW).double().numpy(),
        Means()(tokenizer.decode(tokenizer.encode(x_BCHW))).double().numpy(),
    )
    c, d = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    shared = np.sqrt(np.linalg.eigvals(c @ d).astype(complex)).real.sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(c) + np.trace(d) - 2 * shared
    assert figures["rfid"] == pytest.approx(expected, rel=1e-5) and not lines
    for index in range(4):
        (folder / f"pictures/{index}.png").write_bytes(b"nothing")
    figures = reconstruction.reconstruction(
        folder / "pictures", folder / "model", inception=Path("x"), device="cpu", warn=lines.append
    )
    assert "rfid" not in figures and lines[-1] == "no rfid: 4 pictures could be read, and it takes 5"


def test_too_few_pictures_are_refused_before_anything_is_read(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "eval",
        "recon",
        str(folder / "pictures"),
        "-m",
        str(folder / "model"),
        "--inception",
        "none.pth",
    ]
    assert run([*command, "--device", "cpu"]) == 1
    told = capsys.readouterr()
    assert (
        told.out == "" and "8 pictures are too few: it takes 2,049" in told.err and "[bad_value]" in told.err
    )
