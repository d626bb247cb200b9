"""Pictures as codes: against diffusers, brute force and closed forms."""

from __future__ import annotations

import json
import math
import random
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import VQModel
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cm3kit.rng import generator
from cm3kit_tokenizers.errors import ModelError
from cm3kit_tokenizers.vq.losses import laplacian, psnr, ssim
from cm3kit_tokenizers.vq.model import (
    FILE,
    ImageTokenizer,
    ImageTokenizerConfig,
    to_picture,
    to_signed,
    to_uint8,
)  # fmt: skip
from cm3kit_tokenizers.vq.quantize import Codebook, nearest, rotate_to

torch.set_num_threads(1)
CONFIG = ImageTokenizerConfig(
    resolution=16, channels=(8, 8), codes=24, code_dim=4, latent_channels=6, norm_groups=4
)
WEIGHTS = "diffusion_pytorch_model.safetensors"


@cache
def tokenizer() -> ImageTokenizer:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        made = ImageTokenizer(CONFIG).eval()
    with torch.no_grad():  # diffusers starts its codes within 1/K of zero; give each a region of its own
        z_BDHW = made.latents(to_signed(pixels(6)))
        made.codebook_KD.copy_(z_BDHW.permute(0, 2, 3, 1).reshape(-1, 4)[:: 384 // 24][:24])
    return made


def pixels(count: int, seed: int = 0) -> Tensor:
    return torch.randint(256, (count, 3, 16, 16), generator=generator(seed), dtype=torch.uint8)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def test_codes_and_pictures_equal_those_of_diffusers() -> None:
    network: VQModel = tokenizer().as_diffusers()
    codes_BN = tokenizer().encode(pixels(4, seed=5))
    assert codes_BN.shape == (4, 64) and len(set(codes_BN.flatten().tolist())) > 8
    with torch.no_grad():
        latents_BDHW = network.encode(to_signed(pixels(4, seed=5))).latents
        theirs = network.quantize(latents_BDHW)[2][2].view(4, -1)
        assert int((codes_BN != theirs).sum()) == 0
        x_BCHW = network.decode(codes_BN, force_not_quantize=True, shape=(4, 8, 8, 4)).sample
    assert torch.equal(tokenizer().decode(codes_BN), to_uint8(x_BCHW))


@pytest.mark.parametrize("half", [False, True])
def test_a_saved_tokenizer_is_the_same_again_and_again(tmp_path: Path, half: bool) -> None:
    state = torch.get_rng_state()
    tokenizer().save(tmp_path / "a", half=half)
    once = ImageTokenizer.load(tmp_path / "a")
    once.save(tmp_path / "b", half=half)
    twice = ImageTokenizer.load(tmp_path / "b")
    assert torch.equal(torch.get_rng_state(), state)
    assert once.config == CONFIG and not once.training
    assert tokenizer().codebook_KD.dtype == once.codebook_KD.dtype == torch.float32
    assert torch.equal(once.encode(pixels(4)), twice.encode(pixels(4)))
    assert torch.equal(once.decode(once.encode(pixels(2))), twice.decode(twice.encode(pixels(2))))
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()
    if not half:
        assert torch.equal(once.encode(pixels(4)), tokenizer().encode(pixels(4)))
    theirs = VQModel.from_pretrained(tmp_path / "a", torch_dtype=torch.float32)
    assert torch.equal(theirs.quantize.embedding.weight, once.codebook_KD)


NAME = "decoder.conv_in.weight"


@pytest.mark.parametrize("harm", ["missing", "unexpected", "expected", "finite", "opened"])
def test_tensors_that_do_not_fit_are_named(tmp_path: Path, harm: str) -> None:
    tokenizer().save(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    name = NAME
    if harm == "missing":
        del tensors[name]
    elif harm == "unexpected":
        name = "decoder.conv_side.weight"
        tensors[name] = torch.zeros(3)
    elif harm == "expected":
        tensors[name] = tensors[name][:, :2].contiguous()
    elif harm == "finite":
        tensors[name][0, 0, 0, 0] = torch.nan
    if harm == "opened":
        name = WEIGHTS
        (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:-5])
    else:
        save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(ModelError, match=harm) as caught:
        ImageTokenizer.load(tmp_path)
    assert caught.value.code == "bad_checkpoint"
    assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [None, "{", "[]", '{"codes": 0}', '{"codez": 8}'])
def test_broken_settings_are_refused_in_one_line(tmp_path: Path, text: str | None) -> None:
    tokenizer().save(tmp_path)
    (tmp_path / FILE).unlink() if text is None else (tmp_path / FILE).write_text(text)
    with pytest.raises(ModelError, match=FILE) as caught:
        ImageTokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "wrong", [{"channels": ()}, {"channels": (8, 6)}, {"channels": (0, 4)}, {"resolution": 17}, {"width": 3}]
)
def test_shapes_that_no_network_can_have_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ImageTokenizerConfig.model_validate(json.loads(CONFIG.model_dump_json()) | wrong)


