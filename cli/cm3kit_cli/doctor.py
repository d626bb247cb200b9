"""`cm3kit doctor`: check the installation."""

from __future__ import annotations

from cm3kit_cli import options
from cm3kit_cli.render import Reply

MARKS = {"ok": "ok      ", "note": "note    ", "problem": "problem "}


def doctor(as_json: options.Json = False, verbose: options.Verbose = False) -> Reply:
    """Check the installation: versions, a broken torchvision, optional packages. Status 1 if there is a problem."""
    from cm3kit.doctor import as_data, examine

    findings = examine()
    lines = []
    for each in findings:
        lines.append(f"{MARKS[each.state]}{each.name}: {each.detail}")
        if each.advice:
            lines.append(f"        {each.advice}")
    data = as_data(findings)
    return Reply(data, tuple(lines), status=min(1, data["problems"]))
