"""Training in several processes and micro-batches learns what one process learns from the same batches."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Generator, Tensor, nn
from toys import toy_corpus

from cm3kit.models.backbone import BackboneConfig, load_backbone
from cm3kit.publish import newest
from cm3kit.training.decoder import DecoderRecipe, DecoderTask
from cm3kit.training.interrupts import Paused
from cm3kit.training.launch import launch
from cm3kit.training.loop import LoopSettings, train
from cm3kit.training.shares import Mean, cut, pooled
from cm3kit.training.vqgan import CodebookSettings, VqganRecipe, VqganTask
from cm3kit_tokenizers.errors import ConfigError, DataError
from cm3kit_tokenizers.vq.model import ImageTokenizerConfig

torch.set_num_threads(1)
TOY = ImageTokenizerConfig(
    resolution=16, channels=(8, 8, 8), codes=32, code_dim=4, latent_channels=8, norm_groups=8, attention=False
)
LOOP = LoopSettings(
    steps=6, batch_size=4, precision="fp32", save_every=3, preview_every=100, log_every=1, ema=0.9
)
forks = pytest.mark.skipif(torch.cuda.is_available(), reason="processes with a GPU cannot be forked")


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pages with pictures of one colour each, and tokenizers for them."""
    return toy_corpus(tmp_path_factory.mktemp("toy"))


def decoder(corpus: Path, objective: str = "cm3") -> DecoderTask:
    shape = BackboneConfig(hidden_size=16, layers=2, heads=2, kv_heads=2, intermediate_size=16)
    recipe = DecoderRecipe(
        data=corpus, text=corpus, image=corpus / "image", window=96, backbone=shape, loop=LOOP, previews=(),
        objective={"name": objective},
    )  # fmt: skip
    return DecoderTask(recipe, corpus / "cache")


def vqgan(corpus: Path) -> VqganTask:
    codes = CodebookSettings(start=2, restart_below=0.9)
    return VqganTask(VqganRecipe(data=corpus, tokenizer=TOY, codebook=codes, loop=LOOP))


