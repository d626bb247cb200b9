"""Training runs that are interrupted, damaged or repeated end with the same weights, bit for bit."""

from __future__ import annotations

import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file
from torch import Generator, Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.exc import CppCompileError
from toys import toy_corpus

from cm3kit.config import Settings
from cm3kit.decoders.diffusion.backbone_denoiser import BackboneDenoiser
from cm3kit.decoders.diffusion.denoiser import Ask
from cm3kit.fill.kit import Kit
from cm3kit.fill.trained import Trained
from cm3kit.models.backbone import BackboneConfig, load_backbone
from cm3kit.models.timestep import is_timed
from cm3kit.publish import newest, verify
from cm3kit.rng import generator
from cm3kit.training import loop
from cm3kit.training import run as train_kind
from cm3kit.training.collate import pack
from cm3kit.training.decoder import DecoderRecipe, DecoderTask
from cm3kit.training.log import forget_after
from cm3kit.training.loop import LoopSettings, Progress, Task, schedule, train
from cm3kit.training.precision import accelerator
from cm3kit.training.run import recipe_path, shipped_recipes
from cm3kit.training.step import Uncompiled
from cm3kit.training.vqgan import CodebookSettings, VqganRecipe, VqganTask
from cm3kit.types import Example
from cm3kit_tokenizers.errors import ConfigError, DataError, OutputError
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vq.model import ImageTokenizer, ImageTokenizerConfig

torch.set_num_threads(1)
TOY = ImageTokenizerConfig(
    resolution=16, channels=(16, 16), codes=32, code_dim=4, latent_channels=8, norm_groups=8, attention=False
)
LOOP = LoopSettings(
    steps=12, batch_size=2, precision="fp32", save_every=4, preview_every=100, log_every=1, warmup=0.2,
    weight_decay=0.1, ema=0.9,
)  # fmt: skip


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pages with pictures of one colour each, and tokenizers for them."""
    return toy_corpus(tmp_path_factory.mktemp("toy"))


class Line(nn.Module):
    """y = ax + b with dropout, a whole-number count and a flag, all of which must survive."""

    count: Tensor
    odd: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))
        self.b = nn.Parameter(torch.zeros(3))
        self.register_buffer("count", torch.tensor(2**40, dtype=torch.int64))
        self.register_buffer("odd", torch.tensor(False))

    def forward(self, x_BD: Tensor) -> Tensor:
        self.count += 1
        self.odd.logical_not_()
        return F.dropout(x_BD, 0.5, self.training) @ self.a.T + self.b


class Fake:
    """A task of a few numbers; `meddle(step)` may raise, signal or return a factor on the loss."""

    def __init__(self, meddle: Callable[[int], float] = lambda step: 1.0) -> None:
        self.model: nn.Module = Line()
        self.meddle = meddle

    def batch(self, rng: Generator, size: int) -> Tensor:
        return torch.randn(size, 4, generator=rng)

    def loss(
        self, model: nn.Module, batch: Tensor, step: int, rng: Generator
    ) -> tuple[Tensor, dict[str, float]]:
        out: Tensor = model(batch)
        loss = (out - torch.randn(3, generator=rng)).square().mean() * self.meddle(step)
        return loss, {"twice": 2 * loss.item()}

    def preview(self, model: nn.Module, path: Path) -> None:
        path.with_suffix(".txt").write_text(str(model.training))

    def export(self, model: nn.Module, folder: Path) -> None:
        assert isinstance(model, Line)
        (folder / "result.json").write_text(json.dumps([model.a.tolist(), int(model.count)]))


def toy_vqgan(corpus: Path, **changes: Any) -> Task:
    settings = {"data": corpus, "tokenizer": TOY, "codebook": CodebookSettings(start=3), "loop": LOOP}
    return VqganTask(VqganRecipe(**settings | changes))


def toy_decoder(corpus: Path, dropout: float = 0.1, objective: Any = "cm3", **changes: Any) -> DecoderTask:
    shape = BackboneConfig(
        hidden_size=16, layers=1, heads=2, kv_heads=2, intermediate_size=16, dropout=dropout
    )
    recipe = DecoderRecipe(
        data=corpus,
        text=corpus,
        image=corpus / "image",
        window=128,
        backbone=shape,
        loop=LOOP,
        previews=("red",),
        objective={"name": objective} if isinstance(objective, str) else objective,
        **changes,
    )
    return DecoderTask(recipe, corpus / "cache")


TASKS: dict[str, Callable[[Path], Task]] = {
    "fake": lambda corpus: Fake(), "vqgan": toy_vqgan, "cm3": toy_decoder,
    "hybrid": lambda corpus: toy_decoder(corpus, objective="hybrid"),
    "causal-blocks": lambda corpus: toy_decoder(corpus, objective="causal-blocks"),
}  # fmt: skip


def numpy_state() -> bytes:
    """The state of numpy's global generator."""
    return bytes(np.random.get_state(legacy=True)[1].tobytes())  # type: ignore[index]


