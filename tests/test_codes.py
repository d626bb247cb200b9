"""Folders of pictures to codes and back: resumed, cached by tokenizer, and never half written."""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from cm3kit.data.codes import Shard, dtype_of, merged, read_shards, write_shard
from cm3kit.evaluation.reconstruction import reconstruction
from cm3kit.fill import tokenizing
from cm3kit.fill.tokenizing import detokenize, tokenize
from cm3kit_cli.main import run
from cm3kit_tokenizers.errors import Cm3kitError, DataError
from cm3kit_tokenizers.vq.losses import ssim
from cm3kit_tokenizers.vq.model import ImageTokenizer, ImageTokenizerConfig, to_signed

torch.set_num_threads(1)
CONFIG = ImageTokenizerConfig(
    resolution=16, channels=(8, 8), codes=24, code_dim=4, latent_channels=6, norm_groups=4
)


@cache
def made(codes: int = 24, seed: int = 1) -> ImageTokenizer:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        tokenizer = ImageTokenizer(CONFIG.model_copy(update={"codes": codes})).eval()
        with torch.no_grad():
            tokenizer.codebook_KD.normal_(0, 0.3)
    return tokenizer


@pytest.fixture
def model(tmp_path: Path) -> Path:
    made().save(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.webp", "deep/er/c.jpg", "deep/a.png", "d.png"):
        path = tmp_path / "pictures" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 16, 3), dtype=np.uint8)).save(path)
    (tmp_path / "pictures/notes.txt").write_text("no picture")
    return tmp_path / "pictures"


def codes_of(folder: Path) -> dict[str, list[int]]:
    return {name: codes.tolist() for name, (_, codes) in merged(read_shards(folder)).items()}


def expected(pictures: Path) -> dict[str, list[int]]:
    return {
        name: made().encode(made().pixels([Image.open(pictures / name)]))[0].tolist()
        for name in ("a.png", "b.webp", "deep/er/c.jpg", "deep/a.png", "d.png")
    }


