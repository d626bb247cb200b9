"""Caches change nothing where they are exact, and exactly what they say where they are not."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from canvases import FlatSpan, flat_canvas
from torch import Tensor

from cm3kit.decoders.diffusion import accepts, orders, schedules  # noqa: F401  (they register their names)
from cm3kit.decoders.diffusion.backbone_denoiser import BackboneDenoiser
from cm3kit.decoders.diffusion.cached import ApproximateCache, ExactCache
from cm3kit.decoders.diffusion.denoiser import Ask, Denoiser
from cm3kit.decoders.diffusion.loop import Diffusion
from cm3kit.decoders.diffusion.settings import DiffusionConfig
from cm3kit.decoders.fast_llama import LeanEngine
from cm3kit.decoders.grammar.unconstrained import Free
from cm3kit.models.attention import block_mask
from cm3kit.models.backbone import BackboneConfig, build_backbone, head, hidden_states
from cm3kit.models.timestep import add_timestep, is_timed
from cm3kit.types import Canvas, Result
from cm3kit_tokenizers.errors import ConfigError

V, MASK = 40, 3
SHAPE = BackboneConfig(
    hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=48, max_positions=512, std=0.25
)

See = Callable[[Ask, list[Tensor]], None]


def net(family: str = "llama", **changes: Any) -> Any:
    return build_backbone(SHAPE.model_copy(update={"family": family, **changes}), V)


def board(length: int, prompt: int, seed: int = 0) -> list[int]:
    """Given ids, then open slots, and one given id among them."""
    drawn = torch.randint(5, V, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return [id if at < prompt or at == prompt + 3 else MASK for at, id in enumerate(drawn)]


def rows(*boards: Sequence[int]) -> tuple[Tensor, tuple[int, ...]]:
    lengths = tuple(map(len, boards))
    ids_BT = torch.zeros(len(boards), max(lengths), dtype=torch.long)
    for row, each in enumerate(boards):
        ids_BT[row, : len(each)] = torch.tensor(each)
    return ids_BT, lengths


def drive(
    denoiser: Denoiser,
    boards: Sequence[Sequence[int]],
    size: int,
    see: See = lambda ask, logits: None,
    start: int | None = None,
    at_once: int = 1,
    renew: bool = False,
) -> Tensor:
    """Write boards block by block, the surest `at_once` slots of each row at a pass; what was written."""
    ids_BT, lengths = rows(*boards)
    start = int((ids_BT == MASK).nonzero()[:, 1].min()) if start is None else start
    for window in ((at, min(at + size, ids_BT.shape[1])) for at in range(start, ids_BT.shape[1], size)):
        denoiser.open_block(ids_BT, lengths, window)
        while True:
            open_BT = (ids_BT == MASK) & (torch.arange(ids_BT.shape[1]) < window[1])
            slots = tuple(row_T.nonzero()[:, 0] for row_T in open_BT)
            if not any(map(len, slots)):
                break
            if renew:
                denoiser.open_block(ids_BT, lengths, window)
            ask = Ask(ids_BT, lengths, slots, (1.0,) * len(slots), window)
            logits = denoiser.logits(ask)
            see(ask, logits)
            for row, (slots_M, logits_MV) in enumerate(zip(slots, logits, strict=True)):
                if len(slots_M):
                    best_M, picks_M = logits_MV[:, 5:].max(-1)
                    chosen = best_M.topk(min(at_once, len(best_M))).indices
                    ids_BT[row, slots_M[chosen]] = picks_M[chosen] + 5
    return ids_BT


def full(model: Any, ask: Ask, shift: bool = False) -> list[Tensor]:
    """Logits under full attention, each row alone."""
    found = []
    for ids_T, length, slots in zip(ask.ids_BT, ask.lengths, ask.slots, strict=True):
        if not len(slots):
            found.append(torch.empty(0, V))
            continue
        with torch.no_grad():
            hidden_TD = hidden_states(model, ids_T[None, :length], "full")[0]
            found.append(head(model, hidden_TD[(slots - int(shift)).clamp(min=0)]))
    return found


def as_trained(model: Any, ask: Ask, size: int, shift: bool = False) -> list[Tensor]:
    """Logits from the layout of training: the noised row, then the clean one, each row alone.

    Clean ids that nobody may see yet are nonsense here.
    """
    assert ask.block is not None
    start, found = ask.block[0], []
    for ids_T, length, slots, time in zip(ask.ids_BT, ask.lengths, ask.slots, ask.times, strict=True):
        if not len(slots):
            found.append(torch.empty(0, V))
            continue
        clean_T = ids_T[:length].clone()
        clean_T[start:] = torch.arange(len(clean_T[start:])) % V
        place_1T = torch.arange(length).repeat(2)[None]
        noisy_1T = torch.arange(2 * length)[None] < length
        mask = block_mask(torch.ones_like(place_1T), (place_1T - start) // size, noisy_1T)
        with torch.no_grad():
            ids_1T = torch.cat([ids_T[:length], clean_T])[None]
            times = time * noisy_1T if is_timed(model) else None
            hidden_TD = hidden_states(model, ids_1T, mask, place_1T, times)[0]
            # The place before a block is clean when the block is written.
            source = (slots - int(shift)).clamp(min=0)
            found.append(head(model, hidden_TD[torch.where(source < start, source + length, source)]))
    return found


def assert_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for found_MV, expected_MV in zip(found, expected, strict=True):
        assert found_MV.shape == expected_MV.shape and found_MV.dtype == torch.float32
        assert torch.allclose(found_MV, expected_MV, atol=1e-5)


@contextmanager
def counting(module: Any, size: Callable[[Tensor], int] = torch.numel) -> Iterator[list[int]]:
    """Sizes of what goes into a module: places into the embedding, rows into the head."""
    seen: list[int] = []
    hook = module.register_forward_pre_hook(lambda _, inputs: seen.append(size(inputs[0])))
    yield seen
    hook.remove()


BOARDS = [board(26, 8), board(21, 10, 1), board(31, 13, 2)]


@pytest.mark.parametrize(
    ("family", "start", "shift", "alone"),
    [
        ("llama", 8, False, True),
        ("qwen3", 6, True, False),
        ("llama", 0, True, True),
        ("llama", 5, False, False),
    ],
)
@pytest.mark.parametrize("lean", [False, True])
def test_the_exact_cache_is_the_model_as_trained(
    family: str, start: int, shift: bool, alone: bool, lean: bool
) -> None:
    model, size = net(family), 4
    engine = LeanEngine(model, V, "fp32", 8) if lean else None
    denoiser = ExactCache(model, MASK, V, size, shift=shift, verify=True, engine=engine)
    denoiser._passes.alone = alone
    passes = []

    def see(ask: Ask, logits: list[Tensor]) -> None:
        passes.append(len(ask.slots))
        assert_close(logits, as_trained(model, ask, size, shift))

    ids_BT = drive(denoiser, BOARDS, size, see, start, at_once=2)
    assert not (ids_BT == MASK).any() and len(passes) > 10
    assert denoiser.verification is not None and denoiser.verification.slots > 50
    assert denoiser.verification.largest < 3e-5 and denoiser.verification.flips == 0


def test_the_exact_cache_tells_the_time_of_the_block() -> None:
    model, options = add_timestep(net(), 16), {**WARM, "block_size": 6, "steps": 3, "cache": "exact"}
    for name, each in model.named_parameters():
        if "timestep" in name:
            each.data = torch.randn(each.shape, generator=torch.Generator().manual_seed(len(name))) / 4
    plain = AsTrained(model, 6, False)
    asked: list[Ask] = []
    plain.logits = lambda ask: asked.append(ask) or as_trained(model, ask, 6)  # type: ignore
    denoiser = ExactCache(model, MASK, V, 6, verify=True)
    written, expected = (fill(each, pages()[:1], **options) for each in (denoiser, plain))
    assert [each.ids for each in written] == [each.ids for each in expected]
    assert denoiser.verification is not None and denoiser.verification.largest < 1e-5
    # The board has blocks of 6, 6 and 4 open slots, each in 3 steps from all open on.
    assert [ask.times[0] for ask in asked] == pytest.approx([1, 4 / 6, 2 / 6] * 2 + [1, 2 / 4, 1 / 4])
    ids_BT, lengths = rows(board(26, 8))
    early, late = (
        denoiser.logits(Ask(ids_BT, lengths, (torch.tensor([8]),), (time,), (8, 12)))[0]
        for time in (0.9, 0.1)
    )
    assert not torch.allclose(early, late, atol=1e-3)


def test_a_clean_board_is_found_again_by_its_ids() -> None:
    model = net()
    denoiser = ExactCache(model, MASK, V, 4)
    ids_BT, lengths = rows(board(16, 12, 1))
    ids_BT[0, 15] = 9
    ask = Ask(ids_BT, lengths, (torch.tensor([12, 13]),), (1.0,), (12, 16))
    assert_close(denoiser.logits(ask), as_trained(model, ask, 4))
    assert denoiser.computed == (16,)
    denoiser.logits(ask)
    assert denoiser.computed == (4,)
    ids_BT[0, 6] = 7  # an edit in the second block: it and what follows are computed again
    assert_close(denoiser.logits(ask), as_trained(model, ask, 4))
    assert denoiser.computed == (12,)
    other = Ask(ids_BT, lengths, (torch.tensor([13]),), (1.0,), (13, 16))  # other blocks: all of it
    assert_close(denoiser.logits(other), as_trained(model, other, 4))
    assert denoiser.computed == (16,)


def test_a_shifted_model_steps_back_for_the_place_before_the_block() -> None:
    model = net()
    denoiser = ExactCache(model, MASK, V, 4, shift=True)
    ids_BT, lengths = rows(board(16, 12, 1))
    late = Ask(ids_BT, lengths, (torch.tensor([12]),), (1.0,), (12, 16))
    early = Ask(ids_BT, lengths, (torch.tensor([8, 9]),), (1.0,), (8, 12))
    for ask, places in ((late, 16), (early, 8), (early, 4), (late, 8)):
        assert_close(denoiser.logits(ask), as_trained(model, ask, 4, True))
        assert denoiser.computed == (places,)


@pytest.mark.parametrize(("prompt", "length", "size", "steps"), [(8, 24, 8, 4), (5, 20, 4, 2), (0, 12, 4, 4)])
def test_places_that_caches_compute(prompt: int, length: int, size: int, steps: int) -> None:
    model, count, total = net(), length // size, prompt + length
    given = list(range(5, 5 + prompt))
    prefix = sum(total + (steps - 1) * (length - size * block) for block in range(count))
    expected = {
        ExactCache(model, MASK, V, size): prompt + count * steps * size + (count - 1) * size,
        ApproximateCache(model, MASK, V, dual=False): prefix,
        ApproximateCache(model, MASK, V, dual=True): count * (total + (steps - 1) * size),
    }
    for denoiser, places in expected.items():
        told: list[int] = []
        with counting(model.get_input_embeddings()) as embedded, counting(model.lm_head, len) as scored:
            drive(
                denoiser,
                [given + [MASK] * length],
                size,
                lambda ask, logits, denoiser=denoiser, told=told: told.extend(denoiser.computed),
                at_once=size // steps,
            )
        assert sum(embedded) == sum(told) == places
        assert len(embedded) == count * steps
        # The head runs on the open slots of the block alone.
        assert sum(scored) == count * sum(size - step * size // steps for step in range(steps))


def test_places_of_the_worked_example() -> None:
    model = net(layers=1, hidden_size=16, heads=2, kv_heads=1, intermediate_size=16)
    given = torch.randint(5, V, (100,), generator=torch.Generator().manual_seed(0)).tolist()
    denoiser = ApproximateCache(model, MASK, V, dual=True)
    with counting(model.get_input_embeddings()) as embedded:
        drive(denoiser, [given + [MASK] * 256], 32)
    assert sum(embedded) == 10_784


@pytest.mark.parametrize(
    ("dual", "shift", "alone"),
    [(False, True, True), (False, False, False), (True, False, True), (True, True, False)],
)
def test_approximations_that_are_renewed_at_every_pass_are_exact(
    dual: bool, shift: bool, alone: bool
) -> None:
    model = net("qwen3")
    denoiser = ApproximateCache(model, MASK, V, dual=dual, shift=shift)
    denoiser._passes.alone = alone

    def see(ask: Ask, logits: list[Tensor]) -> None:
        assert_close(logits, full(model, ask, shift))

    drive(denoiser, BOARDS, 5, see, at_once=3, renew=True)


def frozen(model: Any, old_T: Tensor, ask: Ask, dual: bool, shift: bool) -> Tensor:
    """The approximation by a mask alone: the row as it was at the block's start, then what is computed anew."""
    assert ask.block is not None
    length, start = len(old_T), ask.block[0]
    stop = min(ask.block[1], length) if dual else length
    new_T = torch.arange(start, stop)
    sees = torch.zeros(length + len(new_T), length + len(new_T), dtype=torch.bool)
    sees[:length, :length] = True
    sees[length:, length:] = True
    sees[length:, :start] = True
    sees[length:, stop:length] = True
    ids_1T = torch.cat([old_T, ask.ids_BT[0, start:stop]])[None]
    place_1T = torch.cat([torch.arange(length), new_T])[None]
    source = ask.slots[0] - int(shift)
    with torch.no_grad():
        hidden_TD = hidden_states(model, ids_1T, sees[None, None], place_1T)[0]
        return head(model, hidden_TD[torch.where(source < start, source, source - start + length)])


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("dual", [False, True])
def test_approximations_keep_what_they_say(dual: bool, shift: bool) -> None:
    model = net()
    engine = LeanEngine(model, V, "fp32", 8) if shift else None
    denoiser = ApproximateCache(model, MASK, V, dual=dual, shift=shift, verify=True, engine=engine)
    old: dict[tuple[int, int], Tensor] = {}
    apart: list[float] = []

    def see(ask: Ask, logits: list[Tensor]) -> None:
        assert ask.block is not None
        old_T = old.setdefault(ask.block, ask.ids_BT[0].clone())
        assert_close(logits, [frozen(model, old_T, ask, dual, shift)])
        apart.append(float((logits[0] - full(model, ask, shift)[0]).abs().max()))

    drive(denoiser, [board(26, 8)], 6, see)
    checked = denoiser.verification
    assert checked is not None and checked.passes == len(apart) - len(old)
    assert checked.largest == pytest.approx(max(apart), abs=1e-4)
    assert checked.largest > 0.1 and checked.flips > 0


