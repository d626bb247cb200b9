"""Sample rows from Python, and look at what came out: python samples/sample_rows.py samples/rows.jsonl outputs/rows"""

from __future__ import annotations

import sys
from pathlib import Path

from cm3kit.batch.job import SampleJob
from cm3kit.batch.manage import contents
from cm3kit.batch.run import run


def main(rows: Path, folder: Path) -> int:
    """Make what is missing; 3 if something still is."""
    job = SampleJob(rows, folder, model="pictures", seed=1, best_of=2, score="ends")
    found = run(job, watch=lambda done, total, note: print(f"{done}/{total} {note}", file=sys.stderr))
    for _, line, content in contents(folder):
        print(line["id"], line["task"], line.get("text", ""), line["path"], len(content or b""))
    print(f"{found['done']} of {found['outputs']}")
    return 3 if found["failed"] or found["missing"] else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
