"""The script `cm3kit`: its imports can be interrupted as the rest of it can, and its threads do not wait busily."""

from __future__ import annotations

import os
import sys
from collections.abc import MutableMapping

# How often a thread of libgomp, which torch's Linux wheels come with, looks for work before it sleeps. By itself it
# looks for milliseconds. Where another process has one of its processors, threads then spend their time waiting for
# threads that can't run: `generate` on two cores beside another process took 15 s rather than 4. 10,000 are
# tenths of a millisecond, longer than the time between two operations: nothing is lost where processors are free.
SPINS = 10_000


def share_processors(environment: MutableMapping[str, str]) -> None:
    """Have OpenMP's threads wait for `SPINS` looks only, unless the user says how; torch reads it when loaded."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & environment.keys():
        environment["GOMP_SPINCOUNT"] = str(SPINS)


def run() -> int:
    """Run one command; see `cm3kit_cli.main.run`."""
    share_processors(os.environ)
    try:
        from cm3kit_cli.main import run as command
    except KeyboardInterrupt:
        print("cm3kit: interrupted", file=sys.stderr)
        return 130
    return command()
