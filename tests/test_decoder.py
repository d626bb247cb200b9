"""The decoder against transformers' generation, full forward passes, closed forms, and itself in company."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from canvases import answer, behind, fills_of
from pydantic import ValidationError
from torch import Tensor
from toys import random_backbone
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel

from cm3kit.decoders.cache import Cache
from cm3kit.decoders.causal.autoregressive import Autoregressive
from cm3kit.decoders.causal.guidance import cd_k, guide, streams
from cm3kit.decoders.causal.jobs import span_seed
from cm3kit.decoders.engines import make_engine
from cm3kit.decoders.fast_llama import LeanEngine, supports
from cm3kit.decoders.grammar.html import Grammar
from cm3kit.decoders.grammar.html_state import Mode, State
from cm3kit.decoders.hf_engine import ModuleEngine
from cm3kit.decoders.prompts import Prompt, in_parts
from cm3kit.decoders.settings import DecodeConfig, Sampling
from cm3kit.decoders.token_sampling import draw, penalize
from cm3kit.models.backbone import forward
from cm3kit.models.timestep import add_timestep
from cm3kit.types import Canvas, Fill, MaskSpan, Step
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.vocab import Vocab

VOCAB = Vocab(text_size=90, image_size=40, sentinels=8)
LENGTH = 9
GRAMMAR = Grammar(VOCAB, LENGTH)
GREEDY = Sampling(temperature=0)
HOT = DecodeConfig(text=Sampling(temperature=1.3, top_k=30), image=Sampling(top_p=0.9), batch_size=4)


class Free(Grammar):
    """Every id but the ends is allowed."""

    def start(self, span: MaskSpan, prompt: Sequence[int]) -> State:
        return State(Mode.TEXT, self.vocab.eoss)

    def allowed(self, state: State, budget: int) -> Tensor:
        mask_V = torch.ones(len(self.vocab), dtype=torch.bool)
        mask_V[[self.vocab.eoss, self.vocab.eod]] = False
        return mask_V

    def advance(self, state: State, id: int) -> State:
        return state


def backbone(family: str = "llama", kv_heads: int = 2, std: float = 0.12) -> PreTrainedModel:
    return random_backbone(VOCAB, family, kv_heads, layers=3, max_positions=256, std=std)


LLAMA = backbone()


def random_ids(length: int, seed: int) -> tuple[int, ...]:
    rng = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(VOCAB.text.start, len(VOCAB), (length,), generator=rng).tolist())


def free(row_prompt: Sequence[int], count: int, seed: int = 0, **more: Any) -> Canvas:
    return behind(tuple(row_prompt), (answer("attribute", count),), seed=seed, **more)


def logits_of(model: PreTrainedModel, ids: Sequence[int]) -> Tensor:
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([list(ids)])).logits[0]
    return logits


def guided(row: Canvas, guides: Sequence[tuple[int, ...]]) -> Canvas:
    return behind(row.ids, row.spans, guides, row.seed)


def page_row(seed: int, gaps: int = 3, tail: int = 5) -> Canvas:
    """Text with content, attribute and image gaps in it, as an infilling prompt."""
    ids: list[int] = [VOCAB.eod]
    blanks = []
    for i in range(gaps):
        ids += [*random_text(3 + (seed + i) % 4, seed * 31 + i), VOCAB.sentinel(i)]
        kind, length = [("content", None), ("attribute", None), ("image", 4 + i % 3)][(seed + i) % 3]
        blanks.append(answer(kind, 12 + i, lead=(VOCAB.sentinel(i),), length=length, gap=i))  # type: ignore[arg-type]
    return behind((*ids, *random_text(tail, seed)), blanks, seed=seed)


def random_text(length: int, seed: int) -> tuple[int, ...]:
    rng = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(VOCAB.text.start, VOCAB.text.stop, (length,), generator=rng).tolist())


@pytest.mark.parametrize(("family", "kv_heads"), [("llama", 2), ("llama", 4), ("qwen3", 2)])
def test_greedy_ids_are_those_of_transformers(family: str, kv_heads: int) -> None:
    model = backbone(family, kv_heads)
    prompts = [random_ids(length, length) for length in (1, 3, 17, 40, 33, 64)]
    decoder = Autoregressive(
        model, Free(VOCAB, LENGTH), DecodeConfig(text=GREEDY, image=GREEDY, batch_size=4)
    )
    fills = fills_of(decoder, (tuple(free(prompt, 20 + i) for i, prompt in enumerate(prompts))))
    for i, (prompt, fill) in enumerate(zip(prompts, fills, strict=True)):
        reference = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=20 + i,
            do_sample=False,
            suppress_tokens=[VOCAB.eoss, VOCAB.eod],
            pad_token_id=0,
        )[0, len(prompt) :]
        assert list(fill[0].ids) == reference.tolist()


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_logprobs_are_those_of_a_full_forward(family: str) -> None:
    model = backbone(family)
    row = page_row(1)
    (fills,) = fills_of(Autoregressive(model, GRAMMAR, HOT), ((row,)))
    ids = list(row.ids)
    for blank, fill in zip(row.spans, fills, strict=True):
        ids += blank.lead
        start = len(ids)
        ids += [*fill.ids, VOCAB.eoss]
        chosen = len(ids) - (blank.exact is not None or not fill.ended)
        logprob = logits_of(model, ids).log_softmax(-1)
        total = sum(float(logprob[t - 1, ids[t]]) for t in range(start, chosen))
        assert fill.logprob == pytest.approx(total, abs=1e-4)
    assert any(fill.ids for fill in fills)


def test_one_prefill_for_all_gaps_equals_encoding_anew_for_each() -> None:
    config = DecodeConfig(text=GREEDY, image=GREEDY, batch_size=2)
    decoder = Autoregressive(LLAMA, GRAMMAR, config)
    for seed in range(4):
        row = page_row(seed, gaps=5)
        (fills,) = fills_of(decoder, ((row,)))
        prompt = row.ids
        for blank, fill in zip(row.spans, fills, strict=True):
            (alone,) = fills_of(decoder, ((behind(prompt, (blank,), seed=seed),)))
            assert alone[0].ids == fill.ids and alone[0].ended == fill.ended
            assert alone[0].logprob == pytest.approx(fill.logprob, abs=1e-3)
            prompt = (*prompt, *blank.lead, *fill.ids, VOCAB.eoss)


def test_parallel_gaps_are_independent_runs() -> None:
    row = page_row(5, gaps=4)
    decoder = Autoregressive(LLAMA, GRAMMAR, HOT.model_copy(update={"parallel": True}))
    (fills,) = fills_of(decoder, ((row,)))
    for number, (blank, fill) in enumerate(zip(row.spans, fills, strict=True)):
        (alone,) = fills_of(decoder, ((replace(row, spans=(blank,), seed=span_seed(row.seed, number)),)))
        assert alone[0] == fill


def test_parallel_gaps_share_one_prefill_and_equal_what_follows_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[int] = []
    plain = LeanEngine.prefill_all

    def counted(self: LeanEngine, cache: Cache, prompts: Sequence[Prompt]) -> Tensor:
        taken.extend(len(each.ids) for each in prompts)
        return plain(self, cache, prompts)

    monkeypatch.setattr(LeanEngine, "prefill_all", counted)
    row = page_row(5, gaps=4)
    greedy = DecodeConfig(text=GREEDY, image=GREEDY, batch_size=4)
    (fills,) = fills_of(Autoregressive(LLAMA, GRAMMAR, greedy.model_copy(update={"parallel": True})), (row,))
    assert taken == [len(row.ids)]
    for span, fill in zip(row.spans, fills, strict=True):
        (alone,) = fills_of(Autoregressive(LLAMA, GRAMMAR, greedy), (replace(row, spans=(span,)),))
        assert alone[0].ids == fill.ids and alone[0].logprob == pytest.approx(fill.logprob, abs=1e-3)


def test_prompts_of_a_batch_are_computed_together_bit_for_bit_as_one_by_one() -> None:
    for family, format in (
        ("llama", "fp32"),
        ("llama", "bf16"),
        ("qwen3", "fp16-packed"),
        ("llama", "bf16-fp16"),
    ):
        engine = LeanEngine(backbone(family), len(VOCAB), format, 8)  # type: ignore[arg-type]
        prompts = [Prompt(slot, random_ids(3 + 7 * slot, slot), 4 * (slot % 2)) for slot in range(6)]
        caches = [engine.open(6, 64) for _ in range(2)]
        together = engine.prefill_all(caches[0], prompts)
        alone = torch.stack([engine.prefill(caches[1], each.slot, each.ids, each.prefix) for each in prompts])
        assert torch.equal(together, alone)
        for ours, theirs in zip(caches[0].layers, caches[1].layers, strict=True):
            assert torch.equal(ours, theirs)
    assert [[each.slot for each in part] for part in in_parts(prompts, lambda each: len(each.ids), 20)] == [
        [0, 1],
        [2],
        [3],
        [4],
        [5],
    ]
    assert [len(part) for part in in_parts(prompts, lambda each: len(each.ids), 0)] == [1] * 6


@pytest.mark.parametrize("format", ["fp32", "bf16", "fp16-packed"])
def test_positions_of_some_rows_have_the_bits_that_they_have_in_one(
    format: str,
) -> None:
    engine = LeanEngine(backbone("qwen3"), len(VOCAB), format, 8)  # type: ignore[arg-type]
    rows = [torch.tensor(random_ids(length, length)) for length in (40, 31, 150, 120)]
    unseen = int(rows[0][3])
    for hidden in (None, unseen):
        whole = [engine.encode(each[None], [len(each)], hidden)[0] for each in rows]
        for wanted in ([[7], [0], [149], [5, 90]], [list(range(5, 31)), [1], list(range(150)), [0]]):
            some_MD = engine.encode_rows(rows, [torch.tensor(each) for each in wanted], hidden)
            assert torch.equal(some_MD, torch.cat([each[at] for each, at in zip(whole, wanted, strict=True)]))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16-packed", "bf16-fp16", "int8"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_row_is_the_same_in_any_company(precision: str, batch_size: int) -> None:
    config = HOT.model_copy(update={"precision": precision, "batch_size": batch_size})
    decoder = Autoregressive(LLAMA, GRAMMAR, config)
    rows = [page_row(seed, gaps=1 + seed % 3, tail=1 + 23 * (seed % 5)) for seed in range(7)]
    together = fills_of(decoder, (tuple(rows)))
    backwards = fills_of(decoder, (tuple(reversed(rows))))[::-1]
    assert together == backwards
    for row, fills in list(zip(rows, together, strict=True))[::3]:
        assert fills_of(decoder, ((row,))) == [fills]


def test_guided_rows_are_the_same_in_any_company() -> None:
    config = HOT.model_copy(update={"guidance": 2.5, "guidance_image": 1.5})
    decoder = Autoregressive(LLAMA, GRAMMAR, config)
    guides = [(), (random_ids(4, 1),), (random_ids(3, 2), random_ids(30, 3))]
    rows = [guided(page_row(seed), guides[seed % 3]) for seed in range(6)]
    together = fills_of(decoder, (tuple(rows)))
    for row, fills in zip(rows, together, strict=True):
        assert fills_of(decoder, ((row,))) == [fills]
    plain = fills_of(decoder, (tuple(replace(row, guides=()) for row in rows)))
    assert plain[0] == together[0] and plain[1] != together[1] and plain[2] != together[2]


def test_guidance_equals_two_independent_forwards() -> None:
    cond, uncond = random_ids(12, 1), random_ids(5, 2)
    config = DecodeConfig(text=GREEDY, image=GREEDY, guidance=3.0, batch_size=2)
    decoder = Autoregressive(LLAMA, Free(VOCAB, LENGTH), config)
    (fill,) = fills_of(decoder, [free(cond, 15, guides=(uncond,))])[0]
    ids: list[int] = []
    for id in fill.ids:
        l_cond, l_uncond = logits_of(LLAMA, [*cond, *ids])[-1], logits_of(LLAMA, [*uncond, *ids])[-1]
        guided = l_uncond + 3.0 * (l_cond - l_uncond)
        guided[[VOCAB.eoss, VOCAB.eod]] = -torch.inf
        assert int(guided.argmax()) == id
        ids.append(id)
    without = Autoregressive(LLAMA, Free(VOCAB, LENGTH), config.model_copy(update={"guidance": 1.0}))
    (plain,) = fills_of(without, ((free(cond, 15),)))
    (ones,) = fills_of(without, ((free(cond, 15, guides=(uncond,)),)))
    assert plain == ones and plain[0].ids != fill.ids


def test_guidance_by_hand() -> None:
    l_cond, l_uncond, l_image = (torch.tensor([[x, -x]]) for x in (1.5, 1.0, 1.2))
    assert guide(torch.stack([l_cond, l_uncond]), 3, 1)[0, 0] == pytest.approx(2.5)
    three = torch.stack([torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([[0.5]])])
    assert float(guide(three, 3, 1.2)) == pytest.approx(2.1)
    assert torch.allclose(guide(torch.stack([l_cond, l_uncond]), 1, 1), l_cond)
    assert torch.allclose(guide(torch.stack([l_cond, l_uncond, l_image]), 1, 1), l_cond)
    assert torch.allclose(guide(torch.stack([l_cond, l_uncond, l_image]), 0, 1), l_image)
    one = DecodeConfig(guidance=1.0)
    assert [streams(one, n) for n in range(3)] == [1, 1, 1]
    assert [streams(DecodeConfig(guidance=2.0), n) for n in range(3)] == [1, 2, 3]
    assert [streams(DecodeConfig(cd_k=2), n) for n in range(3)] == [1, 2, 2]


@pytest.mark.parametrize(
    ("k", "alpha", "kept"), [(2, 0.5, [0, 1, 2]), (1, 0.5, [0, 1, 2]), (2, 0.8, [0, 1]), (1, 0.8, [0])]
)
def test_cd_k_by_hand(k: int, alpha: float, kept: list[int]) -> None:
    expert = torch.tensor([[0.4, 0.3, 0.2, 0.1, 0.9]]).log()
    student = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.5]]).log()
    allowed = torch.tensor([[True, True, True, True, False]])
    scores = cd_k(expert, student, allowed, k, alpha)
    assert scores.isfinite().nonzero()[:, 1].tolist() == kept
    assert float(scores[0, 0]) == pytest.approx(float(torch.tensor(4.0).log()), abs=1e-5)


def test_cd_k_with_fewer_ids_than_k() -> None:
    allowed = torch.tensor([[True, True, False, False]])
    scores = cd_k(torch.zeros(1, 4), torch.tensor([[0.0, 1.0, 2.0, 3.0]]), allowed, 3, 1.0)
    assert scores.isfinite().tolist() == allowed.tolist()


def test_cd_k_decodes() -> None:
    row = guided(page_row(2), (random_ids(4, 1),))
    fills = fills_of(Autoregressive(LLAMA, GRAMMAR, HOT.model_copy(update={"cd_k": 4})), ((row,)))
    assert all(fill.ids for fill in fills[0])


def kept_by_hand(logits: Tensor, temperature: float, top_k: int, top_p: float) -> dict[int, float]:
    p = (logits.double() / temperature).softmax(-1)
    order = p.argsort(descending=True).tolist()
    order = order[:top_k] if top_k else order
    total, kept, before = float(p[order].sum()), {}, 0.0
    for id in order:
        if before < top_p * total or not kept:
            kept[id] = float(p[id])
        before += float(p[id])
    scale = sum(kept.values())
    return {id: value / scale for id, value in kept.items() if value > 0}


@pytest.mark.parametrize("vocab", [23, 700])
def test_cuts_are_those_of_brute_force(vocab: int) -> None:
    rng = torch.Generator().manual_seed(0)
    dice = (torch.arange(1200, dtype=torch.float64) + 0.5) / 1200
    for number, (top_k, top_p) in enumerate(itertools.product([0, 1, 5, 300], [1.0, 0.9, 0.99, 0.05])):
        logits = torch.randn(vocab, generator=rng) * [0.3, 3.0][number % 2]
        logits[::3] = -torch.inf
        drawn = draw(
            logits.expand(len(dice), -1), dice, *(torch.tensor([x] * len(dice)) for x in (0.7,)),
            torch.tensor([top_k] * len(dice)), torch.tensor([top_p] * len(dice), dtype=torch.float64),
        )  # fmt: skip
        expected = kept_by_hand(logits, 0.7, top_k, top_p)
        counts = torch.bincount(drawn, minlength=vocab) / len(dice)
        assert set(counts.nonzero().flatten().tolist()) <= set(expected)
        for id, share in expected.items():
            assert float(counts[id]) == pytest.approx(share, abs=1 / 1000)


def test_a_draw_does_not_depend_on_the_settings_of_neighbours() -> None:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(5, 600, generator=rng)
    dice = torch.rand(5, generator=rng, dtype=torch.float64)
    heat = torch.tensor([1.0, 0.0, 0.5, 1.0, 2.0], dtype=torch.float64)
    top_k, top_p = (
        torch.tensor([0, 0, 7, 0, 400]),
        torch.tensor([1.0, 1.0, 1.0, 0.9, 0.99], dtype=torch.float64),
    )
    together = draw(logits, dice, heat, top_k, top_p)
    for b in range(5):
        assert draw(*(x[b : b + 1] for x in (logits, dice, heat, top_k, top_p)))[0] == together[b]
    assert together[1] == logits[1].argmax()


def test_the_ends_of_the_dice_draw_ids_that_are_allowed() -> None:
    logits = torch.full((2, 8), -torch.inf)
    logits[:, 3:5] = 0.0
    dice = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    one = torch.ones(2, dtype=torch.float64)
    assert draw(logits, dice, one, torch.tensor([0, 0]), one).tolist() == [3, 4]
    assert sorted(draw(logits, dice, one, torch.tensor([4, 4]), one).tolist()) == [3, 4]


def test_penalty_by_hand() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0, -torch.inf]])
    seen = torch.tensor([[True, True, False, True]])
    assert penalize(logits, seen, 2.0).tolist() == [[1.0, -4.0, 2.0, -torch.inf]]


def test_penalty_acts_on_text_alone_and_stops_repeats() -> None:
    row = behind(random_ids(6, 3), (answer("attribute", 40), answer("image", LENGTH)), seed=1)
    base = DecodeConfig(text=GREEDY, image=GREEDY, batch_size=1, eoss_bias=-50)
    plain = fills_of(Autoregressive(LLAMA, GRAMMAR, base), ((row,)))[0]
    strict = Autoregressive(LLAMA, GRAMMAR, base.model_copy(update={"repetition_penalty": 50.0}))
    unlike = fills_of(strict, ((row,)))[0]
    assert len(set(unlike[0].ids)) == 40 > len(set(plain[0].ids))
    (image,) = fills_of(strict, ((behind(row.ids, (answer("image", LENGTH),)),)))[0]
    (same,) = fills_of(
        Autoregressive(LLAMA, GRAMMAR, base), ((behind(row.ids, (answer("image", LENGTH),)),))
    )[0]
    assert image == same


def test_end_bias_shortens_and_lengthens() -> None:
    row = behind(random_ids(6, 4), (answer("attribute", 30),))
    runs = {}
    for bias in (-50.0, 50.0):
        config = DecodeConfig(eoss_bias=bias, batch_size=1)
        (runs[bias],) = fills_of(Autoregressive(LLAMA, GRAMMAR, config), ((row,)))[0]
    assert len(runs[-50.0].ids) == 30 and not runs[-50.0].ended
    assert len(runs[50.0].ids) == 1 and runs[50.0].ended


def test_pictures_have_exactly_their_codes() -> None:
    prompt = [VOCAB.eod, VOCAB.markup_id("<img"), VOCAB.markup_id(' src="')]
    rows = (
        behind(tuple(prompt), (answer("document", 40),), seed=3),
        behind(random_ids(5, 1), (answer("image", 99, length=4), answer("image", LENGTH)), seed=4),
    )
    document, parts = fills_of(Autoregressive(LLAMA, GRAMMAR, HOT), (rows))
    assert [len(part.ids) for part in parts] == [4, LENGTH] and all(part.ended for part in parts)
    assert all(id in VOCAB.image for id in document[0].ids[:LENGTH])
    assert document[0].ids[LENGTH] == VOCAB.markup_id('"')


def test_blanks_without_room_and_rows_without_blanks() -> None:
    rows = (
        behind(random_ids(4, 1), ()),
        behind(
            random_ids(4, 1),
            (answer("attribute", 0), answer("image", 5, length=0), answer("attribute", 3, lead=(9,))),
        ),
    )
    none, some = fills_of(Autoregressive(LLAMA, GRAMMAR, HOT), (rows))
    assert none == () and some[:2] == (Fill((), (), False), Fill((), (), True)) and some[2].ids
    assert fills_of(Autoregressive(LLAMA, GRAMMAR, HOT), (())) == []


def test_every_id_is_watched_once() -> None:
    seen: list[Step] = []
    rows = tuple(page_row(seed) for seed in range(6))
    fills = fills_of(Autoregressive(LLAMA, GRAMMAR, HOT), (rows), seen.append)
    assert [step.index for step in seen] == list(range(len(seen)))
    assert len(seen) <= seen[0].total
    for index, row_fills in enumerate(fills):
        written = [step.ids[index] for step in seen if step.ids[index] is not None]
        assert [id for id in written if id != VOCAB.eoss] == [id for fill in row_fills for id in fill.ids]


def test_what_does_not_fit_is_refused() -> None:
    decoder = Autoregressive(LLAMA, GRAMMAR, HOT)
    with pytest.raises(ConfigError, match="window holds 256") as caught:
        fills_of(decoder, ((free(random_ids(200, 1), 57),)))
    assert caught.value.code == "too_long"
    with pytest.raises(ConfigError, match="empty"):
        fills_of(decoder, ((free((), 5),)))
    fills_of(decoder, ((free(random_ids(250, 1), 6),)))


def test_settings_are_checked() -> None:
    for wrong in (
        {"text": {"top_p": -0.1}},
        {"text": {"temp": 1}},
        {"batch_size": 0},
        {"guidance": -1},
        {"cd_k": 0},
    ):
        with pytest.raises(ValidationError):
            DecodeConfig.model_validate(wrong)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.1), ("fp16-packed", 0.01), ("int8", 0.5)])
def test_reduced_precision_is_close(precision: Any, tolerance: float) -> None:
    """Tolerance: largest difference of a log-probability, whose spread over ids is about 1.2 here."""
    ids = random_ids(40, 9)
    reference = LeanEngine(LLAMA, len(VOCAB), "fp32", 1).score(ids).log_softmax(-1)
    assert torch.allclose(reference, logits_of(LLAMA, ids).log_softmax(-1), atol=1e-4)
    difference = (LeanEngine(LLAMA, len(VOCAB), precision, 4).score(ids).log_softmax(-1) - reference).abs()
    assert 1e-5 < float(difference.max()) < tolerance


def other_model() -> PreTrainedModel:
    config = GPTNeoXConfig(
        vocab_size=len(VOCAB), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=64, max_position_embeddings=128, initializer_range=0.3,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return GPTNeoXForCausalLM(config).eval()


def test_other_architectures_run_on_their_own_module() -> None:
    model = other_model()
    assert not supports(model)
    prompts = [random_ids(length, length) for length in (5, 30, 12)]
    decoder = Autoregressive(
        model, Free(VOCAB, LENGTH), DecodeConfig(text=GREEDY, image=GREEDY, batch_size=2)
    )
    fills = fills_of(decoder, (tuple(free(prompt, 12) for prompt in prompts)))
    for prompt, (fill,) in zip(prompts, fills, strict=True):
        ids = list(prompt)
        for id in fill.ids:
            logits = logits_of(model, ids)[-1]
            logits[[VOCAB.eoss, VOCAB.eod]] = -torch.inf
            assert int(logits.argmax()) == id
            ids.append(id)
    engine = make_engine(model, len(VOCAB), "bf16", 1)
    assert isinstance(engine, ModuleEngine)
    assert torch.allclose(engine.score(prompts[0]), logits_of(model, prompts[0]), atol=0.2)
    with pytest.raises(ConfigError, match="gpt_neox"):
        make_engine(model, len(VOCAB), "int8", 1)


def test_a_model_that_looks_at_the_time_hears_nought_from_left_to_right() -> None:
    model = add_timestep(backbone(), 16)
    for name, each in model.named_parameters():
        if "timestep" in name:
            each.data = torch.randn(each.shape, generator=torch.Generator().manual_seed(len(name))) / 4
    prompt = random_ids(9, 2)
    decoder = Autoregressive(
        model, Free(VOCAB, LENGTH), DecodeConfig(text=GREEDY, image=GREEDY, batch_size=2)
    )
    ((fill,),) = fills_of(decoder, ((free(prompt, 6),)))
    for count, id in enumerate(fill.ids):
        ids = torch.tensor([[*prompt, *fill.ids[:count]]])
        with torch.no_grad():
            early, late = (forward(model, ids, times=torch.tensor([time]))[0, -1] for time in (0.0, 0.9))
        early[[VOCAB.eoss, VOCAB.eod]] = -torch.inf
        assert int(early[: len(VOCAB)].argmax()) == id and not torch.allclose(early, late, atol=1e-2)
    with pytest.raises(ConfigError, match="looks at the time"):
        make_engine(model, len(VOCAB), "int8", 1)
