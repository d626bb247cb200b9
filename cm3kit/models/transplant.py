"""A decoder of somebody else in our id space: its rows at our text ids, and new rows for what it has never seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel, Qwen2Tokenizer
from transformers.utils import cached_file

from cm3kit.models.backbone import load_backbone
from cm3kit.models.embeddings import per_layer_tables, replace_table
from cm3kit.models.families import Family, Raw, family_of, read_config, refuse_unknown
from cm3kit.models.gguf import gguf_file, gguf_tokenizer
from cm3kit.models.quantized import Format, plain_tables
from cm3kit_tokenizers.borrowed import borrow
from cm3kit_tokenizers.errors import ModelError, in_a_line
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import MARKUP, Vocab

TOLERANCE, ROUNDED, TRIED = 1e-3, 3e-2, 48


@dataclass(frozen=True)
class Borrowed:
    """The tokenizer of a decoder.

    Attributes:
        source: folder or hub id of the decoder.
        text: the text tokenizer of the model to be made: the decoder's own, or another.
        rows: for each id of `text`, the decoder's ids whose embeddings it begins as the mean of.
        markup: the same for each piece of `MARKUP`.
        specials: ids of ours that are one of the decoder's, of families that say so (`models.families`).
        codes: the decoder's ids of image codes 0, 1, …, of families that write pictures.
    """

    source: str
    text: TextTokenizer
    rows: Sequence[Sequence[int]]
    markup: Sequence[Sequence[int]]
    specials: Mapping[int, int] = field(default_factory=dict)
    codes: Sequence[int] = ()


def borrow_text(source: str, instead: TextTokenizer | None = None) -> Borrowed:
    """The tokenizer of a causal language model of transformers, by folder or hub id.

    Args:
        instead: a text tokenizer of ours to use instead of the decoder's. What its tokens say is spelt in the
            decoder's tokens, and they begin as the mean of these (Gee et al., "Fast vocabulary transfer", 2022).

    Raises:
        ModelError: there is no tokenizer (`unknown_model`), or it is to be ours and is no byte-level BPE
            (`bad_checkpoint`).
    """
    refuse_unknown(source)
    family = family_of(source)
    engine = _engine(source, family)
    specials, codes = _causal_specials(engine), list[int]()
    if family is not None:
        raw = read_config(Path(source)) or {}
        specials = _specials(engine, family, raw)
        codes = [] if family.pictures is None else list(family.pictures.codes(raw, engine))

    def spelt(text: str) -> list[int]:
        ids: list[int] = engine.encode(text, add_special_tokens=False).ids
        return ids

    markup = [spelt(piece) for piece in MARKUP]
    if instead is None:
        names = {name for id in codes if (name := engine.id_to_token(id)) is not None}
        text, ids = borrow(engine.to_str(), source, without=names)
        rows = [[] if id is None else [id] for id in ids]
        return Borrowed(source, text, rows, markup, specials, codes)
    words = [piece.decode("utf-8", "replace") for piece in instead.pieces]
    rows = [[] if "\ufffd" in word else spelt(word) for word in words]
    return Borrowed(source, instead, rows, markup, specials, codes)


def _specials(engine: Tokenizer, family: Family, raw: Raw) -> dict[int, int]:
    """Which of the decoder's ids each of our specials is, as far as the tokenizer has them."""
    found: dict[int, int] = {}
    for ours, names in family.specials.items():
        ids = [id for name in names if (id := engine.token_to_id(name)) is not None]
        found |= {ours: ids[0]} if ids else {}
    return found if family.mask is None else found | {Vocab.mask: family.mask(raw)}


def _causal_specials(engine: Tokenizer) -> dict[int, int]:
    """Ends and turns of a causal decoder, of those that spell them as GPT-2 and ChatML do."""
    names = {Vocab.eod: "<|endoftext|>", 5: "<|im_start|>", 6: "<|im_end|>"}
    return {ours: id for ours, name in names.items() if (id := engine.token_to_id(name)) is not None}


