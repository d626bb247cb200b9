"""Spans that end where the next begins, and by `<eod>` after the last, end so when a model writes them too."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from canvases import answer, at_most, fills_of, lay_out, start
from transformers import PreTrainedModel

from cm3kit.decoders.causal.autoregressive import Autoregressive
from cm3kit.decoders.fast_llama import LeanEngine
from cm3kit.decoders.grammar.html import Grammar
from cm3kit.decoders.settings import DecodeConfig, Sampling
from cm3kit.fill.layouts import put_back
from cm3kit.models.backbone import BackboneConfig, build_backbone
from cm3kit.objectives import CausalMask
from cm3kit.types import Canvas, Fill, MaskSpan
from cm3kit_tokenizers.document import Gap
from cm3kit_tokenizers.vocab import Vocab

VOCAB = Vocab(text_size=20, image_size=10, sentinels=4)
GRAMMAR = Grammar(VOCAB, 4)
PAPER = CausalMask(VOCAB, "cm3-paper", grid=(2, 2))
TEXT = list(VOCAB.text)
P, Q = VOCAB.markup_id("<p>"), VOCAB.markup_id("</p>")
PAGE: list[int | Gap] = [
    P, TEXT[3], Gap(0, "content"), Q, VOCAB.markup_id("<img"), VOCAB.markup_id(' src="'), Gap(1, "image"),
    VOCAB.markup_id('"'), VOCAB.markup_id(">"), P, Gap(2, "attribute"), Q,
]  # fmt: skip


def model() -> PreTrainedModel:
    shape = BackboneConfig(
        hidden_size=32, layers=2, heads=2, kv_heads=2, intermediate_size=48, max_positions=128, std=0.2
    )
    return build_backbone(shape, len(VOCAB))


def pose(ids: Sequence[int | Gap], seed: int = 0, span_end: str = "eod") -> Canvas:
    return lay_out("behind", VOCAB, ids, at_most(9, 4), seed, span_end=span_end)


def fill(posed: Canvas, **settings: object) -> tuple[Fill, ...]:
    hot = Sampling(temperature=1.0)
    config = DecodeConfig.model_validate({"text": hot, "image": hot, "batch_size": 1, **settings})
    return fills_of(Autoregressive(model(), GRAMMAR, config), ((posed,)))[0]


def laid(posed: Canvas, fills: tuple[Fill, ...]) -> list[int]:
    """The page and its spans as training lays them out, written once more."""
    spans = [[VOCAB.sentinel(index), *each.ids] for index, each in enumerate(fills)]
    return [*posed.ids, *(id for span in spans for id in span), VOCAB.eod]


def test_a_posed_page_says_what_ends_each_span() -> None:
    ends = [span.end for span in pose(PAGE).spans]
    assert ends == [VOCAB.sentinel(1), VOCAB.sentinel(2), VOCAB.eod]
    assert [span.end for span in pose([P, Gap(0, "content"), Q]).spans] == [VOCAB.eod]
    assert {span.end for span in pose(PAGE, span_end="eoss").spans} == {VOCAB.eoss}


@pytest.mark.parametrize("bias", [0.0, 4.0, 100.0, -100.0])
def test_what_is_written_is_what_training_lays_out(bias: float) -> None:
    ended = 0
    for seed in range(6):
        posed = pose(PAGE, seed)
        fills = fill(posed, eoss_bias=bias)
        filled = put_back(PAGE, posed, fills)
        assert PAPER.unmask(laid(posed, fills)) == filled
        assert len(fills[1].ids) == 4 and fills[1].ended
        if bias == 100:
            assert fills[2].ended and len(fills[2].ids) == 1
        if bias == -100:
            assert len(fills[2].ids) == 9 and not fills[2].ended
        ended += fills[0].ended and len(fills[0].ids) < 9
    assert ended if bias > 0 else bias == 0 or not ended


def test_the_model_reads_each_sentinel_once() -> None:
    for seed in range(4):
        posed = pose(PAGE, seed)
        fills = fill(posed, eoss_bias=3.0)
        ids = laid(posed, fills)
        logprobs = LeanEngine(model(), len(VOCAB), "fp32", 1).score(ids).log_softmax(-1)
        place = len(posed.ids)
        for each in fills:
            own = range(place + 1, place + 1 + len(each.ids))
            sampled = [*own, own.stop] if each.ended and each is not fills[1] else [*own]
            wanted = sum(float(logprobs[at - 1, ids[at]]) for at in sampled)
            assert each.logprob == pytest.approx(wanted, abs=1e-3)
            place = own.stop


def test_each_gap_alone_ends_in_the_same_way() -> None:
    posed = pose(PAGE)
    fills = fill(posed, eoss_bias=100.0, parallel=True)
    assert len(fills[1].ids) == 4 and fills[1].ended
    assert len(fills[2].ids) == 1 and fills[2].ended


def test_only_a_whole_page_may_hold_a_title() -> None:
    title = VOCAB.markup_id("<title>")

    def may(blank: MaskSpan, prompt: list[int]) -> bool:
        return bool(GRAMMAR.allowed(start(GRAMMAR, blank, prompt), 30)[title])

    lead = (VOCAB.sentinel(0),)
    assert may(answer("document", 30), [VOCAB.eod])
    for end in (None, VOCAB.eod, VOCAB.sentinel(1)):
        assert not may(answer("content", 30, lead, end=end), [VOCAB.eod, lead[0]])
    state = start(GRAMMAR, answer("content", 30, lead, end=VOCAB.eod), [VOCAB.eod, P, lead[0], Q])
    assert not GRAMMAR.allowed(state, 30)[VOCAB.eod]
    state = GRAMMAR.after([TEXT[0]], state)
    found = torch.tensor([VOCAB.eod, VOCAB.eoss, *VOCAB.sentinel_range])
    assert GRAMMAR.allowed(state, 30)[found].tolist() == [True] + [False] * 5
