"""What a pass says is computed on the model's device for all rows at once, and read in a few copies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from canvases import FlatSpan, flat_canvas
from second_device import FAR, Far, FarDenoiser, SecondDevice
from torch import Tensor

from cm3kit.decoders.diffusion import axes
from cm3kit.decoders.diffusion.denoiser import Ask
from cm3kit.decoders.diffusion.loop import Diffusion
from cm3kit.decoders.diffusion.mask_table import MaskTable
from cm3kit.decoders.diffusion.modifiers import Block, Edit, by_likeliest
from cm3kit.decoders.diffusion.scores import Scores
from cm3kit.decoders.diffusion.settings import DiffusionConfig
from cm3kit.decoders.grammar.unconstrained import Free
from cm3kit.types import Canvas, Result, SpanKind

EOSS, MASK, VOCAB = 2, 3, 640
IMAGE = range(600, 640)
RANGES: dict[SpanKind, range] = {"image": IMAGE, "content": range(4, 600), "attribute": range(4, 600)}
WARM = {"temperature": 0.9, "top_k": 20, "top_p": 0.8}


@axes.order("test:reads-all")
def reads_all(scores: Scores) -> Tensor:
    return scores.logp_MV.double().exp().square().sum(-1)


def concentration(logp_NV: Tensor, picks_N: Tensor) -> Tensor:
    return logp_NV.double().exp().square().sum(-1)


@axes.order("test:reads-a-statistic")
def reads_a_statistic(scores: Scores) -> Tensor:
    return scores.of(concentration)


@axes.modifier("test:regret")
@dataclass(frozen=True, kw_only=True)
class Regret:
    """An editor that must see everything."""

    post_steps: int = 2

    def edits(self, block: Block, slots_M: Tensor, logp_MV: Tensor) -> tuple[Tensor, Tensor]:
        """Slots whose id is below average."""
        ids_M = block.ids_N[torch.searchsorted(block.slots_N, slots_M)]
        low_M = logp_MV.gather(-1, ids_M[:, None])[:, 0].exp() < 0.001
        return slots_M[low_M], logp_MV.argmax(-1)[low_M]


class Random:
    """Scores that depend on the row's ids and the place, and on nothing else."""

    mask = MASK

    def open_block(self, *args: Any) -> None:
        """Nothing is kept."""

    def logits(self, ask: Ask) -> list[Tensor]:
        """Of each row alone."""
        return [
            self._row(ids_T.tolist(), slots_M) for ids_T, slots_M in zip(ask.ids_BT, ask.slots, strict=True)
        ]

    def _row(self, ids: list[int], slots_M: Tensor) -> Tensor:
        rng = torch.Generator().manual_seed(sum(place * id for place, id in enumerate(ids)) % 1_000_003)
        table_TV = 2 * torch.randn(len(ids), VOCAB, generator=rng)
        return table_TV[slots_M]


def boards(rows: int, size: int, guide: bool = False) -> list[Canvas]:
    """Rows with a text of `size` slots and a picture of as many codes."""
    spans = (FlatSpan("content", 2, 2 + size, padded=True), FlatSpan("image", 4 + size, 4 + 2 * size))
    ids = [5 + place for place in range(6 + 2 * size)]
    for span in spans:
        ids[span.start : span.stop] = [MASK] * size
    return [flat_canvas(tuple(ids), spans, (MASK,) * len(ids) if guide else (), row) for row in range(rows)]


def fill(denoiser: Any, canvases: Sequence[Canvas], **options: Any) -> list[Result]:
    config = DiffusionConfig.model_validate({"batch_size": 16, "text": WARM, "steps": 4, **options})

    def constrain(board: Canvas) -> Free:
        return Free(board, VOCAB, MASK, EOSS, banned=(0, 1), ranges=RANGES)

    return Diffusion(denoiser, constrain, config, eoss=EOSS, image=IMAGE).fill(canvases)


def passes(canvases: Sequence[Canvas], **options: Any) -> list[list[int]]:
    """What the host reads after each pass; the results are those of the CPU."""
    with SecondDevice() as device:
        denoiser = FarDenoiser(Random(), device)
        found = fill(denoiser, canvases, **options)
    expected = fill(Random(), canvases, **options)
    assert [each.trajectory.commits for each in found] == [each.trajectory.commits for each in expected]
    assert [each.ids for each in found] == [each.ids for each in expected]
    return denoiser.passes


