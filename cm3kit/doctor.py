"""Is this installation sound? Each check is one function; none of them loads anything heavy into this process."""

from __future__ import annotations

import importlib.util
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import Any, Literal

from cm3kit_tokenizers.installing import install

FLOORS = {"torch": (2, 10), "transformers": (5, 3), "diffusers": (0, 39), "pillow": (12, 2)}
SECONDS = 300.0
EXTRAS = {
    "fontTools": ("data", "building the emoji corpus", install("data")),
    "msgpack": ("flax", "flax checkpoints", install("flax")),
    "starlette": ("serve", "cm3kit serve", install("serve")),
    "peft": ("peft", "adapters on public decoders (lora.rank)", install("peft")),
    "taming": (
        "taming",
        "parity tests",
        "make test-parity, which installs it into an environment of its own",
    ),
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at: what it is, how it stands, and what to do about it."""

    name: str
    state: Literal["ok", "note", "problem"]
    detail: str
    advice: str = ""


def examine(python: str = sys.executable) -> list[Finding]:
    """All checks, in order; `python` is the interpreter whose packages are tried."""
    return [finding for check in CHECKS for finding in check(python)]


def as_data(findings: list[Finding]) -> dict[str, Any]:
    """The findings for programs."""
    return {
        "findings": [asdict(each) for each in findings],
        "problems": sum(each.state == "problem" for each in findings),
    }


def _python(python: str) -> Iterator[Finding]:
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}")


def _versions(python: str) -> Iterator[Finding]:
    for name, floor in FLOORS.items():
        found = _version(name)
        least = ".".join(map(str, floor))
        if found is None:
            yield Finding(name, "problem", "is not installed", "install it with: pip install cm3kit")
        elif _numbers(found) < floor:
            advice = f"install a newer one: pip install '{name}>={least}'"
            yield Finding(
                name, "problem", f"{found} is older than {least}, below which there are known holes", advice
            )
        else:
            yield Finding(name, "ok", found)


def _torchvision(python: str) -> Iterator[Finding]:
    """Nothing here needs torchvision, but transformers and diffusers import it where it is, and fail with it."""
    found = _version("torchvision")
    failure = _import_failure(python, "torchvision")
    if failure is None:
        yield Finding("torchvision", "ok", f"{found or 'of unknown version'}, not needed")
    elif "No module named 'torchvision'" in failure:
        yield Finding("torchvision", "ok", "not installed, and not needed")
    else:
        yield Finding(
            "torchvision",
            "problem",
            f"{found or 'of unknown version'} cannot be imported ({failure}); transformers and diffusers fail with it",
            "it does not fit this torch: pip uninstall torchvision, which cm3kit does not need",
        )


def _network(python: str) -> Iterator[Finding]:
    statement = "from diffusers import VQModel; from transformers import PreTrainedModel"
    failure = _failure(python, statement)
    if failure is None:
        yield Finding("models", "ok", "diffusers and transformers can be imported")
    else:
        yield Finding(
            "models", "problem", failure, "repair what is named above, or install into a new environment"
        )


def _device(python: str) -> Iterator[Finding]:
    code = (
        "import torch; c = torch.cpu.get_capabilities(); cuda = torch.cuda.is_available();"
        " print(torch.cuda.get_device_name(0) if cuda else 'no GPU', '|', torch.get_num_threads(), 'threads |',"
        " 'bf16' if cuda or c.get('avx512_bf16') or c.get('amx_bf16') or c.get('bf16') else 'fp32 is fastest')"
    )
    done = _run(python, code)
    if done.returncode == 0:
        yield Finding("device", "ok", done.stdout.strip().replace(" |", ","))


def _extras(python: str) -> Iterator[Finding]:
    for module, (extra, what, advice) in EXTRAS.items():
        if importlib.util.find_spec(module) is None:
            yield Finding(
                extra,
                "note",
                f"{module} is not installed; it is for {what}",
                advice,
            )
        else:
            yield Finding(extra, "ok", f"{module} is there, for {what}")


def _xformers(python: str) -> Iterator[Finding]:
    """Its kernels are built for one version of PyTorch and of CUDA; on others it can be imported, and no more."""
    if importlib.util.find_spec("xformers") is None:
        yield Finding(
            "xformers",
            "note",
            "xformers is not installed; it is for packing=xformers in training on CUDA",
            install("xformers"),
        )
        return
    code = (
        "import torch; from cm3kit.models.documents import why_no_xformers;"
        " print(why_no_xformers(torch.device('cuda' if torch.cuda.is_available() else 'cpu')) or '')"
    )
    done = _run(python, code)
    reason = done.stdout.strip() if done.returncode == 0 else _last_line(done)
    if reason:
        advice = "attention is PyTorch's instead; python -m xformers.info tells what it was built for"
        yield Finding("xformers", "note", f"xformers is there and cannot be used: {reason}", advice)
    else:
        yield Finding("xformers", "ok", "xformers runs, forward and backward, for packing=xformers")


def _disk(python: str) -> Iterator[Finding]:
    free = shutil.disk_usage(".").free / 2**30
    few = free < 1
    yield Finding(
        "disk", "problem" if few else "ok", f"{free:.1f} GiB free here", "free some space" if few else ""
    )


CHECKS: tuple[Callable[[str], Iterator[Finding]], ...] = (
    _python, _versions, _torchvision, _network, _device, _extras, _xformers, _disk,
)  # fmt: skip


def _import_failure(python: str, module: str) -> str | None:
    return _failure(python, f"import {module}")


def _failure(python: str, statement: str) -> str | None:
    """The last line of the traceback of a statement in a process of its own, or None if it runs."""
    done = _run(python, statement)
    if done.returncode == 0:
        return None
    return _last_line(done)


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return (lines or [f"the interpreter ended with status {done.returncode}"])[-1][:200]


def _run(python: str, code: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess([python], 1, "", str(error))


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers: 2.13.0+cpu is (2, 13, 0)."""
    numbers = []
    for part in version.split("+")[0].split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)