def test_nothing_written_is_nothing_wrong() -> None:
    denoiser = ApproximateCache(net(), MASK, V, dual=True, verify=True)
    ids_BT, lengths = rows(board(20, 8))
    for _ in range(3):
        denoiser.logits(Ask(ids_BT, lengths, (torch.tensor([9, 10]),), (1.0,), (8, 12)))
    assert denoiser.verification is not None and denoiser.verification.passes == 2
    assert denoiser.verification.largest < 1e-5 and denoiser.verification.flips == 0


@pytest.mark.parametrize("dual", [False, True])
def test_what_has_changed_is_not_taken_from_the_cache(dual: bool) -> None:
    model = net()
    denoiser = ApproximateCache(model, MASK, V, dual=dual)
    ids_BT, lengths = rows(board(20, 8))

    def computed(ids_BT: Tensor, slots: list[int], block: tuple[int, int]) -> int:
        ask = Ask(ids_BT, lengths, (torch.tensor(slots),), (1.0,), block)
        logits = denoiser.logits(ask)
        if denoiser.computed == (20,):
            assert_close(logits, full(model, ask))
        return denoiser.computed[0]

    part = 4 if dual else 12
    assert [computed(ids_BT, [8, 9], (8, 12)) for _ in range(2)] == [20, part]
    edited = ids_BT.clone()
    edited[0, 2] = 9
    assert [computed(edited, [8, 9], (8, 12)) for _ in range(2)] == [20, part]
    after = edited.clone()
    after[0, 15] = 9
    assert computed(after, [8, 9], (8, 12)) == (20 if dual else part)
    assert computed(after, [8, 9, 7], (8, 12)) == 20
    assert computed(after, [8, 9], (12, 16)) == 20


