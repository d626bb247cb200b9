"""The script `cm3kit`: its imports can be interrupted as the rest of it can."""

from __future__ import annotations

import sys


def run() -> int:
    """Run one command; see `cm3kit_cli.main.run`."""
    try:
        from cm3kit_cli.main import run as command
    except KeyboardInterrupt:
        print("cm3kit: interrupted", file=sys.stderr)
        return 130
    return command()
