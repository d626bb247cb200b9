"""The job of a folder of prepared pages."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cm3kit.web.parts import Store
from cm3kit.web.settings import WebSettings
from cm3kit.web.sources import SourceOptions


@dataclass(frozen=True)
class Job:
    """What is prepared: source, rules and output folder."""

    kind: str
    output: Path
    settings: WebSettings
    options: SourceOptions

    @property
    def store(self) -> Store:
        """The store of the pictures."""
        return Store(self.output / "pictures")

    def part(self, number: int) -> Path:
        """Folder of the part of a piece."""
        return self.output / "parts" / f"{number:06}"