@pytest.mark.parametrize("kind", ["exact", "prefix", "dual"])
def test_a_row_that_leaves_takes_no_cache_with_it(kind: str) -> None:
    model = net()
    denoiser: Any = (
        ExactCache(model, MASK, V, 4)
        if kind == "exact"
        else ApproximateCache(model, MASK, V, dual=kind == "dual")
    )
    denoiser._passes.alone = False
    ids_BT, lengths = rows(board(16, 8), board(16, 8, 1))
    slots = (torch.tensor([8, 9]), torch.tensor([8]))
    before = denoiser.logits(Ask(ids_BT, lengths, slots, (1.0, 1.0), (8, 12)))
    left = Ask(ids_BT, (16, 0), (slots[0], slots[1][:0]), (1.0, 0.0), (8, 12))
    after = denoiser.logits(left)
    assert_close(after[:1], before[:1])
    assert denoiser.computed == (8 if kind == "prefix" else 4, 0)
    assert after[1].shape == (0, V)
    # A row that comes is another one.
    denoiser.logits(Ask(ids_BT[:, :14], (0, 14), (slots[0][:0], slots[1]), (0.0, 1.0), (8, 12)))
    assert denoiser.computed == (0, 12 if kind == "exact" else 14)


@pytest.mark.parametrize("kind", ["exact", "prefix", "dual"])
def test_neighbours_change_no_bit(kind: str) -> None:
    def written(*boards: list[int]) -> Tensor:
        if kind == "exact":
            return drive(ExactCache(net(), MASK, V, 4), boards, 4, keep, 8)
        return drive(ApproximateCache(net(), MASK, V, dual=kind == "dual"), boards, 4, keep, 8)

    logits_of: list[list[Tensor]] = []

    def keep(ask: Ask, logits: list[Tensor]) -> None:
        if len(logits[0]):
            logits_of[-1].append(logits[0])

    results = []
    for boards in ([BOARDS[0]], [BOARDS[0], BOARDS[2]], [BOARDS[0], [5], BOARDS[1]]):
        logits_of.append([])
        results.append(written(*boards)[0, : len(BOARDS[0])])
    assert all(torch.equal(each, results[0]) for each in results)
    for each in logits_of[1:]:
        assert len(each) == len(logits_of[0]) and all(map(torch.equal, each, logits_of[0]))


