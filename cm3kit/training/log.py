"""The log of a run: one JSON object a line."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from cm3kit.json_lines import lines_of
from cm3kit.publish import write_atomic


def add_line(log: Path, step: int, seconds: float, figures: Mapping[str, float]) -> None:
    """Append a step's figures; one that is not finite is written as null."""
    rounded = {name: round(each, 6) if math.isfinite(each) else None for name, each in figures.items()}
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step, "seconds": round(seconds, 1), **rounded}) + "\n")


def forget_after(log: Path, step: int) -> None:
    """Cut lines off the log that tell of steps after the checkpoint, as they are about to be repeated."""
    if not log.is_file():
        return
    lines = lines_of(log.read_text(encoding="utf-8"))
    kept = [line for line in lines if _step_of(line) <= step]
    if len(kept) < len(lines):
        write_atomic(log, "".join(f"{line}\n" for line in kept).encode(), force=True)


def _step_of(line: str) -> float:
    """The step of a log line; a line cut short by a crash counts as coming last."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf
