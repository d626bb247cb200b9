"""The loop over an oracle and over tiny random models: counts, invariances, and closed forms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from canvases import FlatSpan, flat_canvas, flat_spans
from torch import Tensor

from cm3kit.decoders.diffusion import axes
from cm3kit.decoders.diffusion.backbone_denoiser import BackboneDenoiser
from cm3kit.decoders.diffusion.denoiser import Ask, Constraint
from cm3kit.decoders.diffusion.drawing import drawn_from
from cm3kit.decoders.diffusion.guidance import mix, weight
from cm3kit.decoders.diffusion.loop import Diffusion
from cm3kit.decoders.diffusion.modifiers import Remasker, make
from cm3kit.decoders.diffusion.plan import plan
from cm3kit.decoders.diffusion.samplers import Reverse
from cm3kit.decoders.diffusion.scores import Scores
from cm3kit.decoders.diffusion.settings import DiffusionConfig
from cm3kit.decoders.grammar.unconstrained import Free
from cm3kit.decoders.settings import Sampling
from cm3kit.models.backbone import BackboneConfig, build_backbone, forward
from cm3kit.models.timestep import add_timestep
from cm3kit.rng import generator
from cm3kit.types import Canvas, Commit, MaskSpan, Result, SpanKind, Step
from cm3kit_tokenizers.errors import ConfigError, ModelError

EOSS, MASK, VOCAB = 2, 3, 40
IMAGE = range(30, 40)
RANGES: dict[SpanKind, range] = {"image": IMAGE, "content": range(4, 30), "attribute": range(4, 30)}


@axes.schedule("test:even")
def even(blanks: int, steps: int) -> list[int]:
    return [blanks // steps + (step < blanks % steps) for step in range(steps)]


@axes.order("test:probability")
def probability(scores: Scores) -> Tensor:
    return scores.picked_M.double().exp()


@axes.accept("test:top")
def top(score_M: Tensor, planned: int) -> Tensor:
    accepted_M = torch.zeros(len(score_M), dtype=torch.bool)
    accepted_M[score_M.sort(descending=True, stable=True).indices[:planned]] = True
    return accepted_M


@axes.accept("test:over")
def over(score_M: Tensor, planned: int, *, least: float) -> Tensor:
    accepted_M = score_M >= least
    accepted_M[score_M.argmax()] = True
    return accepted_M


@axes.accept("test:none")
def none(score_M: Tensor, planned: int) -> Tensor:
    return torch.zeros(len(score_M), dtype=torch.bool)


@axes.schedule("test:short")
def short(blanks: int, steps: int) -> list[int]:
    return [blanks - 1]


@axes.order("test:left")
def left(scores: Scores) -> Tensor:
    return -scores.slots_M.double()


@axes.order("test:random")
def random(scores: Scores) -> Tensor:
    return torch.rand(len(scores.slots_M), generator=scores.rng, dtype=torch.float64)


PLAIN: dict[str, Any] = {"schedule": "test:even", "order": "test:probability", "accept": "test:top"}


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


def free(board: Canvas) -> Constraint:
    return Free(board, VOCAB, MASK, EOSS, banned=(0, 1), ranges=RANGES)


def blanked(target: Sequence[int], *stretches: FlatSpan, seed: int = 0, guide: bool = False) -> Canvas:
    open_ = {slot for each in stretches for slot in range(each.start, each.stop)}
    ids = tuple(MASK if place in open_ else id for place, id in enumerate(target))
    return flat_canvas(ids, stretches, (MASK,) * len(ids) if guide else (), seed)


def ragged(rows: int = 10, guide: bool = False) -> tuple[list[list[int]], list[Canvas]]:
    """Boards of 20 to 70 places with a padded gap in the text and a picture, and what belongs there."""
    rng = torch.Generator().manual_seed(3)
    targets, boards = [], []
    for row in range(rows):
        length = 20 + int(torch.randint(0, 50, (1,), generator=rng))
        target = torch.randint(4, 30, (length,), generator=rng).tolist()
        gap = FlatSpan("content", 3, 3 + 4 + row % 5, padded=True)
        picture = FlatSpan("image", length - 6 - row % 3, length - 1)
        codes = torch.randint(30, 40, (length,), generator=rng).tolist()
        target[picture.start : picture.stop] = codes[picture.start : picture.stop]
        end = gap.start + 1 + row % 4
        target[end : gap.stop] = [EOSS] * (gap.stop - end)
        targets.append(target)
        boards.append(blanked(target, gap, picture, seed=row, guide=guide))
    return targets, boards


def fill(denoiser: Any, boards: Sequence[Canvas], watch: Any = None, **options: Any) -> list[Result]:
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
        gap, picture = flat_spans(board)
        answer = target[gap.start : gap.stop]
        ended = EOSS in answer
        assert written.fills[0].ids == tuple(answer[: answer.index(EOSS)] if ended else answer)
        assert written.fills[0].ended is ended
        assert written.fills[1].ids == tuple(target[picture.start : picture.stop])
        assert written.cost.wasted == 0
        done = [slot for commit in written.trajectory.commits for slot in commit.positions]
        assert sorted(done) == [slot for slot, id in enumerate(board.flatten(MASK).ids) if id == MASK]


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


@pytest.mark.parametrize("timed", [False, True])
def test_open_slots_that_are_unseen_change_no_other_place(timed: bool) -> None:
    model = add_timestep(tiny(), 16) if timed else tiny()
    ids = [1, 7, 8, MASK, 9, MASK, MASK, 1]
    slots = (torch.tensor([3, 5]),)

    def scored(row: list[int], length: int, **options: Any) -> Tensor:
        scores = BackboneDenoiser(model, MASK, VOCAB, unseen=True, **options)
        return scores.logits(Ask(torch.tensor([row]), (length,), slots, (0.5,)))[0]

    found = scored(ids, 8)
    for options in ({"lean": False}, {"together": True}, {"together": True, "lean": False}):
        assert torch.allclose(scored([*ids, 5, 5], 8, **options), found, atol=1e-4)
    # More open slots at the end are no other question, and one that is written is.
    assert torch.allclose(scored([*ids, MASK, MASK], 10), found, atol=1e-4)
    assert not torch.allclose(scored([*ids, MASK, 7], 10), found, atol=1e-2)
    seen = BackboneDenoiser(model, MASK, VOCAB)
    assert not torch.allclose(seen.logits(Ask(torch.tensor([ids]), (8,), slots, (0.5,)))[0], found, atol=1e-2)


# What a board costs.


def gaps(*sizes: int, length: int = 64, padded: bool = False) -> tuple[list[int], Canvas]:
    """A board with runs of so many open slots, three places apart, and its target."""
    target = torch.randint(4, 30, (length,), generator=torch.Generator().manual_seed(length)).tolist()
    stretches, start = [], 3
    for size in sizes:
        stretches.append(FlatSpan("content", start, start + size, padded))
        start += size + 3
    return target, blanked(target, *stretches)


def passes(board_of: tuple[list[int], Canvas], **options: Any) -> int:
    oracle = Oracle([board_of[0]])
    (written,) = fill(oracle, [board_of[1]], **options)
    assert list(written.ids) == board_of[0]
    assert written.cost.forwards == written.cost.full == oracle.passes
    assert written.cost.token_forwards == oracle.passes * len(board_of[0])
    assert written.cost.wasted == 0
    assert len({commit.step for commit in written.trajectory.commits}) == oracle.passes
    return oracle.passes


@pytest.mark.parametrize(("size", "steps"), [(1, 1), (1, 9), (7, 3), (16, 16), (16, 5), (16, 40), (13, None)])
def test_a_uniform_schedule_takes_as_many_passes_as_steps_or_slots(size: int, steps: int | None) -> None:
    assert passes(gaps(size), steps=steps) == min(steps or size, size)


@pytest.mark.parametrize(("block", "steps"), [(4, 2), (4, 9), (5, 5), (16, 3), (100, 3), (1, 1)])
def test_every_block_has_its_own_plan(block: int, steps: int) -> None:
    # 16 slots from place 3 on: the last block may be shorter.
    blocks = [min(block, 16 - start) for start in range(0, 16, block)]
    assert passes(gaps(16), block_size=block, steps=steps) == sum(min(steps, each) for each in blocks)


def test_blocks_without_open_slots_cost_nothing() -> None:
    # Slots 3-4, 8-9 and 13: blocks of 3 from place 3 on hold 2, 1 (8), 1 (9), 1 of them.
    assert passes(gaps(2, 2, 1), block_size=3, steps=1) == 4
    assert plan(gaps(2, 2, 1)[1], settings(block_size=3, steps=1)) == [[2], [1], [1], [1]]


@pytest.mark.parametrize(
    ("least", "expected"),
    [(0.0, 4), (2.0, 16)],
)
def test_a_threshold_ranges_from_a_pass_a_block_to_a_pass_a_slot(least: float, expected: int) -> None:
    assert passes(gaps(16), block_size=4, accept={"name": "test:over", "least": least}) == expected


def test_first_hitting_writes_one_slot_a_pass() -> None:
    heat = {"text": Sampling(temperature=0)}
    assert passes(gaps(16), sampler="first-hitting", **heat) == 16
    assert passes(gaps(16), sampler="first-hitting", block_size=5, **heat) == 16


def test_ancestral_passes_are_the_steps_that_write() -> None:
    target, board = gaps(16)
    for steps in (1, 4, 40):
        for written in fill(
            Oracle([target]), [board, replace(board, seed=1)], sampler="ancestral", steps=steps
        ):
            assert list(written.ids) == target and written.cost.wasted == 0
            assert written.cost.forwards == len(written.trajectory.commits) <= min(steps, 16)
            assert steps > 1 or written.cost.forwards == 1
        # The mean over phases is S (1 - (1 - 1/S)^L), the number of steps in which any of L slots falls.
        counts = []
        for seed in range(400):
            phase, rng, left = Reverse(16, steps), generator(seed), list(range(16))
            while left:
                written_now = phase.want(left, rng)
                left = [slot for slot in left if slot not in written_now]
            counts.append(phase.step)
        mean = steps * (1 - (1 - 1 / steps) ** 16)
        assert abs(sum(counts) / 400 - mean) <= 4 * 1.3 / 400**0.5


def test_guidance_doubles_the_passes_and_a_weight_of_one_does_not() -> None:
    targets, boards = ragged(guide=True)
    plain = fill(Oracle(targets), boards, guidance=1.0, steps=3)
    guided = fill(Oracle(targets), boards, guidance=1.5, steps=3)
    unguided = fill(Oracle(targets), [replace(each, guides=()) for each in boards], guidance=1.5, steps=3)
    for one, two, none in zip(plain, guided, unguided, strict=True):
        assert two.cost.forwards == 2 * one.cost.forwards == 2 * none.cost.forwards <= 6
        assert two.cost.head_rows == 2 * one.cost.head_rows
        assert two.cost.wasted == 0


def test_nothing_open_costs_nothing() -> None:
    oracle = Oracle([])
    board = flat_canvas((5, 6, 7), (FlatSpan("content", 1, 1), FlatSpan("content", 2, 2, padded=True)))
    steps: list[Step] = []
    (written,) = fill(oracle, [board], steps.append)
    assert written.ids == board.flatten(MASK).ids and written.trajectory.commits == () and oracle.passes == 0
    assert [fill.ids for fill in written.fills] == [(), ()]
    assert [fill.ended for fill in written.fills] == [True, False]
    assert steps == [] and fill(oracle, []) == []


def test_the_head_sees_the_open_slots_of_the_block_alone() -> None:
    target, board = gaps(16)
    oracle = Oracle([target])
    (written,) = fill(oracle, [board], block_size=4, steps=2)
    for ask in oracle.asked:
        start = 3 + (int(ask.slots[0][0]) - 3) // 4 * 4
        open_ = [slot for slot in range(start, start + 4) if int(ask.ids_BT[0, slot]) == MASK]
        assert ask.slots[0].tolist() == open_ and all(len(each) == 0 for each in ask.slots[1:])
    assert written.cost.head_rows == 4 * (4 + 2) == sum(len(ask.slots[0]) for ask in oracle.asked)


def test_times_are_the_share_that_is_open() -> None:
    target, board = gaps(16)
    oracle = Oracle([target])
    fill(oracle, [board], block_size=8, steps=4)
    assert [ask.times[0] for ask in oracle.asked] == [1 - step / 8 for step in range(8)]
    oracle = Oracle([target])
    fill(oracle, [board], sampler="ancestral", steps=4)
    assert all(ask.times[0] in (1.0, 0.75, 0.5, 0.25) for ask in oracle.asked)


def test_the_plan_is_what_happens() -> None:
    target, board = gaps(9, 5)
    for options in ({"steps": 4}, {"block_size": 6, "steps": 2}, {}, {"sampler": "first-hitting"}):
        (written,) = fill(Oracle([target]), [board], **options)
        found = [len(commit.positions) for commit in written.trajectory.commits]
        assert found == [count for block in plan(board, settings(**options)) for count in block]


# What is written, and in what order.


HOT: dict[str, Any] = {"text": Sampling(temperature=1.2, top_k=20), "image": Sampling(top_p=0.9), "steps": 4}
WAYS: list[dict[str, Any]] = [
    HOT,
    {**HOT, "block_size": 5},
    {**HOT, "sampler": "ancestral"},
    {**HOT, "sampler": "first-hitting"},
    {**HOT, "guidance": 1.7, "guidance_schedule": "linear"},
    {**HOT, "confidence": "tempered"},
    {**HOT, "early_exit": False},
    {**HOT, "steps": 6, "modifiers": [{"name": "remdm-cap", "eta": 0.3}, {"name": "edit", "threshold": 0.3}]},
    {**HOT, "sampler": "ancestral", "modifiers": [{"name": "remdm-rescale", "eta": 0.4}], "block_size": 8},
    {"steps": 3},
]


@pytest.mark.parametrize("options", WAYS)
def test_given_places_stay_and_no_mask_is_left(options: dict[str, Any]) -> None:
    _, boards = ragged(3, guide=True)
    for board, written in zip(boards, fill(denoiser(), boards, **options), strict=True):
        assert len(written.ids) == len(board.flatten(MASK).ids) and MASK not in written.ids
        given = [place for place, id in enumerate(board.flatten(MASK).ids) if id != MASK]
        assert all(written.ids[place] == board.flatten(MASK).ids[place] for place in given)
        gap, picture = flat_spans(board)
        answer = written.ids[gap.start : gap.stop]
        end = answer.index(EOSS) if EOSS in answer else len(answer)
        assert set(answer[:end]) <= set(range(4, 30)) and set(answer[end:]) <= {EOSS}
        assert set(written.ids[picture.start : picture.stop]) <= set(IMAGE)
        # Only an editor looks at a full block again, and finds nothing to do.
        editing = "edit" in str(options.get("modifiers"))
        assert written.cost.wasted == 0 or (editing and written.cost.wasted == 1)


@pytest.mark.parametrize(
    ("options", "together"), [*((each, False) for each in WAYS), (HOT, True), (WAYS[4], True)]
)
def test_a_row_is_the_same_alone_in_company_and_in_any_order(options: dict[str, Any], together: bool) -> None:
    _, boards = ragged(guide=True)
    # Ten rows of several lengths where the settings are simple, and some of them under all settings.
    boards = boards if options is HOT else boards[:5]
    scores = denoiser(together=together)
    state = torch.get_rng_state()
    company = fill(scores, boards, **options)
    assert fill(scores, boards[::-1], **options)[::-1] == company
    assert [fill(scores, [board], **options)[0] for board in boards[:2]] == company[:2]
    assert torch.equal(torch.get_rng_state(), state)


def test_seeds_matter_where_dice_are_thrown_and_nowhere_else() -> None:
    _, boards = ragged(2)
    others = [replace(board, seed=board.seed + 99) for board in boards]
    ids = [[each.ids for each in fill(denoiser(), some, **HOT)] for some in (boards, others)]
    assert all(one != two for one, two in zip(*ids, strict=True))
    cold = {"image": Sampling(temperature=0)}
    assert [e.ids for e in fill(denoiser(), boards, **cold)] == [
        e.ids for e in fill(denoiser(), others, **cold)
    ]


@pytest.mark.parametrize("options", WAYS)
def test_the_trajectory_replays_and_its_logprobs_can_be_computed_again(options: dict[str, Any]) -> None:
    _, boards = ragged(2, guide=True)
    model = tiny()
    for board, written in zip(
        boards, fill(BackboneDenoiser(model, MASK, VOCAB), boards, **options), strict=True
    ):
        if "modifiers" in options:
            replayed(written)
            continue
        ids, last, sums = list(board.flatten(MASK).ids), -1, [0.0] * len(flat_spans(board))
        for commit in written.trajectory.commits:
            assert commit.step == last + 1 and commit.kind == "write"
            assert sorted(commit.scores, reverse=True) == list(commit.scores)
            with torch.no_grad():
                logits_TV = forward(model, torch.tensor([ids]), "full")[0, :, :VOCAB]
            logits_TV[:, MASK] = -torch.inf
            logp_TV = logits_TV.log_softmax(-1)
            for slot, id, logprob in zip(commit.positions, commit.ids, commit.logprobs, strict=True):
                assert ids[slot] == MASK != id
                forced = logprob == 0.0 and id == EOSS
                assert forced or logprob == pytest.approx(float(logp_TV[slot, id]), abs=1e-4)
            for slot, id, logprob in zip(commit.positions, commit.ids, commit.logprobs, strict=True):
                ids[slot] = id
                for index, each in enumerate(flat_spans(board)):
                    stop = each.start + len(written.fills[index].ids) + 1
                    if each.start <= slot < min(stop, each.stop):
                        sums[index] += logprob
            last = commit.step
        assert tuple(ids) == written.ids
        assert sums == pytest.approx([fill.logprob for fill in written.fills], abs=1e-5)


def test_greedy_decoding_is_that_of_a_loop_of_ten_lines() -> None:
    model, (_, board) = tiny(), gaps(9, 4, length=40)
    (written,) = fill(BackboneDenoiser(model, MASK, VOCAB), [board], steps=5)
    ids, order = torch.tensor([board.flatten(MASK).ids]), []
    for count in (3, 3, 3, 2, 2):
        with torch.no_grad():
            p_TV = forward(model, ids, "full")[0, :, :VOCAB]
        p_TV[:, [0, 1, EOSS, MASK, *IMAGE]] = -torch.inf
        best_T, pick_T = p_TV.softmax(-1).max(-1)
        best_T[ids[0] != MASK] = -1
        top_K = best_T.topk(count).indices
        ids[0, top_K] = pick_T[top_K]
        order.append(tuple(top_K.tolist()))
    assert written.ids == tuple(ids[0].tolist())
    assert [commit.positions for commit in written.trajectory.commits] == order


def test_blocks_are_written_one_after_the_other_and_one_that_holds_all_changes_nothing() -> None:
    _, board = gaps(5, 2, length=16)
    for sampler in ("confidence", "ancestral", "first-hitting"):
        options: dict[str, Any] = {**HOT, "sampler": sampler}
        (whole,) = fill(denoiser(), [board], **options)
        assert fill(denoiser(), [board], block_size=10, **options) == [whole]
        (blocked,) = fill(denoiser(), [board], block_size=3, **options)
        blocks = [[(slot - 3) // 3 for slot in each.positions] for each in blocked.trajectory.commits]
        assert all(len(set(each)) == 1 for each in blocks)
        assert [each[0] for each in blocks] == sorted(each[0] for each in blocks)
        assert blocked.ids != whole.ids


@pytest.mark.parametrize("cache", ["none", "prefix", "exact"])
def test_with_a_cache_the_rows_of_a_batch_share_their_blocks(cache: str) -> None:
    targets, boards = ragged(12)
    oracle = Oracle(targets)
    found = fill(oracle, boards, block_size=4, steps=2, cache=cache, image=Sampling(temperature=0))
    assert [list(each.ids) for each in found] == targets
    if cache == "none":
        assert oracle.blocks == [] and all(ask.block is None for ask in oracle.asked)
        return
    assert len(oracle.blocks) < len(oracle.asked)
    for ask in oracle.asked:
        assert ask.block is not None and ask.block in oracle.blocks
        start, stop = ask.block
        assert all(start <= slot < stop for slots in ask.slots for slot in slots.tolist())
        assert start % 4 == (0 if cache == "exact" else 3) and stop - start <= 4
        # Nothing to the left of the block is open in a row that is being written.
        for row_T, slots in zip(ask.ids_BT, ask.slots, strict=True):
            assert not len(slots) or MASK not in row_T[:start].tolist()
    asked = sum(any(len(slots) for slots in ask.slots) for ask in oracle.asked)
    assert asked == oracle.passes


def test_early_exit_saves_passes_and_changes_no_answer() -> None:
    target, board = gaps(12, length=24, padded=True)
    target[8:15] = [EOSS] * 7
    for options in ({}, {"block_size": 4}, {"steps": 4}):
        ends, full = Oracle([target]), Oracle([target])
        (early,) = fill(ends, [board], order="test:left", **options)
        (late,) = fill(full, [board], order="test:left", early_exit=False, **options)
        assert early.fills[0].ids == late.fills[0].ids == tuple(target[3:8]) and early.ids == late.ids
        assert early.fills[0].logprob == late.fills[0].logprob
        assert early.fills[0].ended and ends.passes < full.passes
        last = early.trajectory.commits[-1]
        forced = [p for p, logprob in zip(last.positions, last.logprobs, strict=True) if logprob == 0]
        assert forced == list(range(15 - len(forced), 15)) and {*last.ids[-len(forced) :]} == {EOSS}
    assert (ends.passes, full.passes) == (2, 4)


def test_steps_tell_of_every_commit() -> None:
    _, boards = ragged()
    steps: list[Step] = []
    found = fill(denoiser(), boards, steps.append, **HOT)
    assert [step.index for step in steps] == list(range(len(steps)))
    assert all(step.index < step.total and len(step.commits) == len(step.ids) == 10 for step in steps)
    for row, written in enumerate(found):
        assert tuple(step.commits[row] for step in steps if step.commits[row]) == written.trajectory.commits


@dataclass
class Distinct:
    """No id of a board's slots may occur twice."""

    left: set[int]

    def allowed(self, slots: Sequence[int]) -> Tensor:
        allowed_MV = torch.zeros(len(slots), VOCAB, dtype=torch.bool)
        allowed_MV[:, sorted(self.left)] = True
        return allowed_MV

    def commit(self, slot: int, id: int) -> None:
        self.left.remove(id)

    def release(self, slot: int) -> None: ...


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_picks_of_one_step_that_exclude_each_other_are_drawn_again(steps: int) -> None:
    # Every slot wants id 9 most and then, less and less, 8, 7, 6, 5.
    @dataclass
    class Greedy(Oracle):
        def _row(self, ids_T: Tensor, length: int, slots_M: Tensor) -> Tensor:
            wish_V = torch.zeros(VOCAB)
            wish_V[5:10] = torch.arange(5.0)
            return wish_V.repeat(len(slots_M), 1) * (1 + slots_M[:, None] / 9)

    board = gaps(5)[1]
    oracle = Greedy([])
    decoder = Diffusion(
        oracle, lambda _: Distinct(set(range(5, 10))), settings(steps=steps), eoss=2, image=IMAGE
    )
    (written,) = decoder.fill([board])
    assert sorted(written.fills[0].ids) == [5, 6, 7, 8, 9]
    assert oracle.passes == steps and written.cost.wasted == 0
    first = written.trajectory.commits[0]
    # The surest slot is the last one; it goes first and gets the id that all of them want.
    assert first.positions[0] == 7 and first.ids[0] == 9
    if steps == 1:
        assert (first.positions, first.ids) == ((7, 6, 5, 4, 3), (9, 8, 7, 6, 5))