@pytest.mark.parametrize("kind", ["exact", "prefix", "dual"])
def test_rows_in_one_piece_are_the_rows_one_by_one(kind: str) -> None:
    def seen(alone: bool) -> list[list[Tensor]]:
        cache: Any = ExactCache(model, MASK, V, 6) if kind == "exact" else None
        cache = cache or ApproximateCache(model, MASK, V, dual=kind == "dual")
        cache._passes.alone = alone
        found: list[list[Tensor]] = []
        drive(cache, BOARDS, 6, lambda ask, logits: found.append(logits), at_once=3)
        return found

    model = net()
    for together, one_by_one in zip(seen(False), seen(True), strict=True):
        assert_close(together, one_by_one)


@pytest.mark.parametrize("alone", [True, False])
def test_nothing_asked_costs_nothing(alone: bool) -> None:
    model = net()
    for denoiser in (ExactCache(model, MASK, V, 4), ApproximateCache(model, MASK, V, dual=True)):
        denoiser._passes.alone = alone
        ids_BT, lengths = rows(board(16, 8), board(12, 8))
        nothing = torch.empty(0, dtype=torch.long)
        with counting(model.get_input_embeddings()) as embedded:
            found = denoiser.logits(Ask(ids_BT, lengths, (nothing, nothing), (0.0, 0.0), (8, 12)))
        assert embedded == [] and denoiser.computed == (0, 0)
        assert [each.shape for each in found] == [(0, V), (0, V)]


