"""The log of a run: one JSON object per line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from cm3kit.json_lines import objects
from cm3kit.publish import write_atomic


def add_line(log: Path, step: int, seconds: float, figures: Mapping[str, float]) -> None:
    """Append a step's figures; one that is not finite is written as null."""
    rounded = {name: round(each, 6) if math.isfinite(each) else None for name, each in figures.items()}
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "seconds": round(seconds, 1), **rounded}) + "\n")


def forget_after(log: Path, step: int) -> None:
    """Remove the lines of steps after the checkpoint from the log, as these steps will be repeated."""
    if not log.is_file():
        return
    lines = log.read_bytes().splitlines(keepends=True)
    kept = [line for line in lines if _step_of(line) <= step]
    if len(kept) < len(lines):
        write_atomic(log, b"".join(kept), force=True)


def _step_of(line: bytes) -> float:
    """The step of a log line; a line cut short by a crash counts as coming last."""
    step = next((figures.get("step") for figures in objects([line])), None)
    return step if isinstance(step, int) else math.inf
