"""Losses that jump, memory that runs out, data that change: training names what it was and loses nothing by it."""

from __future__ import annotations

import json
import math
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Generator, Tensor, nn
from toys import toy_corpus

from cm3kit.models.backbone import BackboneConfig
from cm3kit.publish import newest, verify
from cm3kit.training.decoder import DecoderRecipe, DecoderTask
from cm3kit.training.guard import ENOUGH, Guard, stands_out
from cm3kit.training.interrupts import Paused
from cm3kit.training.loop import LoopSettings, train
from cm3kit.training.observe import Seen
from cm3kit_tokenizers.errors import ConfigError, DataError, OutputError

torch.set_num_threads(1)
LOOP = LoopSettings(
    steps=60, batch_size=4, precision="fp32", save_every=10, preview_every=100, log_every=1, ema=0.9, keep=3,
    learning_rate=1e-3,
)  # fmt: skip


class Line(nn.Module):
    """y = ax, with a count that a forward pass moves."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x_BD: Tensor) -> Tensor:
        self.count += 1
        return x_BD @ self.a.T


class Fake:
    """A task of a few numbers; `meddle(step, rows)` may raise, or return a factor on the loss."""

    def __init__(self, meddle: Callable[[int, int], float] = lambda step, rows: 1.0, data: str = "a") -> None:
        self.model: nn.Module = Line()
        self.meddle, self.data = meddle, data

    def batch(self, rng: Generator, size: int) -> Tensor:
        return torch.randn(size, 4, generator=rng)

    def names(self, rng: Generator, size: int) -> list[str]:
        return [
            f"page{number}" for number in torch.randn(size, 4, generator=rng)[:, 0].mul(10).int().tolist()
        ]

    def fingerprint(self) -> str:
        return self.data

    def loss(
        self, model: nn.Module, batch: Tensor, step: int, rng: Generator
    ) -> tuple[Tensor, dict[str, float]]:
        loss = model(batch).square().mean() * self.meddle(step, len(batch))
        return loss, {"rows": float(len(batch))}

    def preview(self, model: nn.Module, path: Path) -> None:
        path.with_suffix(".txt").write_text("")

    def export(self, model: nn.Module, folder: Path) -> None:
        (folder / "result.json").write_text(json.dumps(model.state_dict()["a"].tolist()))


def weights(run: Path) -> dict[str, Tensor]:
    found = newest(run, warn=pytest.fail)
    assert found is not None
    return load_file(found / "state.safetensors")


def logged(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def jumps_at(*steps: int, once: bool = False) -> Callable[[int, int], float]:
    met: set[int] = set()

    def meddle(step: int, rows: int) -> float:
        jumps = step in steps and not (once and step in met)
        met.add(step)
        return 1e4 if jumps else 1.0

    return meddle


def with_policy(policy: str, **more: Any) -> LoopSettings:
    return LOOP.model_copy(update={"on_spike": policy, **more})


def test_a_loss_stands_out_by_the_spread_of_those_before_it() -> None:
    usual = [1.0 + 0.1 * math.sin(number) for number in range(ENOUGH)]
    assert not stands_out(1e9, usual[:-1], 10)  # too few to tell
    assert stands_out(3.0, usual, 10) and not stands_out(1.15, usual, 10) and not stands_out(-50.0, usual, 10)
    assert not stands_out(1.0005, [1.0] * ENOUGH, 10) and stands_out(1.5, [1.0] * ENOUGH, 10)
    below = [each - 5 for each in usual]
    assert stands_out(-2.5, below, 10) and not stands_out(-3.9, below, 10)  # losses of a discriminator
    guard = Guard(10)
    verdicts = [guard.judge(loss, 1.0) for loss in [*usual, *([5.0] * 150)]]
    # A level that lasts becomes the usual one.
    assert verdicts[ENOUGH] == "spike" and verdicts[-1] == "fine"
    again = Guard(10)
    again.restore(json.loads(json.dumps(guard.state())))
    assert again.recent == guard.recent and again.judge(50.0, 1.0) == guard.judge(50.0, 1.0) == "spike"
    assert guard.judge(math.nan, 1.0) == guard.judge(1.0, math.inf) == "not finite" and guard.bad == 2


def test_a_spike_is_named_and_changes_nothing(tmp_path: Path) -> None:
    told: list[str] = []
    train(Fake(jumps_at(44)), with_policy("skip"), tmp_path / "run", device="cpu", warn=told.append)
    assert len(told) == 1 and told[0].startswith("the loss of step 45 is") and "page" in told[0]
    assert "\n" not in told[0]
    # Without the batch, the weights and the moments are those of a run in which step 45 does nothing.
    train(Fake(jumps_at(44)), with_policy("ignore"), tmp_path / "other", device="cpu", max_steps=44)
    seen: list[Tensor] = []

    class Watched(Fake):
        def batch(self, rng: Generator, size: int) -> Tensor:
            seen.append(torch.cat([self.model.a.detach().flatten(), self.model.count[None]]))  # type: ignore[index]
            return super().batch(rng, size)

    train(Watched(jumps_at(44)), with_policy("skip"), tmp_path / "watched", device="cpu", max_steps=46)
    assert torch.equal(seen[44], seen[45]) and not torch.equal(seen[43], seen[44])
    assert torch.equal(seen[44][:12].view(3, 4), weights(tmp_path / "other")["model/a"])
    assert [line["step"] for line in logged(tmp_path / "run")] == list(range(1, 61))


def test_a_spike_leads_back_and_is_left_out_the_second_time(tmp_path: Path) -> None:
    told: list[str] = []
    run = tmp_path / "run"
    train(Fake(jumps_at(44)), with_policy("roll_back"), run, device="cpu", warn=told.append)
    assert len(told) == 1 and "going back to step-00000040" in told[0]
    skipped = tmp_path / "skipped"
    train(Fake(jumps_at(44)), with_policy("skip"), skipped, device="cpu")
    assert [line["step"] for line in logged(run)] == list(range(1, 61))
    for name, each in weights(skipped).items():
        assert torch.equal(weights(run)[name], each), name
    # A run that is stopped after it has gone back leaves the same step out.
    train(Fake(jumps_at(44)), with_policy("roll_back"), tmp_path / "cut", device="cpu", max_steps=42)
    train(Fake(jumps_at(44)), with_policy("roll_back"), tmp_path / "cut", device="cpu", max_steps=48)
    train(Fake(jumps_at(44)), with_policy("roll_back"), tmp_path / "cut", device="cpu")
    assert all(torch.equal(weights(tmp_path / "cut")[name], each) for name, each in weights(run).items())


def test_a_spike_can_end_training(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"step 45 .*page.*learning_rate") as caught:
        train(Fake(jumps_at(44)), with_policy("stop"), tmp_path, device="cpu")
    assert caught.value.code == "unstable" and "\n" not in str(caught.value)
    assert newest(tmp_path, warn=pytest.fail) == tmp_path / "step-00000040"


def test_steps_that_are_not_finite_name_the_batch(tmp_path: Path) -> None:
    bad = Fake(lambda step, rows: math.nan if step >= 12 else 1.0)
    with pytest.raises(DataError, match=r"the last batch was .page"):
        train(bad, LOOP.model_copy(update={"rollbacks": 0}), tmp_path, device="cpu")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_memory_that_runs_out_makes_smaller_micro_batches_of_the_same_batch(
    tmp_path: Path, error: type[RuntimeError]
) -> None:
    def full(step: int, rows: int) -> float:
        if step >= 5 and rows > 1:
            raise error("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 1 byte")
        return 1.0

    loop, told = LOOP.model_copy(update={"steps": 12}), list[str]()
    train(Fake(full), loop, tmp_path / "run", device="cpu", warn=told.append)
    assert [line.split("; ")[1] for line in told] == [
        f"going on with {now} micro-batches instead of {before}, and the same batch"
        for before, now in ((1, 2), (2, 4))
    ]
    train(Fake(), loop, tmp_path / "other", device="cpu")
    found = [[line["loss"] for line in logged(tmp_path / each)] for each in ("run", "other")]
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    # The passes that failed have moved no count.
    assert weights(tmp_path / "run")["model/count"] == 5 + 7 * 4
    with pytest.raises(DataError, match=r"step 1 does not fit.*recompute") as caught:
        train(Fake(lambda step, rows: full(9, 2)), loop, tmp_path / "none", device="cpu")
    assert caught.value.code == "no_memory"
    with pytest.raises(RuntimeError, match="another"):
        train(Fake(lambda step, rows: raising(RuntimeError("another"))), loop, tmp_path / "x", device="cpu")


def raising(error: Exception) -> float:
    raise error


def test_data_that_have_changed_are_refused_and_settings_that_have_are_told(tmp_path: Path) -> None:
    train(Fake(), LOOP, tmp_path, device="cpu", max_steps=3)
    with pytest.raises(ConfigError, match="other data") as caught:
        train(Fake(data="b"), LOOP, tmp_path, device="cpu")
    assert "\n" not in str(caught.value)
    told: list[str] = []
    loop = LOOP.model_copy(update={"learning_rate": 0.5, "save_every": 7})
    train(Fake(), loop, tmp_path, device="cpu", max_steps=5, warn=told.append)
    assert told == [
        "loop.learning_rate is 0.5, and was 0.001 when the checkpoint was written",
        "resuming from step-00000003",
    ]


def test_the_best_checkpoint_stays(tmp_path: Path) -> None:
    # Losses are lowest in steps 11 to 20.
    task = Fake(lambda step, rows: 1e-4 if 10 <= step < 20 else 1.0)
    loop = LOOP.model_copy(update={"best": "loss", "keep": 2})
    train(task, loop, tmp_path / "run", device="cpu", max_steps=33)
    train(Fake(), loop, tmp_path / "run", device="cpu")
    assert sorted(path.name for path in (tmp_path / "run").glob("step-*")) == [
        "step-00000020", "step-00000050", "step-00000060",
    ]  # fmt: skip


def test_a_full_disk_is_told_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(step: int, rows: int) -> float:
        if step == 15:
            resource.setrlimit(resource.RLIMIT_FSIZE, (700, limit[1]))
        return 1.0

    try:
        with pytest.raises(OutputError, match="step-00000020") as caught:
            train(Fake(fill), LOOP.model_copy(update={"log_every": 100}), tmp_path, device="cpu")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.glob("*-*")] == ["step-00000010"]
    assert verify(tmp_path / "step-00000010") is None
    train(Fake(), LOOP, tmp_path, device="cpu")


def test_an_interrupted_run_says_that_it_can_go_on(tmp_path: Path) -> None:
    def stop(step: int, total: int, figures: dict[str, float]) -> None:
        if step == 7:
            raise KeyboardInterrupt

    with pytest.raises(Paused, match="after step 7 of 60, which is saved"):
        train(Fake(), LOOP, tmp_path, device="cpu", report=stop)


def test_observers_hear_every_step_and_know_again_what_they_knew(tmp_path: Path) -> None:
    class Watching:
        name = "watching"

        def __init__(self) -> None:
            self.heard: list[Any] = []
            self.id = ""

        def state(self) -> dict[str, Any]:
            return {"id": "run-7"}

        def restore(self, state: dict[str, Any]) -> None:
            self.id = state["id"]

        def begin(self, step: int, total: int) -> None:
            self.heard.append(("begin", step, total))

        def saw(self, seen: Seen) -> None:
            assert seen.took > 0 and seen.seconds > 0 and seen.rows == 4 and "loss" in seen.figures
            self.heard.append(seen.step)

        def end(self) -> None:
            self.heard.append("end")

    first, second = Watching(), Watching()
    train(Fake(), LOOP, tmp_path, device="cpu", max_steps=3, observers=[first])
    train(Fake(), LOOP, tmp_path, device="cpu", max_steps=5, observers=[second])
    assert first.heard == [("begin", 0, 60), 1, 2, 3, "end"] and first.id == ""
    assert second.heard == [("begin", 3, 60), 4, 5, "end"] and second.id == "run-7"


def test_recomputed_activations_change_no_bit(tmp_path: Path) -> None:
    toy_corpus(tmp_path, ("red", "green", "blue"))
    runs = []
    for recompute in (False, True):
        loop = LOOP.model_copy(update={"steps": 4, "recompute": recompute, "batch_size": 2})
        recipe = DecoderRecipe(
            data=tmp_path, text=tmp_path, image=tmp_path / "image", window=96, previews=(), loop=loop,
            backbone=BackboneConfig(
                hidden_size=16, layers=2, heads=2, kv_heads=2, intermediate_size=16, dropout=0.1
            ),
        )  # fmt: skip
        task = DecoderTask(recipe, tmp_path / "cache")
        if not recompute:
            drawn = task.names(torch.Generator().manual_seed(0), 2)
            assert set(drawn) <= {"red.html", "green.html", "blue.html"}
        runs.append(tmp_path / f"run-{recompute}")
        train(task, loop, runs[-1], device="cpu")
    assert all(torch.equal(weights(runs[1])[name], each) for name, each in weights(runs[0]).items())
    with pytest.raises(ConfigError, match="recompute"):
        train(Fake(), LOOP.model_copy(update={"recompute": True}), tmp_path / "none", device="cpu")
