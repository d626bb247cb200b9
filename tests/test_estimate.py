"""What a training is said to need, against closed forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from toys import toy_image

from cm3kit.training.decoder import DecoderRecipe
from cm3kit.training.estimate import Estimate, estimate_decoder, trace_decoder
from cm3kit.training.live import Live
from cm3kit.training.other_device import fit
from cm3kit.training.trial import step_seconds
from cm3kit_cli.main import run
from cm3kit_tokenizers.text import TextTokenizer

torch.set_num_threads(1)
KB = 1024


def test_storages_are_counted_while_they_live() -> None:
    with Live() as live:
        a = torch.ones(256)
        b = a * 2
        assert live.now == live.peak == 2 * KB
        view = b.view(16, 16)[3:]
        a.add_(1)
        assert live.now == 2 * KB  # neither is new
        del b
        assert live.now == 2 * KB  # the view holds it
        del view
        assert live.now == KB and live.peak == 2 * KB
        (torch.zeros(512) + 1).sum()
        assert live.now == KB and 5 * KB <= live.peak <= 5 * KB + 16


def recipe(**changes: Any) -> DecoderRecipe:
    shape = {"hidden_size": 32, "layers": 2, "heads": 2, "kv_heads": 2, "intermediate_size": 64}
    loop = {"batch_size": 2, "precision": "fp32", "steps": 10}
    return DecoderRecipe.model_validate({"window": 64, "backbone": shape, "loop": loop, **changes})


def test_a_step_on_fake_tensors_holds_what_the_formulas_say() -> None:
    model, sizes, activations = trace_decoder(recipe(), 300, fast=False)
    tables = 300 * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32
    assert sum(each.numel() for each in model.parameters()) == tables
    assert sizes.gradients == 4 * tables and sizes.moments == 8 * tables
    assert 0 <= sizes.weights - 4 * tables < 4096  # rotary frequencies
    logits = 4 * 2 * 64 * 300
    # Logits, exp(logits − max) and the gradient of logits are never all that there is.
    assert 2 * logits < activations < 30 * logits
    twice = trace_decoder(recipe(loop={"batch_size": 4, "precision": "fp32"}), 300, fast=False)[2]
    assert 1.8 < (twice + sizes.gradients) / (activations + sizes.gradients) < 2.2
    assert trace_decoder(recipe(window=128), 300, fast=False)[2] > 1.9 * activations
    again = recipe(loop={"batch_size": 2, "precision": "fp32", "recompute": True})
    assert trace_decoder(again, 300, fast=False)[2] < activations


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page and tokenizers."""
    folder = tmp_path_factory.mktemp("corpus")
    Image.new("RGB", (16, 16), "red").save(folder / "red.png")
    (folder / "red.html").write_text('<p>A red square: <img alt="red" src="red.png"></p>')
    toy_image(folder / "image", channels=(8, 8), norm_groups=8, attention=False)
    TextTokenizer.train(["A red square"] * 2, 260).save(folder)
    return folder


def test_an_estimate_adds_up(corpus: Path) -> None:
    where = {"data": corpus, "text": corpus, "image": corpus / "image"}
    told = estimate_decoder(recipe(**where))
    held = told.weights + told.gradients + told.moments + told.average
    assert told.peak == told.process + held + max(told.activations + told.slack, told.export)
    assert told.seconds_per_step is not None and told.seconds == pytest.approx(10 * told.seconds_per_step)
    assert told.tokens_per_step == 128 and told.parameters == told.trained
    assert 1e8 < told.process < 5e9


def test_a_model_that_looks_at_the_time_is_tried_out_with_its_weights() -> None:
    assert step_seconds(recipe(timestep=8), 300, fast=False) > 0


def test_adapters_learn_little(corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    from cm3kit.models.backbone import build_backbone, save_backbone

    save_backbone(build_backbone(recipe().backbone, 400), tmp_path)
    adapted = recipe(backbone_from=str(tmp_path), lora={"rank": 2})
    model, sizes, _ = trace_decoder(adapted, 400, fast=False)
    assert sizes.moments == 2 * sizes.gradients < sizes.weights
    assert any(not each.requires_grad for each in model.parameters())


def test_the_command_tells_it(corpus: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        json.dumps(recipe(data=corpus, text=corpus, image=corpus / "image").model_dump(mode="json"))
    )
    assert run(["estimate", "mdm", "-c", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["data"]
    assert told["peak"] > told["process"] and told["flops_per_step"] > 1e6
    assert run(["estimate", "text", "-c", str(path)]) == 1
    assert "is unknown" in capsys.readouterr().err
    assert run(["estimate", "text"]) == 1
    assert "no estimate of 'text'" in capsys.readouterr().err
    sizes = {"resolution": 16, "channels": [8, 8], "codes": 16, "latent_channels": 8, "norm_groups": 8}
    path.write_text(
        json.dumps({"data": str(corpus), "shift": 0, "tokenizer": sizes, "loop": {"batch_size": 3}})
    )
    assert run(["estimate", "-c", str(path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["data"]
    assert told["tokens_per_step"] == 3 * 64 and told["seconds"] > 0


def test_a_device_that_is_not_here(corpus: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    asked = recipe(data=corpus, text=corpus, image=corpus / "image")
    path.write_text(json.dumps(asked.model_dump(mode="json")))
    command = ["estimate", "cm3", "-c", str(path), "--device-memory", "24GB", "--device-tflops", "400"]
    assert run([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["data"]
    there = told["device"]
    held = told["weights"] + told["gradients"] + told["moments"] + told["average"]
    assert there["needed"] == 700_000_000 + held + max(int(1.1 * told["activations"]), told["export"])
    assert there["fits"] and told["seconds_per_step"] is None
    assert there["seconds"] == pytest.approx(10 * told["flops_per_step"] / (400e12 * there["share"]))
    assert run([*command[:-4], "--device-memory", "0.5GB"]) == 0
    out = capsys.readouterr().out
    assert "it does not fit" in out and "assumed" not in out
    assert run([*command[:-4], "--device-memory", "much"]) == 1
    assert "'much' is no size of memory" in capsys.readouterr().err


def test_the_share_of_the_peak_that_is_assumed_is_what_was_measured_and_grows_with_the_model() -> None:
    def share(parameters: int) -> float:
        told = Estimate(parameters, parameters, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1e12, None, 1.0, 1.0)
        found = fit(told, 1, None, 989.0).share
        assert found is not None
        return found

    # 12.2 M weights on an H200: 608,799 ids of 6 P + 12 L D T FLOPs a second, in rows of 1,024 (docs/training.md).
    measured = 608_799 * (6 * 12.2e6 + 12 * 7 * 320 * 1024) / 989e12
    assert share(12_200_000) == pytest.approx(measured, rel=0.35)
    assert share(12_200_000) < share(10**9) < 0.4
