"""The process that runs the units of `gpu.py`: one request a line in, one answer a line out."""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from gpu import MARK


def clean(value: Any) -> Any:
    """Numbers that JSON knows."""
    if isinstance(value, dict):
        return {str(name): clean(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [clean(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if isinstance(value, int | str | bool | None) else str(value)


def machine(where: Any) -> dict[str, Any]:
    """What everything runs on."""
    import accelerate
    import torch
    import transformers

    name = torch.cuda.get_device_name(where.device) if where.cuda else "CPU"
    return {
        "device": name, "torch": torch.__version__, "transformers": transformers.__version__,
        "accelerate": accelerate.__version__, "python": sys.version.split()[0], "processors": os.cpu_count(),
    }  # fmt: skip


def answer(where: Any, function: str, options: dict[str, Any]) -> dict[str, Any]:
    """The result of a unit, or why there is none; `broken` where the device may not be used any more."""
    if not (where.cuda or where.tiny):
        return {"skipped": "there is no GPU here; --tiny tries the script out on a CPU"}
    module, _, name = function.partition(":")
    try:
        where.fresh()
        return {"found": clean(getattr(importlib.import_module(module), name)(where, **options))}
    except Exception as error:  # noqa: BLE001  # whatever a setting does, the others go on
        # Compilers print all that they were given.
        lines = [line[:300] for text in traceback.format_exception(error) for line in text.splitlines()]
        print("\n".join(lines), file=sys.stderr, flush=True)
        return {"failed": lines[-24:], "broken": "CUDA" in repr(error) and "out of memory" not in repr(error)}


def main() -> None:
    """Answer until nobody asks."""
    # What libraries print must not mix with answers.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(told: dict[str, Any]) -> None:
        out.write(MARK + json.dumps(told) + "\n")
        out.flush()

    start = time.perf_counter()
    from gpu_common import context

    where = context("--tiny" in sys.argv, Path(sys.argv[1]))
    say({"machine": {**machine(where), "seconds to start": round(time.perf_counter() - start, 1)}})
    for text in sys.stdin:
        function, options = json.loads(text)
        say(answer(where, function, options))


if __name__ == "__main__":
    main()