def test_what_a_rule_leaves_over_is_written_all_the_same() -> None:
    # The plan of the first block has one step of 6 slots, of which the rule takes none by itself.
    target, board = gaps(6)
    assert passes((target, board), steps=1, accept={"name": "test:over", "least": 2.0}) == 6
    assert passes((target, board), steps=2, accept="test:none") == 6


# Chances.


@dataclass
class Joint:
    """Exact conditionals of pairs of neighbours, each pair with the same joint distribution over ids 4 to 6."""

    p_KK: Tensor
    mask: int = MASK

    def open_block(self, ids_BT: Tensor, lengths: Sequence[int], block: tuple[int, int]) -> None: ...

    def logits(self, ask: Ask) -> list[Tensor]:
        return [self._row(ids_T, slots_M) for ids_T, slots_M in zip(ask.ids_BT, ask.slots, strict=True)]

    def _row(self, ids_T: Tensor, slots_M: Tensor) -> Tensor:
        # Pairs stand at places 2k and 2k + 1; what is open, and what stands there, says which table to read.
        first, second = (
            torch.cat([self.p_KK.T, self.p_KK.sum(1)[None]]),
            torch.cat([self.p_KK, self.p_KK.sum(0)[None]]),
        )
        partner_M = ids_T[slots_M ^ 1]
        table_M = torch.where(partner_M == MASK, 3, partner_M - 4)
        logits_MV = torch.full((len(slots_M), VOCAB), -1e4)
        logits_MV[:, 4:7] = torch.where((slots_M % 2 == 0)[:, None], first[table_M], second[table_M]).log()
        return logits_MV


