"""Text tokenizers of other models: the same tokens for the same text, without special tokens.

GPT-2, Llama 3, Qwen, OLMo, SmolLM and others are byte-level too. Their word splitting and merges differ; everything
else is as in `text.TextTokenizer`.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from tokenizers import Tokenizer

from cm3kit_tokenizers.errors import ModelError
from cm3kit_tokenizers.text import TextTokenizer, byte_letters, plain_steps, splits_into_bytes


def borrow(saved: str, name: str, without: Collection[str] = ()) -> tuple[TextTokenizer, list[int | None]]:
    """A text tokenizer from a Hugging Face `tokenizer.json`, and the original id of each of its ids.

    Bytes that the original vocabulary lacks (SmolLM2 has 235 of 256) are appended, with the original id None.

    Special and added tokens are removed, so that no text can produce them, and the ids are renumbered. A normalizer
    is removed too, as text ↔ ids must be lossless: text that it would change gets other tokens.

    Args:
        saved: the JSON of a Hugging Face tokenizer.
        name: its name in errors.
        without: tokens that stand for other things than text, such as codes of pictures.

    Raises:
        ModelError: it is not a byte-level BPE (`bad_checkpoint`).
    """
    theirs: dict[str, Any] = json.loads(saved)
    model, cutter = theirs["model"], _without_loss(theirs.get("pre_tokenizer"))
    if model.get("type") != "BPE" or not splits_into_bytes(cutter):
        raise ModelError(
            f"the tokenizer of {name} is not a byte-level BPE and cannot be converted; keep the recipe's own"
            " with --set warm.text=recipe.",
            code="bad_checkpoint",
        )
    assert isinstance(cutter, dict)
    letters = byte_letters()
    added = {*without, *(each["content"] for each in theirs.get("added_tokens", []))}
    kept: list[tuple[str, int | None]] = [
        (token, id)
        for token, id in sorted(model["vocab"].items(), key=lambda item: item[1])
        if token not in added and letters.issuperset(token)
    ]
    kept += [(letter, None) for letter in sorted(letters - {token for token, _ in kept})]
    vocab = {token: place for place, (token, _) in enumerate(kept)}
    ours = plain_steps()
    ours["model"] |= {
        "vocab": vocab,
        "merges": [pair for each in model["merges"] if _usable(pair := _pair(each), vocab)],
        "ignore_merges": bool(model.get("ignore_merges", False)),
    }
    ours["pre_tokenizer"] = _without_prefix(cutter)
    return TextTokenizer(Tokenizer.from_str(json.dumps(ours))), [id for _, id in kept]


def _without_loss(cutter: Any) -> Any:
    """The same pre-tokenizer, which keeps text between matches as separate words.

    GPT-4's and LLaDA's remove text between matches; their expressions match all of a text, so nothing changes.
    """
    if not isinstance(cutter, dict):
        return cutter
    if cutter.get("type") == "Sequence":
        return cutter | {"pretokenizers": [_without_loss(each) for each in cutter["pretokenizers"]]}
    removes = cutter.get("type") == "Split" and cutter.get("behavior") == "Removed" and cutter.get("invert")
    return cutter | {"behavior": "Isolated", "invert": False} if removes else cutter


def _pair(merge: str | list[str]) -> list[str]:
    """A merge as two tokens; older files store them in one string."""
    return merge.split(" ") if isinstance(merge, str) else list(merge)


def _usable(pair: list[str], vocab: dict[str, int]) -> bool:
    return len(pair) == 2 and all(part in vocab for part in (*pair, "".join(pair)))


def _without_prefix(cutter: dict[str, Any]) -> dict[str, Any]:
    """The same pre-tokenizer without a prefix space."""
    if cutter["type"] == "Sequence":
        return cutter | {"pretokenizers": [_without_prefix(each) for each in cutter["pretokenizers"]]}
    return cutter | {"add_prefix_space": False} if cutter["type"] == "ByteLevel" else cutter
