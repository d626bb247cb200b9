"""Chameleon and Anole (arXiv:2405.09818, 2407.06135): one causal model of words and pictures in one row.

transformers knows the decoder and the half of the VQGAN that reads; the half that draws is in Anole's folder as
`model.vqmodel.decoder`, or in the `vqgan.ckpt` of Chameleon's first release. A picture is `<racm3:break>`, its codes
row by row, and `<eoss>`; the tokens of codes are named in letters (`IMGIMGBCDZ` is code 123).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor
from transformers import ChameleonConfig
from transformers import ChameleonForConditionalGeneration as Whole

from cm3kit.models.families import Chat, Family, Pictures, Raw, families, refuse_class, whole
from cm3kit_tokenizers.errors import ModelError
from cm3kit_tokenizers.vocab import Vocab
from cm3kit_tokenizers.vq.absent import Undrawn
from cm3kit_tokenizers.vq.families import open_foreign
from cm3kit_tokenizers.vq.families.base import Source
from cm3kit_tokenizers.vq.families.opening import read_weights
from cm3kit_tokenizers.vq.model import ImageTokenizer
from cm3kit_tokenizers.weights import checked

BEGIN, END, TURN = 5, 6, 7  # reserved specials: around a picture's codes, and behind the user's words
CODEBOOK = "quantize.embedding.weight"
INSIDE = "model.vqmodel."
FIRST_RELEASE = ("vqgan.ckpt", "tokenizer/vqgan.ckpt", "vqgan.safetensors")
NEEDED = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")


class ChameleonForConditionalGeneration(Whole):  # type: ignore[misc]
    """Chameleon's decoder without its image tokenizer, under the class name that its folders give.

    The class of transformers writes no codes, by a map of its vocabulary; the configuration here has an empty one.
    """

    _keys_to_ignore_on_load_unexpected = (r"^model\.vqmodel\.",)

    def __init__(self, config: ChameleonConfig) -> None:
        super().__init__(config)
        self.model.vqmodel = None


def config(raw: Raw) -> ChameleonConfig:
    """The configuration of the folder, without the map of its vocabulary.

    Raises:
        ModelError: it is of another model under the same name, or lacks a number (`bad_checkpoint`).
    """
    refuse_class(raw, "Chameleon", Whole.__name__)
    for name in NEEDED:
        whole(raw, name)
    made: ChameleonConfig = ChameleonConfig.from_dict({**raw, "vocabulary_map": {}})
    return made


def code_of(name: str) -> int:
    """The code that a token's name says; ValueError for other names."""
    return int(
        "".join(str(ord(letter) - ord("A")) for letter in name.removeprefix("IMGIMG").removesuffix("Z"))
    )


def codes(raw: Raw, engine: Tokenizer) -> list[int]:
    """Ids of codes 0, 1, …, by the names of the tokenizer.

    Raises:
        ModelError: they are not of codes without a gap (`bad_checkpoint`).
    """
    named = [
        each for each in engine.get_vocab().items() if each[0].startswith("IMGIMG") and each[0].endswith("Z")
    ]
    try:
        by_code = {code_of(name): id for name, id in named}
    except ValueError:
        by_code = {}
    if not by_code or sorted(by_code) != list(range(len(named))):
        raise ModelError(
            f"the tokenizer names {len(named):,} image codes, and not 0, 1, … each once; it is not Chameleon's.",
            code="bad_checkpoint",
        )
    return [by_code[code] for code in range(len(by_code))]


def open_pictures(folder: Path, raw: Raw) -> ImageTokenizer:
    """The image tokenizer of a folder.

    Raises:
        ModelError: its tensors are not there, are mis-shaped, or those that draw are another model's
            (`bad_checkpoint`).
    """
    found, where = _inside(folder), folder
    if CODEBOOK not in found:
        raise ModelError(f"{folder} holds no {INSIDE}{CODEBOOK}; it is cut.", code="bad_checkpoint")
    beside = next((folder / name for name in FIRST_RELEASE if (folder / name).is_file()), None)
    draws = any(name.startswith("decoder.") for name in found)
    if not draws and beside is not None:
        theirs, where, draws = read_weights(beside), beside, True
        if not _same(theirs.get(CODEBOOK), found[CODEBOOK]):
            raise ModelError(
                f"{beside} is the VQGAN of another model: its codebook is not that of {folder}.",
                code="bad_checkpoint",
            )
        found = theirs
    told = raw.get("vq_config") or {}
    size = told.get("resolution", 512) if isinstance(told, Mapping) else 512
    changes = {"resolution": size, "fit": "crop", "resample": "lanczos"}
    source = Source(found, {"resolution": size}, where)
    return open_foreign(source, "taming", changes, ImageTokenizer if draws else Undrawn)[0]


def _inside(folder: Path) -> dict[str, Tensor]:
    """The VQGAN's tensors among a folder's, by taming's names; no other one is read."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                names: Sequence[str] = [name for name in file.keys() if name.startswith(INSIDE)]
                held: dict[str, Any] = {name.removeprefix(INSIDE): file.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path} cannot be read: {error}.", code="bad_checkpoint") from error
        found |= checked(held, path)
    return found


def _same(one: Tensor | None, other: Tensor) -> bool:
    """Whether two codebooks are one, but for the rounding of 16 bits."""
    return one is not None and one.shape == other.shape and torch.allclose(one, other, rtol=2e-2, atol=1e-3)


families("chameleon")(
    Family(
        name="chameleon",
        about="Chameleon-7B and 30B, and Anole-7B, which draws (arXiv:2405.09818, 2407.06135)",
        owns=lambda raw, name: raw.get("model_type") == "chameleon",
        config=config,
        architecture=ChameleonForConditionalGeneration,
        mask=None,
        shift=True,
        specials={
            Vocab.pad: ("<pad>",),
            Vocab.eod: ("<s>",),
            Vocab.eoss: ("</s>",),
            BEGIN: ("<racm3:break>",),
            END: ("<eoss>",),
            TURN: ("<reserved08706>",),
        },
        decoder="cm3",
        chat=Chat((Vocab.eod,), (TURN,)),
        pictures=Pictures(codes, BEGIN, END, open_pictures),
        # chameleon/inference/chameleon.py: guidance by words 3 and by earlier pictures 1.2, and both kinds drawn alike.
        defaults={
            "prompt_style": "plain",
            "text": {"text": {"temperature": 0.7, "top_p": 0.9}, "repetition_penalty": 1.2, "batch_size": 1},
            "image": {"image": {"temperature": 0.7, "top_p": 0.9}, "guidance": 3.0, "guidance_image": 1.2,
                      "batch_size": 1},
        },
    )
)  # fmt: skip
