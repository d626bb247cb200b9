"""Preparing: parts appear whole, once, and a run that was killed goes on."""

from __future__ import annotations

import io
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image as Pillow

from cm3kit.config import resolve
from cm3kit.web.record import html_to_record
from cm3kit.web.settings import WebSettings
from cm3kit.web.sources import SourceOptions
from cm3kit_cli.main import run
from cm3kit_tokenizers.errors import ConfigError, DataError

pytest.importorskip("pyarrow", reason="the extra web is not installed")
from cm3kit.web import report, runner, workers
from cm3kit.web.parts import part_folders, read_part, read_rejects
from cm3kit.web.runner import prepare

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {
    "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli"), str(ROOT / "tokenizers"), *sys.path])
}


def png(width: int = 60, height: int = 40, colour: object = "red") -> bytes:
    buffer = io.BytesIO()
    Pillow.new("RGB", (width, height), colour).save(buffer, "PNG")  # type: ignore[arg-type]
    return buffer.getvalue()


def write(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Forty pages, every tenth of which is bad in a way of its own, with three pictures."""
    root = tmp_path / "site"
    for name in "abc":
        write(root / f"img/{name}.png", png(colour=(ord(name), 0, 0)))
    for number in range(40):
        write(
            root / f"{number:02}.html",
            f"<p>Page {number}<img src='img/{'abc'[number % 3]}.png' alt={number}>",
        )
    for number, data in ((3, b""), (13, b"<div>" * 600), (23, b"<p> </p>"), (33, b"<p>Page 32")):
        write(root / f"{number:02}.html", data)
    write(root / "32.html", b"<p>Page 32")
    return root


def documents(folder: Path) -> list[dict[str, Any]]:
    return [row for part in part_folders(folder) for row in read_part(part)]


def told(folder: Path) -> Counter[str]:
    """Every key that is in the folder, kept or dropped, with how often."""
    keys = Counter(row["key"] for row in documents(folder))
    keys.update(line["key"] for part in part_folders(folder) for line in read_rejects(part))
    return keys


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_every_page_is_kept_or_has_a_reason_and_the_data_are_whole(site: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = prepare(str(site), out, options=SourceOptions(pages=12))
    assert found["missing"] == 0 and found["parts"] == 4
    assert found["pages"] == {
        "in": 40,
        "kept": 36,
        "empty_file": 1,
        "page_too_deep": 1,
        "too_short": 1,
        "duplicate": 1,
    }
    assert found["pictures"] == {"kept": 35} and len(list((out / "pictures").rglob("*.webp"))) == 3
    assert json.loads((out / "audit.json").read_text()) == found
    assert (
        "| 1 | page_too_deep: elements are nested deeper than the limit | `13.html` |"
        in (out / "report.md").read_text()
    )
    assert report.validate(out) == []
    first = documents(out)[0]
    assert first["key"] == "00.html" and first["source"] == "folder" and first["chars"] == 7
    assert report.stats(out)["pictures_stored"] == 3
    assert "of the kind `folder`" in report.card(out)


def test_a_second_run_makes_nothing_again_and_others_are_refused(site: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "out", []
    prepare(str(site), out, options=SourceOptions(pages=20), shard=(1, 2))
    assert [each.name for each in part_folders(out)] == ["000001"] and not (out / "audit.json").exists()
    before = contents(out)
    prepare(str(site), out, options=SourceOptions(pages=20), warn=said.append)
    assert said == ["1 of 2 parts are done already"] and (out / "audit.json").is_file()
    assert {name: contents(out)[name] for name in before} == before
    with pytest.raises(ConfigError, match="started with another settings"):
        prepare(
            str(site), out, options=SourceOptions(pages=20), settings=resolve(WebSettings, [], ["seconds=3"])
        )
    write(site / "99.html", "<p>new")
    with pytest.raises(ConfigError, match="started with another pieces"):
        prepare(str(site), out, options=SourceOptions(pages=20))
    (out / "job.json").write_text("{")
    with pytest.raises(DataError, match=r"job.json cannot be read"):
        prepare(str(site), out, options=SourceOptions(pages=20))


def test_shards_and_processes_give_the_same_files(site: Path, tmp_path: Path) -> None:
    options = SourceOptions(pages=10)
    prepare(str(site), tmp_path / "one", options=options)
    for index in range(3):
        prepare(str(site), tmp_path / "three", options=options, shard=(index, 3))
    prepare(str(site), tmp_path / "processes", options=options, workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "three") == contents(tmp_path / "processes")


def test_a_page_that_hangs_or_kills_its_process_is_given_up_and_named(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(site / "05.html", "<p>hang")
    write(site / "07.html", "<p>die")
    monkeypatch.setattr(workers, "_work", hostile_work)
    rules = resolve(WebSettings, [], ["seconds=1"])
    said: list[str] = []
    found = prepare(
        str(site),
        tmp_path / "out",
        options=SourceOptions(pages=20),
        settings=rules,
        workers=1,
        warn=said.append,
    )
    assert said == ["05.html is dropped: too_slow", "07.html is dropped: crashed"]
    assert found["pages"]["too_slow"] == found["pages"]["crashed"] == 1 and found["pages"]["in"] == 40
    assert set(told(tmp_path / "out").values()) == {1} and report.validate(tmp_path / "out") == []


def test_what_a_page_may_take_is_time_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    start = workers._processor_time(os.getpid())
    sum(range(6_000_000))
    assert start < workers._processor_time(os.getpid()) <= time.process_time() + 0.1
    assert workers._processor_time(-1) == pytest.approx(time.monotonic(), abs=5), "else by the clock"
    process = SimpleNamespace(pid=1)
    for waited, ran, late in ((9, 9, False), (30, 9, False), (30, 11, True), (59, 9, False), (61, 0, True)):
        monkeypatch.setattr(workers, "_processor_time", lambda pid, ran=ran: 100.0 + ran)
        worker = workers._Worker(process, None, runner.run_piece, key="a.html", spent=100.0)  # type: ignore[arg-type]
        worker.since = time.monotonic() - waited
        assert workers._late(worker, 10) == late
        worker.key = ""
        assert not workers._late(worker, 10), "to find a page may take longer"


def hostile_work(pipe: Any, job: Any, run_piece: Any) -> None:
    """A worker whose parser hangs at one page and dies at another."""

    def convert(data: bytes, *given: Any, **named: Any) -> Any:
        if data == b"<p>hang":
            time.sleep(60)
        if data == b"<p>die":
            os.kill(os.getpid(), signal.SIGSEGV)
        return html_to_record(data, *given, **named)

    runner.html_to_record = convert
    from cm3kit.web.workers import _work

    _work(pipe, job, run_piece)


def test_kill_9_at_any_moment_loses_and_doubles_nothing(site: Path, tmp_path: Path) -> None:
    out, rng = tmp_path / "out", random.Random(1)
    script = (
        "import sys; from pathlib import Path; from cm3kit.web.runner import prepare, SourceOptions\n"
        "for i in range(4): prepare(sys.argv[1], Path(sys.argv[2]), options=SourceOptions(pages=5), shard=(i, 4))"
    )
    killed = 0
    for _ in range(3):
        child = subprocess.Popen([sys.executable, "-c", script, str(site), str(out)], env=ENVIRONMENT)
        deadline = time.monotonic() + 60
        while not list(out.glob("parts/*/*")) and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.random() * 0.15)
        child.send_signal(signal.SIGKILL)
        killed += child.wait() == -signal.SIGKILL
        assert set(told(out).values()) <= {1} if list(out.glob("parts/[0-9]*")) else True
    prepare(str(site), out, options=SourceOptions(pages=5))
    prepare(str(site), tmp_path / "calm", options=SourceOptions(pages=5))
    assert killed and contents(out) == contents(tmp_path / "calm") and report.validate(out) == []


def test_damage_is_found(site: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare(str(site), out)
    picture = next((out / "pictures").rglob("*.webp"))
    picture.write_bytes(picture.read_bytes()[:-1] + b"x")
    assert report.validate(out) and all(
        "its content does not match its name" in each for each in report.validate(out)
    )
    picture.unlink()
    assert any("No such file" in each for each in report.validate(out))
    part = part_folders(out)[0] / "rejects.jsonl"
    part.write_text(part.read_text() + "\n")
    assert any("rejects.jsonl has" in each for each in report.validate(out))
    with pytest.raises(DataError, match="holds no prepared parts"):
        report.validate(tmp_path)


def test_a_missing_extra_is_asked_for_in_one_sentence(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs pyarrow; install it with: pip install '.*\[web\]'") as error:
        prepare(str(site), tmp_path / "out")
    assert error.value.code == "missing_extra" and not (tmp_path / "out").exists()


def test_the_commands_do_what_they_say(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    args = ["--set", "pictures.size=16", "--workers", "0", "-q"]
    assert run(["data", "prepare", str(site), "-o", "out", *args]) == 0
    assert capsys.readouterr().out == "out\n"
    for command, shown in (
        ("inspect out", "40 pages in, 36 kept"),
        ("inspect out 13.html", "page_too_deep"), ("inspect out 01.html", "Page 1"),
        ("validate out -q", "faults  0"),
        ("stats out", "pictures_stored"), ("card out", "language: []"),
    ):  # fmt: skip
        assert run(["data", *command.split()]) == 0
        assert shown in capsys.readouterr().out, command
    for command, code in (
        (f"prepare {site} -o out --preset htlm", "bad_config"), (f"prepare {site} -o new --shard 2/2", "bad_value"),
        (f"prepare {site} -o new --from wrac", "unknown_name"), ("prepare nothing -o new", "no_file"),
        (f"prepare {site} -o new --preset cm4", "unknown_name"), ("inspect out zz.html", "no_file"),
        ("card .", "bad_data"),
    ):  # fmt: skip
        assert run(["data", *command.split()]) == 1
        assert f"[{code}]" in capsys.readouterr().err, command
    next((tmp_path / "out/pictures").rglob("*.webp")).unlink()
    assert run(["data", "validate", "out"]) == 1 and "faults; the first:" in capsys.readouterr().err