def chi2(counts: Tensor, p: Tensor) -> float:
    expected = p * counts.sum()
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize(
    "options",
    [{"sampler": "first-hitting"}, {"sampler": "ancestral", "steps": 1000}, {"order": "test:random"}],
)
def test_one_slot_at_a_time_samples_the_joint_distribution(options: dict[str, Any]) -> None:
    rng = torch.Generator().manual_seed(1)
    p_KK = torch.rand(3, 3, generator=rng) ** 2
    p_KK /= p_KK.sum()
    pairs = 100
    board = flat_canvas((5, 5, *[MASK] * 2 * pairs), (FlatSpan("content", 2, 2 + 2 * pairs),))
    (written,) = fill(Joint(p_KK), [board], text=Sampling(), batch_size=1, **options)
    counts_KK = torch.zeros(3, 3)
    for first, second in zip(written.ids[2::2], written.ids[3::2], strict=True):
        counts_KK[first - 4, second - 4] += 1
    # 8 degrees of freedom: 1 in 10,000 draws lies beyond 32; pairs of independent slots would be far off.
    assert chi2(counts_KK.flatten(), p_KK.flatten()) < 32
    assert chi2(counts_KK.flatten(), (p_KK.sum(1)[:, None] * p_KK.sum(0)).flatten()) > 32