# In blocks of one slot no id of a step can stand in the way of another.
ONE = {"block_size": 1, "steps": 1}
EDITED = {"modifiers": ({"name": "edit", "threshold": 0.1, "post_steps": 1},)}
MANY: list[tuple[dict[str, Any], int]] = [
    ({}, 2),
    ({"text": {"temperature": 0}, "image": {"temperature": 0}}, 2),
    ({"text": {"temperature": 1.0}}, 2),
    ({"order": "margin"}, 2),
    ({"order": "entropy", "confidence": "tempered"}, 2),
    ({"order": "test:reads-a-statistic"}, 2),
    ({"order": "test:reads-all"}, 3),
    ({"sampler": "ancestral"}, 2),
    ({"guidance": 2.0}, 2),
    (EDITED, 4),
]


@pytest.mark.parametrize(("options", "most"), MANY)
@pytest.mark.parametrize(("rows", "size"), [(1, 2), (9, 12)])
def test_a_pass_is_read_in_a_few_copies_whatever_there_is(
    options: dict[str, Any], most: int, rows: int, size: int
) -> None:
    guide = "guidance" in options
    # Pictures alone: their slots are independent, so that no id is drawn a second time.
    canvases = [_pictures(each) for each in boards(rows, size, guide)]
    reads = passes(canvases, **options)
    # The first pass learns what the order asks for.
    assert len(reads) > 1 and len(reads[0]) <= most + 1
    assert max(map(len, reads[1:])) == most
    if options.get("order") != "test:reads-all":
        assert max(max(each) for each in reads) <= 6 * rows * 2 * size < rows * VOCAB


def _pictures(canvas: Canvas) -> Canvas:
    return replace(canvas, spans=canvas.spans[1:], guides=tuple(_pictures(each) for each in canvas.guides))


@pytest.mark.parametrize("options", [*(each for each, _ in MANY), {"modifiers": ("test:regret",)}, ONE])
def test_text_is_the_same_too(options: dict[str, Any]) -> None:
    reads = passes(boards(5, 8, "guidance" in options), **options)
    assert len(reads) > 1


def test_flat_distributions_need_their_whole_order() -> None:
    flat = {"temperature": 50.0, "top_p": 0.99}
    reads = passes(boards(3, 6), text=flat, image=flat, order="random", block_size=2)
    # Once the picks and once those of slots whose best 256 ids are too few, which reads its own settings.
    assert max(map(len, reads)) > 2


def test_the_stand_in_refuses_what_a_device_refuses() -> None:
    with SecondDevice() as device:
        far_2 = Far(torch.tensor([1.0, 2.0]))
        with pytest.raises(RuntimeError, match="on the CPU and others"):
            far_2 + torch.tensor([1.0, 2.0])
        assert (
            float((far_2 * 2).sum()) == 6.0 and bool((far_2 > 0).all()) and far_2.cpu().tolist() == [1.0, 2.0]
        )
        assert device.reads == [1, 1, 2]
        assert far_2[far_2 > 1].shape == (1,) and len(device.reads) == 4
        assert torch.ones(2, device=FAR).device == FAR


def test_a_mask_that_comes_again_is_not_copied_again() -> None:
    table = MaskTable(torch.device("cpu"), 8, mask=3, image=range(5, 8), held=30)
    menu, codes = torch.ones(8, dtype=torch.bool), torch.arange(8) > 4
    assert table.rows([menu, codes, menu]) == [0, 1, 0]
    assert table.rows([codes, codes.clone(), menu]) == [1, 2, 0]
    assert [table.only_codes(row) for row in range(3)] == [False, True, True]
    # The mask id is nowhere allowed, and the constraint's own tensor is left as it is.
    assert table.allowed([0, 1]).tolist() == [[True] * 3 + [False] + [True] * 4, codes.tolist()] and bool(
        menu[3]
    )
    table.trim()
    assert table.rows([codes]) == [1]
    table.rows([codes.clone()])
    table.trim()
    assert table.rows([codes]) == [0]


def test_a_row_with_the_mask_id_alone_beside_codes_is_one_of_codes() -> None:
    table = MaskTable(torch.device("cpu"), 8, mask=3, image=range(5, 8))
    (row,) = table.rows([torch.tensor([False, False, False, True, False, True, True, False])])
    assert table.only_codes(row)


def test_an_editor_that_changes_edits_alone_is_asked_for_these() -> None:
    class Never(Edit):
        def edits(self, block: Block, slots_M: Tensor, logp_MV: Tensor) -> tuple[Tensor, Tensor]:
            return slots_M[:0], slots_M[:0]

    class Bolder(Edit):
        def doubted(self, block: Block, slots_M: Tensor, ids_M: Tensor, logp_M: Tensor) -> Tensor:
            return slots_M

    assert by_likeliest(Edit()) and by_likeliest(Bolder()) and not by_likeliest(Never())
    assert not by_likeliest(Regret())
