"""Text tokenizers of other people's models: the same tokens for the same text, without special tokens.

GPT-2, Llama 3, Qwen, OLMo, SmolLM and others spell text in bytes, as ours does. Their words are cut by other
expressions and their merges are their own; everything else is as in `text.TextTokenizer`.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from tokenizers import Tokenizer

from cm3kit_tokenizers.errors import ModelError
from cm3kit_tokenizers.text import TextTokenizer, byte_letters, plain_steps, splits_into_bytes


def borrow(saved: str, name: str, without: Collection[str] = ()) -> tuple[TextTokenizer, list[int | None]]:
    """A text tokenizer from somebody's `tokenizer.json`, and which id of theirs each of its ids is.

    Bytes that their vocabulary lacks (SmolLM2 has 235 of 256) come last, as ids of their own that are none of theirs.

    Special and added tokens are left out, so that no text can reach them, and the ids close up. A normalizer is
    left out too, as text ↔ ids has to be without loss: text that theirs would change gets other tokens.

    Args:
        saved: the JSON of a Hugging Face tokenizer.
        name: what errors call it.
        without: tokens that stand for other things than text, such as codes of pictures.

    Raises:
        ModelError: it is no byte-level BPE (`bad_checkpoint`).
    """
    theirs: dict[str, Any] = json.loads(saved)
    model, cutter = theirs["model"], _without_loss(theirs.get("pre_tokenizer"))
    if model.get("type") != "BPE" or not splits_into_bytes(cutter):
        raise ModelError(
            f"the tokenizer of {name} is no byte-level BPE, so its tokens cannot become ours; keep the recipe's own"
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
    """The same cutter, which keeps what its expressions do not match as words of their own.

    GPT-4's and LLaDA's remove what is between matches; their expressions match all of a text, so nothing changes.
    """
    if not isinstance(cutter, dict):
        return cutter
    if cutter.get("type") == "Sequence":
        return cutter | {"pretokenizers": [_without_loss(each) for each in cutter["pretokenizers"]]}
    removes = cutter.get("type") == "Split" and cutter.get("behavior") == "Removed" and cutter.get("invert")
    return cutter | {"behavior": "Isolated", "invert": False} if removes else cutter


def _pair(merge: str | list[str]) -> list[str]:
    """A merge as two tokens; older files hold them in one string."""
    return merge.split(" ") if isinstance(merge, str) else list(merge)


def _usable(pair: list[str], vocab: dict[str, int]) -> bool:
    return len(pair) == 2 and all(part in vocab for part in (*pair, "".join(pair)))


def _without_prefix(cutter: dict[str, Any]) -> dict[str, Any]:
    """The same cutter, which writes no space of its own before a text."""
    if cutter["type"] == "Sequence":
        return cutter | {"pretokenizers": [_without_prefix(each) for each in cutter["pretokenizers"]]}
    return cutter | {"add_prefix_space": False} if cutter["type"] == "ByteLevel" else cutter
