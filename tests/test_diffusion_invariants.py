"""What holds of the engine for every name on every axis, over a model that knows the answer."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from canvases import FlatSpan, flat_canvas
from torch import Tensor

from cm3kit.decoders.diffusion import axes
from cm3kit.decoders.diffusion.denoiser import Ask
from cm3kit.decoders.diffusion.guidance import weight
from cm3kit.decoders.diffusion.loop import Diffusion
from cm3kit.decoders.diffusion.plan import plan
from cm3kit.decoders.diffusion.scores import Scores
from cm3kit.decoders.diffusion.settings import DiffusionConfig
from cm3kit.decoders.grammar.unconstrained import Free
from cm3kit.types import Canvas, Result, SpanKind
from cm3kit_tokenizers.errors import ConfigError

EOSS, MASK, VOCAB = 2, 3, 40
WORDS, CODES = range(4, 30), range(30, 40)
RANGES: dict[SpanKind, range] = {"image": CODES, "content": WORDS}
GREEDY: dict[str, Any] = {"text": {"temperature": 0}, "image": {"temperature": 0}}
SEEN: list[Scores] = []


@axes.order("test:seen")
def seen(scores: Scores) -> Tensor:
    SEEN.append(scores)
    return scores.picked_M.double().exp()


@dataclass
class Oracle:
    """Gives the target of its one board `sure` nats more than anything else."""

    target: Sequence[int]
    sure: float = 12.0
    mask: int = MASK
    passes: int = 0
    blocks: list[tuple[int, int]] = field(default_factory=list)

    def open_block(self, ids_BT: Tensor, lengths: Sequence[int], block: tuple[int, int]) -> None:
        self.blocks.append(block)

    def logits(self, ask: Ask) -> list[Tensor]:
        self.passes += 1
        return [self._row(slots) for slots in ask.slots]

    def _row(self, slots: Tensor) -> Tensor:
        logits_MV = torch.zeros(len(slots), VOCAB)
        return logits_MV.scatter(1, torch.tensor(self.target)[slots][:, None], self.sure)


def random_board(seed: int, most: int = 10) -> tuple[list[int], Canvas]:
    """Given and open runs of random lengths, words and pictures, and what belongs there."""
    rng = random.Random(seed)
    target: list[int] = []
    stretches, left = [], most
    while left:
        target += [rng.choice(WORDS) for _ in range(rng.randint(1, 4))]
        size = min(left, rng.randint(1, 5))
        kind: SpanKind = rng.choice(["content", "image"])
        padded = kind == "content" and rng.random() < 0.5
        stretches.append(FlatSpan(kind, len(target), len(target) + size, padded))
        answer = [rng.choice(CODES if kind == "image" else WORDS) for _ in range(size)]
        if padded:
            end = rng.randint(1, size)
            answer[end:] = [EOSS] * (size - end)
        target += answer
        left -= size
    slots = {slot for each in stretches for slot in range(each.start, each.stop)}
    ids = tuple(MASK if place in slots else id for place, id in enumerate(target))
    guide = tuple(MASK for _ in ids)
    return target, flat_canvas(ids, tuple(stretches), guide, seed)


def fill(oracle: Oracle, board: Canvas, **options: Any) -> Result:
    config = DiffusionConfig.model_validate({"batch_size": 2, **GREEDY, **options})
    decoder = Diffusion(
        oracle,
        lambda each: Free(each, VOCAB, MASK, EOSS, banned=(0, 1), ranges=RANGES),
        config,
        eoss=EOSS,
        image=CODES,
    )
    return decoder.fill([board])[0]


def names(registry: Any) -> list[str]:
    return [name for name in registry if not name.startswith("test:")]


REST: list[dict[str, Any]] = [
    {},
    {"steps": 4, "eoser": {}},
    {"steps": 40, "confidence": "tempered"},
    {"block_size": 3, "steps": 2},
    {"block_size": 3, "cache": "prefix"},
    {"block_size": 4, "cache": "exact", "steps": 2},
    {"guidance": 2.0, "guidance_schedule": "linear"},
    {"early_exit": False, "guidance": 0.5},
    *({"modifiers": [name], "steps": 5} for name in names(axes.modifier)),
    {"modifiers": ["edit", {"name": "remdm-cap", "eta": 0.4}], "eoser": {"hard": 0.5}},
]


@pytest.mark.parametrize("rest", REST, ids=str)
def test_every_combination_of_the_axes_recovers_the_target(rest: dict[str, Any]) -> None:
    schedules: list[Any] = [*names(axes.schedule), {"name": "ascending", "mode": "paper"}]
    schedules[schedules.index("explicit")] = {"name": "explicit", "counts": [1, 2, 3, 4]}
    combined = list(itertools.product(schedules, names(axes.order), names(axes.accept)))
    # Strides that share no factor with the numbers of names: every name comes up, and of the plain ones every pair.
    for index, (schedule, order, accept) in enumerate(combined[:: 13 if rest else 5]):
        if isinstance(schedule, dict) and schedule["name"] == "explicit" and "block_size" in rest:
            continue  # its counts are those of one block
        target, board = random_board(index)
        oracle = Oracle(target)
        written = fill(oracle, board, **{**rest, "schedule": schedule, "order": order, "accept": accept})
        assert list(written.ids) == target
        editing = "edit" in rest.get("modifiers", ())
        assert written.cost.wasted <= int(editing)
        assert written.cost.token_forwards == written.cost.forwards * len(target)


@pytest.mark.parametrize("sampler", ["ancestral", "first-hitting"])
@pytest.mark.parametrize("rest", [{}, {"block_size": 3}, {"guidance": 2.0}], ids=str)
def test_samplers_of_the_reverse_process_recover_the_target(sampler: str, rest: dict[str, Any]) -> None:
    for seed in range(20):
        target, board = random_board(seed)
        oracle = Oracle(target)
        written = fill(oracle, board, sampler=sampler, early_exit=False, **rest)
        assert list(written.ids) == target and written.cost.wasted == 0
        # No pass without a commit: never more than slots, and exactly as many where each is an event of its own.
        assert oracle.passes == len(written.trajectory.commits) <= 10
        assert oracle.passes == 10 or sampler == "ancestral"


@pytest.mark.parametrize(
    ("accept", "sure", "expected"),
    [
        ({"name": "threshold", "tau": 1.5}, 12.0, 10),
        ({"name": "threshold", "tau": 0.0}, 0.5, 3),
        ({"name": "threshold", "tau": 0.9}, 12.0, 3),
        ({"name": "threshold", "tau": 0.9}, 3.0, 10),
        ("factor", 12.0, 3),
        ({"name": "factor", "f": 0.0}, 3.0, 10),
        ("entropy-bound", 12.0, 3),
        ({"name": "entropy-bound", "bound": 0.0}, 3.0, 10),
    ],
    ids=str,
)
def test_passes_run_from_one_a_block_to_one_a_slot(accept: Any, sure: float, expected: int) -> None:
    target = [5, *range(6, 16), 5]
    board = flat_canvas((5, *[MASK] * 10, 5), (FlatSpan("content", 1, 11),))
    order = "entropy" if "entropy" in str(accept) else "probability"
    oracle = Oracle(target, sure)
    written = fill(oracle, board, accept=accept, order=order, block_size=4)
    assert list(written.ids) == target
    assert oracle.passes == written.cost.forwards == expected and written.cost.wasted == 0


def test_a_weight_of_one_costs_no_second_pass_even_if_it_grows_later() -> None:
    target, board = random_board(3)
    linear = {"guidance": 3.0, "guidance_schedule": "linear", "steps": 5, "early_exit": False}
    for schedule, passes in (("linear", 9), ("steps", 9), ("constant", 10)):
        oracle = Oracle(target)
        written = fill(oracle, board, **{**linear, "guidance_schedule": schedule})
        assert (oracle.passes, written.cost.forwards) == (5, passes)
        assert written.cost.wasted == 0 and list(written.ids) == target
    # In blocks the share that is open is of the board: it is 1 at the first pass alone.
    written = fill(Oracle(target), board, **{**linear, "block_size": 100, "steps": 2})
    assert written.cost.forwards == 3


def test_what_may_stand_somewhere_has_all_the_probability() -> None:
    stretches = (FlatSpan("content", 1, 4, padded=True), FlatSpan("image", 5, 8), FlatSpan("content", 9, 11))
    ids = tuple(MASK if any(each.start <= at < each.stop for each in stretches) else 9 for at in range(12))
    SEEN.clear()
    rng = torch.Generator().manual_seed(1)
    oracle = Oracle(())
    noise_TV = 9 * torch.randn(12, VOCAB, generator=rng)
    noise_TV[:, MASK] = 50.0  # a model may prefer what is never written
    oracle._row = lambda slots: noise_TV[slots]  # type: ignore[method-assign]
    for confidence in ("base", "tempered"):
        way = {"temperature": 0.7, "top_p": 0.9}
        fill(
            oracle, flat_canvas(ids, stretches), order="test:seen", confidence=confidence,
            text=way, image=way, early_exit=False,
        )  # fmt: skip
    assert len(SEEN) == 16
    for scores in SEEN:
        p_MV = scores.logp_MV.exp()
        assert torch.allclose(p_MV.sum(-1), torch.ones(len(p_MV)), atol=1e-5)
        assert bool((p_MV[:, [0, 1, MASK]] == 0).all())
        for slot, p_V, pick in zip(scores.slots_M.tolist(), p_MV, scores.picks_M.tolist(), strict=True):
            menu = [*CODES] if 5 <= slot < 8 else [*WORDS, EOSS] if slot < 4 else [*WORDS]
            assert float(p_V[menu].sum()) == pytest.approx(1, abs=1e-5) and pick in menu


def test_where_all_is_alike_ids_and_slots_come_from_the_left() -> None:
    board = flat_canvas((5, *[MASK] * 4, 5), (FlatSpan("content", 1, 5),))
    for order in ("probability", "margin", "entropy", "left-to-right"):
        written = fill(Oracle([4] * 6, sure=0.0), board, order=order)
        assert [slot for commit in written.trajectory.commits for slot in commit.positions] == [1, 2, 3, 4]
        assert written.ids[1:5] == (4,) * 4  # the lowest id that may stand there


@pytest.mark.parametrize(("blocks", "counts"), [(1, [[1, 2, 7]]), (2, [[1, 2], [7]]), (3, [[1], [2], [7]])])
def test_ascending_blocks_go_left_to_right_and_take_the_steps_of_one_schedule(
    blocks: int, counts: list[list[int]]
) -> None:
    options = {
        "schedule": {"name": "ascending", "mode": "paper"},
        "ascending_blocks": blocks,
        "early_exit": False,
    }
    for seed in range(10):
        target, board = random_board(seed)
        oracle = Oracle(target)
        written = fill(oracle, board, **options)
        assert list(written.ids) == target and plan(board, DiffusionConfig(**options)) == counts
        commits = [commit.positions for commit in written.trajectory.commits]
        assert [len(slots) for slots in commits] == [count for block in counts for count in block]
        done = iter(sorted(slot for slots in commits for slot in slots))
        for block in counts:  # what a block writes lies left of what comes after it
            wrote = sorted(slot for _ in block for slot in commits.pop(0))
            assert wrote == [next(done) for _ in wrote]


@pytest.mark.parametrize("blocks", [1, 2, 3])
def test_ascending_blocks_count_the_steps_of_all_blocks(blocks: int) -> None:
    """As the released `eoser_ass_generate`: γ of end ids grows over the whole canvas."""
    told: list[tuple[int, int]] = []

    @axes.order(f"counting {blocks}")
    def counting(scores: Scores) -> Tensor:
        told.append((scores.step, scores.steps))
        return -scores.slots_M.double()

    _, board = random_board(3)
    options = {
        "schedule": {"name": "ascending", "mode": "paper"},
        "ascending_blocks": blocks,
        "early_exit": False,
    }
    fill(Oracle(random_board(3)[0]), board, order=f"counting {blocks}", **options)
    assert told == [(step, 3) for step in range(3)]


def test_noise_and_guidance_fade_over_the_steps_that_were_asked_for() -> None:
    """As UniDisc's and MeDiM's code, where the plan is done before: t falls from 1 by 1 / S whatever is open."""
    config = DiffusionConfig(guidance=6.0, guidance_schedule="steps", steps=64)
    assert [weight(config, 0.5, step, 10) for step in (0, 3)] == [1.0, 1 + 5 * 3 / 64]
    maskgit = axes.bind(axes.order, {"name": "maskgit", "tau": 10.0, "ratio": "now"})

    def noisy(step: int, steps: int, asked: int) -> Tensor:
        logp_MV = torch.log_softmax(torch.randn(5, 7, generator=torch.Generator().manual_seed(1)), -1)
        rng = torch.Generator().manual_seed(2)
        return maskgit(Scores(torch.arange(5), logp_MV, logp_MV.argmax(-1), step, steps, rng, asked))

    assert torch.equal(noisy(3, 10, 64), noisy(3, 64, 0)) and not torch.equal(
        noisy(3, 10, 64), noisy(3, 10, 0)
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"schedule": "uniform"}, "schedule 'uniform'"),
        ({"block_size": 4}, "block_size"),
        ({"cache": "prefix"}, "cache 'prefix'"),
        ({"modifiers": ["remdm-cap"]}, "opens slots again"),
        ({"sampler": "ancestral"}, "sampler 'ancestral'"),
        ({"ascending_blocks": 9}, "1 to 3"),
    ],
)
def test_ascending_blocks_say_what_they_do_not_go_with(options: dict[str, Any], said: str) -> None:
    _, board = random_board(0)
    with pytest.raises(ConfigError, match=said):
        fill(Oracle([]), board, **{"schedule": "ascending", "ascending_blocks": 2, **options})