def outcome(run: Path) -> tuple[dict[str, bytes], list[dict[str, Any]], dict[str, bytes]]:
    """The last checkpoint's tensors, the log without seconds, and the exported files."""
    last = newest(run, warn=lambda line: pytest.fail(line))
    assert last is not None
    tensors = load_file(last / "state.safetensors")
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    final = {path.name: path.read_bytes() for path in (run / "final").glob("*")}
    return (
        {name: str(each.dtype).encode() + each.numpy().tobytes() for name, each in tensors.items()},
        [{key: value for key, value in line.items() if key != "seconds"} for line in lines],
        final,
    )


STRAIGHT: dict[str, Any] = {}


def straight(kind: str, corpus: Path) -> Any:
    if kind not in STRAIGHT:
        run = corpus.with_name(f"{corpus.name}-{kind}")  # beside the corpus, which would take up previews
        assert train(TASKS[kind](corpus), LOOP, run, device="cpu") == run / "final"
        STRAIGHT[kind] = outcome(run)
    return STRAIGHT[kind]


@pytest.mark.parametrize("stop", [1, 5, 11])
@pytest.mark.parametrize("kind", list(TASKS))
def test_a_resumed_run_equals_one_that_was_not_stopped(
    tmp_path: Path, corpus: Path, kind: str, stop: int
) -> None:
    told: list[str] = []
    assert train(TASKS[kind](corpus), LOOP, tmp_path, max_steps=stop, device="cpu") == tmp_path
    assert not (tmp_path / "final").exists()
    train(TASKS[kind](corpus), LOOP, tmp_path, device="cpu", warn=told.append)
    assert told == [f"resuming from step-{stop:08d}"]
    tensors, lines, final = straight(kind, corpus)
    assert outcome(tmp_path) == (tensors, lines, final)
    assert [line["step"] for line in lines] == list(range(1, 13)) and len(
        {line["loss"] for line in lines}
    ) == 12
    assert not list(tmp_path.rglob(".tmp-*"))


def test_previews_leave_training_as_it_is(tmp_path: Path, corpus: Path) -> None:
    for kind in ("vqgan", "cm3"):
        run = tmp_path / kind
        train(TASKS[kind](corpus), LOOP.model_copy(update={"preview_every": 5}), run, device="cpu")
        assert outcome(run) == straight(kind, corpus)
        assert {path.stem for path in (run / "previews").iterdir()} == {
            "step-000005", "step-000010", "step-000012",
        }  # fmt: skip