def test_pictures_are_squared_on_white() -> None:
    wide = Image.new("RGB", (32, 16), "red")
    made = tokenizer().pixels([wide, Image.new("RGB", (16, 16), "blue")])
    assert made.shape == (2, 3, 16, 16) and made.dtype == torch.uint8
    assert made[0, :, 0, 0].tolist() == [255, 255, 255] and made[0, :, 8, 8].tolist() == [255, 0, 0]
    assert np.array_equal(np.asarray(to_picture(made[1])), np.full((16, 16, 3), (0, 0, 255)))
    every = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(to_uint8(to_signed(every)), every)


@pytest.mark.parametrize("rounded", [False, True])
def test_nearest_is_brute_force_even_under_autocast(rounded: bool) -> None:
    vectors_ND, codes_KD = 3 + normal(500, 6), 3 + normal(64, 6, seed=1)
    with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
        found = nearest(vectors_ND, codes_KD)
    assert torch.equal(found, torch.cdist(vectors_ND.double(), codes_KD.double()).argmin(1))


def test_a_rotation_carries_gradients_back() -> None:
    e_ND, q_ND = normal(9, 5).requires_grad_(), normal(9, 5, seed=1)
    out_ND = rotate_to(e_ND, q_ND)
    assert torch.allclose(out_ND, q_ND, atol=1e-5)
    scale_N = q_ND.norm(dim=1) / e_ND.detach().norm(dim=1)
    for n in range(9):
        J_DD = torch.stack(
            [torch.autograd.grad(out_ND[n, d], e_ND, retain_graph=True)[0][n] for d in range(5)]
        )
        R_DD = J_DD / scale_N[n]
        assert torch.allclose(R_DD @ R_DD.T, torch.eye(5), atol=1e-5)
        assert torch.linalg.det(R_DD) == pytest.approx(1, abs=1e-4)
        # It turns in the plane of the two vectors alone.
        plane = torch.linalg.qr(torch.stack([e_ND[n].detach(), q_ND[n]]).T, mode="complete").Q
        assert torch.allclose(R_DD @ plane[:, 2:], plane[:, 2:], atol=1e-5)


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_between_collinear_vectors_the_rotation_is_a_scaling(factor: float) -> None:
    e_ND = normal(4, 5).requires_grad_()
    (rotate_to(e_ND, factor * e_ND.detach()) * normal(4, 5, seed=2)).sum().backward()  # type: ignore[no-untyped-call]
    assert e_ND.grad is not None
    assert torch.allclose(e_ND.grad, factor * normal(4, 5, seed=2), atol=1e-5)


def test_opposite_vectors_stay_finite() -> None:
    e_ND = normal(3, 4).requires_grad_()
    out_ND = rotate_to(e_ND, -2 * e_ND.detach())
    out_ND.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.allclose(out_ND, -2 * e_ND, atol=1e-5) and torch.isfinite(e_ND.grad).all()  # type: ignore[arg-type]


