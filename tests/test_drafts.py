"""Drafts change how many passes writing takes, and not a bit of what is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from canvases import answer, behind
from toys import toy_kit
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel

from cm3kit import GenerateOptions, Page
from cm3kit.batch.job import plain
from cm3kit.canvas import ConstraintSpec
from cm3kit.decoders.causal.autoregressive import Autoregressive
from cm3kit.decoders.causal.drafts import BlockDrafter, Drafter, Lookup, Unfinished, look_up
from cm3kit.decoders.engines import make_engine
from cm3kit.decoders.fast_llama import LeanEngine
from cm3kit.decoders.grammar.html import Grammar
from cm3kit.decoders.grammar.languages import Languages
from cm3kit.decoders.settings import DecodeConfig, Sampling
from cm3kit.models.backbone import BackboneConfig, build_backbone
from cm3kit.types import Canvas, Result, Step
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.vocab import Vocab

VOCAB = Vocab(text_size=90, image_size=40, sentinels=8)
GRAMMAR = Grammar(VOCAB, 9)
GREEDY = Sampling(temperature=0)
WAYS = {
    "greedy": DecodeConfig(text=GREEDY, image=GREEDY),
    "cold": DecodeConfig(
        text=Sampling(temperature=0.3, top_p=0.9), image=Sampling(temperature=0.3, top_p=0.9)
    ),
    "plain": DecodeConfig(),
    "hot": DecodeConfig(text=Sampling(temperature=1.3, top_k=30), image=Sampling(temperature=2, top_p=0.9)),
    "penalized": DecodeConfig(repetition_penalty=1.5, eoss_bias=0.5),
}


def backbone(family: str = "llama", kv_heads: int = 2) -> PreTrainedModel:
    shape = {
        "hidden_size": 64,
        "layers": 2,
        "heads": 4,
        "intermediate_size": 96,
        "max_positions": 256,
        "std": 0.12,
    }
    config = BackboneConfig.model_validate({**shape, "family": family, "kv_heads": kv_heads})
    return build_backbone(config, len(VOCAB))


LLAMA = backbone()


def text(length: int, seed: int) -> tuple[int, ...]:
    rng = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(VOCAB.text.start, VOCAB.text.stop, (length,), generator=rng).tolist())


def row(seed: int, guide: bool = False) -> Canvas:
    """Gaps of all kinds, whose answers follow one another, behind text that repeats itself."""
    ids: list[int] = [VOCAB.eod]
    spans = []
    for gap in range(3):
        ids += [*text(4, seed), *text(3 + seed % 4, seed * 31 + gap), VOCAB.sentinel(gap)]
        kind, length = [("content", None), ("attribute", None), ("image", 4)][(seed + gap) % 3]
        lead = (VOCAB.eoss, VOCAB.sentinel(gap))[gap % 2 :]
        spans.append(answer(kind, 12 + gap, lead=lead, length=length, gap=gap))  # type: ignore[arg-type]
    guides = ((VOCAB.eod, *text(3, seed)),) if guide else ()
    return behind((*ids, *text(5, seed)), spans, guides, seed)


ROWS = [row(seed) for seed in range(7)]


@dataclass
class Recorder:
    """Drafts nothing, and keeps what it was shown last of each row."""

    most: int = 8
    ids: dict[int, list[int]] = field(default_factory=dict)

    def propose(self, rows: Mapping[int, Unfinished]) -> Mapping[int, Sequence[int]]:
        self.ids |= {each.job.row: list(each.ids) for each in rows.values()}
        return {}


@dataclass
class Oracle:
    """Drafts what is known to follow, with every so many an id that does not."""

    known: Mapping[int, Sequence[int]]
    wrong: int
    most: int = 8
    asked: int = 0

    def propose(self, rows: Mapping[int, Unfinished]) -> Mapping[int, Sequence[int]]:
        drafts = {}
        for place, each in rows.items():
            assert each.most > 0
            draft = list(self.known[each.job.row][len(each.ids) :][: each.most])
            for at in range(len(draft)):
                self.asked += 1
                if self.asked % self.wrong == 0:
                    draft[at] = (draft[at] + 1) % len(VOCAB)
            drafts[place] = draft
        return drafts


def written(results: Sequence[Result]) -> list[Any]:
    return [(each.fills, [fill.logprobs for fill in each.fills]) for each in results]


def passes(results: Sequence[Result]) -> int:
    return sum(each.cost.partial for each in results)


def decoder(
    config: DecodeConfig, drafter: Any = None, model: PreTrainedModel = LLAMA, **more: Any
) -> Autoregressive:
    draft = "none" if drafter is None else "lookup" if drafter == "lookup" else "diffusion"
    config = config.model_copy(update={"batch_size": 3, "draft": draft, **more})
    return Autoregressive(model, GRAMMAR, config, None, None if draft != "diffusion" else drafter)


@pytest.mark.parametrize(("way", "size"), [*((way, 3) for way in WAYS), ("cold", 1), ("cold", 16)])
def test_ids_and_probabilities_are_those_without_drafts_to_the_bit(way: str, size: int) -> None:
    config = WAYS[way]
    plain = decoder(config).fill(ROWS)
    recorder = Recorder()
    assert written(decoder(config, recorder, batch_size=size).fill(ROWS)) == written(plain)
    for drafter in ("lookup", Oracle(recorder.ids, 10**9), Oracle(recorder.ids, 3), Oracle(recorder.ids, 1)):
        drafted = decoder(config, drafter, batch_size=size)
        found = drafted.fill(ROWS)
        assert written(found) == written(plain)
        # A lead of several ids is one pass, whatever is guessed.
        assert passes(found) < passes(plain)
        assert written([result for _, result in sorted(drafted.stream(iter(ROWS)))]) == written(plain)
    best = decoder(config, Oracle(recorder.ids, 10**9), batch_size=size).fill(ROWS)
    assert passes(best) < 0.5 * passes(plain)
    assert sum(each.cost.token_forwards for each in best) >= sum(each.cost.token_forwards for each in plain)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16-packed", "bf16-fp16"])
@pytest.mark.parametrize(("family", "kv_heads"), [("llama", 4), ("llama", 1), ("qwen3", 2)])
def test_several_ids_in_a_pass_have_the_bits_of_as_many_steps(
    precision: Any, family: str, kv_heads: int
) -> None:
    for slots, steps in ((1, 1), (1, 9), (3, 5), (16, 9)):
        engine = make_engine(backbone(family, kv_heads), len(VOCAB), precision, slots)
        assert isinstance(engine, LeanEngine)
        caches = [engine.open(slots, 60) for _ in range(2)]
        lengths = [1 + (7 * slot) % 40 for slot in range(slots)]
        for cache in caches:
            for slot, length in enumerate(lengths):
                engine.prefill(cache, slot, text(length, slot))
        ids_QS = torch.tensor([text(slots, step) for step in range(steps)])
        writes = [
            caches[0].at([length + step for length in lengths], [True] * slots) for step in range(steps)
        ]
        together_QSV = engine.verify(caches[0], writes, ids_QS)
        apart = [engine.step(caches[1], write, ids_S) for write, ids_S in zip(writes, ids_QS, strict=True)]
        assert torch.equal(together_QSV, torch.stack(apart))
        for one, other in zip(caches[0].layers, caches[1].layers, strict=True):
            assert torch.equal(one, other)


DRAFTERS: dict[str, type[Drafter]] = {"lookup": Lookup, "diffusion": BlockDrafter}


def watched(kind: type[Drafter], monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ids that a drafter proposes from now on."""
    told: list[int] = []
    propose = kind.propose

    def watching(self: Any, rows: Mapping[int, Unfinished]) -> Mapping[int, Sequence[int]]:
        found = propose(self, rows)
        told.extend(id for draft in found.values() for id in draft)
        return found

    monkeypatch.setattr(kind, "propose", watching)
    return told


