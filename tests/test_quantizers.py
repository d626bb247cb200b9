"""Rules that choose codes: against brute force, closed forms and diffusers; each trains, and loads as it was."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import VQModel
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from cm3kit.rng import generator
from cm3kit.training.loop import LoopSettings, train
from cm3kit.training.vqgan import CodebookSettings, VqganRecipe, VqganTask
from cm3kit_tokenizers.vq.model import ImageTokenizer, ImageTokenizerConfig, to_signed
from cm3kit_tokenizers.vq.quantize import Codebook
from cm3kit_tokenizers.vq.quantizers import entropy_term, quantizers

torch.set_num_threads(1)
SMALL: dict[str, Any] = {
    "resolution": 8, "channels": (8, 8), "code_dim": 3, "codes": 8, "latent_channels": 4, "norm_groups": 4,
    "attention": False,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {name: {} for name in quantizers} | {
    "fsq": {"codes": 60, "levels": (5, 3, 4)},
    "residual": {"codes": 12, "levels": (3, 4)},
}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed))


def rule(name: str, codes: int, dim: int, levels: tuple[int, ...] = ()) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        return quantizers[name](codes, dim, levels)


@pytest.mark.parametrize("levels", [(5, 3, 4), (8, 5, 5), (4, 4), (3, 3, 3, 3), (7,)])
def test_fsq_rounds_to_its_levels(levels: tuple[int, ...]) -> None:
    K = math.prod(levels)
    fsq = rule("fsq", K, len(levels), levels)
    book_KD = torch.zeros(K, len(levels))
    fsq.settle(book_KD)
    values = [[(i - level // 2) / (level // 2) for i in range(level)] for level in levels]
    expected = [each[::-1] for each in itertools.product(*reversed(values))]
    assert torch.allclose(book_KD, torch.tensor(expected))
    z_ND = 5 * torch.rand(400, len(levels), generator=generator(1)) - 2.5
    codes_N = fsq.codes(z_ND, book_KD)
    for z, code in zip(z_ND.double().tolist(), codes_N.tolist(), strict=True):
        for x, level, got in zip(z, levels, book_KD[code].tolist(), strict=True):
            half, offset = (level - 1) * 1.001 / 2, 0.5 if level % 2 == 0 else 0.0
            bounded = math.tanh(x + math.atanh(offset / half)) * half - offset
            assert got == pytest.approx(round(bounded) / (level // 2), abs=1e-6)
    more_ND = 5 * torch.rand(8000, len(levels), generator=generator(2)) - 2.5
    assert len(fsq.codes(more_ND, book_KD).unique()) == K
    assert torch.equal(fsq.scores(z_ND, book_KD).argmax(1), codes_N)


def test_lookup_free_codes_are_signs_read_as_bits() -> None:
    lfq, book_KD = rule("lfq", 16, 4), torch.zeros(16, 4)
    lfq.settle(book_KD)
    assert lfq.codes(torch.tensor([[0.1, -3, 2, -0.5], [-1, -1, -1, 0.0]]), book_KD).tolist() == [0b1010, 0]
    z_ND = normal(200, 4)
    assert torch.equal(lfq.codes(z_ND, book_KD), torch.cdist(z_ND, book_KD).argmin(1))
    assert torch.equal(book_KD[lfq.codes(z_ND, book_KD)], z_ND.sign())


def test_codes_on_the_sphere_are_those_of_the_smallest_angle() -> None:
    z_ND, book_KD = normal(300, 5), normal(40, 5, seed=1)
    cosine_NK = (z_ND.double() @ book_KD.double().T) / book_KD.double().norm(dim=1)
    assert torch.equal(rule("vq_l2", 40, 5).codes(z_ND, book_KD), cosine_NK.argmax(1))
    book = Codebook(torch.nn.Parameter(book_KD.clone()), rule=rule("vq_l2", 40, 5))
    book(z_ND[:256].T.reshape(1, 5, 16, 16), generator(1))
    assert torch.allclose(book.weight.norm(dim=1), torch.ones(40), atol=1e-6)


def test_inner_products_carry_gradients_through_the_softmax() -> None:
    dot, book_KD = rule("vq_dot", 6, 3), normal(6, 3, seed=1)
    z_ND, upstream_ND = normal(9, 3).requires_grad_(), normal(9, 3, seed=2)
    vectors_ND, codes_N, commitment, moved = dot.learn(z_ND, book_KD, None)
    assert torch.equal(codes_N, (z_ND @ book_KD.T).argmax(1))
    assert torch.allclose(vectors_ND, book_KD[codes_N], atol=1e-6)
    (found_ND,) = torch.autograd.grad((vectors_ND * upstream_ND).sum(), z_ND, retain_graph=True)
    p_NK = (z_ND @ book_KD.T).softmax(1).detach()
    pulled_NK = upstream_ND @ book_KD.T
    expected_ND = (p_NK * (pulled_NK - (p_NK * pulled_NK).sum(1, keepdim=True))) @ book_KD
    assert torch.allclose(found_ND, expected_ND, atol=1e-5)
    assert commitment.item() == pytest.approx(
        float((z_ND.detach() - book_KD[codes_N]).square().mean()), rel=1e-5
    )
    assert moved.item() == pytest.approx(commitment.item(), rel=1e-5)


def test_gumbel_samples_by_probability_and_encodes_by_the_likeliest() -> None:
    gumbel, book_KD = rule("gumbel_argmax", 4, 2), normal(4, 2, seed=1)
    z_ND = normal(1, 2).expand(20_000, 2)
    _, codes_N, divergence, _ = gumbel.learn(z_ND, book_KD, generator(5))
    p_K = gumbel.scores(z_ND[:1], book_KD).softmax(1)[0].detach()
    shares_K = torch.bincount(codes_N, minlength=4) / 20_000
    assert (shares_K - p_K).abs().max() < 4 * 0.5 / math.sqrt(20_000)
    assert torch.equal(gumbel.learn(z_ND, book_KD, generator(5))[1], codes_N)
    assert gumbel.codes(z_ND, book_KD).unique().tolist() == [int(p_K.argmax())]
    assert divergence.item() == pytest.approx(float((p_K * (p_K * 4).log()).sum()), rel=1e-4)


def test_one_linear_map_moves_all_codes_of_simvq() -> None:
    simvq = rule("simvq", 12, 3)
    book = Codebook(torch.nn.Parameter(torch.zeros(12, 3)), rule=simvq)
    base_KD = simvq.base_KD.clone()
    found = book(normal(2, 3, 4, 4), generator(1))
    assert torch.allclose(book.weight, base_KD @ simvq.proj.weight.T + simvq.proj.bias, atol=1e-6)
    (found.moved + found.commitment).backward()
    assert simvq.proj.weight.grad is not None and float(simvq.proj.weight.grad.abs().sum()) > 0
    assert book.weight.grad is None and torch.equal(simvq.base_KD, base_KD) and bool(book.started)


def test_a_residual_code_is_a_sum_with_the_first_level_as_highest_digit() -> None:
    residual, book_KD = rule("residual", 24, 3, (2, 3, 4)), torch.zeros(24, 3)
    residual.settle(book_KD)
    combinations = list(itertools.product(range(2), range(3), range(4)))
    sums = [sum(residual.base[level][digit] for level, digit in enumerate(each)) for each in combinations]
    assert torch.allclose(book_KD, torch.stack(sums), atol=1e-6)
    digits = residual.digits(torch.arange(24))
    assert [tuple(each) for each in torch.stack(digits, 1).tolist()] == combinations
    z_ND = normal(200, 3)
    assert torch.equal(residual.codes(z_ND, book_KD), torch.cdist(z_ND.double(), book_KD.double()).argmin(1))


def test_residual_levels_start_and_restart_on_what_is_left_over() -> None:
    centres_6D = torch.tensor([[9.0, 9], [9, -9], [-9, 9], [-9, -9], [0, 12], [12, 0]])
    residual = rule("residual", 48, 2, (6, 8))
    book = Codebook(torch.nn.Parameter(torch.zeros(48, 2)), rule=residual)
    for step in range(40):
        pick = torch.randint(6, (64,), generator=generator(step))
        z_ND = centres_6D[pick] + 0.3 * normal(64, 2, seed=step)
        found = book(z_ND.T.reshape(1, 2, 8, 8), generator(step))
        assert bool(residual.begun) and found.codes_BHW.shape == (1, 8, 8)
        if step == 20:
            with torch.no_grad():
                residual.base[1][:4] = 1e3  # nothing chooses them
                residual.counts_L[6:10] = 0.0
        for each in residual.base:
            each.grad = None
        (found.moved + found.commitment).backward()
        with torch.no_grad():
            for each in residual.base:
                each -= 0.5 * each.grad
    assert float(residual.base[1].detach().abs().max()) < 30 and float(found.moved.detach()) < 1
    assert book.usage()["used"] > 0.5


@pytest.mark.parametrize("name", ["vq", "vq_l2", "vq_dot"])
def test_codes_that_learn_by_gradient_restart_when_they_die(name: str) -> None:
    weight = torch.nn.Parameter(torch.cat([0.2 * normal(3, 2), torch.full((1, 2), -90.0)]))
    if name == "vq_dot":
        weight.data[3] = 0.0
    book = Codebook(weight, decay=0.5, restart_below=0.2, rule=rule(name, 4, 2), gradient=True)
    for step in range(6):
        z_BCHW = (1 + normal(1, 2, 4, 4, seed=step)).requires_grad_()
        found = book(z_BCHW, generator(step))
        weight.grad = None
        (found.moved + found.commitment + found.vectors_BCHW.sum()).backward()
        assert z_BCHW.grad is not None and weight.grad is not None and weight.requires_grad
        assert float(weight.grad.abs().sum()) > 0
    assert float(weight.detach()[3].norm()) < 10 and bool((book.counts_K[3] > 0).all())
    assert set(book.usage()) == {"used", "dead", "perplexity"}


def test_usage_has_its_closed_form() -> None:
    book = Codebook(torch.nn.Parameter(normal(4, 2)), restart_below=0.05)
    book.counts_K.copy_(torch.tensor([3.0, 1.0, 0.02, 0.0]))
    shares = np.array([3, 1, 0.02, 0]) / 4.02
    entropy = -sum(p * math.log(p) for p in shares if p)
    assert book.usage() == pytest.approx(
        {"used": 0.75, "dead": 0.5, "perplexity": math.exp(entropy)}, rel=1e-5
    )


def test_the_entropy_term_has_its_closed_forms() -> None:
    sure_NK = 100 * torch.eye(6).repeat(3, 1)
    assert entropy_term(sure_NK).item() == pytest.approx(-math.log(6), abs=1e-5)
    assert entropy_term(torch.zeros(9, 6)).item() == pytest.approx(0, abs=1e-5)
    assert entropy_term(100 * torch.eye(6)[:1].repeat(5, 1)).item() == pytest.approx(0, abs=1e-5)
    scores_NK = normal(20, 6)
    p = np.exp(scores_NK.numpy().astype(float) / 0.5)
    p /= p.sum(1, keepdims=True)
    mean = p.mean(0)
    expected = -(p * np.log(p)).sum(1).mean() + (mean * np.log(mean)).sum()
    assert entropy_term(scores_NK, 0.5).item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", quantizers)
def test_every_quantizer_trains_and_is_the_same_when_loaded(name: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(4):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / f"{index}.png")
    loop = LoopSettings(steps=5, batch_size=4, save_every=5, preview_every=5, log_every=1, precision="fp32")
    recipe = VqganRecipe(
        data=tmp_path, tokenizer=ImageTokenizerConfig(**SMALL | {"quantizer": name} | SHAPES[name]), loop=loop,
        codebook=CodebookSettings(start=2), shift=0,
    )  # fmt: skip
    task = VqganTask(recipe)
    before = {key: each.clone() for key, each in task.model.state_dict().items()}
    train(task, loop, tmp_path / "run", device="cpu")
    after = task.model.state_dict()
    assert not torch.equal(
        before["tokenizer.network.encoder.conv_in.weight"], after["tokenizer.network.encoder.conv_in.weight"]
    )
    if name not in ("fsq", "lfq"):
        moved = {"simvq": "tokenizer.quantizer.proj.weight", "residual": "tokenizer.quantizer.base.1"}.get(
            name, "tokenizer.network.quantize.embedding.weight"
        )
        assert not torch.equal(before[moved], after[moved])
    made, pixels = ImageTokenizer.load(tmp_path / "run/final"), task.pictures.pixels_BCHW
    made.save(tmp_path / "again")
    again = ImageTokenizer.load(tmp_path / "again")
    codes_BN = made.encode(pixels)
    assert torch.equal(again.encode(pixels), codes_BN) and again.sha256 == made.sha256
    theirs = VQModel.from_pretrained(tmp_path / "again")
    shape = (4, *made.grid, 3)
    with torch.no_grad():
        x_BCHW = theirs.decode(codes_BN, force_not_quantize=True, shape=shape).sample
        assert torch.allclose(
            x_BCHW, made.render(made.codebook_KD[codes_BN].view(shape).permute(0, 3, 1, 2)), atol=1e-5
        )
    latents_ND = made.latents(to_signed(pixels)).permute(0, 2, 3, 1).reshape(-1, 3)
    if name != "gumbel_argmax":
        assert torch.equal(made.quantizer.scores(latents_ND, made.codebook_KD).argmax(1), codes_BN.flatten())


@pytest.mark.parametrize(
    "wrong, said",
    [
        ({"quantizer": "vqq"}, "unknown quantizer 'vqq'"),
        ({"quantizer": "fsq", "levels": (4, 4)}, "fsq needs 3 levels"),
        ({"quantizer": "fsq", "levels": (2, 2, 2)}, "at least 3"),
        ({"quantizer": "fsq", "levels": (4, 4, 3)}, "product 8"),
        ({"quantizer": "residual", "levels": (8,)}, "two or more levels of at least 2"),
        ({"quantizer": "residual", "levels": (3, 4)}, "product 8"),
        ({"quantizer": "lfq", "codes": 9}, "codes = 2\\^code_dim = 8"),
        ({"quantizer": "vq", "levels": (2, 2, 2)}, "levels are for the quantizers fsq and residual"),
        ({"attention_levels": (2,)}, "attention_levels must be in 0..1"),
        ({"background": (0, 0, 256)}, "three numbers in 0..255"),
    ],
)
def test_settings_that_no_quantizer_can_have_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ImageTokenizerConfig(**SMALL | wrong)


def test_pictures_are_fitted_by_the_policy() -> None:
    wide = Image.new("RGB", (16, 8), "red")
    wide.paste("blue", (4, 0, 12, 8))
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))

    def pixels(picture: Image.Image, **policy: Any) -> list[list[int]]:
        tokenizer = ImageTokenizer(ImageTokenizerConfig(**SMALL | policy))
        return [
            tokenizer.pixels([picture])[0, :, 0, 0].tolist(),
            tokenizer.pixels([picture])[0, :, 4, 4].tolist(),
        ]

    with torch.random.fork_rng(devices=[]):
        assert pixels(wide, fit="crop") == [[0, 0, 255], [0, 0, 255]]
        assert pixels(wide, fit="pad", background=(1, 2, 3), resample="box") == [[1, 2, 3], [0, 0, 255]]
        assert pixels(wide, fit="stretch", resample="box") == [[255, 0, 0], [0, 0, 255]]
        assert pixels(clear, background=(9, 8, 7)) == [[9, 8, 7]] * 2


def test_a_network_in_half_precision_still_chooses_codes_in_fp32() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        made = ImageTokenizer(ImageTokenizerConfig(**SMALL | {"codes": 64})).eval()
    pixels = torch.randint(256, (8, 3, 8, 8), generator=generator(1), dtype=torch.uint8)
    with torch.no_grad():
        made.codebook_KD.copy_(made.latents(to_signed(pixels)).permute(0, 2, 3, 1).reshape(-1, 3)[:64])
    exact, drawn = made.encode(pixels), made.decode(made.encode(pixels))
    low = made.lower(torch.bfloat16)
    assert (
        low.codebook_KD.dtype == torch.float32 and low.network.encoder.conv_in.weight.dtype == torch.bfloat16
    )
    assert (low.encode(pixels) == exact).float().mean() > 0.8
    assert (low.decode(exact).float() - drawn.float()).abs().mean() < 4