def test_every_picture_is_encoded_once(pictures: Path, model: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    told = tokenize(
        pictures, model, tmp_path / "codes", batch=2, shard=2, device="cpu",
        watch=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    folder = told["folder"]
    assert folder.name == f"{made().sha256[:16]}-fp32" and told["dtype"] == "uint16"
    assert (told["encoded"], told["kept"], told["skipped"]) == (5, 0, 0) and seen[-1] == (5, 5)
    assert sorted(path.name for path in folder.iterdir()) == [f"shard-0000{i}.safetensors" for i in range(3)]
    assert codes_of(folder) == expected(pictures) == codes_of(tmp_path / "codes")
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    again = tokenize(pictures, model, tmp_path / "codes", device="cpu")
    assert (again["encoded"], again["kept"]) == (0, 5)
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    Image.new("RGB", (16, 16), "red").save(pictures / "a.png")
    assert tokenize(pictures, model, tmp_path / "codes", device="cpu")["encoded"] == 1
    assert codes_of(folder) == expected(pictures)


def test_a_stopped_job_goes_on_where_it_was(
    pictures: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, calls = tokenizing._encode, []

    def stops(tokenizer: ImageTokenizer, read: Any, search: int) -> torch.Tensor:
        calls.append(len(read))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(tokenizer, read, search)

    monkeypatch.setattr(tokenizing, "_encode", stops)
    with pytest.raises(KeyboardInterrupt):
        tokenize(pictures, model, tmp_path / "codes", batch=1, device="cpu")
    assert len(codes_of(tmp_path / "codes")) == 2
    monkeypatch.setattr(tokenizing, "_encode", encode)
    told = tokenize(pictures, model, tmp_path / "codes", device="cpu")
    assert (told["encoded"], told["kept"]) == (3, 2) and codes_of(told["folder"]) == expected(pictures)


def test_another_tokenizer_has_a_folder_of_its_own(pictures: Path, model: Path, tmp_path: Path) -> None:
    made(70_000, seed=2).save(tmp_path / "other")
    first = tokenize(pictures, model, tmp_path / "codes", device="cpu")
    second = tokenize(pictures, tmp_path / "other", tmp_path / "codes", device="cpu")
    assert first["folder"] != second["folder"] and second["encoded"] == 5 and second["dtype"] == "uint32"
    low = tokenize(pictures, model, tmp_path / "codes", device="cpu", precision="bf16")
    assert low["folder"].name == first["folder"].name.replace("fp32", "bf16")
    with pytest.raises(DataError, match="several tokenizers"):
        read_shards(tmp_path / "codes")
    with pytest.raises(Cm3kitError, match="give its --model") as caught:
        detokenize(first["folder"], tmp_path / "other", tmp_path / "out", device="cpu")
    assert caught.value.code == "bad_checkpoint" and not (tmp_path / "out").exists()


def test_codes_are_drawn_under_the_names_of_their_pictures(
    pictures: Path, model: Path, tmp_path: Path
) -> None:
    folder = tokenize(pictures, model, tmp_path / "codes", device="cpu")["folder"]
    told = detokenize(folder, model, tmp_path / "out", batch=2, device="cpu")
    assert (told["drawn"], told["kept"]) == (5, 0)
    for name, codes in expected(pictures).items():
        drawn = Image.open(tmp_path / "out" / (name if name.endswith("png") else f"{name}.png"))
        assert np.array_equal(
            np.asarray(drawn), made().decode(torch.tensor([codes]))[0].permute(1, 2, 0).numpy()
        )
    (tmp_path / "out/d.png").unlink()
    (tmp_path / "out/a.png").write_bytes(b"mine")
    again = detokenize(folder, model, tmp_path / "out", device="cpu")
    assert (again["drawn"], again["kept"]) == (1, 4) and (tmp_path / "out/a.png").read_bytes() == b"mine"
    assert detokenize(folder, model, tmp_path / "out", device="cpu", force=True)["drawn"] == 5


def test_pictures_that_cannot_be_read_are_left_out_and_told(
    pictures: Path, model: Path, tmp_path: Path
) -> None:
    (pictures / "bad.png").write_bytes(b"\x89PNG nothing")
    lines: list[str] = []
    told = tokenize(pictures, model, tmp_path / "codes", device="cpu", warn=lines.append)
    assert (told["encoded"], told["skipped"]) == (5, 1) and len(lines) == 1 and "bad.png" in lines[0]
    figures = reconstruction(pictures, model, device="cpu", warn=lines.append)
    assert (figures["pictures"], figures["skipped"]) == (5, 1)
    for path in pictures.rglob("*.*"):
        path.write_bytes(b"x")
    with pytest.raises(DataError, match="none of 6 pictures"):
        tokenize(pictures, model, tmp_path / "more", device="cpu")
    with pytest.raises(DataError, match="holds no pictures"):
        tokenize(model, model, tmp_path / "more", device="cpu")


def shard(**changes: Any) -> Shard:
    fields = {
        "codes_BN": np.array([[1, 2], [3, 4]], np.uint16), "names": ("a.png", "b.png"), "hashes": ("0", "1"),
        "tokenizer": "f", "precision": "fp32", "grid": (1, 2), "size": 24,
    }  # fmt: skip
    return Shard(**(fields | changes))


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"names": ("a.png", "../b.png")}, "leaves its folder"),
        ({"names": ("/etc/a.png", "b.png")}, "leaves its folder"),
        ({"names": ("", "b.png")}, "leaves its folder"),
        ({"codes_BN": np.array([[1, 2], [3, 24]], np.uint16)}, "a code that is not below 24"),
        ({"codes_BN": np.array([[1, 2], [3, 4]], np.uint32)}, "type or shape of its codes"),
        ({"codes_BN": np.array([[1, 2, 3], [3, 4, 5]], np.uint16)}, "type or shape of its codes"),
    ],
)
def test_shards_that_do_not_hold_what_they_say_are_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    write_shard(tmp_path, shard())
    (whole,) = read_shards(tmp_path)
    assert whole.names == ("a.png", "b.png") and whole.codes_BN.tolist() == [[1, 2], [3, 4]]
    write_shard(tmp_path, shard(**changes))
    with pytest.raises(DataError, match=said) as caught:
        read_shards(tmp_path)
    assert caught.value.code == "bad_data" and "shard-00001" in str(caught.value)


