"""Losses of a trained decoder on held-out pages, beside those of a unigram model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from cm3kit.data.token_shards import Numbers, TokenShards
from cm3kit.models.backbone import load_backbone
from cm3kit.objectives.contract import TokenizerParts
from cm3kit.registry import objective
from cm3kit.training.decoder import DecoderRecipe
from cm3kit.training.finished import image_of, text_of
from cm3kit.training.validation import spread, validate
from cm3kit_tokenizers.sequence import PageTokenizer
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import Vocab

LOOKED = 4000  # held-out documents among which some are chosen


def held_figures(recipe: DecoderRecipe, decoder: Path, count: int) -> dict[str, float]:
    """Bits of at most `count` held-out documents of shards (`validate`), and `unigram_…` of the same ones.

    None where the shards hold nothing out.
    """
    text, image = text_of(recipe), image_of(recipe)
    vocab = Vocab(text.size, image.size)
    shards = TokenShards(recipe.data, text.sha256, image.sha256)
    held = np.flatnonzero(shards.held).tolist()
    looked = (held[place] for place in spread(len(held), LOOKED))
    documents = _chosen([shards[number] for number in looked], vocab, count)
    if not documents:
        return {}
    backbone = load_backbone(decoder, len(vocab))
    asked = objective[recipe.objective.name].build(recipe.objective, TokenizerParts(vocab, text, image.grid))
    found = validate(
        backbone, asked, documents, PageTokenizer(text, vocab), image, recipe.window,
        causal_attention=recipe.attention == "causal", unseen=recipe.isolated_masks,
    )  # fmt: skip
    return found | unigram(shards.counts(), documents, vocab, text)


def _chosen(documents: list[list[int]], vocab: Vocab, count: int) -> list[list[int]]:
    """At most so many documents, up to half of them with pictures, which may be rare."""
    drawn = [each for each in documents if any(id in vocab.image for id in each)]
    plain = [each for each in documents if not any(id in vocab.image for id in each)]
    half = [drawn[place] for place in spread(len(drawn), count // 2)]
    return half + [plain[place] for place in spread(len(plain), count - len(half))]


def unigram(
    counts_V: Numbers, documents: list[list[int]], vocab: Vocab, text: TextTokenizer
) -> dict[str, float]:
    """Bits of documents under the frequencies of ids of the same kind, each counted once more (Laplace).

    Such a model is told which ids are text and which are codes, so it has less to guess than a decoder.
    """
    flat = np.asarray([id for each in documents for id in each])
    out = {}
    for kind, ids in (("text", vocab.text), ("image", vocab.image)):
        bits = -np.log2(
            (counts_V[ids.start : ids.stop] + 1) / (counts_V[ids.start : ids.stop].sum() + len(ids))
        )
        mine = flat[(flat >= ids.start) & (flat < ids.stop)] - ids.start
        if len(mine) and kind == "image":
            out["unigram_image_bits_per_code"] = float(bits[mine].mean())
        elif len(mine):
            size = sum(len(text.pieces[each]) for each in mine.tolist())
            out["unigram_text_bits_per_byte"] = float(bits[mine].sum() / size)
    return out


WORDS = {"text_bits_per_byte": "text, bits per byte", "image_bits_per_code": "pictures, bits per code"}


def compared(figures: dict[str, float]) -> list[tuple[str, float, float]]:
    """(what, bits of the decoder, bits of the unigram model), for text and for pictures, as far as there are any."""
    out = []
    for name, words in WORDS.items():
        mine = figures.get(name, figures.get(f"bound_{name}"))
        if mine is not None and f"unigram_{name}" in figures:
            out.append((words, mine, figures[f"unigram_{name}"]))
    return out
