"""Parts that a user adds in one file of their own, one of each kind, wherever work is done."""

from __future__ import annotations

import inspect
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from toys import WORDS, toy
from transformers import Qwen3Config, Qwen3ForCausalLM

import cm3kit
import cm3kit_tokenizers
from cm3kit import GenerateOptions, plugins
from cm3kit.batch.choice import Selector, judge
from cm3kit.decoders.diffusion import axes
from cm3kit.decoders.grammar.rules import constraint
from cm3kit.fill.kit import Kit
from cm3kit.fill.layouts import layout
from cm3kit.models.backbone import BackboneConfig, build_backbone, families, forward
from cm3kit.models.families import families as public_families
from cm3kit.objectives.contract import registry as objectives
from cm3kit.rng import generator
from cm3kit.training.loop import train
from cm3kit.training.rl import estimators, rewards
from cm3kit.training.rl.recipe import RLRecipe
from cm3kit.training.rl.task import RLTask
from cm3kit.web.sources import SourceOptions, load_sources
from cm3kit_cli.main import run
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.page import Page
from cm3kit_tokenizers.vq.families.base import families as image_families
from cm3kit_tokenizers.vq.model import ImageTokenizer, ImageTokenizerConfig
from cm3kit_tokenizers.vq.quantizers import quantizers

