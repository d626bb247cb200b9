"""The loop over an oracle and over tiny random models: counts, invariances, and closed forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cm3kit.decoders.diffusion import axes
from cm3kit.decoders.diffusion.backbone_denoiser import BackboneDenoiser
from cm3kit.decoders.diffusion.denoiser import Ask, Constraint
from cm3kit.decoders.diffusion.free import Free
from cm3kit.decoders.diffusion.loop import Diffusion
from cm3kit.decoders.diffusion.scores import Scores
from cm3kit.decoders.diffusion.settings import DiffusionConfig
from cm3kit.decoders.diffusion.written import Written
from cm3kit.decoders.settings import Sampling
from cm3kit.models.backbone import BackboneConfig, build_backbone, forward
from cm3kit.types import BlankKind, Board, Stretch

EOSS, MASK, VOCAB = 2, 3, 40
IMAGE = range(30, 40)
RANGES: dict[BlankKind, range] = {"image": IMAGE, "content": range(4, 30), "attribute": range(4, 30)}


@axes.quota("test:even")
def even(blanks: int, steps: int) -> list[int]:
    return [blanks // steps + (step < blanks % steps) for step in range(steps)]


@axes.order("test:probability")
def probability(scores: Scores) -> Tensor:
    return scores.picked_M.double().exp()


@axes.accept("test:top")
def top(score_M: Tensor, quota: int) -> Tensor:
    accepted_M = torch.zeros(len(score_M), dtype=torch.bool)
    accepted_M[score_M.sort(descending=True, stable=True).indices[:quota]] = True
    return accepted_M


@axes.accept("test:over")
def over(score_M: Tensor, quota: int, *, least: float) -> Tensor:
    accepted_M = score_M >= least
    accepted_M[score_M.argmax()] = True
    return accepted_M


PLAIN: dict[str, Any] = {"quota": "test:even", "order": "test:probability", "accept": "test:top"}


def settings(**options: Any) -> DiffusionConfig:
    return DiffusionConfig.model_validate({**PLAIN, "batch_size": 4, **options})


@dataclass
class Oracle:
    """Knows every board's target, and is surer of some slots than of others. Counts what it is asked."""

    targets: Sequence[Sequence[int]]
    mask: int = MASK
    shift: int = 0
    passes: int = 0
    asked: list[Ask] = field(default_factory=list)
    blocks: list[tuple[int, int]] = field(default_factory=list)

    def open_block(self, ids_BT: Tensor, lengths: Sequence[int], block: tuple[int, int]) -> None:
        self.blocks.append(block)

    def logits(self, ask: Ask) -> list[Tensor]:
        self.passes += 1
        self.asked.append(replace(ask, ids_BT=ask.ids_BT.clone()))
        return [self._row(*each) for each in zip(ask.ids_BT, ask.lengths, ask.slots, strict=True)]

    def _row(self, ids_T: Tensor, length: int, slots_M: Tensor) -> Tensor:
        logits_MV = torch.zeros(len(slots_M), VOCAB)
        if length:
            target = torch.tensor(self._target(ids_T[:length]))
            logits_MV[torch.arange(len(slots_M)), target[slots_M]] = 8 + (slots_M * 7 % 11).float() / 4
        return logits_MV

    def _target(self, ids_T: Tensor) -> Sequence[int]:
        for target in self.targets:
            given_T = ids_T != MASK
            if len(target) == len(ids_T) and bool((torch.tensor(target)[given_T] == ids_T[given_T]).all()):
                return target
        raise AssertionError("a board left its target")


def free(board: Board) -> Constraint:
    return Free(board, VOCAB, MASK, EOSS, banned=(0, 1), ranges=RANGES)


def blanked(target: Sequence[int], *stretches: Stretch, seed: int = 0, guide: bool = False) -> Board:
    open_ = {slot for each in stretches for slot in range(each.start, each.stop)}
    ids = tuple(MASK if place in open_ else id for place, id in enumerate(target))
    return Board(ids, stretches, (MASK,) * len(ids) if guide else (), seed)


