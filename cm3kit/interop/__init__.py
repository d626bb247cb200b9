"""Public models in and out. Importing it registers the families that it knows, one a file, and who opens them."""

from __future__ import annotations

from cm3kit.interop import chameleon, diffucoder, dream, hub, llada, public

__all__ = ["chameleon", "diffucoder", "dream", "hub", "llada", "public"]
