"""Who opens models that are no folder of ours: public families, as they were downloaded."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from cm3kit.models.families import BUILT_IN
from cm3kit.registry import Registry

if TYPE_CHECKING:
    from cm3kit.fill.folder import Parts


class Opener(Protocol):
    """Opens one kind of model."""

    def owns(self, wanted: str) -> bool:
        """Whether a name or path is of such a model; ModelError if it nearly is, with what it lacks."""

    def open(self, source: Path) -> Parts:
        """Its parts; ModelError (`bad_checkpoint`) if they cannot be used."""


openers: Registry[Opener] = Registry("kind of model")


def opener_of(wanted: str) -> Opener | None:
    """Who opens the model of a name or path; None if nobody does."""
    import_module(BUILT_IN)
    return next((openers[name] for name in openers if openers[name].owns(wanted)), None)
