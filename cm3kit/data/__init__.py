"""Corpora: builders, documents, encodings and token shards."""

from cm3kit.data.dictionary import build_emoji

__all__ = ["build_emoji"]
