"""Names for the parts that can be exchanged, and the one way to add more: a decorator in one file (`plugins`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from cm3kit_tokenizers.registry import Registry as Registry

# Registries of parts that need no torch do not wait for it.
if TYPE_CHECKING:
    from torch import Generator

    from cm3kit.types import Span

SpanLaw = Callable[[int, int, "Generator"], "tuple[Span, ...] | None"]
"""`law(n, size, rng)`: at most n disjoint spans of 0..size, none empty, in order; None if it found none."""


objective: Registry[Any] = Registry("objective")
span_law: Registry[SpanLaw] = Registry("span law")
