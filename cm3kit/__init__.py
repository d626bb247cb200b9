"""Web pages whose pictures are tokens: generate them, and fill the gaps in them.

kit = cm3kit.load("pictures")
kit.generate("red apple", n=4)[0].image.save("apple.png")
kit.infill(cm3kit.Page.parse(b'<p>A <mask> on the table.</p>'))[0].html
"""

from __future__ import annotations

import importlib as _importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cm3kit.decode_options import GenerateOptions
    from cm3kit.fill.kit import Filled, Kit, Order, Result, available, load
    from cm3kit_tokenizers import Cm3kitError, Page

    __version__: str

__all__ = ["Cm3kitError", "Filled", "GenerateOptions", "Kit", "Order", "Page", "Result", "available", "load"]

_HOMES = {
    "Cm3kitError": "cm3kit_tokenizers", "Page": "cm3kit_tokenizers", "GenerateOptions": "cm3kit.decode_options",
}  # fmt: skip


def __getattr__(name: str) -> object:
    """Import public names when they are first used: torch takes seconds."""
    if name == "__version__":
        return _version()
    if name not in __all__:
        raise AttributeError(f"module 'cm3kit' has no attribute {name!r}")
    found: object = getattr(_importlib.import_module(_HOMES.get(name, "cm3kit.fill.kit")), name)
    return found


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("cm3kit")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "0+unknown"