@dataclass
class Constant:
    """The same logits everywhere, and others where the condition is masked."""

    logits_V: Tensor
    guide_V: Tensor | None = None
    mask: int = MASK

    def open_block(self, ids_BT: Tensor, lengths: Sequence[int], block: tuple[int, int]) -> None: ...

    def logits(self, ask: Ask) -> list[Tensor]:
        rows = zip(ask.ids_BT[:, 0].tolist(), ask.slots, strict=True)
        return [self._of(first).repeat(len(slots), 1) for first, slots in rows]

    def _of(self, first: int) -> Tensor:
        return self.guide_V if self.guide_V is not None and first == MASK else self.logits_V


@pytest.mark.parametrize("sampler", ["confidence", "ancestral"])
def test_ids_come_as_often_as_the_tempered_and_cut_distribution_says(sampler: str) -> None:
    logits_V = torch.randn(VOCAB, generator=torch.Generator().manual_seed(2)) * 2
    boards = [flat_canvas((5, *[MASK] * 160), (FlatSpan("image", 1, 161),), seed=seed) for seed in range(20)]
    way = Sampling(temperature=1.5, top_k=7, top_p=0.8)
    # An order that looks at the picks would prefer the likelier ones.
    options = {"sampler": sampler, "order": "test:random", "steps": 3, "batch_size": 20}
    found = fill(Constant(logits_V), boards, image=way, **options)
    p_N = (logits_V[30:40] / 1.5).softmax(-1)
    rank_N = p_N.argsort(descending=True)
    kept = rank_N[:7]
    share = (p_N[kept] / p_N[kept].sum()).cumsum(0)
    kept = kept[: int((share < 0.8).sum()) + 1]
    ids = torch.tensor([id for each in found for id in each.ids[1:]])
    counts_N = torch.bincount(ids - 30, minlength=10)
    assert set(counts_N.nonzero()[:, 0].tolist()) == set(kept.tolist())
    assert chi2(counts_N[kept].float(), p_N[kept] / p_N[kept].sum()) < 28


