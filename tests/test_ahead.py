"""Decoding on a device that runs beside the host, on the CPU: the same ids, and nothing read back in between."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import ref

import pytest
import torch
from canvases import answer, behind
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from toys import random_backbone
from transformers import PreTrainedModel

from cm3kit.canvas import ConstraintSpec
from cm3kit.decoders import kernels
from cm3kit.decoders.causal import autoregressive, batch
from cm3kit.decoders.causal.autoregressive import Autoregressive
from cm3kit.decoders.causal.jobs import make_jobs
from cm3kit.decoders.causal.sampler import MaskTable, Sampler
from cm3kit.decoders.engines import make_engine
from cm3kit.decoders.fast_llama import LeanEngine
from cm3kit.decoders.grammar.html import Grammar
from cm3kit.decoders.grammar.languages import Languages
from cm3kit.decoders.prompts import Prompt
from cm3kit.decoders.replay import Replay, UncompiledWarning
from cm3kit.decoders.settings import DecodeConfig, Sampling
from cm3kit.decoders.static_llama import (
    PASS,
    PROMPT,
    SHORTEST,
    StaticCache,
    StaticEngine,
    prompt_size,
    static_size,
)
from cm3kit.decoders.token_sampling import HEAD, Routes, draw
from cm3kit.models.plain import PlainDecoder
from cm3kit.types import Canvas, Step
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.vocab import Vocab

VOCAB = Vocab(text_size=400, image_size=40, sentinels=8)
PIECES = [bytes([33 + each]) if each < 90 else b"abc%d" % each for each in range(400)]
LANGUAGES = Languages(VOCAB, lambda words: [VOCAB.text.start + each - 33 for each in words.encode()], PIECES)
GRAMMAR = Grammar(VOCAB, 9, PIECES, b"", LANGUAGES)
GREEDY, FLAT = Sampling(temperature=0), Sampling(temperature=3, top_p=0.95)
CONFIGS = {
    "greedy": DecodeConfig(text=GREEDY, image=GREEDY),
    "plain": DecodeConfig(),
    "cut": DecodeConfig(text=Sampling(temperature=1.3, top_k=30), image=Sampling(temperature=2, top_p=0.9)),
    # More ids than the head of a row holds may be drawn here.
    "flat": DecodeConfig(text=FLAT, image=GREEDY),
    "penalized": DecodeConfig(repetition_penalty=1.5, eoss_bias=2.5, text=FLAT),
    "guided": DecodeConfig(guidance=2.5, repetition_penalty=1.2),
    # Gaps of one row may end in the same step.
    "parallel": DecodeConfig(parallel=True, text=GREEDY),
    "cd-k": DecodeConfig(cd_k=3, text=Sampling(temperature=0.8, top_p=0.9)),
}


def backbone(family: str = "llama", kv_heads: int = 2) -> PreTrainedModel:
    return random_backbone(VOCAB, family, kv_heads, max_positions=300)


LLAMA = backbone()


def text(length: int, seed: int) -> tuple[int, ...]:
    rng = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(VOCAB.text.start, VOCAB.text.stop, (length,), generator=rng).tolist())


def row(seed: int) -> Canvas:
    """Three gaps of all kinds, whose answers follow one another behind what is forced; some end early."""
    ids: list[int] = [VOCAB.eod]
    spans = []
    for gap in range(3):
        ids += [*text(3 + seed % 4, seed * 31 + gap), VOCAB.sentinel(gap)]
        kind, length = [("content", None), ("attribute", None), ("image", 4)][(seed + gap) % 3]
        lead = (VOCAB.eoss, VOCAB.sentinel(gap))[gap % 2 :]
        spans.append(answer(kind, 9 + gap, lead=lead, length=length, gap=gap))  # type: ignore[arg-type]
    if seed % 4 == 3:
        spans[0] = replace(spans[0], kind="attribute", constraint=ConstraintSpec("choices", "ABAB|ABBA|C"))
    return behind((*ids, *text(5, seed)), spans, ((VOCAB.eod, *text(3, seed)),), seed)


ROWS = [row(seed) for seed in range(7)]


def picture(seed: int, codes: int = 9) -> Canvas:
    return behind((VOCAB.eod, *text(4, seed)), [answer("image", codes)], seed=seed)


def as_on_a_device(monkeypatch: pytest.MonkeyPatch, make: Callable[..., Any]) -> None:
    """Have decoders run the CPU as if it were a device beside the host."""

    def made(*args: Any) -> Any:
        engine = make(*args)
        engine.ahead = True
        return engine

    monkeypatch.setattr(autoregressive, "make_engine", made)


def filled(config: DecodeConfig, rows: Sequence[Canvas], model: Any = LLAMA) -> tuple[Any, list[Step]]:
    steps: list[Step] = []
    decoder = Autoregressive(model, GRAMMAR, config)
    results = decoder.fill(rows, steps.append)
    streamed = sorted(decoder.stream(iter(rows)), key=lambda each: each[0])
    assert [each for _, each in streamed] == results
    return results, steps


def told(steps: Sequence[Step]) -> list[list[int]]:
    """The ids of each row, in the order in which they were told."""
    return [[id for step in steps if (id := step.ids[at]) is not None] for at in range(len(ROWS))]


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("size", [1, 3, 16])
def test_results_are_those_of_reading_at_once(name: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIGS[name].model_copy(update={"batch_size": size})
    wanted = filled(config, ROWS)
    assert any(
        not each.exact and fill.ended
        for one in wanted[0]
        for each, fill in zip(one.canvas.spans, one.fills, strict=True)
    )
    as_on_a_device(monkeypatch, make_engine)
    found = filled(config, ROWS)
    assert found[0] == wanted[0]
    # That a row has ended is known a step later, and so the next one takes its place later.
    if not config.parallel:
        assert found[1] == wanted[1] if size >= len(ROWS) else told(found[1]) == told(wanted[1])


@pytest.mark.parametrize(("family", "kv_heads"), [("llama", 1), ("llama", 4), ("qwen3", 2)])
def test_static_steps_give_the_same_up_to_rounding(
    family: str, kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = backbone(family, kv_heads), CONFIGS["guided"].model_copy(update={"batch_size": 3})
    wanted, _ = filled(config, ROWS, model)
    as_on_a_device(monkeypatch, StaticEngine)
    found, _ = filled(config, ROWS, model)
    for one, other in zip(found, wanted, strict=True):
        assert [fill.ids for fill in one.fills] == [fill.ids for fill in other.fills]
        assert one.cost == other.cost
        for a, b in zip(one.fills, other.fills, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


def test_tensors_of_a_batch_serve_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_device(monkeypatch, StaticEngine)
    decoder = Autoregressive(LLAMA, GRAMMAR, DecodeConfig(batch_size=2))
    wanted = [decoder.fill([each]) for each in ROWS]
    (idle,) = decoder._idle.values()
    assert len(idle) == 1
    # Two that are open at once have their own, and both are there for whoever comes after.
    streams = [decoder.stream(iter(ROWS)), decoder.stream(iter(ROWS))]
    together = [list(pairs) for pairs in zip(*streams, strict=True)]
    assert all(one == other for one, other in together)
    assert dict(each[0] for each in together) == {at: one for at, (one,) in enumerate(wanted)}
    assert sum(map(len, decoder._idle.values())) == 3


def test_bf16_is_kept_in_bf16() -> None:
    engines = [LeanEngine(LLAMA, len(VOCAB), "fp32", 4), StaticEngine(LLAMA, len(VOCAB), "bf16", 4)]
    logits, caches = [], [engine.open(2, 60) for engine in engines]
    for engine, cache in zip(engines, caches, strict=True):
        for slot, length in enumerate((5, 33)):
            engine.prefill(cache, slot, text(length, slot))
        steps = []
        for step in range(4):
            write = cache.at([5 + step, 33 + step], [True, True])
            steps.append(engine.step(cache, write, torch.tensor(text(2, step))))
        logits.append(torch.stack(steps))
    assert {each.dtype for each in caches[1].layers} == {torch.bfloat16}
    difference = (logits[0] - logits[1]).abs().max() / logits[0].std()
    assert 0 < difference < 0.1


@pytest.mark.parametrize(("family", "kv_heads"), [("llama", 2), ("qwen3", 4)])
def test_prompts_of_a_size_go_through_the_layers_together(
    family: str, kv_heads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = backbone(family, kv_heads)
    engine, plain = (kind(model, len(VOCAB), "fp32", 4) for kind in (StaticEngine, LeanEngine))
    lengths = [1, PROMPT, 5, PROMPT + 1, 40, 300, 17]
    prompts = [Prompt(at, text(length, at), min(at, length)) for at, length in enumerate(lengths)]
    prompts += [Prompt(7 + at, text(9, at)) for at in range(18)]
    slots, shapes, forward = len(prompts), Counter[tuple[int, ...]](), engine._layers

    def counted(x_MD: Tensor, *args: Any) -> Tensor:
        shapes[tuple(x_MD.shape)] += 1
        return forward(x_MD, *args)

    monkeypatch.setattr(engine, "_layers", counted)
    caches = [each.open(slots, 301) for each in (engine, engine, plain)]
    for cache in caches:
        for layer in cache.layers:
            layer.fill_(-7)
    with watched(monkeypatch) as reads:
        together = engine.prefill_all(caches[0], prompts)
    # Two and more of up to 64 that look left alone, 65 and 300 that look ahead, and the others that do.
    assert not reads and shapes == {(PASS, 64): 2 + 1 + 1 + 1}
    alone = [engine.prefill(caches[1], each.slot, each.ids, each.prefix) for each in prompts]
    assert torch.equal(together, torch.stack(alone))
    wanted = plain.prefill_all(caches[2], prompts)
    assert torch.allclose(together, wanted, atol=1e-4)
    for one, other, near in zip(*(each.layers for each in caches), strict=True):
        near = near.permute(2, 0, 3, 1, 4).reshape(one.shape) if caches[2].fused else near
        assert torch.equal(one, other) and torch.allclose(one, near, atol=1e-4)
        assert (one[:, :kv_heads, 1:] == -7).all()  # nothing stands behind a prompt


def test_prompts_are_of_few_sizes() -> None:
    lengths = [1, PROMPT, PROMPT + 1, PASS // 2 + 1, PASS, PASS + 1, 2 * PASS + 1]
    sizes = [PROMPT, PROMPT, 2 * PROMPT, PASS, PASS, 2 * PASS, 3 * PASS]
    assert [prompt_size(each) for each in lengths] == sizes


def test_weights_of_a_device_lie_there_in_their_format_alone() -> None:
    plain = PlainDecoder(LLAMA.config.to_dict(), dict(LLAMA.state_dict())).to(torch.device("meta"))
    engine = LeanEngine(plain, len(VOCAB), "bf16", 4)
    assert {each.device.type for each in plain.parameters()} == {"cpu"} and engine.ahead
    assert engine.embed_VD.is_meta and engine.embed_VD.dtype == torch.bfloat16
    weights = [
        closure(each) for layer in engine.layers for each in (layer.qkv, layer.out, layer.gated, layer.down)
    ]
    assert {(each.device.type, each.dtype) for each in [*weights, closure(engine.head)]} == {
        ("meta", torch.bfloat16)
    }


def closure(product: Any) -> Tensor:
    held = [each.cell_contents for each in product.__closure__]
    (found,) = (each if isinstance(each, Tensor) else closure(each) for each in held)
    return found


def test_sizes_are_few() -> None:
    lengths = [1, SHORTEST, SHORTEST + 1, 2 * SHORTEST, 2 * SHORTEST + 1, 4 * SHORTEST + 1]
    assert [static_size(each) // SHORTEST for each in lengths] == [1, 1, 2, 2, 4, 8]
    engine = StaticEngine(LLAMA, len(VOCAB), "fp32", 1)
    cache = engine.open(2, 257)
    assert isinstance(cache, StaticCache) and cache.capacity == 320  # the window of 300, and one behind it
    assert [cache.at([at, 0], [True, True]).span for at in (0, 255, 256, 300)] == [256, 256, 320, 320]
    assert cache.at([299, 3], [False, True]).span == 256


def test_caches_are_of_the_size_that_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_device(monkeypatch, StaticEngine)
    decoder = Autoregressive(LLAMA, GRAMMAR, DecodeConfig(batch_size=3))
    list(decoder.stream(iter(ROWS)))
    decoder.fill(ROWS)
    gc.collect()
    rooms = {cache.capacity for held in decoder._idle.values() for cache, _ in held}
    assert rooms == {SHORTEST, 320}  # of a short batch, and of the window of 300 with one behind it


def test_what_a_decoder_holds_goes_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_device(monkeypatch, StaticEngine)
    gc.disable()  # which no GPU's memory would have run
    try:
        decoder = Autoregressive(LLAMA, GRAMMAR, DecodeConfig(batch_size=3))
        decoder.fill(ROWS[:2])
        held = [ref(each) for pairs in decoder._idle.values() for pair in pairs for each in pair]
        assert held and all(each() is not None for each in held)
        del decoder
        assert not any(each() for each in held)
    finally:
        gc.enable()


def test_nothing_is_compiled_where_there_is_nothing_to_gain() -> None:
    with pytest.raises(ConfigError, match="on a GPU; this is 'llama' on cpu"):
        Autoregressive(LLAMA, GRAMMAR, DecodeConfig(compile="on")).fill(ROWS[:1])


READS = (
    "aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal", "aten::masked_select",
    "aten::unique", "aten::repeat_interleave",
)  # fmt: skip


class Watch(TorchDispatchMode):
    """Counts what would wait for a device: values that are read, shapes that depend on them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        masked = name.startswith("aten::index") and any(
            isinstance(each, Tensor) and each.dtype == torch.bool
            for arg in args[1:2]
            for each in (arg if isinstance(arg, list | tuple) else [arg])
        )
        if masked or name.startswith(READS):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts reads by operators and by methods that read without one."""
    with monkeypatch.context() as patch, Watch() as watch:
        for name in ("tolist", "item", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__"):
            own = getattr(Tensor, name)

            def counted(self: Tensor, *args: Any, name: str = name, own: Any = own) -> Any:
                watch.found[name] += 1
                return own(self, *args)

            patch.setattr(Tensor, name, counted)
        yield watch.found


def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    log: list[str] = []

    def noted(owner: Any, name: str, word: str) -> None:
        own = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: (log.append(word), own(*args))[1])

    noted(batch.Batch, "_draw", "draw")
    noted(batch.Batch, "_step", "step")
    noted(batch.Batch, "_take_down", "read")
    return log


@pytest.mark.parametrize("name", ["plain", "cut", "flat", "penalized"])
def test_inside_a_picture_ids_are_read_a_step_late_and_nothing_else_is(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIGS[name].model_copy(update={"batch_size": 3})
    decoder = Autoregressive(LLAMA, GRAMMAR, config)
    rows = [picture(seed) for seed in range(3)]
    wanted = decoder.fill(rows)
    with watched(monkeypatch) as before:
        decoder.fill(rows)
    assert before.total() >= 2 * 9  # nothing is late where the host computes

    as_on_a_device(monkeypatch, StaticEngine)
    decoder = Autoregressive(LLAMA, GRAMMAR, config)
    assert [each.fills[0].ids for each in decoder.fill(rows)] == [each.fills[0].ids for each in wanted]
    log = logged(monkeypatch)
    with watched(monkeypatch) as found:
        decoder.fill(rows)
    assert found == {
        "tolist": 9 * 2 + len(rows)
    }  # ids and log-probabilities; a row's numbers are drawn on the host
    assert log == [*["draw", "step"] * 2, *["read", "draw", "step"] * 6, "read", "draw", "read", "read"]


def waits(log: Sequence[str]) -> int:
    """How often the newest draw is read while rows go on, so that nothing but a pass is queued in the meantime."""
    drawn = read = found = queued = 0
    for each in log:
        drawn, read = drawn + (each == "draw"), read + (each == "read")
        queued = drawn if each == "step" else queued
        found += each == "read" and read == drawn == queued
    return found


@pytest.mark.parametrize("size", [1, 3, 16])
def test_nothing_that_is_written_is_waited_for(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gaps of all kinds, of which some end early, and constraints."""
    as_on_a_device(monkeypatch, StaticEngine)
    decoder = Autoregressive(LLAMA, GRAMMAR, CONFIGS["cut"].model_copy(update={"batch_size": size}))
    ends = [fill.ended for each in decoder.fill(ROWS) for fill in each.fills]
    assert any(ends) and not all(ends)
    log = logged(monkeypatch)
    with watched(monkeypatch) as found:
        decoder.fill(ROWS)
    assert not waits(log) and log.count("draw") >= 9
    assert {*found} == {"tolist"} and found["tolist"] <= 2 * log.count("read") + len(ROWS)
    (idle,) = decoder._idle.values()
    assert idle[0][1].automata.refused == 0


