"""Prepare a folder of pages with datatrove: python samples/prepare_datatrove.py samples/pages outputs/prepared"""

from __future__ import annotations

import sys

from datatrove.executor import LocalPipelineExecutor

from cm3kit.web.datatrove import PrepareParts
from cm3kit.web.sources import SourceOptions


def main(place: str, output: str, tasks: int = 2) -> None:
    """Two tasks on this machine; SlurmPipelineExecutor takes the same pipeline."""
    block = PrepareParts(place, output, options=SourceOptions(pages=10))
    LocalPipelineExecutor([block], tasks=tasks, workers=1, logging_dir=f"{output}-logs").run()
    print(output)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