def codebook(codes_KD: Tensor, **settings: float | bool) -> Codebook:
    return Codebook(torch.nn.Parameter(codes_KD.clone()), **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("rotation", [False, True])
def test_gradients_of_the_quantizer_have_their_closed_forms(rotation: bool) -> None:
    codes_KD = normal(7, 3)
    z_BCHW = normal(2, 3, 4, 5, seed=1).requires_grad_()
    found = codebook(codes_KD, rotation=rotation)(z_BCHW)
    q_BCHW = codes_KD[found.codes_BHW].permute(0, 3, 1, 2)
    assert torch.allclose(found.vectors_BCHW, q_BCHW, atol=1e-5)
    (pulled,) = torch.autograd.grad(found.commitment, z_BCHW, retain_graph=True)
    assert torch.allclose(pulled, 2 * (z_BCHW - q_BCHW) / z_BCHW.numel(), atol=1e-7)
    upstream_BCHW = normal(2, 3, 4, 5, seed=2)
    (carried,) = torch.autograd.grad((found.vectors_BCHW * upstream_BCHW).sum(), z_BCHW)
    if rotation:
        scale_BHW = q_BCHW.norm(dim=1) / z_BCHW.detach().norm(dim=1)
        assert torch.allclose(carried.norm(dim=1), scale_BHW * upstream_BCHW.norm(dim=1), rtol=1e-4)
    else:
        assert torch.allclose(carried, upstream_BCHW, atol=1e-6)


def test_codes_follow_a_constant_stream_by_the_closed_form() -> None:
    codes_KD, decay, steps = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 0.9, 12
    book = codebook(codes_KD, decay=decay, restart_below=0.0)
    z_BCHW = torch.tensor([1.5, 0.5]).view(1, 2, 1, 1).expand(3, 2, 1, 2).contiguous()
    for step in range(steps):
        book(z_BCHW, generator(step))
    kept = decay**steps
    count = kept * 1 + (1 - kept) * 6
    total = kept * codes_KD[0] + (1 - kept) * 6 * torch.tensor([1.5, 0.5])
    assert book.counts_K.tolist() == pytest.approx([count, kept], rel=1e-5)
    assert torch.allclose(book.weight[0], total / count, atol=1e-5)
    assert torch.allclose(book.weight[1], codes_KD[1], atol=1e-5)  # unused: count and sum shrink alike


def test_codes_move_only_in_training_with_a_generator_and_finite_vectors() -> None:
    codes_KD, z_BCHW = normal(5, 3), normal(2, 3, 2, 2, seed=1)
    for book, given, rng in (
        (codebook(codes_KD).eval(), z_BCHW, generator(0)),
        (codebook(codes_KD), z_BCHW, None),
        (codebook(codes_KD), torch.full_like(z_BCHW, torch.nan), generator(0)),
    ):
        book(given, rng)
        assert torch.equal(book.weight, codes_KD) and torch.equal(book.counts_K, torch.ones(5))
    book = codebook(codes_KD)
    book(z_BCHW, generator(0))
    assert not torch.equal(book.weight, codes_KD)


def test_a_dead_code_restarts_on_a_vector_of_the_batch() -> None:
    book = codebook(torch.tensor([[0.0, 0.0], [90.0, 90.0]]), decay=0.5, restart_below=0.2)
    z_BCHW = normal(4, 2, 2, 2)
    for step in range(2):  # 0.5, 0.25: alive
        book(z_BCHW, generator(step))
        assert torch.allclose(book.weight[1], torch.tensor([90.0, 90.0]))
    book(z_BCHW, generator(2))
    vectors_ND = z_BCHW.permute(0, 2, 3, 1).reshape(-1, 2)
    assert (vectors_ND - book.weight[1]).abs().sum(1).min() < 1e-6
    assert float(book.counts_K[1]) == 1.0


def numpy_state() -> bytes:
    """The state of numpy's global generator."""
    return bytes(np.random.get_state(legacy=True)[1].tobytes())  # type: ignore[index]


def usage(start: bool, restart_below: float) -> float:
    """Share of 64 codes in use after a short run on vectors far from where codes start."""
    centres_KD = 5 + normal(100, 4)
    book = codebook(0.01 * normal(64, 4, seed=1), decay=0.9, restart_below=restart_below)

    def draw(step: int) -> Tensor:
        rng = generator(7, step)
        pick = torch.randint(100, (256,), generator=rng)
        return centres_KD[pick] + 0.05 * torch.randn(256, 4, generator=rng)

    if start:
        book.start(torch.cat([draw(1000 + i) for i in range(4)]), generator(3))
        assert bool(book.started)
    for step in range(40):
        book(draw(step).T.reshape(1, 4, 16, 16), generator(5, step))
    last = nearest(torch.cat([draw(2000 + i) for i in range(8)]), book.weight)
    return len(set(last.tolist())) / 64


def test_codes_started_from_data_stay_in_use_where_others_collapse() -> None:
    assert usage(start=True, restart_below=0.05) > 0.9
    assert usage(start=False, restart_below=0.05) > 0.9
    assert usage(start=False, restart_below=0.0) < 0.5


def test_quantising_leaves_global_generators_alone() -> None:
    before = torch.get_rng_state(), random.getstate(), numpy_state()
    usage(start=True, restart_below=0.05)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1] and numpy_state() == before[2]