def test_a_cut_to_one_id_is_the_best_one() -> None:
    _, boards = ragged(2)
    cold = fill(denoiser(), boards, text=Sampling(temperature=0), image=Sampling(temperature=0))
    for way in (Sampling(temperature=2.0, top_k=1), Sampling(temperature=2.0, top_p=1e-9)):
        assert [e.ids for e in fill(denoiser(), boards, text=way, image=way)] == [e.ids for e in cold]


@pytest.mark.parametrize("way", [(1.0, 0, 1.0), (0.7, 5, 1.0), (1.3, 0, 0.6), (0.9, 12, 0.4), (0.0, 3, 1.0)])
def test_tempered_confidence_is_the_distribution_that_is_drawn_from(way: tuple[float, int, float]) -> None:
    logits_MV = torch.randn(3, 30, generator=torch.Generator().manual_seed(4))
    logits_MV[1, 9:] = -torch.inf
    heat, top_k, top_p = way
    ways = (torch.full((3,), heat).double(), torch.full((3,), top_k), torch.full((3,), top_p).double())
    found_MV = drawn_from(logits_MV, *ways)
    for logits_V, found_V in zip(logits_MV, found_MV, strict=True):
        p_V = (logits_V / (heat or 1.0)).softmax(-1)
        ids = p_V.argsort(descending=True)[: top_k or 30]
        p_V = torch.zeros(30).index_put((ids,), p_V[ids] / p_V[ids].sum())
        before = 0.0
        for id in ids.tolist():
            mass, before = float(p_V[id]), before + float(p_V[id])
            if before - mass >= top_p:
                p_V[id] = 0.0
        assert torch.allclose(found_V.exp(), p_V / p_V.sum(), atol=1e-6)


def test_confidence_of_the_drawn_distribution_ties_where_that_of_the_model_does_not() -> None:
    # Two choices, 4 nats apart in one slot and 5 in the other: at temperature 0.1 both round to 1.
    logits_MV = torch.tensor([[4.0, 0.0], [5.0, 0.0]])
    ways = (torch.full((2,), 0.1).double(), torch.zeros(2, dtype=torch.long), torch.ones(2).double())
    tempered_M, base_M = drawn_from(logits_MV, *ways)[:, 0], logits_MV.log_softmax(-1)[:, 0]
    assert float(tempered_M[0].exp()) == float(tempered_M[1].exp()) == 1.0
    assert float(base_M[0]) < float(base_M[1])


@dataclass
class Uneven(Constant):
    """Two likely ids, the surer the further to the right."""

    def logits(self, ask: Ask) -> list[Tensor]:
        found = []
        for slots in ask.slots:
            logits_MV = torch.full((len(slots), VOCAB), -20.0)
            logits_MV[:, 4], logits_MV[:, 5] = 4 + slots, 0.0
            found.append(logits_MV)
        return found


def test_tempered_confidence_writes_left_to_right_where_the_model_would_not() -> None:
    board = gaps(6, length=12)[1]
    orders = {}
    for source in ("base", "tempered"):
        (written,) = fill(Uneven(torch.zeros(1)), [board], confidence=source, text=Sampling(temperature=0.1))
        orders[source] = [slot for commit in written.trajectory.commits for slot in commit.positions]
    assert orders == {"base": [8, 7, 6, 5, 4, 3], "tempered": [3, 4, 5, 6, 7, 8]}


def test_an_ancestral_step_writes_each_slot_with_probability_one_minus_s_over_t() -> None:
    steps = 5
    phase, rng, left = Reverse(6000, steps), generator(1), list(range(6000))
    for step in range(steps):
        written = set(phase.want(left, rng))
        # t = 1 - step / 5 and s = t - 1/5, so that 1 - s/t = 1 / (5 - step).
        p = 1 / (steps - step)
        assert phase.time(len(left)) == pytest.approx(1 - step / steps)
        assert abs(len(written) - p * len(left)) <= 4 * (p * (1 - p) * len(left)) ** 0.5
        left = [slot for slot in left if slot not in written]
    assert left == []


