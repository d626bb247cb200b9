"""Public models in and out. Importing it registers the families that it knows, one a file."""

from __future__ import annotations

from cm3kit.interop import chameleon, diffucoder, dream, llada

__all__ = ["chameleon", "diffucoder", "dream", "llada"]
