"""What writing needs is loaded and no more: plain decoders and image tokenizers without transformers and diffusers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import VQModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from toys import toy
from transformers import DynamicCache, PreTrainedModel

import cm3kit
from cm3kit.decoders.fast_llama import LeanEngine
from cm3kit.decoders.past import PlainPast
from cm3kit.models.backbone import BackboneConfig, build_backbone, load_backbone, save_backbone
from cm3kit.models.plain import LateModel, read_plain
from cm3kit_tokenizers.errors import ModelError
from cm3kit_tokenizers.vq.config import ImageTokenizerConfig
from cm3kit_tokenizers.vq.model import ImageTokenizer
from cm3kit_tokenizers.vq.network import VqNetwork

ROOT = Path(__file__).parents[1]
HEAVY = (
    "transformers", "diffusers", "accelerate", "peft", "sympy", "scipy", "pandas", "torch._dynamo", "torch._inductor",
)  # fmt: skip
V = 50

# Prints what of HEAVY is there after each command, in one process.
SCRIPT = f"""
import json, sys
from pathlib import Path
from cm3kit_cli.main import run
folder = Path(sys.argv[1])
rows = folder / "rows.jsonl"
rows.write_text('{{"prompt": "a red apple"}}\\n')
page = folder / "page.html"
page.write_text('<p><img alt="a red apple" src="<mask>"> and <mask></p>')
for command in (
    ["generate", "a red apple", "-o", f"{{folder}}/a.png"],
    ["infill", f"{{page}}", "-o", f"{{folder}}/a.html"],
    ["infill", f"{{page}}", "--decoder", "diffusion", "-o", f"{{folder}}/b.html"],
    ["score", f"{{folder}}/a.html"],
    ["sample", "run", f"{{rows}}", "-o", f"{{folder}}/rows"],
):
    status = run([*command, "-m", sys.argv[2]])
    found = [name for name in {HEAVY!r} if name in sys.modules]
    print("found", json.dumps([command[0], status, found]))
