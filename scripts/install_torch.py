"""Install torch into this interpreter; on a machine without an NVIDIA GPU, without CUDA packages.

On Linux the wheels of PyPI bring CUDA along, so PyTorch's own CPU index comes first there. Where it
cannot be reached, the default index is used if, and only if, what it offers needs no CUDA.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import shutil
import subprocess
import sys
from typing import Any

TORCH = "torch==2.13.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
PROBE = f"import urllib.request as u; u.urlopen('{CPU_INDEX}/torch/', timeout=5).read(1)"
CUDA_NAMES = ("nvidia-", "nvidia_", "cuda-", "cuda_", "triton")


def pip(*args: str, quiet: bool = False) -> int:
    """Run pip in this interpreter and return its exit status."""
    output = subprocess.DEVNULL if quiet else None
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *args]
    return subprocess.run(command, stdout=output, stderr=output).returncode


def reachable() -> bool:
    """Whether the CPU index answers within a few seconds (in a child, as name look-up has no time limit)."""
    try:
        child = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, timeout=8)
    except subprocess.TimeoutExpired:
        return False
    return child.returncode == 0


def planned() -> list[dict[str, Any]] | None:
    """What the default index would install, as pip's report lists it; None where pip finds no answer."""
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
    child = subprocess.run([*command, "--report", "-", TORCH], capture_output=True, text=True)
    start = child.stdout.find("{")
    if child.returncode or start < 0:
        return None
    install: list[dict[str, Any]] = json.loads(child.stdout[start:])["install"]
    return install


def needs_cuda(install: list[dict[str, Any]]) -> bool:
    """Whether a planned installation holds a CUDA package."""
    return any(item["metadata"]["name"].lower().startswith(CUDA_NAMES) for item in install)


def main() -> int:
    """Install torch if it is missing and return an exit status."""
    if importlib.util.find_spec("torch"):
        return 0
    if shutil.which("nvidia-smi") or platform.system() != "Linux":
        return pip(TORCH)
    if reachable() and pip("--retries", "0", "--no-deps", "--index-url", CPU_INDEX, TORCH) == 0:
        return 0
    install = planned()
    if install is not None and not needs_cuda(install):
        return pip(TORCH)
    print(
        f"{TORCH} without CUDA was not found: {CPU_INDEX} does not answer and the default index offers "
        f"{'none' if install is None else 'only the CUDA build'}. Install a CPU build of torch into "
        f"{sys.prefix} by hand and run make again.",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
