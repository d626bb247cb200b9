"""Load a file or folder of any known family as an `ImageTokenizer`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from cm3kit_tokenizers.errors import ConfigError, ModelError
from cm3kit_tokenizers.vq.families.base import Source, families
from cm3kit_tokenizers.vq.families.flax import read_msgpack
from cm3kit_tokenizers.vq.model import ImageTokenizer, ImageTokenizerConfig
from cm3kit_tokenizers.vq.pickles import read_pickle
from cm3kit_tokenizers.weights import checked, place_exactly, read_tensors

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
WEIGHTS = (
    "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin", "flax_model.msgpack",
)  # fmt: skip
NESTED = ("ema", "state_dict", "model")  # keys of the weights in checkpoints, averaged ones first
PREFIX = "first_stage_model."  # of the tokenizer inside a latent diffusion model


def read_source(path: Path, hints: Mapping[str, Any] | None = None) -> Source:
    """Weights and settings of a file, or of a folder with one; no code in it is executed.

    Args:
        path: .safetensors, .ckpt, .pt, .pth, .bin, .msgpack, or a folder.
        hints: settings; by default a config.json beside the weights.

    Raises:
        ModelError: the file does not exist (`no_file`), or is not a checkpoint (`bad_checkpoint`).
    """
    file = _weights_file(path)
    settings = file.parent / "config.json"
    hashes = {file.name: _sha256(file)}
    if hints is None and settings.is_file():
        hints, hashes[settings.name] = _read_json(settings), _sha256(settings)
    tensors = read_weights(file)
    if any(name.startswith(PREFIX) for name in tensors):
        tensors = {
            name.removeprefix(PREFIX): each for name, each in tensors.items() if name.startswith(PREFIX)
        }
    return Source(tensors, hints or {}, file, hashes)


def read_weights(file: Path) -> dict[str, Tensor]:
    """Named tensors of a file of any supported format, in fp32; ModelError if it is refused or has none."""
    if file.suffix == ".safetensors":
        return read_tensors(file)
    if file.suffix == ".msgpack":
        return checked(read_msgpack(file), file)
    if file.suffix in PICKLES:
        return checked(_state_dict(read_pickle(file), file), file)
    raise ModelError(
        f"{file} is not one of .safetensors, .msgpack, {', '.join(PICKLES)}.", code="bad_checkpoint"
    )


def open_foreign(
    source: Source,
    family: str | None = None,
    changes: Mapping[str, Any] | None = None,
    kind: type[ImageTokenizer] = ImageTokenizer,
) -> tuple[ImageTokenizer, tuple[str, ...]]:
    """The tokenizer of a checkpoint, and the assumptions that were made.

    Args:
        source: weights and settings from `read_source`.
        family: a name of `families`; by default detected from the tensors.
        changes: fields of `ImageTokenizerConfig` that override those of the family.
        kind: what is made, such as `vq.absent.Undrawn` of weights without a decoder.

    Raises:
        ModelError: no family fits, or tensors are missing, unexpected or mis-shaped (`bad_checkpoint`).
        ConfigError: the family or a changed field is invalid.
    """
    name = family or _detect(source)
    cause = _other_family(source, name)
    try:
        mapped = families[name]().convert(source)
    except ModelError as error:
        if cause:
            raise ModelError(
                f"{source.path} is not of the family {name}: {cause}", code="bad_checkpoint"
            ) from error
        raise
    origin = {"family": name, **source.hashes}
    fields = {"fit": "crop", **mapped.settings, "origin": origin, **(changes or {})}
    try:
        config = ImageTokenizerConfig.model_validate(fields)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise ConfigError(
            f"{source.path}: {f'{where}: ' if where else ''}{problem['msg']}.", code="bad_config"
        ) from error
    with torch.random.fork_rng(devices=[]):  # the initial weights are replaced
        tokenizer = kind(config)
    place_exactly(tokenizer.network, mapped.network, source.path, cause=cause or mapped.cause)
    if mapped.quantizer:
        place_exactly(tokenizer.quantizer, mapped.quantizer, source.path, cause=mapped.cause)
    return tokenizer.eval(), mapped.notes


def _detect(source: Source) -> str:
    found = [name for name in families if families[name]().detect(source)]
    if not found:
        some = ", ".join(sorted(source.tensors)[:3]) or "nothing"
        kinds: list[str] = [families[name].title for name in families]
        raise ModelError(
            f"{source.path} is of none of the known families ({'; '.join(kinds)}): it holds {some}, …",
            code="bad_checkpoint",
        )
    # IBQ has taming's names and the more specific test.
    return "ibq" if "ibq" in found else found[0]


def _other_family(source: Source, name: str) -> str:
    """A hint if the checkpoint looks like another family than the given one."""
    found = (
        []
        if families[name]().detect(source)
        else [each for each in families if families[each]().detect(source)]
    )
    return f"it looks like the family {found[0]}; omit --family." if found else ""


def _weights_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise ModelError(f"{path} does not exist.", code="no_file")
    known = [path / name for name in WEIGHTS if (path / name).is_file()]
    others = sorted(each for each in path.iterdir() if each.suffix in (*PICKLES, ".safetensors", ".msgpack"))
    if known or len(others) == 1:
        return (known or others)[0]
    listed = ", ".join(each.name for each in others[:5]) or "none"
    raise ModelError(f"{path} should hold one file of weights; found: {listed}.", code="bad_checkpoint")


def _state_dict(found: Any, path: Path) -> dict[str, Tensor]:
    for key in NESTED:
        inner = found.get(key) if isinstance(found, Mapping) else None
        if isinstance(inner, Mapping) and any(isinstance(each, Tensor) for each in inner.values()):
            found = inner
            break
    tensors = found.items() if isinstance(found, Mapping) else ()
    named = {str(name): each for name, each in tensors if isinstance(each, Tensor)}
    if not named:
        raise ModelError(
            f"{path} holds no weights; expected tensors, or {', '.join(NESTED)}.", code="bad_checkpoint"
        )
    return named


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not usable JSON: {error}.", code="bad_checkpoint") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path} does not hold settings.", code="bad_checkpoint")
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