import cm3kit
from cm3kit.serve.app import build
build(cm3kit.load(sys.argv[2]), "", ["localhost"])
print("found", json.dumps(["serve", 0, [name for name in {HEAVY!r} if name in sys.modules]]))
print("backbone", type(cm3kit.load(sys.argv[2]).backbone).__module__)
"""


def test_writing_imports_neither_transformers_nor_diffusers(tmp_path: Path) -> None:
    pytest.importorskip("starlette")
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "cli", ROOT / "tokenizers")))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(toy())],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    found = [json.loads(line.removeprefix("found ")) for line in lines if line.startswith("found ")]
    commands = ["generate", "infill", "infill", "score", "sample", "serve"]
    assert found == [[name, 0, []] for name in commands], done.stderr
    assert lines[-1] == "backbone transformers.models.llama.modeling_llama"


def model(family: str, tied: bool = True, **more: Any) -> PreTrainedModel:
    shape = {"hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": 2, "intermediate_size": 48, "std": 0.2}
    return build_backbone(
        BackboneConfig.model_validate({**shape, "family": family, "tie_embeddings": tied, **more}), V
    )


@pytest.mark.parametrize(("family", "tied"), [("llama", True), ("llama", False), ("qwen3", True)])
@pytest.mark.parametrize("shard", ["15MB", "20KB"])
def test_a_plain_decoder_is_what_transformers_reads(
    tmp_path: Path, family: str, tied: bool, shard: str
) -> None:
    save_backbone(model(family, tied, rope_theta=777.0), tmp_path, half=True, shard=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard == "20KB")
    plain, theirs = read_plain(tmp_path, V), load_backbone(tmp_path, V)
    assert plain is not None and plain.dtype == theirs.dtype == torch.float32
    own, wanted = dict(plain.named_parameters()), dict(theirs.named_parameters())
    assert own.keys() == wanted.keys() and all(torch.equal(own[name], wanted[name]) for name in own)
    engines = [LeanEngine(each, V, "fp32", rows=2) for each in (plain, theirs)]
    one_TV, other_TV = (each.score([1, 2, 3, 40, 7]) for each in engines)
    assert torch.equal(one_TV, other_TV)


def changed(**more: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **more}))

    return change


def reweighed(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def rewrite(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return rewrite


NORM = "model.norm.weight"
ODD: dict[str, Callable[[Path], object]] = {
    "another rotation": changed(rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}),
    "a base that is no number": changed(rope_parameters={"rope_type": "default", "rope_theta": "10000"}),
    "a field that is not known": changed(logits_scaling=2.0),
    "another activation": changed(hidden_act="gelu"),
    "another class": changed(architectures=["LlamaForSequenceClassification"]),
    "another kind": changed(model_type="gpt2"),
    "adapters": lambda folder: (folder / "adapter_config.json").write_text("{}"),
    "a time": lambda folder: (folder / "timestep.json").write_text('{"width": 8}'),
    "a tensor too few": reweighed(lambda tensors: tensors.pop(NORM)),
    "a tensor too many": reweighed(lambda tensors: tensors.update({"model.more.weight": torch.ones(2)})),
    "a tensor of another shape": reweighed(lambda tensors: tensors.update({NORM: torch.ones(31)})),
    "a number that is none": reweighed(lambda tensors: tensors[NORM].fill_(torch.nan)),
    "whole numbers": reweighed(lambda tensors: tensors.update({NORM: torch.ones(32, dtype=torch.int32)})),
    "a cut file": lambda folder: (folder / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()[:-9]
    ),
    "no weights": lambda folder: (folder / "model.safetensors").unlink(),
    "no configuration": lambda folder: (folder / "config.json").unlink(),
}


@pytest.mark.parametrize("harm", ODD)
def test_what_is_not_plain_is_left_to_transformers(tmp_path: Path, harm: str) -> None:
    save_backbone(model("llama"), tmp_path)
    assert read_plain(tmp_path, V) is not None
    assert read_plain(tmp_path, V + 1) is None
    ODD[harm](tmp_path)
    try:
        assert read_plain(tmp_path, V) is None
    except ModelError as error:
        with pytest.raises(ModelError, match=str(error)[:40].replace("(", r"\(")):
            load_backbone(tmp_path, V)


def test_a_late_model_is_made_once_and_then_is_what_engines_read() -> None:
    parts = cm3kit.load(str(toy()), device="cpu").parts
    assert isinstance(parts.decoder, LateModel) and not isinstance(parts.weights, PreTrainedModel)
    kit = cm3kit.fill.kit.Kit(parts, "cpu")
    before = kit.generate("a red apple", seed=3)[0].codes
    assert isinstance(kit.backbone, PreTrainedModel) and kit.backbone is parts.backbone is parts.weights
    kit.forget_weights()
    assert kit.generate("a red apple", seed=3)[0].codes == before
    with torch.no_grad():
        for each in kit.backbone.parameters():
            each.mul_(-1)
    kit.forget_weights()
    assert kit.generate("a red apple", seed=3)[0].codes != before
    other = replace(parts, decoder=kit.backbone)
    assert other.backbone is other.weights is kit.backbone


def test_a_past_of_ours_is_that_of_transformers() -> None:
    ours, theirs = PlainPast(), DynamicCache()
    rng = torch.Generator().manual_seed(0)
    assert ours.get_seq_length() == theirs.get_seq_length() == 0
    for size, forget in ((5, 0), (3, 2), (1, 4), (6, 1)):
        for layer in range(2):
            k, v = torch.randn(2, 2, 3, size, 4, generator=rng)
            found, wanted = ours.update(k, v, layer), theirs.update(k, v, layer)
            assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
        if forget:
            ours.crop(-forget)
            theirs.crop(-forget)
        assert ours.get_seq_length() == theirs.get_seq_length()


SHAPES: list[dict[str, Any]] = [
    {},
    {"attention": False, "layers_per_block": 2},
    {"attention_levels": (1, 2), "layers_per_block": 2, "channels": (8, 16, 16)},
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("last", [False, True])
def test_the_network_of_an_image_tokenizer_is_that_of_diffusers(shape: dict[str, Any], last: bool) -> None:
    small = {
        "resolution": 16,
        "channels": (8, 8, 16),
        "codes": 24,
        "code_dim": 4,
        "latent_channels": 8,
        "norm_groups": 4,
    }
    config = ImageTokenizerConfig(**{**small, **shape})
    wanted = ImageTokenizer(config).as_diffusers()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        theirs = VQModel.from_config(wanted.config)
        torch.default_generator.manual_seed(3)
        ours = VqNetwork(config)
    state, own = theirs.state_dict(), ours.state_dict()
    assert list(state) == list(own) and all(torch.equal(state[name], own[name]) for name in state)
    assert [name for name, _ in theirs.named_parameters()] == [name for name, _ in ours.named_parameters()]
    if last:
        theirs, ours = (
            theirs.to(memory_format=torch.channels_last),
            ours.to(memory_format=torch.channels_last),
        )
    x_BCHW = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for training in (False, True):
        outs = []
        for each in (theirs.train(training), ours.train(training)):
            z_BDHW = each.quant_conv(each.encoder(x_BCHW))
            outs.append((z_BDHW, each.decoder(each.post_quant_conv(z_BDHW))))
        assert all(torch.equal(one, other) for one, other in zip(*outs, strict=True))
    for _, y_BCHW in outs:
        y_BCHW.square().mean().backward()
    pairs = zip(theirs.parameters(), ours.parameters(), strict=True)
    assert all(torch.equal(one.grad, other.grad) for one, other in pairs if one.grad is not None)