def ragged(rows: int = 10, guide: bool = False) -> tuple[list[list[int]], list[Board]]:
    """Boards of 20 to 70 places with a padded gap in the text and a picture, and what belongs there."""
    rng = torch.Generator().manual_seed(3)
    targets, boards = [], []
    for row in range(rows):
        length = 20 + int(torch.randint(0, 50, (1,), generator=rng))
        target = torch.randint(4, 30, (length,), generator=rng).tolist()
        gap = Stretch("content", 3, 3 + 4 + row % 5, padded=True)
        picture = Stretch("image", length - 6 - row % 3, length - 1)
        codes = torch.randint(30, 40, (length,), generator=rng).tolist()
        target[picture.start : picture.stop] = codes[picture.start : picture.stop]
        end = gap.start + 1 + row % 4
        target[end : gap.stop] = [EOSS] * (gap.stop - end)
        targets.append(target)
        boards.append(blanked(target, gap, picture, seed=row, guide=guide))
    return targets, boards


def fill(denoiser: Any, boards: Sequence[Board], watch: Any = None, **options: Any) -> list[Written]:
    decoder = Diffusion(denoiser, free, settings(**options), eoss=EOSS, image=IMAGE)
    return decoder.fill(boards, watch) if watch else decoder.fill(boards)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"steps": 3},
        {"steps": 100},
        {"block_size": 4},
        {"block_size": 5, "cache": "prefix", "steps": 2},
        {"accept": {"name": "test:over", "least": 0.5}},
        {"guidance": 2.0},
        {"sampler": "ancestral", "steps": 5, "text": Sampling(temperature=0)},
        {"sampler": "first-hitting", "block_size": 4},
        {"early_exit": False},
    ],
)
def test_oracle_is_recovered(options: dict[str, Any]) -> None:
    targets, boards = ragged(guide="guidance" in options)
    options = {"image": Sampling(temperature=0), **options}
    for target, board, written in zip(targets, boards, fill(Oracle(targets), boards, **options), strict=True):
        assert list(written.ids) == target
        gap, picture = board.stretches
        answer = target[gap.start : gap.stop]
        ended = EOSS in answer
        assert written.fills[0].ids == tuple(answer[: answer.index(EOSS)] if ended else answer)
        assert written.fills[0].ended is ended
        assert written.fills[1].ids == tuple(target[picture.start : picture.stop])
        assert written.cost.wasted == 0
        done = [slot for commit in written.trajectory.commits for slot in commit.positions]
        assert sorted(done) == [slot for slot, id in enumerate(board.ids) if id == MASK]


def tiny(family: str = "llama", kv_heads: int = 2) -> Any:
    model = build_backbone(
        BackboneConfig.model_validate({
            "family": family, "hidden_size": 32, "layers": 2, "heads": 4, "kv_heads": kv_heads,
            "intermediate_size": 48, "max_positions": 80, "std": 0.3, "seed": 5,
        }),
        VOCAB + 3,
    )  # fmt: skip
    rng = torch.Generator().manual_seed(7)
    for name, each in model.named_parameters():
        if "norm" in name:
            each.data = 1 + 0.3 * torch.randn(each.shape, generator=rng)
    return model


def denoiser(**options: Any) -> BackboneDenoiser:
    return BackboneDenoiser(tiny(), MASK, VOCAB, **options)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("lean", [False, True])
def test_logits_are_those_of_the_module_under_full_attention(family: str, together: bool, lean: bool) -> None:
    model = tiny(family)
    scores = BackboneDenoiser(model, MASK, VOCAB, lean=lean, together=together)
    ids_BT = torch.zeros(3, 32, dtype=torch.long)
    lengths, slots = (
        (20, 0, 7),
        (torch.tensor([0, 4, 19]), torch.tensor([], dtype=torch.long), torch.tensor([6])),
    )
    rng = torch.Generator().manual_seed(0)
    for row, length in enumerate(lengths):
        ids_BT[row, :length] = torch.randint(4, VOCAB, (length,), generator=rng)
    found = scores.logits(Ask(ids_BT, lengths, slots, (1.0, 0.0, 1.0)))
    assert [each.shape for each in found] == [(3, VOCAB), (0, VOCAB), (1, VOCAB)]
    with torch.no_grad():
        for row, length in enumerate(lengths):
            if length:
                alone_TV = forward(model, ids_BT[row : row + 1, :length], "full")[0]
                assert torch.allclose(found[row], alone_TV[slots[row], :VOCAB], atol=1e-4)
    # The first place sees the last one: no causal mask is left.
    ids_BT[0, 19] = (ids_BT[0, 19] + 1) % VOCAB
    assert not torch.allclose(scores.logits(Ask(ids_BT, lengths, slots, (1.0,) * 3))[0][0], found[0][0])