def test_without_blocks_everything_is_computed() -> None:
    model = net()
    ids_BT, lengths = rows(board(16, 8))
    ask = Ask(ids_BT, lengths, (torch.tensor([8, 12]),), (1.0,))
    for dual in (False, True):
        denoiser = ApproximateCache(model, MASK, V, dual=dual)
        for _ in range(2):
            assert_close(denoiser.logits(ask), full(model, ask))
    # One block as long as the row is plain masked diffusion.
    assert_close(ExactCache(model, MASK, V, 16).logits(ask), full(model, ask))


def test_a_pass_that_fails_leaves_nothing_half_done(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    for denoiser in (ExactCache(model, MASK, V, 4), ApproximateCache(model, MASK, V, dual=True)):
        ids_BT, lengths = rows(board(16, 8))
        ask = Ask(ids_BT, lengths, (torch.tensor([8, 9]),), (1.0,), (8, 12))
        before = denoiser.logits(ask)
        with monkeypatch.context() as patch:
            patch.setattr(model.model.layers[1], "forward", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                denoiser.logits(ask)
        assert_close(denoiser.logits(ask), before)


@pytest.mark.parametrize("shift", [False, True])
def test_a_block_is_whole_even_where_the_window_is_not(shift: bool) -> None:
    model = net()
    ids_BT, lengths = rows(board(20, 8))
    ask = Ask(ids_BT, lengths, (torch.tensor([8, 9]),), (1.0,), (8, 10))
    denoiser = ExactCache(model, MASK, V, 8, shift=shift)
    assert_close(denoiser.logits(ask), as_trained(model, ask, 8, shift))
    assert denoiser.computed == (16,)


def test_what_cannot_be_computed_is_refused() -> None:
    model = net(max_positions=32)
    ids_BT, lengths = rows(board(16, 8))
    slots = (torch.tensor([8, 9]),)
    with pytest.raises(ConfigError, match=r"8 places are .* set block_size to 4") as caught:
        ExactCache(model, MASK, V, 4).logits(Ask(ids_BT, lengths, slots, (1.0,), (8, 16)))
    assert caught.value.code == "bad_config"
    for outside in (7, 12):
        ask = Ask(ids_BT, lengths, (torch.tensor([outside]),), (1.0,), (8, 12))
        with pytest.raises(ValueError, match="outside 8:12"):
            ExactCache(model, MASK, V, 4).logits(ask)
    long_BT, long = rows(board(33, 8))
    for denoiser in (ExactCache(model, MASK, V, 4), ApproximateCache(model, MASK, V, dual=False)):
        with pytest.raises(ConfigError, match="33 ids, the model's window holds 32") as caught:
            denoiser.logits(Ask(long_BT, long, slots, (1.0,), (8, 12)))
        assert caught.value.code == "too_long"


class AsTrained:
    """The layout of training as a denoiser, without any cache."""

    mask = MASK

    def __init__(self, model: Any, size: int, shift: bool) -> None:
        self._model, self._size, self._shift = model, size, shift

    def open_block(self, ids_BT: Tensor, lengths: Sequence[int], block: tuple[int, int]) -> None:
        pass

    def logits(self, ask: Ask) -> list[Tensor]:
        return as_trained(self._model, ask, self._size, self._shift)


def pages() -> list[Canvas]:
    """Boards of several lengths, with gaps in the middle, of two runs, and with guides."""
    given = torch.randint(5, V, (4, 40), generator=torch.Generator().manual_seed(3)).tolist()
    runs = [[(6, 22)], [(9, 14), (25, 33)], [(1, 20)], [(30, 31)]]
    boards = []
    for seed, (ids, each, length) in enumerate(zip(given, runs, (26, 37, 20, 40), strict=True)):
        board = [MASK if any(a <= at < b for a, b in each) else id for at, id in enumerate(ids[:length])]
        stretches = tuple(FlatSpan("content", a, b, padded=seed == 2) for a, b in each)
        boards.append(flat_canvas(tuple(board), stretches, seed=seed))
    return boards


def fill(denoiser: Denoiser, boards: Sequence[Canvas], **options: Any) -> list[Result]:
    config = DiffusionConfig.model_validate({"batch_size": 3, **options})
    return Diffusion(denoiser, lambda board: Free(board, V, MASK, 2), config, eoss=2, image=range(V, V)).fill(
        boards
    )


WARM: dict[str, Any] = {"text": {"temperature": 1.0}}


@pytest.mark.parametrize("shift", [False, True])
def test_a_board_is_written_alike_with_and_without_the_exact_cache(shift: bool) -> None:
    model, options = net(), {**WARM, "block_size": 6, "steps": 3, "cache": "exact"}
    denoiser = ExactCache(model, MASK, V, 6, shift=shift, verify=True)
    written = fill(denoiser, pages(), **options)
    plain = fill(AsTrained(model, 6, shift), pages(), **options)
    for found, expected in zip(written, plain, strict=True):
        assert found.ids == expected.ids
        assert [each.positions for each in found.trajectory.commits] == [
            each.positions for each in expected.trajectory.commits
        ]
        assert [each.logprob for each in found.fills] == pytest.approx(
            [each.logprob for each in expected.fills]
        )
        assert found.cost.forwards == expected.cost.forwards
        assert found.cost.token_forwards < expected.cost.token_forwards
    assert denoiser.verification is not None and denoiser.verification.largest < 1e-5
    # Blocks 6:12, 12:18, 18:24 of the first board, in 3 passes each, of which the first also stores 6 places.
    (alone,) = fill(denoiser, pages()[:1], **options)
    assert (alone.cost.token_forwards, alone.cost.forwards) == (3 * (6 + 3 * 6), 9)


@pytest.mark.parametrize("dual", [False, True])
def test_approximations_through_the_loop(dual: bool) -> None:
    model, kind = net(), "dual" if dual else "prefix"
    denoiser = ApproximateCache(model, MASK, V, dual=dual, verify=True)
    uncached = BackboneDenoiser(model, MASK, V)
    # At one pass a block nothing is ever taken from the cache.
    options = {**WARM, "block_size": 6, "cache": kind}
    once, plain = (fill(each, pages(), **options, steps=1) for each in (denoiser, uncached))
    assert [each.ids for each in once] == [each.ids for each in plain]
    assert denoiser.verification is not None and denoiser.verification.passes == 0
    board = flat_canvas((7,) * 10 + (MASK,) * 20, (FlatSpan("content", 10, 30),), seed=1)
    (written,) = fill(denoiser, [board], **{**options, "block_size": 5}, steps=5)
    later = 5 if dual else None
    assert written.cost.token_forwards == sum(30 + 4 * (later or 20 - 5 * block) for block in range(4))
    assert (written.cost.full, written.cost.partial) == (4, 16)
    assert written.cost.head_rows == 4 * (5 + 4 + 3 + 2 + 1)
    assert denoiser.verification.passes == 16 and denoiser.verification.largest > 0.01


def test_guided_boards_keep_both_streams() -> None:
    model, options = net(), {**WARM, "block_size": 6, "steps": 2, "cache": "exact", "guidance": 2.0}
    boards = [replace(each, guides=(replace(each, ids=(MASK,) * 5 + each.ids[5:]),)) for each in pages()[:2]]
    denoiser = ExactCache(model, MASK, V, 6)
    written, plain = (fill(each, boards, **options) for each in (denoiser, AsTrained(model, 6, False)))
    assert [each.ids for each in written] == [each.ids for each in plain]
    alone = fill(denoiser, [replace(each, guides=()) for each in boards], **options)
    assert [each.ids for each in alone] != [each.ids for each in written]
    assert written[0].cost.token_forwards == 2 * 3 * (6 + 2 * 6)