def _engine(source: str, family: Family | None = None) -> Tokenizer:
    """The tokenizer of a folder or hub id, as it was saved."""
    if (file := gguf_file(source)) is not None:
        return gguf_tokenizer(file)
    try:
        # transformers builds tokenizers of some families anew, so the file comes first.
        path = cached_file(source, "tokenizer.json", _raise_exceptions_for_missing_entries=False)
        if path is not None:
            return Tokenizer.from_file(str(path))
        if family is not None and not all(
            (Path(source) / name).is_file() for name in ("vocab.json", "merges.txt")
        ):
            raise FileNotFoundError("neither tokenizer.json nor vocab.json with merges.txt is there.")
        # Families that transformers does not know name a class of their own beside vocab.json and merges.txt.
        kind = AutoTokenizer if family is None else Qwen2Tokenizer
        theirs = kind.from_pretrained(source, trust_remote_code=False, use_fast=True)
        found: Tokenizer = theirs.backend_tokenizer
    except Exception as error:
        # transformers and huggingface_hub raise a dozen unrelated types here.
        raise ModelError(
            f"{source} has no tokenizer that can be read: {in_a_line(error)}", code="unknown_model"
        ) from error
    return found


def load_transplanted(
    borrowed: Borrowed,
    vocab: Vocab,
    window: int,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
    quantize: Format | None = None,
) -> PreTrainedModel:
    """The decoder behind a tokenizer with its rows at our ids, in eval mode.

    Specials and sentinels begin as the mean of all rows, and so do image codes, but for those of a family that has as
    many.

    Args:
        window: length of the rows that it will see.
        dtype: of the weights; "auto" is that of the files.
        quantize: see `load_backbone`.

    Raises:
        ModelError: it cannot be loaded (`unknown_model`, `bad_checkpoint`), sees less than the window, or gives
            other logits when its rows lie at our ids. Whether it can be trained is `decoders.probe`'s to say.
    """
    model = load_backbone(borrowed.source, 0, dtype=dtype, quantize=quantize)
    if not plain_tables(model):
        raise _refusal(borrowed.source, model, "its embedding or head is quantized, and rows cannot be moved")
    seen = getattr(model.config, "max_position_embeddings", None)
    if isinstance(seen, int) and seen < window:
        raise ModelError(
            f"{borrowed.source} sees {seen} ids, and window = {window}; set window to at most {seen}.",
            code="bad_checkpoint",
        )
    _refuse_outside(borrowed, len(model.get_input_embeddings().weight))
    ours = {vocab.text.start + place: ids for place, ids in enumerate(borrowed.rows)}
    ours |= {special: [id] for special, id in borrowed.specials.items()}
    ours |= {vocab.markup.start + place: ids for place, ids in enumerate(borrowed.markup)}
    if len(borrowed.codes) == vocab.image_size:
        ours |= {vocab.image.start + code: [id] for code, id in enumerate(borrowed.codes)}
    try:
        difference = move_in(model, vocab, ours)
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        # A model that was built for something else fails in ways of its own.
        wrong = f"it fails with {type(error).__name__}: {in_a_line(error)}"
        raise _refusal(borrowed.source, model, wrong) from error
    if not difference <= (TOLERANCE if model.dtype == torch.float32 else ROUNDED):
        wrong = f"its logits change by {difference:.2g} when its rows are moved to other ids"
        raise _refusal(borrowed.source, model, wrong)
    return model


def _refuse_outside(borrowed: Borrowed, known: int) -> None:
    """Refuse a tokenizer that gives ids which the embedding of `known` rows does not have (`bad_checkpoint`)."""
    rows = [id for ids in (*borrowed.rows, *borrowed.markup) for id in ids]
    most = max([*rows, *borrowed.specials.values(), *borrowed.codes], default=0)
    if most >= known:
        raise ModelError(
            f"{borrowed.source}: the tokenizer or config.json names id {most:,}, and the embedding has {known:,} rows;"
            " the files are of different models.",
            code="bad_checkpoint",
        )