def test_psnr_has_its_closed_form() -> None:
    x_BCHW = pixels(3)
    assert torch.allclose(psnr(x_BCHW, x_BCHW), torch.full((3,), 10 * math.log10(255**2 / 1e-10)))
    grey = torch.full((1, 3, 8, 8), 100, dtype=torch.uint8)
    assert psnr(grey, grey + 5).item() == pytest.approx(20 * math.log10(255 / 5), abs=1e-4)
    y_BCHW = pixels(3, seed=1)
    error_B = ((x_BCHW.numpy().astype(float) - y_BCHW.numpy()) ** 2).mean((1, 2, 3))
    assert psnr(x_BCHW, y_BCHW).tolist() == pytest.approx(10 * np.log10(255**2 / error_B), abs=1e-4)


def test_ssim_is_that_of_every_window() -> None:
    x, y = normal(2, 1, 10, 9).clamp(-1, 1), normal(2, 1, 10, 9, seed=1).clamp(-1, 1)
    y = 0.7 * x + 0.3 * y
    scores = []
    for b in range(2):
        for i in range(4):
            for j in range(3):
                p, q = (each[b, 0, i : i + 7, j : j + 7].double().numpy() for each in (x, y))
                cov = ((p - p.mean()) * (q - q.mean())).mean()
                luminance = (2 * p.mean() * q.mean() + 0.02**2) / (p.mean() ** 2 + q.mean() ** 2 + 0.02**2)
                scores.append(luminance * (2 * cov + 0.06**2) / (p.var() + q.var() + 0.06**2))
    assert ssim(x, y).item() == pytest.approx(float(np.mean(scores)), abs=1e-4)
    assert ssim(x, x).item() == pytest.approx(1, abs=1e-5)


def test_laplacian_is_the_l1_distance_of_two_pyramids() -> None:
    def pyramid(x: np.ndarray) -> list[np.ndarray]:
        levels = []
        for _ in range(3):
            small = x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).mean((3, 5))
            levels.append(x - small.repeat(2, 2).repeat(2, 3))
            x = small
        return [*levels, x]

    x, y = normal(2, 3, 16, 8), normal(2, 3, 16, 8, seed=1)
    pairs = zip(pyramid(x.double().numpy()), pyramid(y.double().numpy()), strict=True)
    assert laplacian(x, y).item() == pytest.approx(sum(float(abs(a - b).mean()) for a, b in pairs), abs=1e-5)
    assert laplacian(x, x).item() == 0
    assert torch.isfinite(laplacian(normal(1, 3, 12, 12), normal(1, 3, 12, 12, seed=1)))
