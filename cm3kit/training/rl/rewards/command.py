"""A command of the user's: samples as JSON lines in, rewards as JSON lines out.

A line has `prompt`, `texts`, `answers`, `ended`, `tokens`, `html`, `meta`, `group`, and with `pictures` the `image` as
a PNG in base64. The command answers a line each, in order: a number, null, or an object with `reward`. It is started
for each batch, without a shell, and ended with all that it has started when its time is up; samples that it has not
answered by then are left out, and counted.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, ClassVar

from PIL import Image
from pydantic import Field, field_validator

from cm3kit.training.rl.rewards import RewardContext, RewardSettings, Sample, reward
from cm3kit_tokenizers.errors import DataError


class CommandSettings(RewardSettings):
    """`timeout` is in seconds, for a whole batch."""

    command: str = Field(min_length=1)
    timeout: float = Field(60.0, gt=0)
    pictures: bool = False

    @field_validator("command")
    @classmethod
    def _splits(cls, given: str) -> str:
        if not shlex.split(given):
            raise ValueError("it names no program")
        return given


@reward("command")
class Command:
    """What a command says."""

    Settings: ClassVar[type[RewardSettings]] = CommandSettings

    def __init__(self, settings: Any, context: RewardContext) -> None:
        self._settings = settings

    def __call__(self, samples: Sequence[Sample], prompts: Sequence[str]) -> list[float | None]:
        """See `Reward`.

        Raises:
            DataError: the command cannot be started, fails, or answers what is no reward (`bad_data`).
        """
        lines = "".join(json.dumps(self._line(each)) + "\n" for each in samples).encode()
        answered, late = self._run(lines)
        values = [self._value(line, number) for number, line in enumerate(answered[: len(samples)])]
        missing = len(samples) - len(values)
        if missing and not late:
            raise DataError(
                f"the reward command answered {len(values)} of {len(samples)} samples; it has to print one"
                " line for each.",
                code="bad_data",
            )
        if missing:
            print(
                f"the reward command took more than {self._settings.timeout:g} s; {missing} of {len(samples)} samples"
                " are left out",
                file=sys.stderr,
                flush=True,
            )
        return [*values, *[None] * missing]

    def _run(self, lines: bytes) -> tuple[list[bytes], bool]:
        """Complete lines of its output, and whether it was timed out."""
        settings, late = self._settings, False
        try:
            process = subprocess.Popen(
                shlex.split(settings.command), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        except OSError as error:
            raise DataError(
                f"the reward command {settings.command!r} cannot be started: {error.strerror}.",
                code="bad_data",
            ) from error
        try:
            out, err = process.communicate(lines, timeout=settings.timeout)
        except subprocess.TimeoutExpired as error:
            late = True
            _end(process)
            out, err = error.stdout or b"", b""
            rest, _ = process.communicate()
            out = rest if rest.startswith(out) else out + rest
        except BaseException:
            _end(process)
            process.communicate()
            raise
        if process.returncode and not late:
            told = err.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no message"]
            raise DataError(
                f"the reward command ended with status {process.returncode}: {told[0][:200]}.",
                code="bad_data",
            )
        # A last line without its end may be half of a number.
        return out.split(b"\n")[:-1] if late else out.splitlines(), late

    def _line(self, sample: Sample) -> dict[str, Any]:
        line = {
            "prompt": sample.prompt, "texts": sample.texts, "answers": sample.answers, "ended": sample.ended,
            "tokens": sample.tokens, "html": sample.html, "meta": dict(sample.meta), "group": sample.group,
        }  # fmt: skip
        return line | ({"image": _png(sample.image)} if self._settings.pictures else {})

    def _value(self, line: bytes, number: int) -> float | None:
        try:
            found = json.loads(line)
            found = found["reward"] if isinstance(found, dict) else found
        except (ValueError, KeyError, RecursionError):
            found = "?"
        fits = isinstance(found, int | float) and not isinstance(found, bool) and math.isfinite(found)
        if found is not None and not fits:
            raise DataError(
                f"the reward command's line {number + 1} is {line[:60]!r}; it has to be a number, null, or an object"
                ' with "reward".',
                code="bad_data",
            )
        return None if found is None else float(found)


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)


def _png(image: Image.Image | None) -> str | None:
    if image is None:
        return None
    out = io.BytesIO()
    image.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode("ascii")
