"""Packages that only some sources and formats need."""

from __future__ import annotations

import importlib
from typing import Any

from cm3kit_tokenizers.errors import DataError
from cm3kit_tokenizers.installing import install


def need(module: str, extra: str, what: str) -> Any:
    """Import a module, or say in one sentence (missing_extra) how to get it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.split(".")[0]
        raise DataError(
            f"{what} needs {package}; install it with: {install(extra)}.", code="missing_extra"
        ) from error
