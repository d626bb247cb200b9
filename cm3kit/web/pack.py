"""Prepared records as token shards: memory-mapped ids, offsets, and the hashes of the tokenizers that made them.

index.json                  format, dtype, id space, hashes, counts, shards
shard-00000.tokens          ids of the concatenated documents, little-endian uint16 or uint32
shard-00000.offsets.npy     start of each document, and the end
shard-00000.held.npy        whether each document is held out of training
shard-00000.keys            one JSON line per document: its key and piece number
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import numpy as np
import torch
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import save

from cm3kit.config import Settings, read_yaml, resolve
from cm3kit.data.prepared import held_out
from cm3kit.objectives.units import cuts
from cm3kit.publish import publishing, write_atomic
from cm3kit.web.parts import Store, part_folders, read_part
from cm3kit.web.record import ADDRESS, read_pieces
from cm3kit_tokenizers.document import Picture
from cm3kit_tokenizers.errors import ConfigError, DataError
from cm3kit_tokenizers.pictures import load_picture
from cm3kit_tokenizers.sequence import Codes, PageTokenizer
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import Vocab
from cm3kit_tokenizers.vq.model import ImageTokenizer

FORMAT = "cm3kit-shards/1"
INDEX = "index.json"
Watch = Callable[[int, int, str], None]


class PackSettings(Settings):
    """How documents become shards.

    Attributes:
        shard_tokens: a shard is closed once it holds this many ids.
        longest: a document with more ids is split into pieces, never inside a picture or character.
        least: a document or piece with fewer ids is dropped.
        held_out: share of the documents, chosen by hash of the content, that is excluded from training.
        picture_copies: times that a piece with a picture is written for training: where few pages have one, a decoder
            would hardly see any.
        batch: pictures encoded at once.
    """

    shard_tokens: int = Field(2**27, ge=1)
    longest: int | None = Field(None, ge=1)
    least: int = Field(2, ge=1)
    held_out: float = Field(0.0, ge=0, lt=1)
    picture_copies: int = Field(1, ge=1)
    batch: int = Field(64, ge=1)


def pack_settings(config: Sequence[Path], overrides: Sequence[str]) -> PackSettings:
    """Settings from YAML files, then from `a=b` overrides."""
    return resolve(PackSettings, map(read_yaml, config), overrides)


def pack_records(
    folder: Path, text: TextTokenizer, image: ImageTokenizer, output: Path,
    settings: PackSettings | None = None, watch: Watch = lambda done, total, note: None,
) -> dict[str, Any]:  # fmt: skip
    """Write the shards of prepared data without duplicate pages, and return the index.

    The codes of each part's pictures are cached in the prepared folder, so that packing again or resuming does not
    encode them again.

    Raises:
        DataError: a part or picture is missing or damaged.
        OutputError: `output` exists.
    """
    settings = settings or PackSettings()
    pages = PageTokenizer(text, Vocab(text.size, image.size))
    parts, seen, duplicates = part_folders(folder), set[str](), 0
    cache = folder / "codes" / image.sha256[:16]
    with publishing(output) as out, closing(_Writer(out, pages, settings)) as writer:
        for done, part in enumerate(parts, 1):
            codes = encode_pictures(part, Store(folder / "pictures"), image, cache, settings.batch)
            for row in read_part(part, ["key", "html", "sha256"]):
                digest = row["sha256"]
                if digest in seen:
                    duplicates += 1
                    continue
                seen.add(digest)
                found = encode_page(row["html"], pages, partial(_codes_of, codes))
                writer.add(row["key"], found, digest)
            watch(done, len(parts), f"{writer.documents} documents, {writer.tokens} tokens")
        writer.end_shard()
        index = writer.index() | {
            "format": FORMAT, "vocab": pages.vocab.to_dict(), "grid": list(image.grid), "duplicates": duplicates,
            "text_sha256": text.sha256, "image_sha256": image.sha256, "settings": settings.model_dump(),
        }  # fmt: skip
        (out / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")
    return index


def encode_page(html: str, pages: PageTokenizer, codes_of: Callable[[Picture], Sequence[int]]) -> list[int]:
    """Ids of a record's `html`, with the codes that `codes_of` has of each picture."""

    def codes(picture: Picture) -> Codes:
        return codes_of(picture), None

    return [each for each in pages.encode(read_pieces(html), codes) if isinstance(each, int)]


def _codes_of(codes: Mapping[str, Sequence[int]], picture: Picture) -> Sequence[int]:
    return codes[picture.src.removeprefix(ADDRESS)]


