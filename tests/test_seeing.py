"""What a training shows of itself: speed, curves, the page of the run, trackers."""

from __future__ import annotations

import itertools
import json
import math
import sys
import types
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from cm3kit.models.backbone import BackboneConfig, build_backbone, forward
from cm3kit.training import speed
from cm3kit.training.observe import Seen
from cm3kit.training.speed import Gauge, measured_flops, step_flops
from cm3kit.training.task import LoopSettings
from cm3kit.training.trackers import trackers
from cm3kit.viewing.curves import chart, ruler, thinned
from cm3kit.viewing.training_page import ReportPage, read_log, render
from cm3kit_tokenizers.errors import ConfigError


def seen(step: int, took: float = 0.5, total: int = 40, **figures: float) -> Seen:
    return Seen(step, total, {"loss": 2.0, **figures}, took, took * step, 4)


class Fake:
    """A task that has 100 tokens and a million FLOPs a row."""

    def __init__(self) -> None:
        self.model: nn.Module = nn.Linear(2, 2)

    def work(self, rows: int) -> tuple[int, float]:
        return 100 * rows, 1e6 * rows


def gauge() -> Gauge:
    return Gauge(Fake(), LoopSettings(batch_size=4, precision="fp32"))  # type: ignore[arg-type]


def test_speed_is_what_steps_took(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "peak_flops", lambda device, dtype: 1e8)
    watch = gauge()
    assert watch.now() == {}
    watch.begin(0, 40)
    watch.saw(seen(1, took=60.0))  # compiles
    assert watch.now()["seconds left"] == pytest.approx(39 * 60)
    for step in range(2, 11):
        watch.saw(seen(step, took=0.5 + (step - 6) / 100, filled=0.9))
    now = watch.now()
    assert now["tokens/s"] == pytest.approx(0.9 * 400 / 0.5)
    assert now["MFU %"] == pytest.approx(100 * 4e6 / 0.5 / 1e8)
    assert now["seconds left"] == pytest.approx(30 * 0.5)
    assert 0.05 < now["peak GB"] < 50
    told: list[dict[str, float]] = []
    watch.telling(lambda step, total, figures: told.append(figures))(10, 40, {"loss": 1.0})
    assert told == [{"loss": 1.0, **watch.now()}] or told[0].keys() == {"loss", *now}


@pytest.mark.parametrize("tied", [True, False])
def test_flops_are_those_that_torch_counts(tied: bool) -> None:
    shape = BackboneConfig(
        hidden_size=32, layers=2, heads=2, kv_heads=1, intermediate_size=48, tie_embeddings=tied
    )
    model = build_backbone(shape, 100)
    with FlopCounterMode(display=False) as counter:
        forward(model, torch.zeros(2, 16, dtype=torch.long)).sum().backward()
    attention = 2 * 16 * 12 * 2 * 32 * 16
    counted, ours = counter.get_total_flops(), step_flops(model, 2, 16, 2, 32)
    by_hand = 2 * 16 * 6 * (100 * 32 + 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48))
    assert ours == by_hand + attention
    assert by_hand <= counted <= by_hand + 1.5 * attention
    for each in model.model.layers.parameters():
        each.requires_grad_(False)
    frozen = 2 * 16 * 2 * (2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48))
    assert step_flops(model, 2, 16, 2, 32) == ours - frozen


def test_a_processor_multiplies_at_some_rate() -> None:
    assert 1e7 < measured_flops("cpu", torch.float32, size=128, seconds=0.01) < 1e14


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2.31, 2.34), (-5, 1e6), (1e-9, 3e-9), (7, 7), (0, 0)])
def test_rulers_have_round_steps_and_hold_all(low: float, high: float) -> None:
    ticks = ruler(low, high)
    steps = {b - a for a, b in itertools.pairwise(ticks)}
    assert ticks[0] <= low + 1e-9 * abs(low) and ticks[-1] >= high - 1e-9 * abs(high)
    assert 2 <= len(ticks) <= 7
    step = steps.pop()
    assert f"{step:.0e}"[0] in "125" and all(math.isclose(step, each, rel_tol=1e-6) for each in steps)


def test_long_curves_are_thinned_to_means() -> None:
    curve = [(float(step), float(step % 2)) for step in range(10_000)]
    short = thinned(curve, 100)
    assert len(short) == 100 and short[-1][0] == 9999 and all(y == 0.5 for _, y in short)
    assert thinned(curve[:50], 100) == curve[:50]


def test_charts_are_whole_and_leave_gaps() -> None:
    drawn = chart("A <title>", {"a&b": [(1, 1.0), (2, math.nan), (3, 2.0)], "lone": [(2, 1.5)]}, "nats")
    tree = ElementTree.fromstring(drawn)
    assert [each.tag for each in tree] == ["figcaption", "svg", "p"]
    first, second = (each.attrib["d"] for each in tree.iter("path"))
    assert first.count("M") == 2 and "L" not in first and second.endswith("h0")
    assert "a&b" in "".join(tree.itertext()) and chart("empty", {"x": [(1, math.nan)]}) == ""


