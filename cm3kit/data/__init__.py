"""Corpora that cm3kit can build."""

from cm3kit.data.dictionary import build_emoji

__all__ = ["build_emoji"]
