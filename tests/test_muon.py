"""Muon beside AdamW, and batches that other processes draw."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor, nn

from cm3kit.rng import generator
from cm3kit.training.loop import LoopSettings, train
from cm3kit.training.muon import Muon, matrices, orthogonalised
from cm3kit.training.precision import computes_bf16
from cm3kit.training.prefetch import Batches

torch.set_num_threads(1)
LOOP = LoopSettings(
    steps=12, batch_size=2, precision="fp32", save_every=4, preview_every=100, log_every=1, validate_every=0
)  # fmt: skip


class Net(nn.Module):
    """A table, a matrix, an upright one, and a vector."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.table = nn.Embedding(7, 6)
            self.wide, self.tall = nn.Linear(6, 9, bias=False), nn.Linear(9, 4)

    def forward(self, ids_BT: Tensor) -> Tensor:
        out: Tensor = self.tall(torch.tanh(self.wide(self.table(ids_BT))))
        return out


class Guess:
    """Tell the sum of three numbers modulo four."""

    def __init__(self) -> None:
        self.model: nn.Module = Net()

    def batch(self, rng: Generator, size: int) -> Tensor:
        return torch.randint(7, (size, 3), generator=rng)

    def loss(
        self, model: nn.Module, batch: Tensor, step: int, rng: Generator
    ) -> tuple[Tensor, dict[str, float]]:
        loss = nn.functional.cross_entropy(model(batch).mean(1), batch.sum(1) % 4)
        return loss, {"draw": float(torch.rand((), generator=rng))}

    def preview(self, model: nn.Module, path: Path) -> None:
        path.with_suffix(".txt").write_text("x")

    def export(self, model: nn.Module, folder: Path) -> None:
        torch.save(model.state_dict(), folder / "weights.pt")


def test_what_is_orthogonalised_keeps_its_directions_and_loses_its_lengths() -> None:
    for shape in ((3, 6, 9), (2, 9, 6), (1, 5, 5)):
        found_NRC = orthogonalised(torch.randn(shape, generator=generator(0)))
        values = torch.linalg.svdvals(found_NRC)
        assert found_NRC.shape == shape and float(values.min()) > 0.3 and float(values.max()) < 1.3
    u, _, v = torch.linalg.svd(torch.randn(6, 6, generator=generator(1)))
    found = orthogonalised((u @ torch.diag(torch.tensor([3.0, 2.5, 2, 1.5, 1.2, 1])) @ v)[None])[0]
    assert float((u.T @ found @ v.T).diagonal().min()) > 0.6
    off = u.T @ found @ v.T - torch.diag((u.T @ found @ v.T).diagonal())
    assert float(off.abs().max()) < (0.03 if computes_bf16(cpu=True) else 1e-4)


def test_steps_are_those_of_torchs_muon() -> None:
    ours, theirs = (nn.Parameter(torch.randn(8, 12, generator=generator(2))) for _ in range(2))
    mine = Muon([{"params": [ours], "muon": True}], 0.02, (0.9, 0.95), 0.1)
    torchs = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    before = ours.detach().clone()
    for step in range(5):
        ours.grad = torch.randn(8, 12, generator=generator(3, step))
        theirs.grad = ours.grad.clone()
        mine.step()
        torchs.step()
    # Torch's iterations are in bf16.
    apart, moved = (ours - theirs).detach().norm(), (ours - before).detach().norm()
    assert float(apart / moved) < 0.02


def test_tables_heads_and_vectors_are_adamws() -> None:
    net = Net()
    assert matrices(net) == {id(net.wide.weight), id(net.tall.weight)}


def outcome(run: Path) -> tuple[list[float], dict[str, Tensor]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines], torch.load(run / "final/weights.pt")


def same(first: Path, second: Path) -> bool:
    (losses, weights), (others, more) = outcome(first), outcome(second)
    return losses == others and all(torch.equal(each, more[name]) for name, each in weights.items())


def test_a_resumed_run_of_muon_equals_one_that_was_not_stopped(tmp_path: Path) -> None:
    how = LOOP.model_copy(update={"optimizer": "muon", "learning_rate": 0.02})
    train(Guess(), how, tmp_path / "whole")
    train(Guess(), how, tmp_path / "parts", max_steps=7)
    train(Guess(), how, tmp_path / "parts")
    assert same(tmp_path / "whole", tmp_path / "parts")
    adam = LOOP.model_copy(update={"learning_rate": 0.02})
    train(Guess(), adam, tmp_path / "adam")
    assert not same(tmp_path / "whole", tmp_path / "adam")


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_draw_the_batches_of_one(tmp_path: Path, workers: int) -> None:
    train(Guess(), LOOP, tmp_path / "alone")
    ahead = LOOP.model_copy(update={"workers": workers})
    train(Guess(), ahead, tmp_path / "ahead", max_steps=5)
    train(Guess(), ahead, tmp_path / "ahead")
    assert same(tmp_path / "alone", tmp_path / "ahead")


def test_a_step_out_of_turn_is_drawn_all_the_same() -> None:
    batches, alone = Batches(Guess(), LOOP.model_copy(update={"workers": 2})), Batches(Guess(), LOOP)
    for step in (0, 1, 5, 6, 2, 2):
        (rng, batch), (own, expected) = batches.take(step), alone.take(step)
        assert torch.equal(batch, expected) and torch.equal(rng.get_state(), own.get_state())
