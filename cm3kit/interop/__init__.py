"""Public models in and out. Importing it registers the families that it knows, one a file, and who opens them."""

from __future__ import annotations

from cm3kit.interop import diffucoder, dream, hub, llada, public

__all__ = ["diffucoder", "dream", "hub", "llada", "public"]
