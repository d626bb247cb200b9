"""A decoder of somebody else in our id space: its rows at our text ids, and new rows for what it has never seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel
from transformers.utils import cached_file

from cm3kit.models.backbone import forward, hidden_states, load_backbone
from cm3kit_tokenizers.borrowed import borrow
from cm3kit_tokenizers.errors import ModelError
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import MARKUP, Vocab


@dataclass(frozen=True)
class Borrowed:
    """The tokenizer of a decoder.

    Attributes:
        source: folder or hub id of the decoder.
        text: the text tokenizer of the model to be made: the decoder's own, or another.
        rows: for each id of `text`, the decoder's ids whose embeddings it begins as the mean of.
        markup: the same for each piece of `MARKUP`.
    """

    source: str
    text: TextTokenizer
    rows: Sequence[Sequence[int]]
    markup: Sequence[Sequence[int]]


def borrow_text(source: str, instead: TextTokenizer | None = None) -> Borrowed:
    """The tokenizer of a causal language model of transformers, by folder or hub id.

    Args:
        instead: a text tokenizer of ours to use instead of the decoder's. What its tokens say is spelt in the
            decoder's tokens, and they begin as the mean of these (Gee et al., "Fast vocabulary transfer", 2022).

    Raises:
        ModelError: there is no tokenizer (`unknown_model`), or it is to be ours and is no byte-level BPE
            (`bad_checkpoint`).
    """
    engine = _engine(source)

    def spelt(text: str) -> list[int]:
        ids: list[int] = engine.encode(text, add_special_tokens=False).ids
        return ids

    markup = [spelt(piece) for piece in MARKUP]
    if instead is None:
        text, ids = borrow(engine.to_str(), source)
        return Borrowed(source, text, [[id] for id in ids], markup)
    words = [piece.decode("utf-8", "replace") for piece in instead.pieces]
    return Borrowed(source, instead, [[] if "\ufffd" in word else spelt(word) for word in words], markup)


def _engine(source: str) -> Tokenizer:
    """The tokenizer of a folder or hub id, as it was saved."""
    try:
        # transformers builds tokenizers of some families anew, so the file comes first.
        path = cached_file(source, "tokenizer.json", _raise_exceptions_for_missing_entries=False)
        if path is not None:
            return Tokenizer.from_file(str(path))
        theirs = AutoTokenizer.from_pretrained(source, trust_remote_code=False, use_fast=True)
        found: Tokenizer = theirs.backend_tokenizer
    except Exception as error:
        # transformers and huggingface_hub raise a dozen unrelated types here.
        first = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(
            f"{source} has no tokenizer that can be read: {first}", code="unknown_model"
        ) from error
    return found


def load_transplanted(borrowed: Borrowed, vocab: Vocab, window: int, causal: bool = True) -> PreTrainedModel:
    """The decoder behind a tokenizer with its rows at our ids, in fp32 and in eval mode.

    Specials, sentinels and image codes begin as the mean of all rows.

    Args:
        window: length of the rows that it will see.
        causal: whether it only has to look left.

    Raises:
        ModelError: it cannot be loaded (`unknown_model`, `bad_checkpoint`), or cannot be trained here: it sees
            less than the window, or does not heed masks, or makes its logits in a way of its own.
    """
    model = load_backbone(borrowed.source, 0)
    seen = getattr(model.config, "max_position_embeddings", None)
    if isinstance(seen, int) and seen < window:
        raise ModelError(
            f"{borrowed.source} sees {seen} ids, and window = {window}; set window to at most {seen}.",
            code="bad_checkpoint",
        )
    ours = {vocab.text.start + place: ids for place, ids in enumerate(borrowed.rows)}
    ours |= {vocab.markup.start + place: ids for place, ids in enumerate(borrowed.markup)}
    wrong = _moved_in(model, vocab, ours, causal)
    if wrong is not None:
        raise ModelError(
            f"{borrowed.source} ({type(model).__name__}) cannot be the backbone: {wrong};"
            " use a decoder such as Llama, Qwen or GPT-2.",
            code="bad_checkpoint",
        )
    return model


def _moved_in(
    model: PreTrainedModel, vocab: Vocab, rows: Mapping[int, Sequence[int]], causal: bool
) -> str | None:
    """Transplant in place; what is wrong with the outcome, or None."""
    try:
        transplant(model, len(vocab), rows)
        model.config.bos_token_id = model.config.pad_token_id = None
        model.config.eos_token_id = vocab.eod
        model.generation_config = type(model.generation_config).from_model_config(model.config)
        return _misfit(model, vocab, causal)
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        # A model that was built for something else fails in ways of its own.
        first = " ".join(str(error).split())[:160] or type(error).__name__
        return f"it fails with {type(error).__name__}: {first}"


@torch.no_grad()
def transplant(model: PreTrainedModel, size: int, rows: Mapping[int, Sequence[int]]) -> None:
    """Give embedding and head `size` ids in place: id i is the mean of the old `rows[i]`, others of all old rows."""
    kept = [each.detach().clone() for each in _tables(model)]
    model.resize_token_embeddings(size, mean_resizing=False)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if getattr(module, "padding_idx", None) is not None:
            module.padding_idx = None  # that id is another one now
    owned = [(id, [each for each in old if each < len(kept[0])]) for id, old in rows.items()]
    owned = [(id, old) for id, old in owned if old]
    ids = torch.tensor([id for id, _ in owned])
    flat = torch.tensor([each for _, old in owned for each in old])
    starts = torch.tensor([0, *(len(old) for _, old in owned)]).cumsum(0)[:-1]
    for new, old_VD in zip(_tables(model), kept, strict=True):
        wide_VD = old_VD.float().reshape(len(old_VD), -1)
        made_VD = wide_VD.mean(0, keepdim=True).repeat(size, 1)
        made_VD[ids] = F.embedding_bag(flat, wide_VD, starts, mode="mean")
        new.copy_(made_VD.reshape(size, *old_VD.shape[1:]))


def _tables(model: PreTrainedModel) -> list[Tensor]:
    """Embedding, head and the head's bias, as far as there are any of their own; each has one row an id."""
    found: dict[int, Tensor] = {}
    modules: tuple[nn.Module | None, ...] = (model.get_input_embeddings(), model.get_output_embeddings())
    for module in modules:
        for name in ("weight", "bias"):
            each: Any = getattr(module, name, None)
            if isinstance(each, Tensor):
                found.setdefault(id(each), each)
    return list(found.values())