def test_without_a_table_the_next_step_is_queued_before_an_id_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    as_on_a_device(monkeypatch, make_engine)
    config = DecodeConfig(text=GREEDY, eoss_bias=-100)
    decoder = Autoregressive(LLAMA, GRAMMAR, config)
    words = "|".join("ABC" * 30 + "D" * each for each in range(30))
    canvas = behind(
        (VOCAB.eod, *text(4, 1)), [answer("attribute", 200, constraint=ConstraintSpec("choices", words))]
    )
    wanted = [fill.ids for each in decoder.fill([canvas]) for fill in each.fills]
    assert len(wanted[0]) >= 90
    log = logged(monkeypatch)
    with watched(monkeypatch) as found:
        assert [fill.ids for each in decoder.fill([canvas]) for fill in each.fills] == wanted
    assert log == ["draw", "step", "read"] * log.count("draw")
    assert waits(log) == log.count("read") and found == {"tolist": 2 * log.count("read") + 1}
    (idle,) = decoder._idle.values()
    assert idle[0][1].automata.refused == 2


@pytest.mark.parametrize("vocab", [HEAD // 2, 4 * HEAD])
def test_routes_change_no_id_and_read_nothing(vocab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    settings = [
        (temperature, top_k, top_p)
        for temperature in (0.0, 0.7, 30.0)
        for top_k in (0, 5, HEAD, HEAD + 9)
        for top_p in (0.0, 0.5, 0.99, 1.0)
    ]
    for _ in range(5):
        logits_BV = 3 * torch.randn(len(settings), vocab, generator=rng)
        logits_BV[:, ::3] = logits_BV[:, :1]  # ties
        logits_BV[torch.rand(logits_BV.shape, generator=rng) < 0.2] = -torch.inf
        uniforms_B = torch.rand(len(settings), generator=rng, dtype=torch.float64)
        temperature_B, top_k_B, top_p_B = (torch.tensor(each) for each in zip(*settings, strict=True))
        given = logits_BV, uniforms_B, temperature_B.double(), top_k_B, top_p_B.double()
        wanted_B = draw(*given)
        with watched(monkeypatch) as found:
            found_B = draw(*given, Routes.of(settings))
        assert torch.equal(found_B, wanted_B) and not found
        for at, each in enumerate(settings):
            alone_1 = draw(*(x[at : at + 1] for x in given), Routes.of([each]))
            assert alone_1 == wanted_B[at], each


def test_what_settings_may_need() -> None:
    assert Routes.of([(0, 5, 0.9)]) == Routes(False, False, False)
    assert Routes.of([(1, 0, 1), (0, 0, 0.5)]) == Routes(True, False, False)
    assert Routes.of([(1, HEAD, 0.9), (1, 0, 0)]) == Routes(False, True, False)
    assert Routes.of([(1, 0, 0.9)]) == Routes.of([(1, HEAD + 1, 1)]) == Routes(False, True, True)


def test_masks_are_rows_of_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cm3kit.decoders.causal.sampler.MOST_MASKS", 5)
    table = MaskTable(7, 2, torch.device("cpu"))
    rng = torch.Generator().manual_seed(0)
    masks = [torch.rand(7, generator=rng) < 0.5 for _ in range(40)]
    for first, second in zip([*masks, *masks[::-1]], [*masks[3:], *masks[:3], *masks], strict=True):
        rows = table.rows_of([first, None, second])
        for row, mask in zip(rows, (first, torch.ones(7, dtype=torch.bool), second), strict=True):
            assert torch.equal(table.rows_RV[row], mask)
    assert len(table.rows_RV) == 5 and table.rows_of([masks[0], masks[0]]) == table.rows_of([masks[0]]) * 2


def plain_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products as on a GPU: packed weights of oneDNN cannot be traced."""
    monkeypatch.setattr(kernels, "_has_mkldnn", lambda weight: False)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_steps_are_one_graph_of_static_shapes(precision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_weights(monkeypatch)
    engine = StaticEngine(LLAMA, len(VOCAB), precision, 2)
    logits, caches = [], [engine.open(2, 40) for _ in range(2)]
    assert all(isinstance(each, StaticCache) for each in caches)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(engine._forward, backend="aot_eager", dynamic=False, fullgraph=True)
    for step, cache in ((engine._forward, caches[0]), (compiled, caches[1])):
        engine.prefill(cache, 0, text(5, 0))
        found = [step(cache, 256, torch.tensor([5 + at, at]), torch.tensor(text(2, at))) for at in range(3)]
        logits.append(torch.stack(found))
    assert torch.equal(*logits)
    counters: Any = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()


@pytest.mark.parametrize("name", CONFIGS)
def test_drawing_is_one_graph(name: str) -> None:
    config, count = CONFIGS[name].model_copy(update={"batch_size": 3}), 2
    logits_SV = torch.randn(3 * count, len(VOCAB), generator=torch.Generator().manual_seed(1))
    # By a table, not at all, and by a mask.
    told_B6 = torch.tensor([[1, 0, 0, 0, 0, 1], [0, 1, 0, 7, 0, 0], [0, 0, 0, 0, 1, 0]])
    routes, found = (
        Routes.of((each.temperature, each.top_k, each.top_p) for each in (config.text, config.image)),
        [],
    )
    torch._dynamo.reset()
    for compiled in (False, True):
        sampler = Sampler(GRAMMAR, config, count, 8, torch.device("cpu"), True)
        sampler.admit(0, [0.3, 0.9])
        sampler.admit(2, [0.1, 0.6])
        (job,) = make_jobs(0, ROWS[0], GRAMMAR, 1, False, 300)
        assert sampler.automata is not None and sampler.automata.begin({0: job}) == {0: True}
        call = sampler._draw_by_tables
        if compiled:
            call = torch.compile(call, backend="eager", dynamic=False, fullgraph=True)
        found.append([call(routes, logits_SV, told_B6) for _ in range(3)])
    for one, other in zip(*found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert found[0][0][0][1] == 7
    torch._dynamo.reset()


def test_what_cannot_be_compiled_runs_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(function: Any, **more: Any) -> Any:
        def call(*args: Any) -> Any:
            raise RuntimeError("no compiler:\nnone at all\nreally")

        return call

    monkeypatch.setattr(torch, "compile", fails)
    twice = partial(Replay(torch.device("cpu"), "on"), lambda setting, x: setting * x)
    with pytest.warns(
        UncompiledWarning, match=r"goes on uncompiled, and slower \(no compiler: none at all\); --compile off"
    ) as told:
        assert twice(2, torch.tensor(3)) == 6
        assert twice(5, torch.tensor(3)) == 15
    assert len(told) == 1
    off = partial(Replay(torch.device("cpu"), "auto"), lambda setting, x: x.nothing)
    with pytest.raises(AttributeError):
        off(2, torch.tensor(3))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
def test_compiled_steps_write_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_weights(monkeypatch)
    as_on_a_device(monkeypatch, StaticEngine)
    wanted, found = (
        Autoregressive(LLAMA, GRAMMAR, DecodeConfig(batch_size=3, guidance=2.5, compile=mode)).fill(ROWS)  # type: ignore[arg-type]
        for mode in ("auto", "on")
    )
    assert [each.fills[0].ids for each in found] == [each.fills[0].ids for each in wanted]
    counters: Any = torch._dynamo.utils.counters
    assert counters["inductor"]
    for one, other in zip(found, wanted, strict=True):
        for a, b in zip(one.fills, other.fills, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)
