"""Write the locks in `locks/`: every package that an installation takes, its version, and the hashes of its files.

    python scripts/lock.py                # all locks; needs the index
    python scripts/lock.py base dev       # some

Versions are those that pip resolves under constraints.txt. Hashes are those of every file of a release, so that one
lock does for every platform. torch is left out, whose wheels differ by platform: `install_torch.py` sees to it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "locks"
INDEX = "https://pypi.org/simple"
JSON = "application/vnd.pypi.simple.v1+json"
# What is installed for what; builders are in `dev`, as nothing is built in isolation.
SETS = {"base": "", "dev": "[dev]", "docs": "[docs]", "extras": "[all]"}
LEFT_OUT = {"torch", "cm3kit"}
HEAD = "# Written by scripts/lock.py; see there. Use: pip install --require-hashes --no-deps -r FILE\n"


def resolved(extras: str) -> dict[str, str]:
    """Names and versions of all that an installation takes, hatchling included, which builds it."""
    report = subprocess.run(
        [
            sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-",
            "-c", str(ROOT / "constraints.txt"), f"{ROOT}{extras}", "hatchling", "editables", "torch==2.13.0",
        ],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    found = json.loads(report[report.index("{") :])["install"]
    pairs = ((each["metadata"]["name"], each["metadata"]["version"]) for each in found)
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def hashes(name: str, version: str) -> list[str]:
    """SHA-256 of every file of a release."""
    request = urllib.request.Request(f"{INDEX}/{name}/", headers={"Accept": JSON})
    with urllib.request.urlopen(request, timeout=60) as answer:
        files = json.load(answer)["files"]
    stems = {f"{form}-{version}".lower() for form in (name, name.replace("-", "_"), name.replace("-", "."))}
    own = {
        each["hashes"]["sha256"]
        for each in files
        if any(
            each["filename"].lower().startswith((f"{stem}-", f"{stem}.tar", f"{stem}.zip")) for stem in stems
        )
    }
    if not own:
        raise SystemExit(f"the index has no file of {name} {version}; look at {INDEX}/{name}/")
    return sorted(own)


def lock(name: str) -> str:
    """The text of a lock."""
    lines = []
    for package, version in sorted(resolved(SETS[name]).items()):
        if package not in LEFT_OUT and not package.startswith(("nvidia-", "cuda-", "triton")):
            own = " \\\n".join(f"    --hash=sha256:{each}" for each in hashes(package, version))
            lines.append(f"{package}=={version} \\\n{own}\n")
    return HEAD + "".join(lines)


def main() -> None:
    """Write the locks that are asked for, or all."""
    LOCKS.mkdir(exist_ok=True)
    for name in sys.argv[1:] or SETS:
        text = lock(name)
        (LOCKS / f"{name}.txt").write_text(text, encoding="utf-8")
        print(f"locks/{name}.txt: {text.count('==')} packages, {text.count('sha256:')} files")


if __name__ == "__main__":
    main()
