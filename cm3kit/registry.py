"""Names for the parts that can be exchanged, and the one way to add more: a decorator in one file."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from cm3kit_tokenizers.errors import ConfigError

# Registries of parts that need no torch do not wait for it.
if TYPE_CHECKING:
    from torch import Generator

    from cm3kit.types import Objective, Span

T = TypeVar("T")
Item = TypeVar("Item")

SpanLaw = Callable[[int, int, "Generator"], "tuple[Span, ...] | None"]
"""`law(n, size, rng)`: at most n disjoint spans of 0..size, none empty, in order; None if it found none."""


class Registry(Generic[T]):
    """A dictionary that explains itself when a name is wrong.

    Args:
        kind: what the names stand for, as a user reads it.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def __call__(self, name: str) -> Callable[[Item], Item]:
        """Register the decorated object under `name`; ConfigError if the name is taken."""

        def add(item: Item) -> Item:
            if name in self._items:
                raise ConfigError(
                    f"{self.kind} {name!r} is registered already; choose another name.", code="bad_config"
                )
            self._items[name] = item  # type: ignore[assignment]
            return item

        return add

    def __getitem__(self, name: str) -> T:
        if name not in self._items:
            near = get_close_matches(name, self._items, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ConfigError(
                f"unknown {self.kind} {name!r}; known: {', '.join(self) or 'none'}.{hint}",
                code="unknown_name",
            )
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._items))

    def __len__(self) -> int:
        return len(self._items)


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
