"""`python -m cm3kit_cli`."""

from __future__ import annotations

import sys

from cm3kit_cli.start import run

if __name__ == "__main__":
    sys.exit(run())
