"""Documents and the codes of their pictures in one small folder, for training without the pages.

A bundle holds ids of two bytes, in which a picture is one number, and the codes of all encodings of each picture.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from cm3kit.data.corpus import Documents, listing, load_documents
from cm3kit.data.encodings import Encodings, Watch
from cm3kit.data.views import ViewSettings
from cm3kit.publish import publishing, write_atomic
from cm3kit.targets import refuse_existing
from cm3kit_tokenizers.errors import ConfigError, DataError
from cm3kit_tokenizers.sequence import PageTokenizer
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import Vocab
from cm3kit_tokenizers.vq.model import ImageTokenizer

INDEX = "bundle.json"
PICTURE = 0xFFFF  # placeholder of a picture among ids; its number is stored separately
PART = 15_000_000  # bytes per file of codes
HELD = 256


def bundle(
    folder: Path, text: TextTokenizer, image: ImageTokenizer, output: Path, views: int, cache: Path,
    watch: Watch = lambda done, total: None,
) -> dict[str, Any]:  # fmt: skip
    """Encode a corpus and write its bundle, with up to 256 held-out pages; returns its figures.

    Raises:
        OutputError: `output` exists. Others as `save_bundle` and `load_documents`.
    """
    refuse_existing(output, "remove it or choose another folder")
    tokenizer = PageTokenizer(text, Vocab(text.size, image.size))
    documents = load_documents(folder, tokenizer, image, cache, views=ViewSettings(count=views), watch=watch)
    rest = [each.path for each in listing(folder) if each.split == "rest"][:HELD]
    held = load_documents(folder, tokenizer, image, cache, "rest", set(rest)).ids if rest else ()
    save_bundle(documents, list(held), tokenizer, image, output)
    return {
        "documents": len(documents.ids),
        "held out": len(held),
        "ids per document": round(documents.mean_length, 1),
    }


def save_bundle(
    documents: Documents,
    held: Sequence[list[int]],
    tokenizer: PageTokenizer,
    image: ImageTokenizer,
    folder: Path,
) -> None:
    """Write a bundle of documents with their encodings, and held-out documents as plain ids.

    Raises:
        ConfigError: ids need more than two bytes, or the documents have no encodings of their own (`bad_value`).
        OutputError: the folder exists.
    """
    found = documents.encodings
    if found is None or len(tokenizer.vocab) >= PICTURE:
        raise ConfigError("a bundle needs documents with views, and fewer than 65,535 ids.", code="bad_value")
    flat = [part for each in documents.ids for part in each]
    held_flat = [id for each in held for id in each]
    tensors = {
        "ids": torch.tensor([PICTURE if part < 0 else part for part in flat], dtype=torch.uint16),
        "pictures": torch.tensor([-1 - part for part in flat if part < 0], dtype=torch.int32),
        "sizes": torch.tensor([len(each) for each in documents.ids], dtype=torch.int32),
        "weights": documents.weights_B.float(),
        "held": torch.tensor(held_flat, dtype=torch.uint16),
        "held_sizes": torch.tensor([len(each) for each in held], dtype=torch.int32),
        "counts": found.counts_P.to(torch.uint8),
    }
    codes_NL = found.codes_NL.to(torch.uint16)
    rows = max(1, PART // (2 * codes_NL.shape[1]))
    parts = list(torch.split(codes_NL, rows))
    index = {
        "text_sha256": tokenizer.text.sha256, "image_sha256": image.sha256, "documents": len(documents.ids),
        "pictures": len(found.counts_P), "encodings": len(codes_NL), "codes": len(parts),
        "views": documents.views.model_dump(mode="json"), "fingerprint": documents.fingerprint(),
    }  # fmt: skip
    with publishing(folder) as new:
        write_atomic(new / "documents.safetensors", save(tensors))
        for number, part in enumerate(parts):
            write_atomic(new / f"codes-{number:03}.safetensors", save({"codes": part.contiguous()}))
        write_atomic(new / INDEX, json.dumps(index, indent=1).encode())


def load_bundle(
    folder: Path, tokenizer: PageTokenizer, image: ImageTokenizer
) -> tuple[Documents, list[list[int]]]:
    """Load the documents of a bundle, and its held-out documents.

    Raises:
        ConfigError: it was made by other tokenizers (`bad_config`).
        DataError: it is incomplete or damaged (`bad_data`).
    """
    try:
        index: dict[str, Any] = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        tensors = load_file(folder / "documents.safetensors")
        parts = [
            load_file(folder / f"codes-{number:03}.safetensors")["codes"] for number in range(index["codes"])
        ]
    except (OSError, RecursionError, ValueError, KeyError) as error:
        raise DataError(f"{folder} is not a complete bundle: {error}.", code="bad_data") from error
    for name, mine in (("text", tokenizer.text.sha256), ("image", image.sha256)):
        if index[f"{name}_sha256"] != mine:
            raise ConfigError(
                f"{folder} was made with another {name} tokenizer than the recipe's.", code="bad_config"
            )
    counts_P = tensors["counts"].long()
    views = ViewSettings.model_validate(index["views"])
    found = Encodings(torch.cat(parts), counts_P.cumsum(0) - counts_P, counts_P)
    encodings = found.as_ids(found.codes_NL, tokenizer.vocab.image.start, image, views)
    ids = Flat.of(tensors["ids"], tensors["sizes"], tensors["pictures"])
    held = list(Flat.of(tensors["held"], tensors["held_sizes"], tensors["pictures"][:0]))
    return Documents(ids, tensors["weights"], (), encodings, views, index["fingerprint"]), held


def open_documents(
    folder: Path, tokenizer: PageTokenizer, image: ImageTokenizer, cache: Path, views: ViewSettings
) -> tuple[Documents, list[list[int]]]:
    """The documents of a bundle or of a folder of pages, and the held-out documents of a bundle."""
    if (folder / INDEX).is_file():
        return load_bundle(folder, tokenizer, image)
    return load_documents(folder, tokenizer, image, cache, views=views), []


@dataclass(frozen=True)
class Flat(Sequence[list[int]]):
    """Documents in one tensor, converted to lists on access, so that processes share them without copies."""

    ids_N: Tensor
    ends_B: Tensor

    @classmethod
    def of(cls, ids_N: Tensor, sizes_B: Tensor, pictures: Tensor) -> Flat:
        """From ids in which each `PICTURE` is replaced by the next of `pictures`, and the sizes of documents."""
        wide_N = ids_N.to(torch.int32)
        wide_N[wide_N == PICTURE] = -1 - pictures
        return cls(wide_N, sizes_B.long().cumsum(0))

    def __len__(self) -> int:
        return len(self.ends_B)

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[list[int]]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        start = int(self.ends_B[index - 1]) if index else 0
        return self.ids_N[start : int(self.ends_B[index])].tolist()
