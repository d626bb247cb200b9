"""Registries of exchangeable parts by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Generic, TypeVar

from cm3kit_tokenizers.errors import ConfigError

T = TypeVar("T")
Item = TypeVar("Item")


class Registry(Generic[T]):
    """A dictionary whose error for an unknown name suggests the nearest one.

    Args:
        kind: what the names denote, for error messages.
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._items: dict[str, T] = {}

    def __call__(self, name: str) -> Callable[[Item], Item]:
        """Register the decorated object under `name`; ConfigError if the name is taken."""

        def add(item: Item) -> Item:
            if name in self._items:
                raise ConfigError(
                    f"{self.kind} {name!r} is already registered; choose another name.", code="bad_config"
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