def test_first_hitting_times_are_those_of_independent_uniform_slots() -> None:
    # Event k of n, from 1 down, is an order statistic: its mean is 1 - k / (n + 1). Every slot is as often first.
    slots, boards = 4, 600
    sums, firsts = [0.0] * slots, torch.zeros(slots)
    for seed in range(boards):
        phase, rng, left = Reverse(slots), generator(seed), list(range(slots))
        for event in range(slots):
            (slot,) = phase.want(left, rng)
            left.remove(slot)
            sums[event] += phase.time(len(left))
            firsts[slot] += event == 0
    assert [total / boards for total in sums] == pytest.approx(
        [0.8, 0.6, 0.4, 0.2], abs=4 * 0.2 / boards**0.5
    )
    assert chi2(firsts, torch.full((slots,), 1 / slots)) < 22


# Taking back and replacing.


def remdm(name: str = "remdm-cap", **options: Any) -> dict[str, Any]:
    return {"modifiers": [{"name": name, **options}]}


def replayed(written: Result) -> list[tuple[Commit, list[int]]]:
    """Every commit with the board after it; what a commit says of the board before it must hold."""
    ids, states = list(written.trajectory.canvas.flatten(MASK).ids), []
    for commit in written.trajectory.commits:
        for slot, id in zip(commit.positions, commit.ids, strict=True):
            if commit.kind == "remask":
                assert ids[slot] == id
                ids[slot] = MASK
            else:
                assert (ids[slot] == MASK) is (commit.kind == "write") and id != MASK
                ids[slot] = id
        states.append((commit, list(ids)))
    assert tuple(ids) == written.ids
    return states


@pytest.mark.parametrize("name", ["remdm-cap", "remdm-rescale", "remdm-conf", "remdm-loop"])
@pytest.mark.parametrize("sampler", ["confidence", "ancestral"])
def test_remasking_keeps_the_plan_and_given_places(name: str, sampler: str) -> None:
    slots, steps = 400, 10
    board = flat_canvas((5, *[MASK] * slots, 6), (FlatSpan("content", 1, 1 + slots),))
    eta = {"remdm-conf": 1.0, "remdm-loop": 0.05}.get(name, 0.2)
    options = {"schedule": "uniform", "sampler": sampler, "steps": steps, **remdm(name, eta=eta)}
    (written,) = fill(Constant(torch.zeros(VOCAB)), [board], **options)
    assert MASK not in written.ids and written.ids[0] == 5 and written.ids[-1] == 6
    assert written.cost.wasted == 0 and written.cost.forwards <= steps
    remasked = [commit for commit, _ in replayed(written) if commit.kind == "remask"]
    assert remasked
    made = make(options["modifiers"][0])
    assert isinstance(made, Remasker)
    counts = made.plan(slots, steps)
    # With a pass at every step, what is written after each of them is what the plan says.
    after = {commit.step: sum(id != MASK for id in ids) - 2 for commit, ids in replayed(written)}
    assert len(after) == steps
    for step, found in after.items():
        planned = sum(counts[: step + 1])
        spread = 0 if sampler == "confidence" else 4 * (planned * (slots - planned) / slots) ** 0.5 + 1
        assert abs(found - planned) <= spread


def test_the_schedule_says_how_remasked_boards_fill_where_it_is_not_uniform() -> None:
    board = flat_canvas((5, *[MASK] * 100), (FlatSpan("content", 1, 101),))
    options = {"schedule": "cosine", "steps": 8, **remdm(eta=0.3)}
    (written,) = fill(Constant(torch.zeros(VOCAB)), [board], **options)
    after = {commit.step: sum(id == MASK for id in ids) for commit, ids in replayed(written)}
    assert list(after.values()) == [98, 92, 83, 70, 55, 38, 19, 0]
    assert any(commit.kind == "remask" for commit in written.trajectory.commits)


def test_without_a_chance_remasking_is_ancestral_sampling() -> None:
    board = flat_canvas((5, *[MASK] * 3000), (FlatSpan("content", 1, 3001),))
    (written,) = fill(Constant(torch.zeros(VOCAB)), [board], sampler="ancestral", steps=4, **remdm(eta=0.0))
    left = 3000
    for step, commit in enumerate(written.trajectory.commits):
        p = 1 / (4 - step)
        assert commit.kind == "write"
        assert abs(len(commit.positions) - p * left) <= 4 * (p * (1 - p) * left) ** 0.5
        left -= len(commit.positions)
    assert left == 0


@dataclass
class Wavering(Oracle):
    """Wants id 4 everywhere until half of a board is written, and its target from then on."""

    def _row(self, ids_T: Tensor, length: int, slots_M: Tensor) -> Tensor:
        logits_MV = torch.zeros(len(slots_M), VOCAB)
        if length:
            target_T = torch.tensor(self.targets[0])
            early = int((ids_T[:length] == MASK).sum()) > 4
            best_M = torch.full_like(slots_M, 4) if early else target_T[slots_M]
            logits_MV[torch.arange(len(slots_M)), best_M] = 8.0 + slots_M / 10
        return logits_MV


def test_an_editor_puts_right_what_was_written_too_early() -> None:
    target, board = gaps(8, length=14)
    (plain,) = fill(Wavering([target]), [board])
    assert plain.fills[0].ids == (*target[3:7], 4, 4, 4, 4)
    oracle = Wavering([target])
    (written,) = fill(oracle, [board], **remdm("edit"))
    assert list(written.ids) == target
    edits = [commit for commit, _ in replayed(written) if commit.kind == "edit"]
    assert [sorted(commit.positions) for commit in edits] == [[7, 8, 9, 10]]
    assert edits[0].positions == (10, 9, 8, 7) and edits[0].step == 4
    # Eight passes that write, and one over the full block that changes nothing.
    assert oracle.passes == written.cost.forwards == 9 and written.cost.wasted == 1
    assert all(ask.slots[0].tolist() == list(range(3, 11)) for ask in oracle.asked)
    # V - 1 ids are possible, and each slot has one at 8 + slot / 10 nats above the others.
    sure = sum(8 + slot / 10 - math.log(VOCAB - 2 + math.exp(8 + slot / 10)) for slot in range(3, 11))
    assert written.fills[0].logprob == pytest.approx(sure, abs=1e-4)
    (unsure,) = fill(Wavering([target]), [board], **remdm("edit", threshold=1.0))
    assert unsure.ids == plain.ids
    oracle = Wavering([target])
    fill(oracle, [board], **remdm("edit", post_steps=0))
    assert oracle.passes == 8


