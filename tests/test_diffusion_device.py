"""What a pass says is computed on the model's device for all rows at once, and read in a few copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from canvases import FlatSpan, flat_canvas
from second_device import FAR, Far, FarDenoiser, SecondDevice
from torch import Tensor

from cm3kit.decoders.diffusion import axes
from cm3kit.decoders.diffusion.denoiser import Ask, Constraint
from cm3kit.decoders.diffusion.loop import Diffusion
from cm3kit.decoders.diffusion.mask_table import MaskTable
from cm3kit.decoders.diffusion.modifiers import Block, Edit, by_likeliest
from cm3kit.decoders.diffusion.scores import Scores
from cm3kit.decoders.diffusion.settings import DiffusionConfig
from cm3kit.decoders.grammar.unconstrained import Free
from cm3kit.types import Canvas, Result, SpanKind
from cm3kit_tokenizers.errors import ConfigError

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


def free(board: Canvas, kind: type[Free] = Free) -> Free:
    return kind(board, VOCAB, MASK, EOSS, banned=(0, 1), ranges=RANGES)


def fill(
    denoiser: Any,
    canvases: Sequence[Canvas],
    constrain: Callable[[Canvas], Constraint] = free,
    **options: Any,
) -> list[Result]:
    config = DiffusionConfig.model_validate({"batch_size": 16, "text": WARM, "steps": 4, **options})
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


OTHERS: list[dict[str, Any]] = [
    {"modifiers": ("test:regret",)},
    ONE,
    {"sampler": "first-hitting"},
    {"modifiers": ({"name": "remdm-conf"},), "steps": 8},
    {"accept": {"name": "threshold", "tau": 0.3}},
    {"eoser": {"least": 0.4}, "order": "entropy"},
]


@pytest.mark.parametrize("options", [*(each for each, _ in MANY), *OTHERS])
def test_text_is_the_same_too(options: dict[str, Any]) -> None:
    reads = passes(boards(5, 8, "guidance" in options), **options)
    assert len(reads) > 1


class Few(Free):
    """A rule of one's own, said by `allowed` alone."""

    def allowed(self, slots: Sequence[int]) -> Tensor:
        mask_MV = super().allowed(slots).clone()
        mask_MV[:, 50:600] = False
        return mask_MV


class Once:
    """Every id once, by a mask that is written to and handed out as views; `masks` is something else here."""

    def __init__(self, board: Canvas) -> None:
        self.masks: dict[int, int] = {}
        self.mask_V = torch.zeros(VOCAB, dtype=torch.bool)
        self.mask_V[4:600] = True

    def allowed(self, slots: Sequence[int]) -> Tensor:
        return self.mask_V.expand(len(slots), -1)

    def commit(self, slot: int, id: int) -> None:
        self.masks[slot] = id
        self.mask_V[id] = False

    def release(self, slot: int) -> None:
        self.mask_V[self.masks.pop(slot)] = True


def test_constraints_of_ones_own_are_asked_by_what_they_say() -> None:
    few = fill(Random(), boards(3, 6), lambda board: free(board, Few))
    words = [result.fills[0].ids for result in few]
    assert words and all(id < 50 for ids in words for id in ids)
    texts = [replace(each, spans=each.spans[:1]) for each in boards(2, 8)]
    for result in fill(
        Random(), texts, Once, modifiers=({"name": "edit", "threshold": 0.9, "post_steps": 2},)
    ):
        (written,) = result.fills
        assert len(set(written.ids)) == len(written.ids) > 2


def test_a_statistic_with_options_is_computed_for_its_own_row_alone() -> None:
    seen: list[int] = []

    def power(logp_NV: Tensor, picks_N: Tensor, exponent: float) -> Tensor:
        seen.append(len(logp_NV))
        return logp_NV.double().exp().pow(exponent).sum(-1)

    @axes.order("test:reads-a-partial")
    def reads_a_partial(scores: Scores) -> Tensor:
        scores.picked_M.exp_()  # what an order does to its numbers is its own affair
        return scores.of(partial(power, exponent=2.0))

    for rows in (1, 4):
        seen.clear()
        found = fill(Random(), [_pictures(each) for each in boards(rows, 6)], order="test:reads-a-partial")
        assert 0 < sum(seen) <= rows * 6 * 4
    other = fill(Random(), [_pictures(each) for each in boards(4, 6)], order="test:reads-a-statistic")
    assert [each.trajectory.commits for each in found] == [each.trajectory.commits for each in other]


@axes.modifier("test:elsewhere")
@dataclass(frozen=True, kw_only=True)
class Elsewhere:
    """An editor that names a slot which it was not given."""

    post_steps: int = 1

    def edits(self, block: Block, slots_M: Tensor, logp_MV: Tensor) -> tuple[Tensor, Tensor]:
        """The slot behind the last one."""
        return slots_M[-1:] + 1, logp_MV.argmax(-1)[-1:]


def test_an_editor_is_held_to_its_slots() -> None:
    with pytest.raises(ConfigError, match="none of those that it was given"):
        fill(Random(), boards(1, 6), modifiers=("test:elsewhere",))


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
