"""Prefix language modelling: what looks where, in training and in use, and one road from a recipe to a page."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from canvases import at_most, lay_out
from torch import Tensor
from toys import WORDS, toy
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, PreTrainedModel

import cm3kit
from cm3kit.decoders.causal.autoregressive import Autoregressive
from cm3kit.decoders.grammar.html import Grammar
from cm3kit.decoders.settings import DecodeConfig, Sampling
from cm3kit.fill.defaults import Defaults
from cm3kit.fill.folder import assemble
from cm3kit.fill.trained import Trained
from cm3kit.models.attention import block_mask
from cm3kit.models.backbone import BackboneConfig, build_backbone, head, hidden_states
from cm3kit.objectives.contract import registry
from cm3kit.objectives.prefix_lm import PrefixLM
from cm3kit.rng import generator
from cm3kit.training.collate import pack
from cm3kit.training.decoder import DecoderRecipe, DecoderTask
from cm3kit.training.loop import LoopSettings, train
from cm3kit_tokenizers.errors import ConfigError, PageError
from cm3kit_tokenizers.page import Page
from cm3kit_tokenizers.vocab import Vocab

VOCAB = Vocab(text_size=60, image_size=20, sentinels=4)
TEXT = list(VOCAB.text)


def llama() -> PreTrainedModel:
    shape = BackboneConfig(hidden_size=32, layers=2, heads=2, kv_heads=1, intermediate_size=48, std=0.2)
    return build_backbone(shape, len(VOCAB))


def neox() -> PreTrainedModel:
    config = GPTNeoXConfig(
        vocab_size=len(VOCAB), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=128, initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(1)
        return GPTNeoXForCausalLM(config).eval()


def logprobs(model: PreTrainedModel, ids: list[int], prefix: int) -> Tensor:
    """Log-probabilities (T, V) of one full forward pass under the prefix mask."""
    length = len(ids)
    seen_TT = torch.ones(length, length, dtype=torch.bool).tril()
    seen_TT[:prefix, :prefix] = True
    with torch.no_grad():
        hidden_1TD = hidden_states(model, torch.tensor([ids]), seen_TT[None, None])
        logits_TV: Tensor = head(model, hidden_1TD)[0].float()
    return logits_TV.log_softmax(-1)


@pytest.mark.parametrize("make", [llama, neox])
@pytest.mark.parametrize("precision", ["fp32"])
def test_decoded_log_probabilities_are_those_of_a_full_forward_with_the_prefix_mask(
    make: object, precision: str
) -> None:
    model: PreTrainedModel = make()  # type: ignore[operator]
    hot = Sampling(temperature=1.0)
    decoder = Autoregressive(model, Grammar(VOCAB, 4), DecodeConfig(text=hot, image=hot, batch_size=3))
    pages = [[VOCAB.markup_id("<p>"), *TEXT[start : start + 5 + start]] for start in range(4)]
    canvases = [
        replace(lay_out("continue", VOCAB, page, at_most(30), seed), prompt_attention=attention)
        for seed, page in enumerate(pages)
        for attention in ("full", "causal")
    ]
    for canvas, result in zip(canvases, decoder.fill(canvases), strict=True):
        (fill,) = result.fills
        prefix = len(canvas.ids) if canvas.prompt_attention == "full" else 0
        sampled = [*fill.ids, *([VOCAB.eod] if fill.ended else [])]
        ids = [*canvas.ids, *sampled]
        expected = logprobs(model, ids, prefix)[len(canvas.ids) - 1 : -1]
        wanted = expected[range(len(sampled)), sampled].tolist()
        assert list(fill.logprobs) == pytest.approx(wanted, abs=1e-3) and sampled
        other = logprobs(model, ids, len(canvas.ids) - prefix)[len(canvas.ids) - 1 : -1]
        assert not torch.allclose(expected, other, atol=1e-3), "the prompt's attention matters"
    streamed = {number: each for number, each in decoder.stream(iter(canvases))}
    assert [streamed[number].fills for number in range(8)] == [each.fills for each in decoder.fill(canvases)]  # type: ignore[union-attr]


def test_an_example_is_a_prefix_that_looks_both_ways_and_ids_that_look_left() -> None:
    rng = generator(3)
    for _ in range(40):
        (example,) = PrefixLM(VOCAB, least=0.2, most=0.7).make_examples([TEXT[:20]], rng, 64)
        assert example.ids == [VOCAB.eod, *TEXT[:20], VOCAB.eod]
        prefix = example.weights.index(1.0)
        assert example.weights == [0.0] * prefix + [1.0] * (22 - prefix) and 4 <= prefix <= 15
        packed = pack([example], 1, 22)
        seen_TT = block_mask(packed.documents_BT, packed.blocks_BT, packed.noisy_BT)[0, 0]
        wanted_TT = torch.ones(22, 22, dtype=torch.bool).tril()
        wanted_TT[:prefix, :prefix] = True
        assert torch.equal(seen_TT, wanted_TT)
    sliced = PrefixLM(VOCAB).make_examples([TEXT[:40]] * 9, rng, 12)
    assert all(len(each.ids) <= 12 and 0 < sum(each.weights) < len(each.ids) for each in sliced)
    with pytest.raises(ConfigError, match="above"):
        PrefixLM(VOCAB, least=0.9, most=0.1)


def test_a_recipe_becomes_a_model_that_continues_pages(tmp_path: Path) -> None:
    assert registry["prefix-lm"] is PrefixLM
    for number in range(6):
        (tmp_path / f"{number}.html").write_text(f"<p>{' '.join(WORDS.split()[number : number + 9])}</p>")
    parts, cache = toy(), tmp_path / "cache"
    recipe = DecoderRecipe.model_validate({
        "data": tmp_path, "text": parts / "text", "image": parts / "image", "window": 64, "previews": ["red"],
        "objective": {"name": "prefix-lm", "most": 0.5},
        "backbone": {"hidden_size": 32, "layers": 1, "heads": 2, "kv_heads": 2, "intermediate_size": 32},
    })  # fmt: skip
    task = DecoderTask(recipe, cache)
    losses: list[float] = []
    settings = LoopSettings(
        steps=20, batch_size=4, learning_rate=0.01, log_every=1, preview_every=20, validate_every=10
    )
    final = train(
        task, settings, tmp_path / "run", device="cpu",
        report=lambda step, total, figures: losses.append(figures["loss"]),
    )  # fmt: skip
    assert sum(losses[-5:]) < sum(losses[:5])
    (use,) = Trained.load(final).uses  # type: ignore[union-attr]
    assert (use.layout, use.attention, use.window, use.decoder) == ("continue", "full", 64, "cm3")
    folder = assemble(tmp_path / "model", parts / "text", parts / "image", final, Defaults(), "# Toy\n")
    kit = cm3kit.load(folder, device="cpu")
    assert kit.parts.defaults.prompt_attention == "full"
    options = cm3kit.GenerateOptions(max_tokens=20)
    page = kit.generate("red apple", task="document", options=options)[0]
    assert page.html is not None and "red apple" in page.html
    with pytest.raises(PageError, match="cannot lead to the words behind a gap"):
        kit.infill(Page.parse(b"<p>a <mask> apple</p>"), options=options)