def _refusal(source: str, model: PreTrainedModel, cause: str) -> ModelError:
    return ModelError(
        f"{source} ({type(model).__name__}) cannot be the backbone: {cause}; use a decoder such as Llama, Qwen or"
        " GPT-2.",
        code="bad_checkpoint",
    )


@torch.no_grad()
def move_in(model: PreTrainedModel, vocab: Vocab, rows: Mapping[int, Sequence[int]]) -> float:
    """Transplant in place, and give the model our ends; what that changes of its logits, as a share of the largest.

    Compared are logits of a row of ids that are one id there and one here; 0 where there are none.
    """
    known = len(model.get_input_embeddings().weight)
    pairs = [(new, old[0]) for new, old in rows.items() if len(old) == 1 and old[0] < known]
    picks = pairs[:: max(1, len(pairs) // TRIED)][:TRIED]
    new_T, old_T = torch.tensor(picks, dtype=torch.long).reshape(-1, 2).T
    before_TK = model(input_ids=old_T[None], use_cache=False).logits[0][:, old_T] if picks else torch.zeros(1)
    transplant(model, len(vocab), rows)
    _tell(model, vocab)
    after_TK = model(input_ids=new_T[None], use_cache=False).logits[0][:, new_T] if picks else before_TK
    scale = max(1.0, float(before_TK.abs().max()))
    return float((after_TK - before_TK).abs().max()) / scale


def _tell(model: PreTrainedModel, vocab: Vocab) -> None:
    """Our special ids in the configuration: none begins a row, and padding is masked, where the family allows none."""
    config = model.config
    config.eos_token_id = vocab.eod
    for name, instead in (("bos_token_id", vocab.eod), ("pad_token_id", vocab.pad)):
        try:
            setattr(config, name, None)
        except Exception:  # noqa: BLE001 - a family of strict types names its own error
            setattr(config, name, instead)
    model.generation_config = type(model.generation_config).from_model_config(config)


@torch.no_grad()
def transplant(model: PreTrainedModel, size: int, rows: Mapping[int, Sequence[int]]) -> None:
    """Give embedding and head `size` ids in place: id i is the mean of the old `rows[i]`, others of all old rows."""
    kept = [each.detach().clone() for each in _tables(model)]
    by_layer = [(each, each.weight.detach().clone()) for each in per_layer_tables(model)]
    model.resize_token_embeddings(size, mean_resizing=False)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if getattr(module, "padding_idx", None) is not None:
            module.padding_idx = None  # that id is another one now
    for new, old_VD in zip(_tables(model), kept, strict=True):
        new.copy_(_moved(old_VD, size, rows))
    for table, old_VD in by_layer:
        replace_table(model, table, _moved(old_VD, size, rows))


def _moved(old_VD: Tensor, size: int, rows: Mapping[int, Sequence[int]]) -> Tensor:
    """`size` rows (V, …): row i is the mean of the old `rows[i]`, others of all old rows."""
    known = len(old_VD)
    owned = [(id, [each for each in old if each < known]) for id, old in rows.items()]
    # A mean over a table of 16 bits is taken in 32, without a second table in 32.
    mean_1D = old_VD.mean(0, keepdim=True, dtype=torch.float32).to(old_VD.dtype)
    made_VD = mean_1D.repeat(size, *[1] * (old_VD.ndim - 1))
    same = torch.tensor([(id, old[0]) for id, old in owned if len(old) == 1], dtype=torch.long).reshape(-1, 2)
    made_VD[same[:, 0]] = old_VD[same[:, 1]]
    for id, old in owned:
        if len(old) > 1:
            made_VD[id] = old_VD[old].float().mean(0).to(old_VD.dtype)
    return made_VD


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