class Uncompilable(nn.Module):
    """What `torch.compile` makes where compiling fails, at the first call or only in its backward pass."""

    def __init__(self, model: nn.Module, late: bool) -> None:
        super().__init__()
        self.model, self.late = model, late

    def forward(self, x_BD: Tensor) -> Tensor:
        output = "\n".join(["In file included from x.h:1:", "x" * 100_000, "x.cpp:7:3: error: no such thing"])
        failure = CppCompileError(["g++", "-O3"] * 10_000, output)
        if not self.late:
            raise BackendCompilerFailed("inductor", failure, None) from failure  # type: ignore[arg-type]
        out: Tensor = self.model(x_BD)

        def fail(grad: Tensor) -> Tensor:
            raise failure

        out.register_hook(fail)  # type: ignore[no-untyped-call]
        return out


@pytest.mark.parametrize("late", [False, True])
def test_a_model_that_cannot_be_compiled_is_trained_as_it_is_and_a_line_says_so(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    monkeypatch.setattr(torch, "compile", lambda model: Uncompilable(model, late))
    told: list[str] = []
    settings = LOOP.model_copy(update={"compile": True})
    train(Fake(), settings, tmp_path, device="cpu", warn=told.append)
    assert outcome(tmp_path) == straight("fake", corpus)
    why = "x.cpp:7:3: error: no such thing"
    assert told == [f"training goes on uncompiled, and slower ({why}); loop.compile=false does without"]
    # What the model itself does wrong is no failure of compiling.
    with pytest.raises(ZeroDivisionError):
        train(Fake(lambda step: 1 / 0), settings, tmp_path / "other", device="cpu")


def test_processes_stop_where_one_cannot_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress(Fake(), LOOP, accelerator("fp32", "cpu"))
    assert loop._uncompiled(progress, Uncompiled("no compiler"), lambda line: None) is progress.wrapped
    monkeypatch.setattr(type(progress.accelerator), "num_processes", 2)
    with pytest.raises(ConfigError, match=r"cannot be compiled \(no compiler\); set loop.compile=false"):
        loop._uncompiled(progress, Uncompiled("no compiler"), pytest.fail)


def test_buffers_of_any_kind_survive_and_previews_see_a_model_in_eval_mode(tmp_path: Path) -> None:
    train(Fake(), LOOP, tmp_path, device="cpu")
    tensors = load_file(newest(tmp_path, warn=pytest.fail) / "state.safetensors")  # type: ignore[operator]
    for group in ("model", "ema"):
        assert tensors[f"{group}/count"].item() == 2**40 + 12 and tensors[f"{group}/odd"].item() is False
    assert json.loads((tmp_path / "final/result.json").read_text())[1] == 2**40 + 12
    assert (tmp_path / "previews/step-000012.txt").read_text() == "False"


def test_a_preview_that_fails_costs_nothing(tmp_path: Path) -> None:
    class Blind(Fake):
        def preview(self, model: nn.Module, path: Path) -> None:
            raise ConfigError("too dark.", code="bad_value")

    told: list[str] = []
    assert train(Blind(), LOOP, tmp_path, device="cpu", warn=told.append).is_dir()
    assert told == ["no preview of step 12: too dark. [bad_value]"]


def test_the_average_has_its_closed_form(tmp_path: Path) -> None:
    seen: list[Tensor] = []

    class Watched(Fake):
        def batch(self, rng: Generator, size: int) -> Tensor:
            seen.append(self.model.a.detach().clone())  # type: ignore[operator]
            return super().batch(rng, size)

    task = Watched()
    train(task, LOOP, tmp_path, device="cpu")
    seen.append(task.model.a.detach().clone())  # type: ignore[operator]
    average = seen[0]
    for step, weights in enumerate(seen[1:]):
        decay = min(0.9, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weights
    tensors = load_file(newest(tmp_path, warn=pytest.fail) / "state.safetensors")  # type: ignore[operator]
    assert torch.allclose(tensors["ema/a"], average, atol=1e-6)
    assert not torch.allclose(tensors["ema/a"], tensors["model/a"], atol=1e-4)


def test_a_finished_run_is_returned_quietly(tmp_path: Path) -> None:
    loop = LOOP.model_copy(update={"steps": 6})
    final = train(Fake(), loop, tmp_path, device="cpu")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert train(Fake(), loop, tmp_path, device="cpu") == final
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_what_would_be_overwritten_is_refused_before_training(tmp_path: Path) -> None:
    def never(step: int) -> float:
        raise AssertionError("trained")

    loop = LOOP.model_copy(update={"steps": 4})
    train(Fake(), loop, tmp_path, device="cpu")
    for settings, resume in ((loop, False), (loop.model_copy(update={"steps": 9}), True)):
        with pytest.raises(OutputError) as caught:
            train(Fake(never), settings, tmp_path, resume=resume, device="cpu")
        assert caught.value.code == "exists"


def test_a_step_that_is_not_finite_is_skipped(tmp_path: Path) -> None:
    def meddle(step: int) -> float:
        return math.nan if step in (3, 4, 6, 8, 9) else 1.0

    seen: list[Tensor] = []

    class Watched(Fake):
        def batch(self, rng: Generator, size: int) -> Tensor:
            seen.append(self.model.a.detach().clone())  # type: ignore[operator]
            return super().batch(rng, size)

    train(Watched(meddle), LOOP, tmp_path, device="cpu")
    same = [torch.equal(a, b) for a, b in itertools.pairwise(seen)]
    assert [step for step, still in enumerate(same) if still] == [3, 4, 6, 8, 9]
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["loss"] is None] == [4, 5, 7, 9, 10]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_three_steps_in_a_row_that_are_not_finite_stop_training(tmp_path: Path, bad: float) -> None:
    with pytest.raises(DataError) as caught:
        train(Fake(lambda step: bad if step >= 5 else 1.0), LOOP, tmp_path, device="cpu")
    assert caught.value.code == "not_finite" and "\n" not in str(caught.value)
    folders = sorted(tmp_path.glob("step-*"))
    assert [folder.name for folder in folders] == ["step-00000004"]
    tensors = load_file(folders[0] / "state.safetensors")
    assert all(torch.isfinite(each).all() for each in tensors.values())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_step_and_saves_it(tmp_path: Path, number: int) -> None:
    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    def meddle(step: int) -> float:
        if step == 6:
            signal.raise_signal(number)
        return 1.0

    before = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        with pytest.raises(KeyboardInterrupt):
            train(Fake(meddle), LOOP, tmp_path, device="cpu")
        assert all(signal.getsignal(each) is stop for each in before)
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    assert newest(tmp_path, warn=pytest.fail) == tmp_path / "step-00000007"
    train(Fake(), LOOP, tmp_path, device="cpu")
    straight_run = tmp_path / "straight"
    train(Fake(), LOOP, straight_run, device="cpu")
    theirs = outcome(straight_run)
    # The line of the step that was interrupted is missing from the log, nothing else.
    ours = outcome(tmp_path)
    assert (ours[0], ours[2]) == (theirs[0], theirs[2])
    assert ours[1] == [line for line in theirs[1] if line["step"] != 7]


def test_an_interrupt_between_steps_saves_and_one_inside_a_step_does_not(tmp_path: Path) -> None:
    def between(step: int, total: int, figures: dict[str, float]) -> None:
        if step == 6:
            raise KeyboardInterrupt

    def inside(step: int) -> float:
        if step == 10:
            raise KeyboardInterrupt
        return 1.0

    told: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        train(Fake(), LOOP, tmp_path, device="cpu", report=between)
    assert newest(tmp_path, warn=pytest.fail) == tmp_path / "step-00000006"
    with pytest.raises(KeyboardInterrupt):
        train(Fake(inside), LOOP, tmp_path, device="cpu", warn=told.append)
    assert newest(tmp_path, warn=pytest.fail) == tmp_path / "step-00000008"
    assert told[0] == "resuming from step-00000006" and told[1].startswith("stopped inside step 11")


def test_an_interrupt_is_not_hidden_by_a_failing_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Progress, run: Path) -> None:
        raise OutputError("the disk is full.", code="no_space")

    def stop(step: int, total: int, figures: dict[str, float]) -> None:
        raise KeyboardInterrupt

    told: list[str] = []
    monkeypatch.setattr(Progress, "save", full)
    with pytest.raises(KeyboardInterrupt):
        train(Fake(), LOOP, tmp_path, device="cpu", report=stop, warn=told.append)
    assert len(told) == 1 and "the disk is full" in told[0]