SAMPLES = Path(__file__).parents[1] / "samples" / "plugins"
REGISTRIES = (
    axes.schedule, axes.order, axes.accept, axes.modifier, layout, objectives, quantizers, image_families, judge,
    families, public_families, load_sources(), estimators.known(), rewards.known(), constraint,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def loaded() -> Iterator[None]:
    """All samples, loaded as `CM3KIT_PLUGINS` says, and gone after the tests."""
    before = [dict(each._items) for each in REGISTRIES]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(plugins.ENVIRONMENT, "")
        patch.setattr(plugins, "_LOADED", set())
        plugins.add(sorted(SAMPLES.glob("*.py")))
        plugins.load()
        yield
    for each, items in zip(REGISTRIES, before, strict=True):
        each._items.clear()
        each._items.update(items)


@pytest.fixture(scope="module")
def kit() -> Kit:
    return cm3kit.load(toy(), device="cpu")


def test_there_is_a_short_sample_of_each_kind() -> None:
    found = sorted(SAMPLES.glob("*.py"))
    assert len(found) == 16 and all(path.name.startswith("my_") for path in found)
    assert all(len(path.read_text().splitlines()) <= 40 for path in found)


@pytest.mark.parametrize(
    "options",
    [
        {"order": "outwards"},
        {"schedule": "halves", "steps": 4},
        {"accept": "above-mean"},
        {"modifiers": ({"name": "second-thoughts", "floor": 0.9},), "steps": 4},
        {"modifiers": ({"name": "regret", "floor": 0.9},)},
    ],
)
def test_parts_of_the_diffusion_decoder_are_used(kit: Kit, options: dict[str, Any]) -> None:
    usual = GenerateOptions(decoder="diffusion", temperature=1.0, steps=options.get("steps"))
    made, plain = (
        kit.generate("red apple", seed=1, options=each)[0]
        for each in (GenerateOptions(decoder="diffusion", temperature=1.0, **options), usual)
    )
    assert made.trace is not None and plain.trace is not None and made.image is not None
    kinds = {commit.kind for commit in made.trace.trajectories[0].commits}
    assert made.trace.trajectories[0].commits != plain.trace.trajectories[0].commits
    if "order" in options:
        first = made.trace.trajectories[0].commits[0].positions[0]
        (where,) = made.trace.trajectories[0].canvas.flatten(-1).ranges
        assert abs(first - (where.start + where.stop - 1) / 2) < 1
    for choice in options.get("modifiers", ()):
        assert {"regret": "edit", "second-thoughts": "remask"}[choice["name"]] in kinds


def test_an_estimator_and_a_reward_are_used_by_a_training(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red apple\nthe big book")
    loop = {
        "steps": 1,
        "batch_size": 8,
        "precision": "fp32",
        "validate_every": 0,
        "preview_every": 9,
        "ema": 0.0,
    }
    recipe = RLRecipe.model_validate(
        {"model": str(toy()), "prompts": tmp_path / "prompts.txt", "held_share": 0, "task": "text", "group": 4,
         "sampling": {"decoder": "diffusion", "temperature": 1.0, "length": 8}, "loop": loop,
         "estimator": {"name": "elbo", "draws": 3}, "rewards": [{"name": "long-words", "letters": 2}]}
    )  # fmt: skip
    task, found = RLTask(recipe), list[dict[str, float]]()
    train(task, recipe.loop, tmp_path / "run", device="cpu", report=lambda step, of, each: found.append(each))
    assert 0 < found[0]["reward"] < 1 and found[0]["ratio"] == pytest.approx(1) and found[0]["grad_norm"] > 0


def test_a_layout_is_used_by_a_model_that_names_it(kit: Kit) -> None:
    defaults = kit.parts.defaults.model_copy(update={"layout": "read-twice"})
    from dataclasses import replace

    twice = Kit(replace(kit.parts, defaults=defaults), "cpu")
    page = Page.parse(b"<p>a <mask> b</p>")
    filled = twice.infill(page, seed=1, options=GenerateOptions(max_tokens=5))[0]
    assert filled.html.startswith(b"<p>a ") and filled.html.endswith(b" b</p>")
    canvas = twice.filler(GenerateOptions()).window(
        twice.tokenizer.encode(page.nodes()), GenerateOptions(), 0
    )
    half = len(canvas.ids) // 2
    assert canvas.ids[:half] == canvas.ids[half:] and canvas.spans[0].at == 2 * half


@pytest.mark.parametrize("decoder", ["cm3", "diffusion"])
def test_a_constraint_is_kept_to(kit: Kit, decoder: str) -> None:
    page = Page.parse(b"<p>It costs <mask constraint='price:3'>.</p>")
    options = GenerateOptions(decoder=decoder, max_tokens=12)  # type: ignore[arg-type]
    (gap,) = kit.infill(page, seed=1, options=options)[0].gaps
    assert gap.satisfied and gap.text.endswith(" €") and 0 <= float(gap.text[:-2]) <= 3


def test_an_objective_makes_examples() -> None:
    kind = objectives["backwards"]
    (example,) = kind(cm3kit_tokenizers.Vocab(20, 4)).make_examples([[50, 51, 52]], generator(0), 9)
    assert example.ids[1:-1] == [52, 51, 50] and kind.Settings().name == "backwards"


def test_a_quantizer_and_a_family_of_image_tokenizers(tmp_path: Path) -> None:
    shape = ImageTokenizerConfig(
        resolution=16, channels=(16, 16), codes=8, code_dim=4, latent_channels=8, quantizer="inner-product"
    )
    codes = ImageTokenizer(shape).encode(torch.zeros(1, 3, 16, 16))
    assert codes.shape == (1, 64) and int(codes.max()) < 8
    save_file({"mine.encoder.conv_in.weight": torch.zeros(1)}, tmp_path / "weights.safetensors")
    from cm3kit_tokenizers.vq.families.base import Source

    assert image_families["prefixed"]().detect(Source({"mine.x": torch.zeros(1)}, {}, tmp_path))
    assert not image_families["prefixed"]().detect(Source({"x": torch.zeros(1)}, {}, tmp_path))


def test_a_source_a_score_and_a_backbone(tmp_path: Path, kit: Kit) -> None:
    (tmp_path / "notes.txt").write_text("one & two\n\nthree\n\n\n\n")
    made = load_sources()["paragraphs"]()
    (piece,) = made.pieces(str(tmp_path), SourceOptions())
    assert [item.data for item in made.items(piece, SourceOptions())] == [
        b"<p>one &amp; two</p>",
        b"<p>three</p>",
    ]
    result = kit.generate("red apple", seed=1)[0]
    assert result.image is not None
    choice = Selector(kit, "dark").score(cm3kit.Order("red apple"), result)
    assert choice.value == pytest.approx(1 - np.asarray(result.image.convert("L")).mean() / 255)
    tiny = BackboneConfig(
        family="mistral", hidden_size=32, layers=1, heads=2, kv_heads=2, intermediate_size=32
    )
    assert build_backbone(tiny, 50).config.model_type == "mistral"
    with pytest.raises(ConfigError, match="unknown backbone family 'mistrel'"):
        build_backbone(tiny.model_copy(update={"family": "mistrel"}), 50)


def test_worker_processes_load_what_the_command_line_names(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    row = {"prompt": "red apple", "decoder": "diffusion", "order": "outwards"}
    rows.write_text("".join(json.dumps({**row, "id": str(number)}) + "\n" for number in range(4)))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "CM3KIT_MODEL": str(toy())}
    environment.pop(plugins.ENVIRONMENT)
    line = [
        "sample",
        "run",
        str(rows),
        "-o",
        str(tmp_path / "out"),
        "--seed",
        "1",
        "--num-processes",
        "2",
        "-q",
    ]
    command = [sys.executable, "-m", "cm3kit_cli", *line, "--plugin", str(SAMPLES / "my_order.py")]
    subprocess.run(command, env=environment, check=True, timeout=240)
    lines = [json.loads(each) for each in (tmp_path / "out/manifest.jsonl").read_text().splitlines()]
    assert [each["status"] for each in lines] == ["ok"] * 4


def test_launched_training_loads_what_the_command_line_names(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / f"{number}.html").write_text(f"<p>{' '.join(WORDS.split()[number : number + 9])}</p>")
    settings = {
        "data": tmp_path, "text": toy() / "text", "image": toy() / "image", "window": 64, "loop.steps": 2,
        "backbone.hidden_size": 32, "backbone.layers": 1, "backbone.heads": 2, "backbone.kv_heads": 2,
        "loop.batch_size": 2, "loop.precision": "fp32", "loop.preview_every": 99,
    }  # fmt: skip
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop(plugins.ENVIRONMENT)
    flags = [each for name, value in settings.items() for each in ("--set", f"{name}={value}")]
    line = ["train", "cm3", "--objective", "backwards", *flags, "-o", str(tmp_path / "run"), "-q"]
    command = [sys.executable, "-m", "cm3kit_cli", *line, "--num-processes", "2"]
    plugin = ["--plugin", str(SAMPLES / "my_objective.py")]
    subprocess.run([*command, *plugin], env=environment, check=True, timeout=240)
    trained = json.loads((tmp_path / "run/final/trained.json").read_text())
    assert trained["uses"][0]["objective"] == {"name": "backwards"}


def test_a_file_that_fails_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("raise ValueError('no\\nway')\n")
    for path, message in ((broken, "ValueError: no way"), (tmp_path / "absent.py", "is not a Python file")):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(plugins.ENVIRONMENT, "")
            assert run(["--plugin", str(path), "doctor"]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert run(["doctor", "--plugin"]) == 2


def errors() -> list[type[BaseException]]:
    """Every exception that is defined in a module of ours."""
    found: set[type[BaseException]] = set()
    for package in (cm3kit, cm3kit_tokenizers):
        for each in walk_packages(package.__path__, f"{package.__name__}."):
            try:
                module = import_module(each.name)
            except (ModuleNotFoundError, cm3kit_tokenizers.Cm3kitError):  # of an extra
                continue
            own = inspect.getmembers(module, lambda x: inspect.isclass(x) and issubclass(x, BaseException))
            found |= {kind for _, kind in own if kind.__module__ == each.name}
    return sorted(found, key=lambda kind: kind.__qualname__)


def test_a_plug_in_may_import_the_files_beside_it(tmp_path: Path) -> None:
    for value in ("three", "five"):
        folder = tmp_path / value
        folder.mkdir()
        (folder / "helper.py").write_text(f"NAME = 'toy-{value}'")
        (folder / "several.py").write_text(
            "from cm3kit.decoders.diffusion.axes import order\n\nfrom .helper import NAME\n\n"
            "order(NAME)(lambda scores: scores.picked_M)\n"
        )
        plugins.load_file(folder / "several.py")
        assert f"toy-{value}" in axes.order, "of two files of one name each has its own"


def test_every_exception_survives_pickling() -> None:
    kinds = errors()
    assert {"Cm3kitError", "PageError", "Refused", "Paused", "Cancelled"} <= {kind.__name__ for kind in kinds}
    for kind in kinds:
        if issubclass(kind, cm3kit_tokenizers.Cm3kitError):
            error: BaseException = kind("what; do this", code="bad_value")
        else:
            error = kind("no_file") if kind.__name__ == "Refused" else kind("what")
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is kind and again.args == error.args and vars(again) == vars(error)


def test_a_family_of_public_models_is_one_file(tmp_path: Path) -> None:
    tokens = ("<|endoftext|>", "<|mask|>")
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        ["a red apple"] * 3, trainers.BpeTrainer(initial_alphabet=letters, show_progress=False)
    )
    made.add_special_tokens(list(tokens))
    size = made.get_vocab_size()
    config = Qwen3Config(
        vocab_size=size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=128, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        theirs = Qwen3ForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    made.save(str(tmp_path / "tokenizer.json"))
    raw = json.loads((tmp_path / "config.json").read_text())
    raw |= {"model_type": "two_way_qwen", "mask_token_id": made.token_to_id("<|mask|>")}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    kit = cm3kit.load(tmp_path, device="cpu")
    how = kit.parts.defaults.diffusion
    assert (how.text.steps, how.text.batch_size, kit.parts.defaults.decoders) == (4, 2, ("diffusion",))
    (filled,) = kit.infill(Page.parse(b"<p>a <mask> apple</p>"), options=GenerateOptions(length=4))
    assert filled.html.startswith(b"<p>a ") and filled.html.endswith(b" apple</p>")
    mask = raw["mask_token_id"]
    with torch.no_grad():
        wanted = forward(theirs, torch.tensor([[mask, 5, 6]]), "full")[0, 0]
        text = kit.vocab.text
        row = torch.tensor([[kit.vocab.mask, text.start + 5, text.start + 6]])
        found = forward(kit.backbone, row, "full")[0, 0, text.start : text.stop]
    assert torch.allclose(found, wanted[: size - len(tokens)], atol=1e-4)