class Line(nn.Module):
    """y = ax + b."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4))
        self.b = nn.Parameter(torch.zeros(3))

    def forward(self, x_BD: Tensor) -> Tensor:
        return x_BD @ self.a.T + self.b


class Fake:
    """A task of a few numbers with a loss that is a mean over rows; `meddle(step)` may signal."""

    def __init__(self, meddle: Callable[[int], None] = lambda step: None) -> None:
        self.model: nn.Module = Line()
        self.meddle = meddle
        self.rows: list[int] = []

    def batch(self, rng: Generator, size: int) -> Tensor:
        return torch.randn(size, 4, generator=rng)

    def loss(
        self, model: nn.Module, batch: Tensor, step: int, rng: Generator
    ) -> tuple[Tensor, dict[str, float]]:
        self.rows.append(len(batch))
        self.meddle(step)
        loss = (model(batch) - torch.randn(3, generator=rng)).square().mean()
        return loss, {"twice": 2 * loss.item()}

    def preview(self, model: nn.Module, path: Path) -> None:
        path.with_suffix(".txt").write_text(str(model.training))

    def export(self, model: nn.Module, folder: Path) -> None:
        assert isinstance(model, Line)
        (folder / "result.json").write_text(json.dumps(model.a.tolist()))


def in_processes(count: int, folder: Path, work: Callable[[int], Any]) -> None:
    """Fork processes that train together; each must come to its end."""
    from accelerate.state import AcceleratorState, GradientState

    folder.mkdir(exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = []
    for rank in range(count):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            child = os.fork()
        if child:
            children.append(child)
            continue
        status = 1
        try:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
            os.environ |= {"LOCAL_WORLD_SIZE": str(count)}
            AcceleratorState._reset_state(reset_partial_state=True)
            GradientState._reset_state()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                work(rank)
                torch.distributed.destroy_process_group()
            status = 0
        except BaseException:  # noqa: BLE001 - whatever it was, the parent is told
            (folder / f"failed-{rank}").write_text(traceback.format_exc())
        finally:
            os._exit(status)
    ended: dict[int, int] = {}
    until = time.monotonic() + 300
    while len(ended) < count and time.monotonic() < until:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid in children:
            ended[pid] = status
            if status:  # the others would wait for it
                until = min(until, time.monotonic() + 5)
        time.sleep(0.01)
    for pid in set(children) - set(ended):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    said = [path.read_text() for path in sorted(folder.glob("failed-*"))]
    assert len(ended) == count and not any(ended.values()), "\n".join(said)


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def assert_alike(run: Path, other: Path, but: tuple[str, ...] = (), groups: tuple[str, ...] = ("",)) -> None:
    """The same figures at every step, and the same weights, moments and averages at the end, up to rounding."""
    ours, theirs = lines(run), lines(other)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs] == list(range(1, 7))
    for mine, yours in zip(ours, theirs, strict=True):
        assert mine.keys() == yours.keys()
        for name in mine.keys() - {"seconds", *but}:
            assert mine[name] == pytest.approx(yours[name], rel=1e-5, abs=2e-6), (name, mine["step"])
    found = [newest(each, warn=pytest.fail) for each in (run, other)]
    first, second = (load_file(each / "state.safetensors") for each in found if each is not None)
    assert first.keys() == second.keys()
    for name in filter(lambda name: name.startswith(groups), first):
        assert torch.allclose(first[name].float(), second[name].float(), rtol=1e-3, atol=1e-4), name


@pytest.mark.parametrize("accumulate", [2, 3])
def test_micro_batches_learn_what_the_batch_does(tmp_path: Path, corpus: Path, accumulate: int) -> None:
    loop = LOOP.model_copy(update={"accumulate": accumulate})
    tasks: dict[str, Callable[[], Any]] = {"fake": Fake, "cm3": lambda: decoder(corpus)}
    for name, make in tasks.items():
        train(make(), LOOP, tmp_path / name / "once", device="cpu")
        task = make()
        train(task, loop, tmp_path / name / "cut", device="cpu")
        assert_alike(tmp_path / name / "cut", tmp_path / name / "once")
        if isinstance(task, Fake):
            assert task.rows[:accumulate] == [[2, 2], [1, 1, 2]][accumulate - 2]


@forks
@pytest.mark.parametrize("kind", ["fake", "cm3", "masked-diffusion", "vqgan"])
def test_two_processes_learn_what_one_does(tmp_path: Path, corpus: Path, kind: str) -> None:
    def make() -> Any:
        return Fake() if kind == "fake" else vqgan(corpus) if kind == "vqgan" else decoder(corpus, kind)

    one, two = tmp_path / "one", tmp_path / "two"
    train(make(), LOOP, one, device="cpu")
    in_processes(2, two, lambda rank: train(make(), LOOP, two, device="cpu"))
    if kind == "vqgan":
        # A logarithm of a mean is no mean of logarithms; and where a gradient is all rounding, so is AdamW's step.
        assert_alike(two, one, but=("psnr",), groups=("model/codebook", "model/tokenizer.network.quantize"))
    else:
        assert_alike(two, one)
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}


@forks
def test_spread_weights_learn_what_whole_ones_do_and_are_saved_whole(tmp_path: Path, corpus: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    final = train(decoder(corpus), LOOP, one, device="cpu")
    loop = LOOP.model_copy(update={"shard": True, "accumulate": 2})
    in_processes(2, two, lambda rank: train(decoder(corpus), loop, two, device="cpu"))
    assert_alike(two, one)
    size = len(decoder(corpus).vocab)
    ours, theirs = load_backbone(two / "final", size), load_backbone(final, size)
    for mine, yours in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(mine, yours, atol=1e-3)


@forks
def test_spread_weights_go_round_in_the_format_of_the_products_and_are_kept_in_fp32(
    tmp_path: Path, corpus: Path
) -> None:
    loop = LOOP.model_copy(update={"precision": "bf16"})
    one, two = tmp_path / "one", tmp_path / "two"
    train(decoder(corpus), loop, one, device="cpu")

    def work(rank: int) -> None:
        task, met = decoder(corpus), set[tuple[str, torch.dtype]]()
        watched = {
            "layer": task.model.backbone.model.layers[0].mlp.down_proj,
            "root": task.model.backbone.model.norm,
        }
        for name, each in watched.items():
            each.register_forward_pre_hook(
                lambda module, given, name=name: met.add((name, module.weight.dtype))
            )
        train(task, loop.model_copy(update={"shard": True}), two, device="cpu")
        # Previews and the export are of a model of its own.
        assert met == {("layer", torch.bfloat16), ("root", torch.bfloat16)}
        assert all(each.dtype == torch.float32 for each in task.model.parameters())

    in_processes(2, two, work)
    found = newest(two, warn=pytest.fail)
    assert found is not None
    saved = load_file(found / "state.safetensors")
    assert {each.dtype for name, each in saved.items() if name.startswith("model/")} == {torch.float32}
    for mine, yours in zip(lines(two), lines(one), strict=True):
        # bf16 has 8 bits; residuals are in it too where weights are spread.
        assert mine["loss"] == pytest.approx(yours["loss"], rel=2**-7)


@forks
def test_a_run_goes_on_in_another_number_of_processes(tmp_path: Path, corpus: Path) -> None:
    shard = LOOP.model_copy(update={"shard": True})
    train(decoder(corpus), LOOP, tmp_path / "one", device="cpu")
    run, told = tmp_path / "run", tmp_path / "told"

    def go_on(rank: int) -> None:
        heard: list[str] = []
        train(decoder(corpus), shard, run, device="cpu", max_steps=4, warn=heard.append)
        (tmp_path / f"told-{rank}").write_text("\n".join(heard))

    train(decoder(corpus), shard, run, device="cpu", max_steps=2)
    in_processes(2, run, go_on)
    assert "written by 1 process(es) and this run has 2" in (tmp_path / "told-0").read_text()
    assert not (tmp_path / "told-1").read_text()
    heard: list[str] = []
    train(decoder(corpus), shard, run, device="cpu", warn=heard.append)
    assert "written by 2 process(es) and this run has 1" in heard[0] and heard[1].startswith("resuming from")
    assert_alike(run, tmp_path / "one")
    assert not told.exists()


@forks
def test_processes_stop_together_when_one_is_asked_to(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        def meddle(step: int) -> None:
            if step == 3 and rank == 1:
                signal.raise_signal(signal.SIGINT)

        # Whoever runs tests in the background of a shell has it ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with pytest.raises(Paused, match="after step 4 of 6"):
            train(Fake(meddle), LOOP, tmp_path / "run", device="cpu")

    in_processes(2, tmp_path / "run", work)
    assert newest(tmp_path / "run", warn=pytest.fail) == tmp_path / "run/step-00000004"
    train(Fake(), LOOP, tmp_path / "run", device="cpu")
    train(Fake(), LOOP, tmp_path / "one", device="cpu")
    assert_alike(tmp_path / "run", tmp_path / "one")


def raising(error: Exception) -> None:
    raise error


@forks
def test_processes_take_smaller_micro_batches_together_where_one_has_no_room(tmp_path: Path) -> None:
    train(Fake(), LOOP, tmp_path / "one", device="cpu")

    def work(rank: int) -> None:
        def full(step: int) -> None:
            if rank == 1 and step >= 1 and task.rows[-1] > 1:  # when there are moments
                raise torch.OutOfMemoryError("out of memory")

        task, heard = Fake(full), list[str]()
        train(task, LOOP, tmp_path / "two", device="cpu", warn=heard.append)
        # Steps are tried out when they are new, and not after.
        assert task.rows == [2, 2, 2] + [1, 1] * 6
        assert heard == ([] if rank else [
            "step 2 does not fit in the memory; going on with 2 micro-batches instead of 1, and the same batch"
        ])  # fmt: skip
        task = Fake(lambda step: raising(torch.OutOfMemoryError("out of memory")) if rank else None)
        with pytest.raises(DataError, match=r"step 1 does not fit in the memory .out of memory.*recompute"):
            train(task, LOOP.model_copy(update={"batch_size": 2}), tmp_path / "none", device="cpu")

    in_processes(2, tmp_path / "two", work)
    assert_alike(tmp_path / "two", tmp_path / "one")


def test_shares_are_all_rows_once_and_figures_are_put_together_exactly() -> None:
    rows = torch.arange(7.0)
    for count in range(1, 8):
        shares = cut(Fake(), {"x": rows, "all": torch.tensor(3.0), "pair": (rows, [rows])}, 7, count)
        assert torch.equal(torch.cat([each.batch["x"] for each in shares]), rows)
        assert torch.equal(torch.cat([each.batch["pair"][1][0] for each in shares]), rows)
        assert all(each.batch["all"] == 3 for each in shares)
        assert sum(each.factor for each in shares) == pytest.approx(1)
        means = [(each.part, {"x": float(each.batch["x"].mean())}) for each in shares]
        assert pooled(means)["x"] == pytest.approx(3)
    uneven: list[tuple[float, dict[str, float]]] = [
        (0.5, {"text": Mean(2.0, 3)}), (0.5, {"text": Mean(6.0, 1), "image": Mean(5.0, 2)})
    ]  # fmt: skip
    assert pooled(uneven) == {"text": 3.0, "image": 5.0}
    assert math.isnan(pooled([(0.5, {"x": math.nan}), (0.5, {"x": 1.0})])["x"])
    with pytest.raises(ConfigError, match=r"batch_size = 7.*shared by 8"):
        cut(Fake(), rows, 7, 8)


def test_launched_processes_have_one_status_and_only_the_main_one_is_heard(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def run(code: str) -> int:
        return launch(
            [sys.executable, "-S", "-c", f"import os, sys, time; rank = os.environ['RANK']; {code}"], 2
        )

    assert run("print(rank, os.environ['WORLD_SIZE']); print('heard', rank, file=sys.stderr)") == 0
    assert capfd.readouterr() == ("0 2\n", "heard 0\n")
    started = time.monotonic()
    # The other one would sleep for a minute.
    assert run("print(rank, file=sys.stderr); rank == '1' and sys.exit(5); time.sleep(60)") == 5
    assert time.monotonic() - started < 50
    assert capfd.readouterr().err == "0\n1\n"
    assert run("sys.exit(3 if rank == '0' else 3)") == 3


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells processes of their parent's end")
@forks
def test_processes_end_with_the_one_that_has_launched_them(tmp_path: Path) -> None:
    code = "import os, time; open(os.environ['RANK'], 'w').write(str(os.getpid())); time.sleep(90)"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        launcher = os.fork()
    if not launcher:
        os.chdir(tmp_path)
        launch([sys.executable, "-S", "-c", code], 2)
        os._exit(0)
    until = time.monotonic() + 60

    def pids() -> list[str]:
        return [text for path in tmp_path.iterdir() if (text := path.read_text())]

    while len(pids()) < 2 and time.monotonic() < until:
        time.sleep(0.02)
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    started = [Path("/proc", each, "stat") for each in pids()]
    assert len(started) == 2

    def alive(stat: Path) -> bool:
        return stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] != "Z"

    while any(map(alive, started)) and time.monotonic() < until:
        time.sleep(0.02)
    assert not any(map(alive, started))