def test_a_damaged_checkpoint_is_passed_over_and_made_again(tmp_path: Path) -> None:
    train(Fake(), LOOP, tmp_path / "straight", device="cpu")
    run = tmp_path / "run"
    train(Fake(), LOOP, run, device="cpu", max_steps=8)
    damaged = run / "step-00000008/state.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-7])
    (run / ".tmp-left").mkdir()
    told: list[str] = []
    train(Fake(), LOOP, run, device="cpu", warn=told.append)
    assert "damaged checkpoint" in told[0] and "step-00000008" in told[0]
    assert told[1] == "resuming from step-00000004"
    assert outcome(run) == outcome(tmp_path / "straight")
    assert verify(run / "step-00000008") is None
    assert not (run / ".tmp-left").exists()


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, corpus: Path) -> None:
    train(Fake(), LOOP, tmp_path, device="cpu", max_steps=1)
    with pytest.raises(ConfigError) as caught:
        train(toy_decoder(corpus), LOOP, tmp_path, device="cpu")
    assert "\n" not in str(caught.value)


def test_the_log_forgets_what_will_be_repeated(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1}\n{"step": 3}\n{"step": 4}\n{"st')
    forget_after(log, 3)
    assert log.read_text() == '{"step": 1}\n{"step": 3}\n'
    forget_after(tmp_path / "none.jsonl", 3)
    assert not (tmp_path / "none.jsonl").exists()


def test_global_generators_are_left_alone(tmp_path: Path, corpus: Path) -> None:
    random.seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), random.getstate(), numpy_state()
    loop = LOOP.model_copy(update={"steps": 3, "preview_every": 2})
    for kind, task in TASKS.items():
        train(task(corpus), loop, tmp_path / kind, device="cpu")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1] and numpy_state() == before[2]


