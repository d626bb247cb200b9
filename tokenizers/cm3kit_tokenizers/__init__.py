"""Pages to ids and back, independent of models."""

from __future__ import annotations

from cm3kit_tokenizers.document import Gap, Image, Markup, Node, Picture, Text
from cm3kit_tokenizers.errors import (
    Cm3kitError,
    ConfigError,
    DataError,
    ModelError,
    OutputError,
    PageError,
    PictureError,
)
from cm3kit_tokenizers.page import Page, PageGap
from cm3kit_tokenizers.vocab import Vocab

__all__ = [
    "Cm3kitError",
    "ConfigError",
    "DataError",
    "Gap",
    "Image",
    "Markup",
    "ModelError",
    "Node",
    "OutputError",
    "Page",
    "PageError",
    "PageGap",
    "Picture",
    "PictureError",
    "Text",
    "Vocab",
]