def a_run(folder: Path) -> Path:
    (folder / "previews").mkdir()
    lines = [
        {"step": step, "seconds": step / 2, "loss": 5 - step / 40, "norm": None if step == 3 else 1.0, "text": 2.0}
        for step in range(1, 40)
    ]  # fmt: skip
    lines[20] |= {"held bits_per_token": 3.5, "held fill_eoss_hit_rate": 0.75}
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"step": 40, "lo'
    (folder / "log.jsonl").write_text(text)
    for step in range(6):
        Image.new("RGB", (8, 8), (40 * step, 0, 0)).save(folder / f"previews/step-{step:06d}.png")
    (folder / "previews/step-000005.html").write_text(
        f'<script src="http://evil.example/x.js"></script><img src="data:image/png;base64,{"A" * 500}">'
    )
    (folder / "config.yaml").write_text("data: '</pre><script>'\n")
    return folder


def test_the_page_of_a_run_holds_everything_and_asks_for_nothing(tmp_path: Path) -> None:
    page = render(a_run(tmp_path), seen(40), {"tokens/s": 1234.0}, running=True)
    assert page.count("<figure>") >= 5 + 4 and page.count("data:image/png;base64,") == 4
    for part in ("held" not in page, "bits_per_token" in page, "fill_eoss_hit_rate" in page, "1234" in page):
        assert part
    assert "<script" not in page and "&lt;script src=" in page and "A" * 200 not in page
    asked = [part for part in page.replace("&quot;", '"').split('src="')[1:] if not part.startswith("data:")]
    assert all(part.startswith("http://evil") for part in asked)  # as text
    assert "default-src 'none'" in page and "prefers-color-scheme: dark" in page
    assert 'http-equiv="refresh"' in page and 'class="running"' in page
    done = render(tmp_path, seen(40), {}, running=False)
    assert 'http-equiv="refresh"' not in done and "finished" in done
    assert "stopped" in render(tmp_path, seen(39), {}, running=False)
    assert read_log(tmp_path / "log.jsonl")["loss"][-1] == (39, 5 - 39 / 40)
    assert read_log(tmp_path / "absent") == {}


def test_the_page_is_written_in_time_and_never_stops_a_training(tmp_path: Path) -> None:
    told: list[str] = []
    page = ReportPage(tmp_path, gauge(), told.append)
    page.end()
    assert not (tmp_path / "report.html").exists()  # nothing happened
    page.begin(0, 40)
    page.saw(seen(1))
    first = (tmp_path / "report.html").read_text()
    page.saw(seen(2))  # too soon
    assert (tmp_path / "report.html").read_text() == first and "1 of 40" in first
    page.end()
    assert "2 of 40" in (tmp_path / "report.html").read_text() and not told
    lost = ReportPage(tmp_path / "absent", gauge(), told.append)
    lost.saw(seen(1))
    assert len(told) == 1 and told[0].startswith("no report.html of step 1")


def test_trackers_are_asked_for_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trackers((), tmp_path, 10) == []
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    for name in ("wandb", "tensorboard"):
        with pytest.raises(ConfigError, match=rf"pip install '.*\[{name}\]'") as caught:
            trackers((name,), tmp_path, 10)
        assert caught.value.code == "missing_extra"


def test_wandb_goes_on_with_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Run:
        def log(self, figures: dict[str, float], step: int) -> None:
            calls.append((step, figures))

        def finish(self) -> None:
            calls.append("finish")

    def init(**how: Any) -> Run:
        calls.append((how["id"], how["resume"]))
        return Run()

    fake = types.SimpleNamespace(init=init, util=types.SimpleNamespace(generate_id=lambda: "made"))
    monkeypatch.setitem(sys.modules, "wandb", fake)
    (first,) = trackers(("wandb",), tmp_path, 10)
    first.begin(0, 40)
    first.saw(seen(9))
    first.saw(seen(10))
    first.saw(Seen(11, 40, {"loss": 1.0, "held psnr": 20.0}, 1.0, 1.0, 4))
    first.end()
    state = first.state()  # type: ignore[attr-defined]
    (second,) = trackers(("wandb",), tmp_path, 10)
    second.restore(state)  # type: ignore[attr-defined]
    second.begin(11, 40)
    assert calls == [
        ("made", "allow"), (10, {"train/loss": 2.0}), (11, {"train/loss": 1.0, "held/psnr": 20.0}), "finish",
        ("made", "allow"),
    ]  # fmt: skip


def test_tensorboard_is_told_what_to_forget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    class Writer:
        def __init__(self, folder: str, purge_step: int) -> None:
            calls.append((Path(folder).name, purge_step))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            calls.append((name, value, step))

        def close(self) -> None:
            calls.append("close")

    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = Writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    (board,) = trackers(("tensorboard",), tmp_path, 2)
    for step in (0, 7):  # resumed, or led back to a checkpoint
        board.begin(step, 40)
        board.saw(seen(step + 1))
        board.saw(seen(step + 2))
    board.end()
    opened = [
        ("tensorboard", 1),
        ("train/loss", 2.0, 2),
        "close",
        ("tensorboard", 8),
        ("train/loss", 2.0, 8),
        "close",
    ]
    assert calls == opened


def test_tensorboard_gets_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (board,) = trackers(("tensorboard",), tmp_path, 2)
    board.begin(0, 4)
    for step in range(1, 5):
        board.saw(seen(step, total=4))
    board.end()
    read = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(each.step, each.value) for each in read.Scalars("train/loss")] == [(2, 2.0), (4, 2.0)]