def test_precision_may_change_from_run_to_run(tmp_path: Path, corpus: Path) -> None:
    for index, precision in enumerate(("fp32", "bf16", "fp32")):
        loop = LOOP.model_copy(update={"steps": 4, "precision": precision})
        train(toy_vqgan(corpus), loop, tmp_path / str(index), device="cpu")
    first, rounded, third = (outcome(tmp_path / str(index))[1] for index in range(3))
    assert first == third != rounded


@pytest.mark.parametrize(
    ("steps", "warmup", "final"), [(100, 0.05, 0.02), (12, 0.05, 0.1), (30, 0.05, 0.0), (7, 0, 0.5)]
)
def test_the_rate_warms_up_and_falls_on_a_cosine(steps: int, warmup: float, final: float) -> None:
    settings = LoopSettings(steps=steps, warmup=warmup, final=final)
    factors = [schedule(step / steps, settings) for step in range(steps)]
    for step, factor in enumerate(factors):
        if step < warmup * steps:
            expected = min(1.0, (step + 1) / (warmup * steps))
        else:
            angle = math.pi * (step / steps - warmup) / (1 - warmup)
            expected = final + (1 - final) * math.cos(angle / 2) ** 2
        assert factor == pytest.approx(expected, abs=1e-9)
    assert max(factors) <= 1.0 and min(factors) > 0
    assert schedule(1.0, settings) == pytest.approx(final)
    peak = factors.index(max(factors))
    assert factors[peak:] == sorted(factors[peak:], reverse=True)


def make_example(size: int, seed: int) -> Example:
    rng = generator(seed)
    ids = torch.randint(1, 40, (size,), generator=rng).tolist()
    return Example(ids, torch.randint(0, 3, (size,), generator=rng).float().tolist())


