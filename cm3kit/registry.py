"""Names for the parts that can be exchanged, and the one way to add more: a decorator in one file."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.registry import Registry as Registry

# Registries of parts that need no torch do not wait for it.
if TYPE_CHECKING:
    from torch import Generator

    from cm3kit.types import Objective, Span

SpanLaw = Callable[[int, int, "Generator"], "tuple[Span, ...] | None"]
"""`law(n, size, rng)`: at most n disjoint spans of 0..size, none empty, in order; None if it found none."""


objective: Registry[Callable[..., Objective]] = Registry("objective")
span_law: Registry[SpanLaw] = Registry("span law")


def load_plugin(path: Path) -> None:
    """Run one Python file that registers something; ConfigError if there is no such file.

    The file runs with all rights of the caller: load only what you trust.
    """
    spec = importlib.util.spec_from_file_location(f"cm3kit_plugin_{path.stem}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"{path} is not a Python file; a plug-in is one .py file.", code="no_file")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their own module up by name while they are made.
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[spec.name]
        raise


def load_installed_plugins() -> None:
    """Import every module that an installed package names in the `cm3kit` entry-point group."""
    for entry in sorted(entry_points(group="cm3kit"), key=lambda each: each.name):
        entry.load()
