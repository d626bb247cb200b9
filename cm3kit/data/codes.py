"""Shards of codes: the cached output of an image tokenizer for a folder of pictures.

A folder of codes belongs to one tokenizer, recorded in its name and in every file. A shard is one safetensors file,
written atomically: `codes` (pictures, codes per picture) in uint16 or uint32, and in its header the name and SHA-256
of each picture. If a picture is in several shards, the last one counts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from cm3kit.publish import write_atomic
from cm3kit_tokenizers.errors import DataError

FORMAT = "cm3kit-codes-1"
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class Shard:
    """Codes of some pictures.

    Args:
        codes_BN: uint16, or uint32 where there are more than 65,536 codes; row by row.
        names: the pictures' paths in their folder, with `/`.
        hashes: SHA-256 of each picture's file.
        tokenizer: hash of the tokenizer (`ImageTokenizer.sha256`).
        precision: number format of the computation, on which codes depend slightly.
        grid: rows and columns.
        size: number of codes of the tokenizer.
    """

    codes_BN: Array
    names: tuple[str, ...]
    hashes: tuple[str, ...]
    tokenizer: str
    precision: str
    grid: tuple[int, int]
    size: int


def dtype_of(size: int) -> type[np.unsignedinteger[Any]]:
    """The smallest type that holds codes below `size`."""
    return np.uint16 if size <= 2**16 else np.uint32


def write_shard(folder: Path, shard: Shard) -> Path:
    """Add a shard to a folder; OutputError as `write_atomic`."""
    numbers = [int(path.stem.removeprefix("shard-")) for path in _paths(folder)]
    path = folder / f"shard-{max(numbers, default=-1) + 1:05d}.safetensors"
    header = {
        "format": FORMAT,
        "tokenizer": shard.tokenizer,
        "precision": shard.precision,
        "grid": json.dumps(shard.grid),
        "size": str(shard.size),
        "pictures": json.dumps(list(zip(shard.names, shard.hashes, strict=True))),
    }
    write_atomic(path, save({"codes": shard.codes_BN}, header))
    return path


def read_shards(source: Path) -> list[Shard]:
    """The shards of a folder (or of a folder of such folders with one inside), or one shard, oldest first.

    Raises:
        DataError: there are none, one is damaged, or a name leaves the folder (`bad_data`).
    """
    paths = [source] if source.is_file() else _paths(source)
    if not paths and source.is_dir():
        inner = [each for each in sorted(source.iterdir()) if each.is_dir() and _paths(each)]
        if len(inner) > 1:
            listed = ", ".join(each.name for each in inner)
            raise DataError(
                f"{source} holds codes of several tokenizers: {listed}; give one.", code="bad_data"
            )
        paths = _paths(inner[0]) if inner else []
    if not paths:
        raise DataError(f"{source} holds no codes; create them with: cm3kit tokenize image.", code="bad_data")
    return [_read(path) for path in paths]


def merged(shards: Sequence[Shard]) -> dict[str, tuple[str, Array]]:
    """Hash and codes of each picture by name."""
    return {
        name: (digest, codes_N)
        for shard in shards
        for name, digest, codes_N in zip(shard.names, shard.hashes, shard.codes_BN, strict=True)
    }


def _paths(folder: Path) -> list[Path]:
    found = folder.glob("shard-*.safetensors") if folder.is_dir() else ()
    return sorted(path for path in found if path.stem.removeprefix("shard-").isdecimal())


def _read(path: Path) -> Shard:
    try:
        with safe_open(path, "np") as file:
            header, codes_BN = file.metadata() or {}, file.get_tensor("codes")
        if header["format"] != FORMAT:
            raise ValueError(f"its format is {header['format']!r}")
        pictures = [(str(name), str(digest)) for name, digest in json.loads(header["pictures"])]
        rows, columns = (int(each) for each in json.loads(header["grid"]))
        size = int(header["size"])
        if codes_BN.shape != (len(pictures), rows * columns) or codes_BN.dtype != dtype_of(size):
            raise ValueError("the type or shape of its codes is wrong")
        if codes_BN.size and int(codes_BN.max()) >= size:
            raise ValueError(f"it holds a code that is not below {size}")
        outside = [name for name, _ in pictures if not _inside(name)]
        if outside:
            raise ValueError(f"the name {outside[0][:60]!r} leaves its folder")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        line = " ".join(str(error).split())[:200]
        raise DataError(f"{path} is not a shard of codes: {line}.", code="bad_data") from error
    names, hashes = tuple(name for name, _ in pictures), tuple(digest for _, digest in pictures)
    return Shard(codes_BN, names, hashes, header["tokenizer"], header["precision"], (rows, columns), size)


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name