def test_packing_keeps_examples_whole_and_apart() -> None:
    examples = [make_example(size, size) for size in (10, 7, 10, 5, 6, 16, 3, 2)]
    packed = pack(examples, rows=2, window=16)
    placed = sorted(set(packed.documents_BT.flatten().tolist()) - {0})
    assert placed == [1, 2, 4, 5, 7]  # another 10, 16 and 2 find no room
    for number in placed:
        rows, columns = (packed.documents_BT == number).nonzero(as_tuple=True)
        given = examples[number - 1]
        assert len(set(rows.tolist())) == 1 and columns.tolist() == list(
            range(int(columns[0]), int(columns[0]) + len(given.ids))
        )
        assert packed.ids_BT[rows, columns].tolist() == given.ids
        assert packed.targets_BT[rows, columns].tolist()[:-1] == given.ids[1:]
        assert packed.weights_BT[rows, columns].tolist() == [*given.weights[1:], 0.0]
    empty = packed.documents_BT == 0
    assert not packed.ids_BT[empty].any() and not packed.weights_BT[empty].any()


def test_the_packed_loss_is_that_of_the_documents_alone(corpus: Path) -> None:
    task = toy_decoder(corpus, dropout=0.0)
    examples = [make_example(size, size) for size in (20, 13, 9, 30, 2, 11)]
    packed = pack(examples, rows=2, window=48)
    with torch.no_grad():
        loss, figures = task.loss(task.model, packed, 0, generator(0))
        total = weight = 0.0
        for each in examples:
            logits_TV = task.model.backbone(input_ids=torch.tensor([each.ids])).logits[0, :-1]
            nats = F.cross_entropy(logits_TV, torch.tensor(each.ids[1:]), reduction="none")
            total += float((nats * torch.tensor(each.weights[1:])).sum())
            weight += sum(each.weights[1:])
    assert float(loss) == pytest.approx(total / weight, abs=1e-5)
    assert figures["filled"] == pytest.approx(sum(len(each.ids) for each in examples) / 96)


def test_frozen_codes_keep_every_id(tmp_path: Path, corpus: Path) -> None:
    first = train(toy_vqgan(corpus), LOOP, tmp_path / "first", device="cpu")
    before = ImageTokenizer.load(first)
    task = toy_vqgan(corpus, start_from=first, freeze_codes=True)
    after = ImageTokenizer.load(train(task, LOOP, tmp_path / "second", device="cpu"))
    pixels = toy_vqgan(corpus).pictures.pixels_BCHW  # type: ignore[attr-defined]
    assert torch.equal(after.codebook_KD, before.codebook_KD)
    assert torch.equal(after.encode(pixels), before.encode(pixels))
    assert not torch.equal(after.decode(after.encode(pixels)), before.decode(before.encode(pixels)))