def test_an_editor_keeps_to_the_constraint() -> None:
    @dataclass
    class Swap(Oracle):
        """Wants 5 6 7 8 9 in this order while any slot is open, and the reverse once none is."""

        def _row(self, ids_T: Tensor, length: int, slots_M: Tensor) -> Tensor:
            logits_MV = torch.zeros(len(slots_M), VOCAB)
            full = MASK not in ids_T[:length].tolist()
            wish_M = 12 - slots_M if full else slots_M + 2
            return logits_MV.scatter(1, wish_M[:, None], 9.0) if len(slots_M) else logits_MV

    class Permutation(Distinct):
        def __init__(self) -> None:
            super().__init__(set(range(5, 10)))
            self.ids: dict[int, int] = {}

        def commit(self, slot: int, id: int) -> None:
            super().commit(slot, id)
            self.ids[slot] = id

        def release(self, slot: int) -> None:
            self.left.add(self.ids.pop(slot))

    config = settings(steps=1, **remdm("edit"))
    (written,) = Diffusion(Swap([]), lambda _: Permutation(), config, eoss=EOSS, image=IMAGE).fill(
        [gaps(5)[1]]
    )
    # No id can be replaced by itself: every other one stands elsewhere.
    assert written.fills[0].ids == (5, 6, 7, 8, 9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sampler": "first-hitting", **remdm()}, "no steps at which slots could open"),
        ({"modifiers": ["remdm-cap", "remdm-loop"]}, "give one of each at most"),
        ({"sampler": "ancestral", "eoser": {}}, "leave one of them out"),
        ({"schedule": "test:short"}, "must sum to them"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        fill(Oracle([]), [gaps(3)[1]], **options)
    assert caught.value.code == "bad_config"


def test_ends_wait_under_early_rejection() -> None:
    @dataclass
    class Ending(Oracle):
        """Prefers <eoss> by far, and something else at place 3 and 4."""

        def _row(self, ids_T: Tensor, length: int, slots_M: Tensor) -> Tensor:
            logits_MV = torch.zeros(len(slots_M), VOCAB)
            logits_MV[:, EOSS] = 9.0
            logits_MV[slots_M < 5, 7] = 9.5
            return logits_MV

    board = gaps(6, length=12, padded=True)[1]
    firsts = {}
    for least in (1.0, 0.1):
        (written,) = fill(Ending([]), [board], eoser={"least": least, "most": 1.0}, order="probability")
        firsts[least] = written.trajectory.commits[0].ids[0]
        assert written.fills[0].ids == (7, 7)
    assert firsts == {1.0: EOSS, 0.1: 7}
    (hard,) = fill(Ending([]), [board], eoser={"hard": 0.5}, order="probability")
    assert hard.trajectory.commits[0].ids[0] == 7 and hard.fills[0].ids == (7, 7)


# Guidance.


def test_guidance_mixes_raw_logits() -> None:
    rng = torch.Generator().manual_seed(5)
    c_V, u_V = torch.randn(VOCAB, generator=rng), torch.randn(VOCAB, generator=rng)
    assert torch.equal(mix(c_V, c_V, 7.0), c_V) and torch.equal(mix(c_V, u_V, 0.0), u_V)
    assert torch.allclose(mix(c_V, u_V, 1.0), c_V) and torch.allclose(
        mix(c_V, u_V, 3.0), 3 * c_V - 2 * u_V, atol=1e-5
    )
    # An id that may not stand there is -inf after mixing only: no -inf less -inf.
    c_V[MASK] = u_V[MASK] = 50.0
    board = flat_canvas((5, *[MASK] * 3), (FlatSpan("content", 1, 4),), (MASK,) * 4)
    (written,) = fill(Constant(c_V, u_V), [board], guidance=100.0)
    menu_V = torch.full((VOCAB,), -torch.inf)
    menu_V[4:30] = (c_V - u_V)[4:30]
    assert (
        set(written.ids[1:])
        == {int((u_V + 100 * (menu_V - 0)).argmax())}
        == {int((menu_V * 100 + u_V).argmax())}
    )
    # Log-probabilities are those of the model without guidance.
    c_V[MASK] = -torch.inf
    assert written.trajectory.commits[0].logprobs[0] == pytest.approx(
        float(c_V.log_softmax(-1)[written.ids[1]]), abs=1e-5
    )


def test_the_same_condition_on_both_sides_guides_nothing() -> None:
    _, boards = ragged(2)
    same = [replace(board, guides=(replace(board, guides=()),)) for board in boards]
    plain = fill(denoiser(), boards, **HOT)
    assert [e.fills for e in fill(denoiser(), same, guidance=1.0, **HOT)] == [e.fills for e in plain]
    cold = {"image": Sampling(temperature=0)}
    guided = fill(denoiser(), same, guidance=4.0, **cold)
    assert [e.ids for e in guided] == [e.ids for e in fill(denoiser(), boards, **cold)]


def test_the_guide_is_written_along() -> None:
    targets, boards = ragged(4, guide=True)
    oracle = Oracle(targets)
    fill(oracle, boards, guidance=2.0, batch_size=2, image=Sampling(temperature=0))
    for ask in oracle.asked:
        for row in range(2):
            ids_T, guide_T = ask.ids_BT[row, : ask.lengths[row]], ask.ids_BT[row + 2, : ask.lengths[row]]
            assert ask.lengths[row] == ask.lengths[row + 2]
            assert torch.equal(ask.slots[row], ask.slots[row + 2])
            seen_T = guide_T != MASK
            assert torch.equal(guide_T[seen_T], ids_T[seen_T])
    assert any(bool((ask.ids_BT[2] != MASK).any()) for ask in oracle.asked[2:])


def test_the_linear_weight_grows_from_one() -> None:
    config = settings(guidance=5.0, guidance_schedule="linear")
    assert [weight(config, time) for time in (1.0, 0.75, 0.5, 0.0)] == [1.0, 2.0, 3.0, 5.0]
    assert weight(settings(guidance=5.0), 0.3) == 5.0


# Models.


def test_a_shifted_model_is_read_one_place_before() -> None:
    model, (_, board) = tiny(), gaps(7, length=20)
    shifted = BackboneDenoiser(model, MASK, VOCAB, shift=True)
    ask = Ask(torch.tensor([board.flatten(MASK).ids]), (20,), (torch.tensor([3, 6]),), (1.0,))
    with torch.no_grad():
        logits_TV = forward(model, ask.ids_BT, "full")[0, :, :VOCAB]
    assert torch.allclose(shifted.logits(ask)[0], logits_TV[[2, 5]], atol=1e-4)
    first = replace(ask, slots=(torch.tensor([0, 3]),))
    with pytest.raises(ConfigError, match="first has none") as caught:
        shifted.logits(first)
    assert caught.value.code == "bad_value"
    assert torch.allclose(denoiser().logits(first)[0], logits_TV[[0, 3]], atol=1e-4)


def test_a_model_that_looks_at_the_time_is_told_it() -> None:
    model = add_timestep(tiny(), width=16)
    for name, each in model.named_parameters():
        if "timestep" in name:
            each.data = torch.randn(each.shape, generator=torch.Generator().manual_seed(len(name))) / 4
    ids_BT = torch.randint(4, VOCAB, (2, 32), generator=torch.Generator().manual_seed(0))
    ask = Ask(ids_BT, (12, 20), (torch.tensor([3]), torch.tensor([6, 8])), (0.9, 0.2))
    for together in (False, True):
        found = BackboneDenoiser(model, MASK, VOCAB, together=together).logits(ask)
        with torch.no_grad():
            for row, length in enumerate(ask.lengths):
                time_B = torch.tensor(ask.times[row : row + 1])
                alone_TV = forward(model, ids_BT[row : row + 1, :length], "full", times=time_B)[0, :, :VOCAB]
                assert torch.allclose(found[row], alone_TV[ask.slots[row]], atol=1e-4)
    early = BackboneDenoiser(model, MASK, VOCAB).logits(replace(ask, times=(0.1, 0.2)))
    assert not torch.allclose(early[0], found[0], atol=1e-2) and torch.allclose(early[1], found[1], atol=1e-4)


class Planted:
    """Hidden states that are the one-hot target, of the place itself or of the next one."""

    def __init__(self, target: Sequence[int], ahead: int, width: int) -> None:
        self.target_T, self.ahead, self.width = torch.tensor(target), ahead, width

    def __call__(self, ids_BT: Tensor, lengths: Sequence[int], times: Sequence[float]) -> Tensor:
        one_hot_TV = torch.nn.functional.one_hot(self.target_T.roll(-self.ahead), self.width).float()
        return one_hot_TV.repeat(len(ids_BT), 1, 1) * 9


@pytest.mark.parametrize(("ahead", "shift", "found"), [(0, False, True), (1, True, True), (1, False, False)])
def test_slots_of_text_and_picture_are_read_where_the_model_puts_them(
    ahead: int, shift: bool, found: bool
) -> None:
    target = [5, 6, 7, 8, 9, *range(30, 39), 10]
    board = blanked(target, FlatSpan("content", 2, 4), FlatSpan("image", 5, 14))
    model = tiny()
    model.set_output_embeddings(torch.nn.Linear(VOCAB, VOCAB, bias=False))
    model.get_output_embeddings().weight.data = torch.eye(VOCAB)
    hidden = Planted(target, ahead, VOCAB)
    scores = BackboneDenoiser(model, MASK, VOCAB, shift=shift, hidden=hidden)
    (written,) = fill(scores, [board], image=Sampling(temperature=0))
    assert (list(written.ids) == target) is found


def test_too_long_a_page_and_scores_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="81 ids, the model's window holds 80") as long:
        fill(denoiser(), [gaps(5, length=81)[1]])
    assert long.value.code == "too_long"
    assert MASK not in fill(denoiser(together=True), [gaps(5, length=79)[1]])[0].ids
    with pytest.raises(ModelError, match="row 0 are not finite") as broken:
        fill(Constant(torch.full((VOCAB,), torch.nan)), [gaps(5)[1]])
    assert broken.value.code == "bad_checkpoint"


def one(at: int, size: int = 1, slots: int = 1, **more: Any) -> MaskSpan:
    return MaskSpan("content", at, size, True, slots, **more)


@pytest.mark.parametrize(
    ("canvas", "message"),
    [
        (Canvas((5, MASK), (one(0),)), "is among the known ids"),
        (Canvas((5,), (one(2),)), "lie in order, inside"),
        (Canvas((5, 6), (one(1), one(0))), "lie in order, inside"),
        (Canvas((5,), (one(-1),)), "lie in order, inside"),
        (Canvas((5,), (one(0, 2),)), "room for their answer"),
        (Canvas((5,), (one(0, 1, 2),)), "no end id"),
        (Canvas((5,), (one(0),), (Canvas((), (one(0),)),)), "as long as the canvas"),
        (Canvas((5,), (one(0),), (Canvas((7,), (one(1),)),)), "at the same positions"),
    ],
)
def test_malformed_canvases_are_refused(canvas: Canvas, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        fill(denoiser(), [canvas])
    assert caught.value.code == "bad_value"


@pytest.mark.parametrize("spans", [[(0, 2), (1, 2)], [(0, 3)], [(-1, 1)]])
def test_flat_sequences_whose_spans_overlap_or_leave_them_are_refused(spans: list[tuple[int, int]]) -> None:
    with pytest.raises(ConfigError, match="overlap or leave"):
        flat_canvas((MASK, MASK), [FlatSpan("content", *each) for each in spans])
    with pytest.raises(ConfigError, match="a guide has another length"):
        flat_canvas((MASK, 5), (FlatSpan("content", 0, 1),), guide=(MASK,))


def test_free_knows_ranges_bans_and_ends() -> None:
    stretches = (FlatSpan("content", 0, 4, padded=True), FlatSpan("image", 4, 6), FlatSpan("document", 6, 7))
    rules = Free(flat_canvas((MASK,) * 7, stretches), VOCAB, MASK, EOSS, banned=(0, 1, 8), ranges=RANGES)
    text, codes = {*range(4, 30)} - {8}, {*IMAGE}

    def ids(*slots: int) -> list[set[int]]:
        return [set(row.nonzero()[:, 0].tolist()) for row in rules.allowed(slots)]

    assert ids(0, 3, 4, 6) == [text | {EOSS}, text | {EOSS}, codes, text | codes]
    rules.commit(2, 9)
    assert ids(0, 1, 3) == [text, text, text | {EOSS}]
    rules.release(2)
    rules.commit(1, EOSS)
    assert ids(0, 2, 3) == [text | {EOSS}, {EOSS}, {EOSS}]
    with pytest.raises(ConfigError, match="Nothing may stand in a span of kind 'image'"):
        Free(flat_canvas((MASK,) * 7, stretches), VOCAB, MASK, EOSS, banned=IMAGE, ranges=RANGES)