@pytest.mark.parametrize("more", [{"guidance": 2.5}, {"cd_k": 4}, {"parallel": True}])
def test_drafts_go_with_guidance_and_with_parallel_gaps(
    more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    drafted = watched(Lookup, monkeypatch)
    rows = [row(seed, guide=True) for seed in range(8)]
    plain = decoder(WAYS["cold"], **more).fill(rows)
    found = decoder(WAYS["cold"], "lookup", **more).fill(rows)
    assert written(found) == written(plain) and passes(found) < passes(plain) and drafted


def test_drafts_go_with_constraints(monkeypatch: pytest.MonkeyPatch) -> None:
    drafted = watched(Lookup, monkeypatch)
    pieces = [bytes([33 + each]) for each in range(90)]
    known = Languages(VOCAB, lambda words: [VOCAB.text.start + each - 33 for each in words.encode()], pieces)
    grammar = Grammar(VOCAB, 9, pieces, b"", known)
    span = replace(
        answer("attribute", 20, lead=(VOCAB.sentinel(0),)),
        constraint=ConstraintSpec("choices", "ABABABAB|ABBA|CAFE"),
    )
    ids = (VOCAB.eod, *text(4, 1), VOCAB.sentinel(0), *text(3, 2))
    rows = [behind(ids, (span,), seed=seed) for seed in range(4)]
    results = []
    for drafter in (None, "lookup"):
        draft = "none" if drafter is None else drafter
        config = DecodeConfig(batch_size=2, draft=draft)  # type: ignore[arg-type]
        results.append(Autoregressive(LLAMA, grammar, config).fill(rows))
    assert written(results[0]) == written(results[1]) and drafted


def test_a_chain_of_steps_is_told_in_order_and_never_beyond_its_total() -> None:
    recorder, steps = Recorder(), list[Step]()
    decoder(WAYS["plain"], recorder).fill(ROWS)
    results = decoder(WAYS["plain"], Oracle(recorder.ids, 4)).fill(ROWS, steps.append)
    assert all(step.index < step.total for step in steps)
    assert [step.index for step in steps] == sorted(step.index for step in steps)
    told = [[step.ids[at] for step in steps if step.ids[at] is not None] for at in range(len(ROWS))]
    for ids, result in zip(told, results, strict=True):
        assert len(ids) == sum(len(fill.logprobs) for fill in result.fills)


def test_what_is_looked_up_is_what_followed_the_newest_and_longest_match() -> None:
    assert list(look_up([1, 2, 3, 9, 1, 2, 4, 7, 1, 2], 3)) == [4, 7, 1]
    assert list(look_up([1, 2, 3, 9, 5, 2, 3, 4, 1, 2, 3], 2)) == [9, 5]
    assert list(look_up([5, 5, 5], 4)) == [5]
    assert list(look_up([1, 2, 3], 4)) == [] == list(look_up([1], 4)) == list(look_up([], 4))


PAGE = Page.parse(b'<h1>a red apple</h1><p><mask></p><img alt="a red apple" src="<mask>"><p>a red <mask></p>')


@pytest.mark.parametrize("size", [1, 3])
def test_the_block_decoder_of_a_model_drafts_for_its_causal_one(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafted = {draft: watched(kind, monkeypatch) for draft, kind in DRAFTERS.items()}
    kit = toy_kit("causal-blocks")
    plain = kit.infill(PAGE, variants=3, seed=4, options=GenerateOptions(batch_size=size))
    for draft in ("lookup", "diffusion"):
        options = GenerateOptions(batch_size=size, draft=draft)  # type: ignore[arg-type]
        found = kit.infill(PAGE, variants=3, seed=4, options=options)
        assert [each.html for each in found] == [each.html for each in plain]
        assert [gap.logprob for each in found for gap in each.gaps] == [
            gap.logprob for each in plain for gap in each.gaps
        ]
        assert drafted[draft]


def test_a_block_is_drawn_by_the_numbers_that_verification_draws_by() -> None:
    """Where the drafter is the model itself, told the truth by teacher forcing, every draft is accepted."""
    recorder = Recorder()
    plain = decoder(WAYS["plain"], recorder, batch_size=1)
    plain.fill(ROWS)
    engine = make_engine(LLAMA, len(VOCAB), "fp32", 1)

    class Teacher:
        mask = VOCAB.mask

        def open_block(self, *_: Any) -> None: ...

        def logits(self, ask: Any) -> list[Any]:
            start, stop = ask.block
            ids = ask.ids_BT[0, :start].tolist()
            known = next(each for each in recorder.ids.values() if list(each[:start]) == ids)
            row = [*known[:stop], *[VOCAB.pad] * stop][: stop - 1]
            return [engine.score(row)[start - 1 :]]  # type: ignore[attr-defined]

    found = decoder(WAYS["plain"], BlockDrafter(Teacher, 8, WAYS["plain"]), batch_size=1).fill(ROWS)
    ids = sum(len(fill.logprobs) for each in found for fill in each.fills)
    assert ids / passes(found) > 4


def test_a_job_is_the_same_with_drafts_and_without() -> None:
    assert plain(GenerateOptions(batch_size=3, draft="lookup")) == GenerateOptions()


def test_what_cannot_be_verified_to_the_bit_is_refused() -> None:
    with pytest.raises(ConfigError, match="draft 'lookup' is for plain"):
        decoder(DecodeConfig(), "lookup", precision="int8")
    other = GPTNeoXForCausalLM(
        GPTNeoXConfig(vocab_size=len(VOCAB), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                      intermediate_size=32, max_position_embeddings=64)
    )  # fmt: skip
    with pytest.raises(ConfigError, match="this is 'gpt_neox'"):
        decoder(DecodeConfig(), "lookup", other)
    with pytest.raises(ConfigError, match="has no second decoder that writes in blocks"):
        toy_kit("both").generate("a red apple", options=GenerateOptions(draft="diffusion"))
    with pytest.raises(ConfigError, match="option draft belongs to the decoder 'cm3'"):
        toy_kit("both").generate("a red apple", options=GenerateOptions(decoder="diffusion", draft="lookup"))