@pytest.mark.parametrize(
    ("kind", "config", "overrides", "said"),
    [
        ("vqgam", [], [], "vqgan"),
        ("vqgan", [], ["loop.stepz=3"], "did you mean steps"),
        ("cm3", [], ["backbone.layerz=3"], "did you mean layers"),
        ("text", [], ["sice=300"], "did you mean size"),
        ("cm3", ["emoji-cm"], [], "emoji-cm3"),
        ("cm3", [], ["backbone.heads=3"], "multiple of heads"),
        ("vqgan", [], ["tokenizer.norm_groups=3"], "norm_groups"),
    ],
)
def test_misspelt_kinds_keys_and_recipes_are_explained(
    tmp_path: Path, kind: str, config: list[str], overrides: list[str], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        train_kind(kind, [Path(each) for each in config], overrides, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_recipes_that_ship_resolve_and_say_nothing_unknown() -> None:
    from cm3kit.config import dump, read_yaml, resolve
    from cm3kit.fill.defaults import Defaults
    from cm3kit.training.rl.recipe import RLRecipe
    from cm3kit.training.text import TextRecipe

    kinds: dict[str, type[Settings]] = {
        "vqgan": VqganRecipe,
        "text": TextRecipe,
        "cm3": DecoderRecipe,
        "block": DecoderRecipe,
        "mdm": DecoderRecipe,
        "defaults": Defaults,
        "rl": RLRecipe,
    }
    names = [path.stem for path in shipped_recipes()]
    assert {"emoji-cm3", "emoji-text", "emoji-vqgan"} <= set(names)
    for name in names:
        recipe = resolve(kinds[name.split("-")[1]], [read_yaml(recipe_path(Path(name)))])
        again = resolve(type(recipe), [yaml.safe_load(dump(recipe))])
        assert again == recipe


def test_text_is_trained_from_training_pages_and_not_twice(tmp_path: Path, corpus: Path) -> None:
    final = train_kind("text", [], [f"data={corpus}", "size=300"], tmp_path)
    assert len(TextTokenizer.load(final).encode(" square")) < 7
    with pytest.raises(OutputError):
        train_kind("text", [], [f"data={corpus}", "size=300"], tmp_path)
    assert f"data: {corpus}" in (tmp_path / "config.yaml").read_text()


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path: Path, corpus: Path) -> None:
    changes = {
        "data": corpus, "tokenizer": TOY.model_dump(mode="json"), "codebook": {"start": 3},
        "loop": LOOP.model_dump(mode="json") | {"steps": 60, "save_every": 5},
    }  # fmt: skip
    recipe = tmp_path / "toy.yaml"
    recipe.write_text(json.dumps(changes, default=str))
    run = tmp_path / "run"
    root = Path(__file__).parents[1]
    paths = os.pathsep.join(str(root / each) for each in ("", "cli", "tokenizers"))
    command = [sys.executable, "-m", "cm3kit_cli", "train", "vqgan", "-c", str(recipe), "--device", "cpu"]
    process = subprocess.Popen(
        [*command, "-o", str(run), "--quiet"], env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    )
    try:
        until = time.monotonic() + 300
        while not (run / "step-00000010").exists() and time.monotonic() < until:
            assert process.poll() is None
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (run / "final").exists()
    train_kind("vqgan", [recipe], output=run, device="cpu")
    train_kind("vqgan", [recipe], output=tmp_path / "straight", device="cpu")
    assert outcome(run) == outcome(tmp_path / "straight")


@pytest.mark.parametrize(
    ("objective", "changes"),
    [
        ("masked-diffusion", {"timestep": 8}),
        ("masked-diffusion", {"attention": "causal"}),
        ("block-diffusion", {"timestep": 8}),
        ("hybrid", {"anneal": 0.5}),
        ("next-token", {}),
    ],
)
def test_every_objective_learns_from_the_same_loop(
    tmp_path: Path, corpus: Path, objective: str, changes: dict[str, Any]
) -> None:
    task = toy_decoder(corpus, dropout=0.0, objective=objective, **changes)
    losses = []
    settings = LoopSettings(
        steps=30, batch_size=4, learning_rate=0.01, save_every=30, preview_every=99, log_every=1
    )
    final = train(
        task,
        settings,
        tmp_path,
        device="cpu",
        report=lambda step, total, figures: losses.append(figures["loss"]),
    )
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    again = load_backbone(final, len(task.vocab))
    assert is_timed(again) == ("timestep" in changes)


def test_annealed_attention_begins_causal_and_ends_full(corpus: Path) -> None:
    task = toy_decoder(corpus, objective="masked-diffusion", anneal=1.0, packing="dense")
    batch = task.batch(generator(0), 2)
    length = batch.ids_BT.shape[1]
    left_TT = torch.ones(length, length, dtype=torch.bool).tril()
    start, end = (task._mask(batch, step, generator(0)) for step in (0, task.recipe.loop.steps))
    assert not (start & ~left_TT).any() and (end & ~left_TT).any()
    causal = toy_decoder(corpus, objective="masked-diffusion", attention="causal", packing="dense")
    assert torch.equal(causal._mask(batch, 0, generator(0)), start)


def test_open_slots_that_are_unseen_in_training_are_so_in_use(tmp_path: Path, corpus: Path) -> None:
    task = toy_decoder(corpus, dropout=0.0, objective="masked-diffusion", isolated_masks=True)
    batch = task.batch(generator(0), 1)
    task.model.eval()
    with torch.no_grad():
        nats_T = task.nats(task.model, batch, task.recipe.loop.steps, generator(0))[0]
    first_T = batch.documents_BT[0] == 1
    places_T = (first_T & (batch.ids_BT[0] == task.vocab.mask)).nonzero()[:, 0]
    ids_1T = batch.ids_BT[:, first_T]
    ask = Ask(ids_1T, (ids_1T.shape[1],), (places_T,), (1.0,))
    scores = BackboneDenoiser(task.model.backbone, task.vocab.mask, len(task.vocab), unseen=True)
    logits_MV = scores.logits(ask)[0]
    logits_MV[:, task.vocab.mask] = -torch.inf  # as in training, and as a decoder bans it
    picked_M = logits_MV.log_softmax(-1).gather(-1, batch.targets_BT[0, places_T, None])[:, 0]
    assert len(places_T) and torch.allclose(-picked_M, nats_T[places_T], atol=1e-3)
    task.export(task.model, tmp_path)
    trained = Trained.load(tmp_path)
    assert trained is not None and trained.uses[0].isolated_masks
    with pytest.raises(ConfigError, match="block-diffusion"):
        toy_decoder(corpus, objective="block-diffusion", isolated_masks=True)


@pytest.mark.parametrize(
    ("objective", "decoders", "block"),
    [
        ("masked-diffusion", ("diffusion",), None),
        ("block-diffusion", ("diffusion",), 4),
        ("causal-blocks", ("diffusion", "cm3"), 4),
        ("hybrid", ("cm3", "diffusion"), None),
    ],
)
def test_previews_are_drawn_by_the_decoder_that_is_trained(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch,
    objective: str, decoders: tuple[str, ...], block: int | None,
) -> None:  # fmt: skip
    kits: list[Kit] = []

    class Seen(Kit):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            kits.append(self)

    monkeypatch.setattr("cm3kit.training.preview.Kit", Seen)
    how: dict[str, Any] = {} if objective == "block-diffusion" else {"shift": True}
    how |= {"block_size": block} if block else {}
    task = toy_decoder(corpus, dropout=0.0, objective={"name": objective, "diffusion": how})
    task.preview(task.model, tmp_path / "step")
    assert (tmp_path / "step.png").exists() and (tmp_path / "step.html").exists()
    defaults = kits[0].parts.defaults
    window = 64 if block else 128  # a row of blocks holds a page twice
    shift = objective != "block-diffusion"
    assert (defaults.decoders, defaults.diffusion.shift, defaults.window) == (decoders, shift, window)
    assert defaults.diffusion.trained_block == defaults.diffusion.image.block_size == block
    task.export(task.model, tmp_path)
    trained = Trained.load(tmp_path)
    assert trained is not None and trained.uses == task.objective.uses(128)
    assert trained.decoders == decoders and trained.window == window


def test_a_converted_model_starts_from_the_mean_mask_embedding(tmp_path: Path, corpus: Path) -> None:
    first = toy_decoder(corpus, dropout=0.0)
    first.export(first.model, tmp_path / "causal")
    for how in ("mean", "keep"):
        task = toy_decoder(
            corpus, objective="hybrid", backbone_from=str(tmp_path / "causal"), mask_embedding=how
        )
        table = task.model.backbone.get_input_embeddings().weight
        others = torch.cat([table[: task.vocab.mask], table[task.vocab.mask + 1 :]])
        assert torch.allclose(table[task.vocab.mask], others.mean(0), atol=1e-6) == (how == "mean")
