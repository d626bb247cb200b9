"""What all tests start from."""

from __future__ import annotations

import re
import signal

import pytest

# A shell that runs something in the background has it ignore Ctrl-C, and so does everything that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Reasons for which a test may be skipped: what is not installed, not shipped with these sources, or not this machine's.
ALLOWED = re.compile(
    r"the extra [\w` -]+ is not installed|could not import '[\w.]+'|Chromium is not installed"
    r"|(ray|pyarrow|xformers|hatchling|taming-transformers) is not installed.*|this taming-transformers needs einops"
    r"|(no )?checkpoints/pictures.*|this diffusers has none|only Linux tells processes .*|no GPU.*"
    r"|processes with a GPU cannot .*"
)
_others: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note the tests that are skipped for another reason."""
    if report.skipped and not hasattr(report, "wasxfail") and isinstance(report.longrepr, tuple):
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        if not ALLOWED.match(reason):
            _others.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail where a test was skipped for a reason that is not listed."""
    if _others and not hasattr(session.config, "workerinput"):
        print("\nskipped for no listed reason:", *_others, sep="\n  ")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
