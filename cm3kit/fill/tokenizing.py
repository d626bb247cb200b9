"""Folders of pictures to codes and back, so that it can be stopped and taken up again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cm3kit.data.codes import Shard, dtype_of, merged, read_shards, write_shard
from cm3kit.data.pictures import SUFFIXES
from cm3kit.devices import resolve_device
from cm3kit.fill.finding import find
from cm3kit.images import encode_png
from cm3kit.publish import write_atomic
from cm3kit_tokenizers.errors import Cm3kitError, ConfigError, DataError, ModelError
from cm3kit_tokenizers.pictures import MAX_BYTES, load_picture
from cm3kit_tokenizers.vq.model import FILE, ImageTokenizer, to_picture
from cm3kit_tokenizers.vq.search import encode

Watch = Callable[[int, int], None]
Warn = Callable[[str], None]
# Codes of pictures must be the same ones whoever encodes them, so that a format is fast only where it is asked for.
AUTO = "fp32"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def find_tokenizer(name: str | Path | None, device: str = "auto", precision: str = "auto") -> ImageTokenizer:
    """The image tokenizer of a model, or of a folder that is one, ready to compute.

    Raises:
        ModelError: there is none (`unknown_model`), or it is damaged (`bad_checkpoint`).
        ConfigError: the device is not there.
    """
    folder = Path(name) if name is not None and (Path(name) / FILE).is_file() else find(name) / "image"
    tokenizer = ImageTokenizer.load(folder).to(resolve_device(device))
    precision = AUTO if precision == "auto" else precision
    return tokenizer if precision == "fp32" else tokenizer.lower(PRECISIONS[precision])


def usual_batch(tokenizer: ImageTokenizer) -> int:
    """Pictures at once: on a CPU large pictures go fastest alone, as a batch of them leaves the processor's cache."""
    return max(1, min(32, 2**17 // tokenizer.config.resolution**2))


@dataclass(frozen=True, slots=True)
class Read:
    """One picture at the tokenizer's size."""

    name: str
    digest: str
    pixels_CHW: Tensor


def listed(folder: Path) -> list[str]:
    """Names of the pictures below a folder, sorted; DataError if there are none."""
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder.", code="no_file")
    found = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    if not found:
        raise DataError(f"{folder} holds no pictures ({', '.join(sorted(SUFFIXES))}).", code="bad_data")
    return found


def read(folder: Path, name: str, tokenizer: ImageTokenizer, known: str = "") -> Read | None:
    """A picture, or None if its SHA-256 is `known`; PictureError or OSError if it cannot be read."""
    path = folder / name
    if path.stat().st_size > MAX_BYTES:
        raise DataError(f"{path} is over {MAX_BYTES:,} bytes.", code="bad_picture")
    data = path.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    return None if digest == known else Read(name, digest, tokenizer.pixels([load_picture(data)])[0])


def tokenize(
    folder: Path, model: str | Path | None, output: Path, *, batch: int | None = None, shard: int = 512,
    device: str = "auto", precision: str = "auto", search: int = 0, watch: Watch = lambda done, total: None,
    warn: Warn = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Codes of every picture below a folder, in shards below `output`; those that are there already are kept.

    Args:
        model: a model, or the folder of an image tokenizer.
        output: gets a folder named after the tokenizer's hash, the precision and the search.
        batch: pictures encoded at once, by default `usual_batch`; a shard holds `shard` of them.
        search: rounds of search for codes that are drawn better (`cm3kit_tokenizers.vq.search`).
        warn: hears of each picture that cannot be read, which is left out.

    Returns:
        The folder of the shards, how many pictures were `encoded`, `kept` and `skipped`, and the codes' type.

    Raises:
        DataError: no picture could be read (`bad_data`).
        OutputError: a shard cannot be written. Shards written before it stay.
    """
    if shard < 1 or (batch is not None and batch < 1) or search < 0:
        raise ConfigError("batch and shard are at least 1, and search at least 0.", code="bad_value")
    precision = AUTO if precision == "auto" else precision
    tokenizer, names = find_tokenizer(model, device, precision), listed(folder)
    batch = batch or usual_batch(tokenizer)
    whole = tokenizer if precision == "fp32" else find_tokenizer(model, "cpu")
    whose, searched = whole.sha256, f"-search{search}-{whole.decoder_sha256[:8]}" if search else ""
    target = output / f"{whose[:16]}-{precision}{searched}"
    target.mkdir(parents=True, exist_ok=True)
    old = merged(read_shards(target)) if any(target.glob("shard-*.safetensors")) else {}
    empty = np.zeros((0, tokenizer.grid[0] * tokenizer.grid[1]), dtype_of(tokenizer.size))
    writer = _Writer(target, shard, Shard(empty, (), (), whose, precision, tokenizer.grid, tokenizer.size))
    skipped = kept = 0
    pending: list[Read] = []
    try:
        for done, name in enumerate(names):
            watch(done, len(names))
            try:
                found = read(folder, name, tokenizer, old[name][0] if name in old else "")
            except (Cm3kitError, OSError) as error:
                skipped += 1
                warn(f"left out: {name}: {error}")
                continue
            kept += found is None
            pending += [found] if found is not None else []
            if len(pending) == batch:
                writer.add(pending, _encode(tokenizer, pending, search))
                pending = []
        if pending:
            writer.add(pending, _encode(tokenizer, pending, search))
    finally:  # also when interrupted: what is encoded need not be encoded again
        writer.flush()
    watch(len(names), len(names))
    if skipped == len(names):
        raise DataError(f"{folder}: none of {skipped} pictures could be read.", code="bad_data")
    told = {"encoded": writer.written, "kept": kept, "skipped": skipped, "dtype": str(empty.dtype)}
    about = {"folder": target, "tokenizer": whose, "grid": list(tokenizer.grid), "codes": tokenizer.size}
    return told | about


class _Writer:
    """Gathers codes until a shard is full."""

    def __init__(self, folder: Path, most: int, empty: Shard) -> None:
        self.folder, self.most, self.empty = folder, most, empty
        self.read: list[Read] = []
        self.rows: list[Any] = []
        self.written = 0

    def add(self, read: Sequence[Read], codes_BN: Tensor) -> None:
        self.read += read
        self.rows += list(codes_BN.cpu().numpy().astype(self.empty.codes_BN.dtype))
        while len(self.rows) >= self.most:
            self._write(self.most)

    def flush(self) -> None:
        if self.rows:
            self._write(len(self.rows))

    def _write(self, count: int) -> None:
        read, rows = self.read[:count], self.rows[:count]
        names, hashes = tuple(each.name for each in read), tuple(each.digest for each in read)
        write_shard(self.folder, replace(self.empty, codes_BN=np.stack(rows), names=names, hashes=hashes))
        self.read, self.rows, self.written = self.read[count:], self.rows[count:], self.written + count


def _encode(tokenizer: ImageTokenizer, pictures: Sequence[Read], search: int) -> Tensor:
    pixels_BCHW = torch.stack([each.pixels_CHW for each in pictures])
    return encode(tokenizer, pixels_BCHW.to(tokenizer.codebook_KD.device), search)


def detokenize(
    source: Path, model: str | Path | None, output: Path, *, batch: int | None = None, device: str = "auto",
    force: bool = False, watch: Watch = lambda done, total: None,
) -> dict[str, Any]:  # fmt: skip
    """Pictures of codes, as PNG below `output` under the names that they came from; those there already are kept.

    Raises:
        ModelError: the codes were made by another tokenizer (`bad_checkpoint`).
        DataError: `source` holds no codes, or is damaged (`bad_data`).
    """
    shards, tokenizer = read_shards(source), find_tokenizer(model, device)
    wrong = [each.tokenizer[:16] for each in shards if each.tokenizer != tokenizer.sha256]
    if wrong:
        raise ModelError(
            f"{source} was made by the tokenizer {wrong[0]}, not by {tokenizer.sha256[:16]}; give its --model.",
            code="bad_checkpoint",
        )
    codes, batch = merged(shards), batch or usual_batch(tokenizer)
    paths = {name: output / (name if name.lower().endswith(".png") else f"{name}.png") for name in codes}
    todo = [name for name, path in paths.items() if force or not path.exists()]
    for start in range(0, len(todo), batch):
        watch(start, len(todo))
        names = todo[start : start + batch]
        codes_BN = torch.from_numpy(np.stack([codes[name][1].astype(np.int64) for name in names]))
        for name, pixels_CHW in zip(names, _decode(tokenizer, codes_BN), strict=True):
            paths[name].parent.mkdir(parents=True, exist_ok=True)
            write_atomic(paths[name], encode_png(to_picture(pixels_CHW)), force=force)
    watch(len(todo), len(todo))
    return {"folder": output, "drawn": len(todo), "kept": len(codes) - len(todo)}


def _decode(tokenizer: ImageTokenizer, codes_BN: Tensor) -> Iterator[Tensor]:
    yield from tokenizer.decode(codes_BN.to(tokenizer.codebook_KD.device)).cpu()
