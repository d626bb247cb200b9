"""Codes found by search: never drawn worse, the same every time, and against brute force."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from cm3kit.data.codes import merged, read_shards
from cm3kit.evaluation.reconstruction import reconstruction
from cm3kit.fill.tokenizing import detokenize, tokenize
from cm3kit.rng import generator
from cm3kit_cli.main import run
from cm3kit_tokenizers.vq.model import ImageTokenizer, ImageTokenizerConfig
from cm3kit_tokenizers.vq.search import APART, CANDIDATES, _around, encode

torch.set_num_threads(1)


@cache
def made(codes: int = 24, quantizer: str = "vq", channels: tuple[int, ...] = (8, 8, 8)) -> ImageTokenizer:
    config = ImageTokenizerConfig(
        resolution=16, channels=channels, codes=codes, code_dim=4, latent_channels=6, norm_groups=4,
        quantizer=quantizer, attention=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        tokenizer = ImageTokenizer(config).eval()
        if quantizer == "vq":
            with torch.no_grad():
                tokenizer.codebook_KD.normal_(0, 1)
    return tokenizer


def pictures(count: int) -> Tensor:
    small = torch.randint(0, 256, (count, 3, 4, 4), generator=generator(2), dtype=torch.uint8)
    return small.repeat_interleave(4, 2).repeat_interleave(4, 3)


def error(tokenizer: ImageTokenizer, pixels_BCHW: Tensor, codes_BN: Tensor) -> Tensor:
    return (tokenizer.decode(codes_BN).double() - pixels_BCHW).square().sum((1, 2, 3))


@pytest.mark.parametrize("kind", ["vq", "lfq", "gumbel_argmax"])
def test_no_picture_is_drawn_worse_and_nothing_is_random(kind: str) -> None:
    tokenizer, x_BCHW = made(16 if kind == "lfq" else 24, kind), pictures(2)
    plain_BN = encode(tokenizer, x_BCHW)
    assert torch.equal(plain_BN, tokenizer.encode(x_BCHW))
    before_B, state = error(tokenizer, x_BCHW, plain_BN), torch.get_rng_state()
    found = [encode(tokenizer, x_BCHW, rounds) for rounds in (1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    after_B, more_B = (error(tokenizer, x_BCHW, each) for each in found)
    assert bool((after_B <= before_B).all()) and bool((more_B <= after_B).all())
    assert float(after_B.sum()) < float(before_B.sum())
    assert torch.equal(encode(tokenizer, x_BCHW[1:], 2), found[1][1:])
    assert all(each.grad is None for each in tokenizer.parameters())


@pytest.mark.parametrize("levels", [5, 4])
def test_with_one_place_at_a_time_it_is_coordinate_descent(levels: int) -> None:
    tokenizer, x_BCHW = made(CANDIDATES, channels=(8,) * levels), pictures(1)  # every code is tried
    rows, columns = tokenizer.grid
    assert rows * columns in (1, APART**2)
    side, codes_BN = 16 // rows, tokenizer.encode(x_BCHW)
    before = error(tokenizer, x_BCHW, codes_BN).item()
    for place in range(rows * columns):
        tried_KN = codes_BN.repeat(CANDIDATES, 1)
        tried_KN[:, place] = torch.arange(CANDIDATES)
        error_KHW = (tokenizer.decode(tried_KN).double() - x_BCHW).square().sum(1)
        top, left = (side * each - side // 2 for each in divmod(place, columns))
        around_KHW = error_KHW[:, max(0, top) : top + 2 * side, max(0, left) : left + 2 * side]
        best, here = int(around_KHW.sum((1, 2)).argmin()), int(codes_BN[0, place])
        if error_KHW[best].sum() < error_KHW[here].sum():
            codes_BN = tried_KN[best][None]
    assert torch.equal(encode(tokenizer, x_BCHW, 1), codes_BN)
    assert error(tokenizer, x_BCHW, codes_BN).item() < before


@pytest.mark.parametrize("grid", [(4, 4), (3, 5), (1, 1)])
@pytest.mark.parametrize("side", [1, 2, 8])
def test_errors_around_places_are_sums_over_squares(grid: tuple[int, int], side: int) -> None:
    error_BHW = torch.randint(
        0, 200_000, (2, grid[0] * side, grid[1] * side), generator=generator(4)
    ).double()
    for row in range(min(APART, grid[0])):
        for column in range(min(APART, grid[1])):
            expected = []
            for down in range(row, grid[0], APART):
                for right in range(column, grid[1], APART):
                    top, left = down * side - side * (APART - 1) // 2, right * side - side * (APART - 1) // 2
                    rows, columns = (
                        slice(max(0, top), top + side * APART),
                        slice(max(0, left), left + side * APART),
                    )
                    expected.append(error_BHW[:, rows, columns].sum((1, 2)))
            found_BP = _around(error_BHW, grid, row, column)
            assert torch.allclose(found_BP, torch.stack(expected, 1), rtol=1e-12)


def test_codes_that_were_searched_for_are_kept_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer, x_BCHW = made(), pictures(3)
    tokenizer.save(tmp_path / "model")
    (tmp_path / "pictures").mkdir()
    for index, each in enumerate(x_BCHW):
        Image.fromarray(each.permute(1, 2, 0).numpy()).save(tmp_path / f"pictures/{index}.png")
    plain = tokenize(tmp_path / "pictures", tmp_path / "model", tmp_path / "codes", device="cpu")["folder"]
    command = [
        "tokenize",
        "image",
        str(tmp_path / "pictures"),
        "-m",
        str(tmp_path / "model"),
        "--device",
        "cpu",
    ]
    assert run([*command, "-o", str(tmp_path / "codes"), "--search", "1"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder.name == f"{plain.name}-search1-{tokenizer.decoder_sha256[:8]}"
    codes = np.stack([codes_N for _, codes_N in merged(read_shards(folder)).values()])
    assert np.array_equal(codes, encode(tokenizer, x_BCHW, 1).numpy())
    assert detokenize(folder, tmp_path / "model", tmp_path / "out", device="cpu")["drawn"] == 3
    low, high = (
        reconstruction(tmp_path / "pictures", tmp_path / "model", search=rounds, device="cpu")["psnr"]
        for rounds in (0, 1)
    )
    assert high > low + 0.2


def test_another_decoder_changes_one_hash_alone() -> None:
    one, other = made(), ImageTokenizer(made().config)
    other.load_state_dict(one.state_dict())
    assert (one.sha256, one.decoder_sha256) == (other.sha256, other.decoder_sha256)
    with torch.no_grad():
        other.network.post_quant_conv.weight.add_(1)
    assert one.sha256 == other.sha256 and one.decoder_sha256 != other.decoder_sha256


def test_another_order_in_memory_changes_no_hash_and_no_code() -> None:
    other = ImageTokenizer(made().config).eval()
    other.load_state_dict(made().state_dict())
    other.channels_last()
    assert (other.sha256, other.decoder_sha256) == (made().sha256, made().decoder_sha256)
    assert torch.equal(other.encode(pictures(2)), made().encode(pictures(2)))