@torch.no_grad()
def _misfit(model: PreTrainedModel, vocab: Vocab, causal: bool) -> str | None:
    """What keeps a model from being trained on packed pages, tried out on six ids; None where nothing does."""
    a, b = vocab.text.start, vocab.text.start + vocab.text_size // 2
    ids_BT = torch.tensor([[a, vocab.eod, len(vocab) - 1, vocab.mask, b, a]])
    if not torch.allclose(forward(model, ids_BT), model(ids_BT).logits, atol=1e-3, rtol=1e-3):
        return "its logits are more than a product of its last hidden states"
    places_BT = torch.tensor([[0, 1, 2, 0, 1, 2]])
    apart_TT = (torch.arange(6) // 3)[:, None] == torch.arange(6) // 3
    left_TT = torch.ones(6, 6, dtype=torch.bool).tril()
    other_BT = ids_BT.clone()
    other_BT[0, 0] = b
    packed_B1TT = (apart_TT & left_TT)[None, None]
    first, second = (hidden_states(model, each, packed_B1TT, places_BT) for each in (ids_BT, other_BT))
    if not torch.allclose(first[:, 3:], second[:, 3:], atol=1e-5):
        return "it does not keep documents of a row apart"
    if causal:
        return None
    other_BT = ids_BT.clone()
    other_BT[0, -1] = b
    first, second = (hidden_states(model, each, "full") for each in (ids_BT, other_BT))
    return "it cannot look right" if torch.equal(first[:, 0], second[:, 0]) else None