def test_files_that_are_no_shards_are_refused(tmp_path: Path) -> None:
    save_file({"codes": np.zeros((1, 2), np.uint16)}, tmp_path / "shard-00000.safetensors")
    with pytest.raises(DataError, match="not a shard of codes"):
        read_shards(tmp_path)
    with pytest.raises(DataError, match="holds no codes"):
        read_shards(tmp_path / "nothing")


def test_codes_of_every_size_fit_their_type(tmp_path: Path) -> None:
    assert [dtype_of(size) for size in (2, 65536, 65537, 2**18)] == [
        np.uint16,
        np.uint16,
        np.uint32,
        np.uint32,
    ]
    top = shard(codes_BN=np.array([[65535, 0], [1, 2]], np.uint16), size=65536)
    found = load_file(write_shard(tmp_path, top))["codes"]
    assert found.dtype == np.uint16 and found.tolist() == [[65535, 0], [1, 2]]


def test_figures_of_a_reconstruction_have_their_closed_forms(pictures: Path, model: Path) -> None:
    figures = reconstruction(pictures, model, batch=2, device="cpu")
    x = torch.cat([made().pixels([Image.open(pictures / name)]) for name in sorted(expected(pictures))])
    codes = made().encode(x)
    y = made().decode(codes)
    error = (x.double() - y.double()).square().mean((1, 2, 3))
    assert figures["psnr"] == pytest.approx(float((10 * (255**2 / error).log10()).mean()), abs=1e-3)
    assert figures["psnr_of_mean"] == pytest.approx(10 * math.log10(255**2 / float(error.mean())), abs=1e-3)
    assert figures["l1"] == pytest.approx(float((x.double() - y.double()).abs().mean()), abs=1e-3)
    assert figures["ssim"] == pytest.approx(float(ssim(to_signed(x), to_signed(y))), abs=1e-4)
    shares = torch.bincount(codes.flatten(), minlength=24).double() / codes.numel()
    entropy = -float((shares[shares > 0] * shares[shares > 0].log2()).sum())
    assert figures["entropy"] == pytest.approx(entropy, abs=1e-4)
    assert figures["perplexity"] == pytest.approx(2**entropy, abs=1e-3)
    assert figures["used"] == pytest.approx(float((shares > 0).double().mean()), abs=1e-6)
    assert figures["dead"] == int((shares == 0).sum())
    assert reconstruction(pictures, model, limit=2, device="cpu")["pictures"] == 2


def test_the_commands_print_results_and_nothing_else(
    pictures: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    codes, out = str(tmp_path / "codes"), str(tmp_path / "out")
    common = ["--device", "cpu", "-m", str(model)]
    assert run(["tokenize", "image", str(pictures), "-o", codes, *common]) == 0
    told = capsys.readouterr()
    assert told.out == f"{codes}/{made().sha256[:16]}-fp32\n" and "5 encoded" in told.err
    assert run(["detokenize", codes, "-o", out, "--json", *common]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["drawn"] == 5
    assert run(["eval", "recon", str(pictures), "--quiet", *common]) == 0
    told = capsys.readouterr()
    assert told.err == "" and {line.split()[0] for line in told.out.splitlines()} >= {"psnr", "ssim", "used"}
    assert run(["tokenize", "image", str(tmp_path / "none"), *common]) == 1
    assert "[no_file]" in capsys.readouterr().err
