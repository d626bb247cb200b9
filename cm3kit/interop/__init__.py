"""Public models in and out. Importing it registers the known families, one per file, and their openers."""

from __future__ import annotations

from cm3kit.interop import chameleon, diffucoder, dream, hub, llada, public

__all__ = ["chameleon", "diffucoder", "dream", "hub", "llada", "public"]