def encode_pictures(
    part: Path, store: Store, image: ImageTokenizer, cache: Path, batch: int
) -> dict[str, list[int]]:
    """Codes of the pictures of a part by their hash, from `cache` if present."""
    path = cache / f"{part.name}.safetensors"
    if not path.is_file():
        rows = read_part(part, ["pictures"])
        wanted = sorted({(each["sha256"], each["mime"]) for row in rows for each in row["pictures"]})
        found = [
            encode_batch([_read(store.path(*each)) for each in wanted[at : at + batch]], image)
            for at in range(0, len(wanted), batch)
        ]
        codes_BN = torch.cat(found) if found else torch.zeros(0, 1, dtype=torch.int32)
        cache.mkdir(parents=True, exist_ok=True)
        names = {"pictures": json.dumps([sha256 for sha256, _ in wanted])}
        write_atomic(path, save({"codes": codes_BN}, names), force=True)
    with safe_open(path, "pt") as opened:
        names = json.loads(opened.metadata()["pictures"])
        return dict(zip(names, opened.get_tensor("codes").tolist(), strict=True))


def encode_batch(pictures: Sequence[bytes], image: ImageTokenizer) -> torch.Tensor:
    """Codes (B, N), int32, of encoded picture files; PictureError if one cannot be decoded."""
    device = image.codebook_KD.device
    pixels_BCHW = image.pixels([load_picture(each) for each in pictures])
    return image.encode(pixels_BCHW.to(device)).to("cpu", torch.int32)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}; see: cm3kit data validate.", code="bad_data"
        ) from error


def in_pieces(ids: Sequence[int], longest: int | None, pages: PageTokenizer) -> Iterator[Sequence[int]]:
    """A document, or pieces of it of at most `longest` ids, cut between pictures and characters.

    Raises:
        ConfigError: that is shorter than a picture (`bad_value`).
    """
    if longest is None or len(ids) <= longest:
        yield ids
        return
    places = cuts(ids, pages.vocab, pages.text.continues)
    start = 0
    while start < len(ids):
        stop = places[bisect_right(places, start + longest) - 1]
        if stop <= start:
            raise ConfigError(f"longest = {longest} is shorter than a picture; raise it.", code="bad_value")
        yield ids[start:stop]
        start = stop


class _Writer:
    """Appends documents to shards."""

    def __init__(self, out: Path, pages: PageTokenizer, settings: PackSettings) -> None:
        self.out, self.pages, self.settings = out, pages, settings
        self.dtype = np.dtype("<u2" if len(pages.vocab) <= 2**16 else "<u4")
        self.documents = self.tokens = 0
        self.read = self.sliced = self.too_short = self.copies = 0
        self.shards: list[dict[str, Any]] = []
        self._offsets: list[int] = [0]
        self._held: list[bool] = []
        self._files: tuple[BinaryIO, TextIO] | None = None

    def add(self, key: str, ids: Sequence[int], sha256: str) -> None:
        """Append a document or its pieces."""
        held = held_out(sha256, self.settings.held_out)
        self.read += 1
        for number, piece in enumerate(in_pieces(ids, self.settings.longest, self.pages)):
            self.sliced += number == 1
            if len(piece) < self.settings.least:
                self.too_short += 1
                continue
            copies = 1 if held or not self._has_picture(piece) else self.settings.picture_copies
            self.copies += copies - 1
            for _ in range(copies):
                self._write(key, number, piece, held)

    def _has_picture(self, piece: Sequence[int]) -> bool:
        image = self.pages.vocab.image
        return any(id in image for id in piece)

    def _write(self, key: str, number: int, piece: Sequence[int], held: bool) -> None:
        if self._files is None:
            self._files = self._name("tokens").open("wb"), self._name("keys").open("w", encoding="utf-8")
        self._files[0].write(np.asarray(piece, self.dtype).tobytes())
        self._files[1].write(json.dumps([key, number], ensure_ascii=False) + "\n")
        self._offsets.append(self._offsets[-1] + len(piece))
        self._held.append(held)
        self.documents, self.tokens = self.documents + 1, self.tokens + len(piece)
        if self._offsets[-1] >= self.settings.shard_tokens:
            self.end_shard()

    def _name(self, suffix: str) -> Path:
        return self.out / f"shard-{len(self.shards):05}.{suffix}"

    def close(self) -> None:
        """Close the files."""
        for file in self._files or ():
            file.close()
        self._files = None

    def end_shard(self) -> None:
        """Finish the open shard, if any."""
        if self._files is None:
            return
        self.close()
        np.save(self._name("offsets.npy"), np.asarray(self._offsets, "<i8"))
        np.save(self._name("held.npy"), np.asarray(self._held, bool))
        name = self._name("tokens").name.removesuffix(".tokens")
        self.shards.append({"name": name, "documents": len(self._held), "tokens": self._offsets[-1]})
        self._offsets, self._held = [0], []

    def index(self) -> dict[str, Any]:
        """The index of all shards."""
        if not self.shards:
            raise DataError("no document is long enough to pack; lower `least`.", code="bad_data")
        counts = {"documents": self.documents, "tokens": self.tokens, "pages": self.read}
        counts |= {"sliced": self.sliced, "too_short": self.too_short, "picture_copies": self.copies}
        return {**counts, "dtype": self.dtype.name, "shards": self.shards}
