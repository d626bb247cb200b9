"""Conversion of public image tokenizers to folders of cm3kit: safetensors and JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cm3kit.config import read_yaml
from cm3kit.publish import publishing
from cm3kit.targets import refuse_existing
from cm3kit_tokenizers.vq.families import open_foreign, read_source


def convert(
    source: Path,
    output: Path,
    *,
    settings: Path | None = None,
    family: str | None = None,
    half: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Convert an image tokenizer of any known family to a folder for `train` and `model assemble`.

    Args:
        source: file or folder of the weights; what it holds is never executed.
        settings: YAML that came with the weights; unless given, the one beside them if there is one alone.
        family: a name of the registry of families; unless given, detected from the tensors.
        half: write half-precision weights.
        changes: fields of `ImageTokenizerConfig` to set, such as `resolution`.

    Returns:
        Folder, family, quantizer, codes, grid, parameters, and `notes` on assumptions.

    Raises:
        ModelError: the file is not there, refused, or does not fit.
        OutputError: `output` exists already.
    """
    refuse_existing(output)
    yaml = settings or _beside(source)
    hints = read_yaml(yaml) if yaml is not None else None
    tokenizer, notes = open_foreign(read_source(source, hints), family, changes)
    with publishing(output) as folder:
        tokenizer.save(folder, half=half)
    config = tokenizer.config
    return {
        "folder": output,
        "family": config.origin["family"],
        "quantizer": config.quantizer,
        "codes": config.codes,
        "grid": list(config.grid),
        "resolution": config.resolution,
        "pixel_range": config.pixel_range,
        "parameters": sum(math.prod(each.shape) for each in tokenizer.state_dict().values()),
        "settings": yaml,
        "notes": list(notes),
    }


def _beside(source: Path) -> Path | None:
    """The YAML that belongs to a pickle: of the same name, or the only one in its folder."""
    if source.is_dir() or source.suffix not in (".ckpt", ".pt", ".pth"):
        return None
    same = source.with_suffix(".yaml")
    found = sorted(source.parent.glob("*.yaml"))
    return same if same.is_file() else found[0] if len(found) == 1 else None
