"""One row, one file or one signal cannot spoil the rest: sampling runs, training folders, manifests."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import toy

import cm3kit
from cm3kit.batch.job import How, SampleJob
from cm3kit.batch.manage import merge, status
from cm3kit.batch.rows import read_rows
from cm3kit.batch.run import run
from cm3kit.batch.signals import Signals
from cm3kit.batch.store import begin, file_name, read_job, read_lines
from cm3kit.fill.answer_files import collect
from cm3kit.fill.batching import Order
from cm3kit.fill.kit import GenerateOptions, Kit
from cm3kit.fill.prompts import read_prompts
from cm3kit.provenance.recipes import rows as recipe_rows
from cm3kit.publish import publishing, verify
from cm3kit.training.rl.prompts import read_items
from cm3kit.training.run import LOCK, locked
from cm3kit.training.run import run as train
from cm3kit.types import Canvas
from cm3kit_cli.main import run as command
from cm3kit_tokenizers import Cm3kitError, ConfigError, DataError, ModelError, OutputError, Page

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def kit() -> Kit:
    return cm3kit.load(toy(), device="cpu")


WRONG: list[tuple[str, Any]] = [
    ("max_tokens", -5), ("max_tokens", 0), ("max_tokens", 10**9), ("temperature", -1.0), ("temperature", float("nan")),
    ("top_p", 1.5), ("top_k", -1), ("guidance", float("inf")), ("batch_size", 0), ("steps", 0), ("block_size", -1),
    ("length", 10**7), ("threshold", -0.5),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_options_are_bounded_at_every_door(kit: Kit, name: str, value: Any) -> None:
    options = GenerateOptions(**{name: value})
    with pytest.raises(ConfigError, match=name) as error:
        kit.generate("a red apple", task="text", options=options)
    assert error.value.code == "bad_value" and "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=name):
        kit.infill(Page.parse(b"<p>a <mask></p>"), options=options)
    (_, made), (_, fine) = kit.sample(
        [Order("a", "text", options=options), Order("a", "text", options=GenerateOptions(max_tokens=2))]
    )
    assert isinstance(made, ConfigError) and not isinstance(fine, Exception)


def rows(tmp_path: Path, lines: list[str]) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def sampled(tmp_path: Path, lines: list[str], **more: Any) -> dict[int, str]:
    """Status of each row of a run."""
    options = GenerateOptions(max_tokens=2)
    job = SampleJob(
        rows(tmp_path, lines), tmp_path / "out", str(toy()), "cpu", "text", seed=1, options=options, **more
    )
    run(job, How())
    return {key[0]: str(line["status"]) for key, line in read_lines(tmp_path / "out").items()}


def test_no_row_can_end_a_run(tmp_path: Path) -> None:
    deep = "[" * 900 + "]" * 900
    odd = [
        '{"prompt": "a", "max_tokens": -5}', '{"prompt": "a", "temperature": -1}', '{"prompt": "a", "top_p": 7}',
        '{"prompt": "a", "max_tokens": 999999999999999999999999}', f'{{"prompt": "a", "meta": {deep}}}',
        '{"prompt": "a", "n": 100000000}', '{"prompt": "a", "overrides": ["a.b=[[[["]}', '{"prompt": ["a"]}',
        '{"prompt": "a", "seed": 1e400}', '{"prompt": "a", "length": -1, "decoder": "diffusion"}',
        '{"page": "/none.html"}', '{"html": "<img alt=\'<mask>\' src=gone.png>"}', '{"html": "<mask>", "root": "none"}',
        '{"prompt": "\\ud800"}', '{"prompt": "' + "long " * 5000 + '"}',
        '{"prompt": "a", "schedule": {"name": "none"}}',
        '{"prompt": "a", "batch_size": 0}', '{"id": {"a": 1}, "prompt": "a"}', "[" * 100_000,
    ]  # fmt: skip
    lines = [line for each in odd for line in (each, '{"prompt": "a red apple"}')]
    found = sampled(tmp_path, lines)
    assert [found[number] for number in range(1, len(lines), 2)] == ["ok"] * len(odd)
    wrong = {odd[number // 2] for number in range(0, len(lines), 2) if found[number] == "ok"}
    # Deep values are carried or refused, an id of another type is its text.
    assert wrong <= {f'{{"prompt": "a", "meta": {deep}}}', '{"id": {"a": 1}, "prompt": "a"}'}
    assert not status(tmp_path / "out")["failures"].get("internal")


def test_what_a_row_s_page_lacks_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "s.css").write_text("p{}")
    html = "<link rel=stylesheet href=s.css><p><mask></p><img alt='<mask>' src=gone.png>"
    path = rows(tmp_path, [json.dumps({"html": html}), json.dumps({"html": "<p><mask></p>"})])
    asked = ["sample", "run", str(path), "-m", str(toy()), "-o", str(tmp_path / "out"), "--seed", "1"]
    assert command([*asked, "--max-tokens", "2", "-n", "2", "--json"]) == 0
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told["data"]["warned"] == 2 and "2 with warnings" in err
    for words in ("gone.png", "s.css"):
        assert any(words in line for line in told["warnings"]) and words in err
    lines = read_lines(tmp_path / "out")
    assert [bool(lines[key].get("warnings")) for key in sorted(lines)] == [True, True, False, False]


def test_an_error_of_any_class_is_charged_to_its_row(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    filler = kit.filler(GenerateOptions())
    real: Callable[..., Any] = filler.stream

    def failing(key: Any, canvases: Iterator[Canvas], options: GenerateOptions) -> Any:
        def seen() -> Iterator[Canvas]:
            for canvas in canvases:
                if canvas.seed == bad:
                    raise KeyError("a bug in one row")
                yield canvas

        return real(key, seen(), options)

    orders = [
        Order("a red apple", "text", 1, index, GenerateOptions(max_tokens=2), key=index) for index in range(6)
    ]
    from cm3kit.rng import stream

    bad = stream(1, 3)
    monkeypatch.setattr(filler, "stream", failing)
    made = {order.key: result for order, result in kit.sample(orders)}
    assert sorted(made) == list(range(6))
    assert [key for key, result in made.items() if isinstance(result, Exception)] == [3]
    assert isinstance(made[3], KeyError)


def test_a_failure_to_choose_or_encode_is_the_row_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cm3kit.batch import run as running

    real = running.choose

    def choose(candidates: Any, selector: Any) -> Any:
        if candidates[0][0].key[1].number == 1:
            raise RuntimeError("no score")
        return real(candidates, selector)

    monkeypatch.setattr(running, "choose", choose)
    found = sampled(tmp_path, ['{"prompt": "a"}'] * 3)
    assert found == {0: "ok", 1: "error", 2: "ok"}


def folder_of(tmp_path: Path, name: str, line: dict[str, Any]) -> Path:
    folder = tmp_path / name
    begin(folder, {"seed": 1, "outputs": 1})
    (folder / "manifest.jsonl").write_text(json.dumps(line) + "\n")
    return folder


@pytest.mark.parametrize(
    "path",
    ["../evil/payload", "/tmp/payload", "job.json", "files/../job.json", "files/000/000000-1.png", "", 7],
)
def test_merge_trusts_no_path(tmp_path: Path, path: Any) -> None:
    content = b"payload"
    line = {"row": 0, "index": 0, "status": "ok", "path": path, "sha256": hashlib.sha256(content).hexdigest()}
    other = folder_of(tmp_path, "b", line)
    if isinstance(path, str) and path and not path.startswith("/"):
        (other / path).parent.mkdir(parents=True, exist_ok=True)
        (other / path).write_bytes(content)
    folder = tmp_path / "a"
    begin(folder, {"seed": 1, "outputs": 1})
    before = sorted(str(each) for each in tmp_path.rglob("*"))
    if path != 7:
        with pytest.raises((DataError, ConfigError), match=r"not its own|another|cannot be read"):
            merge(folder, (other,))
    else:  # a line that says too little is none
        assert merge(folder, (other,))["missing"] == 1
        (folder / "manifest.jsonl").unlink()
        return
    assert not (tmp_path / "evil/payload").exists() or "evil" in " ".join(before)
    assert sorted(str(each) for each in tmp_path.rglob("*") if ".lock" not in each.name) == before


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "{", '{"seed": "x", "outputs": 1}', "[" * 100_000])
def test_a_damaged_job_file_is_told_in_a_line(
    tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "job.json").write_text(text)
    with pytest.raises(DataError) as error:
        read_job(tmp_path)
    assert "\n" not in str(error.value)
    assert command(["sample", "status", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_lines_of_a_manifest_that_say_too_little_are_none(tmp_path: Path) -> None:
    good = {"row": 0, "index": 0, "status": "error", "code": "bad_data", "error": "x"}
    lines = [
        {},
        [],
        7,
        {"row": 1},
        {**good, "row": "x"},
        {**good, "row": -1},
        {**good, "status": 7},
        {"row": 2, "index": 0, "status": "error"},
    ]
    text = "".join(f"{json.dumps(each)}\n" for each in (*lines, good)) + "\xff{\n[[[\n"
    begin(tmp_path, {"seed": 1, "outputs": 3})
    (tmp_path / "manifest.jsonl").write_text(text, encoding="latin-1")
    assert list(read_lines(tmp_path)) == [(0, 0)] and status(tmp_path)["missing"] == 2
    assert file_name((0, 0), ".png") == "files/000/000000-0.png"


def test_an_interrupt_that_is_swallowed_interrupts_the_next_row() -> None:
    class Swallows:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), Signals() as signals:
        signals.check()
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        except KeyboardInterrupt:
            pass  # whoever swallows it
        signals.check()
    assert signal.getsignal(signal.SIGINT) is before
    heard: list[BaseException] = []

    def elsewhere() -> None:
        try:
            with Signals() as quiet:
                quiet.check()
        except BaseException as error:  # noqa: BLE001
            heard.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert not heard


def test_a_run_is_interrupted_though_a_destructor_swallows(tmp_path: Path) -> None:
    code = f"""
import os, signal, sys
sys.unraisablehook = lambda _: None
from cm3kit.batch import run as running
from cm3kit.batch.job import How, SampleJob
from cm3kit.fill.options import GenerateOptions
from pathlib import Path
class Swallows:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000): pass
real, made = running._Run._add, []
def add(self, *more):
    made.append(1)
    if len(made) == 2:
        Swallows()
    return real(self, *more)
running._Run._add = add
job = SampleJob(Path({str(rows(tmp_path, ['{"prompt": "a"}'] * 40))!r}), Path({str(tmp_path / "out")!r}),
                {str(toy())!r}, "cpu", "text", seed=1, options=GenerateOptions(max_tokens=2, batch_size=1))
try:
    running.run(job, How())
except KeyboardInterrupt:
    print("interrupted", len(made))
"""
    path = os.pathsep.join(str(ROOT / each) for each in (".", "cli", "tokenizers"))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    word, count = done.stdout.split()
    assert word == "interrupted" and int(count) < 40 and len(read_lines(tmp_path / "out")) == int(count)


@pytest.mark.parametrize(
    "codec", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom", "utf-16-be-bom", "utf-32"]
)
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
def test_prompt_files_are_read_as_they_are_encoded(tmp_path: Path, suffix: str, codec: str) -> None:
    text = {
        ".txt": "blåbær\n红苹果\n",
        ".jsonl": '{"prompt": "blåbær"}\n{"prompt": "红苹果"}\n',
        ".csv": "prompt\nblåbær\n红苹果\n",
    }
    data = text[suffix].encode(codec.removesuffix("-bom"))
    data = {"utf-16-le-bom": b"\xff\xfe", "utf-16-be-bom": b"\xfe\xff"}.get(codec, b"") + data
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    assert [row.asked.prompt for row in read_rows(path).rows] == ["blåbær", "红苹果"]
    assert [each.content for each in read_prompts(path)] == ["blåbær", "红苹果"]
    path.write_bytes(text[suffix].encode("ascii", "ignore").decode().encode("utf-16-le"))
    for read in (read_rows, read_prompts):
        with pytest.raises(DataError, match="UTF-16"):
            read(path)


def test_a_line_ends_where_json_lines_do(tmp_path: Path) -> None:
    # Characters that break lines for Python's `str.splitlines`, and that JSON may write as they are.
    odd = ["a\u2028b", "a\u2029b", "a\x85b"]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"prompt": "{each}"}}\n' for each in odd), encoding="utf-8")
    assert [row.asked.prompt for row in read_rows(path).rows] == odd
    assert [each.content for each in read_prompts(path)] == odd
    assert [each.prompt for each in read_items(path, "text")] == odd
    path.write_text("".join(f'"{each}"\r\n' for each in odd), encoding="utf-8")
    given = collect(Page.parse(b"<mask>"), (), path, 0)
    assert given is not None and [each.answers[0] for each in given] == odd
    (tmp_path / "run.json").write_text("{}")
    (tmp_path / "manifest.jsonl").write_text("".join(f'{{"prompt": "{each}"}}\n' for each in odd), "utf-8")
    assert [row["prompt"] for row in recipe_rows(tmp_path)] == odd


def test_a_row_that_python_cannot_hold_is_an_error_of_its_own(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    ends = b"".join(number.to_bytes(4, "little") for number in (0, 1, 3, 4))
    texts = arrow.Array.from_buffers(
        arrow.string(), 3, [None, arrow.py_buffer(ends), arrow.py_buffer(b"a\xff\xfec")]
    )
    parquet.write_table(arrow.table({"prompt": texts}), tmp_path / "a.parquet")
    first, second, third = read_rows(tmp_path / "a.parquet").rows
    assert (first.asked.prompt, third.asked.prompt) == ("a", "c") and "row 2" in str(second.error)
    (tmp_path / "a.csv").write_text(f"prompt\n{'x' * 200_000}\nb\n")
    assert [len(row.asked.prompt) for row in read_rows(tmp_path / "a.csv").rows] == [200_000, 1]
    assert len(read_prompts(tmp_path / "a.csv")) == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"constrain": 1, "guided_regex": "a"},
        {"constrain": False, "guided_choice": ["a"]},
        {"guided_json": {"properties": 5}},
        {"guided_json": {"type": 5, "enum": 5}},
        {"guided_json": {"required": 7}},
        {"guided_json": "x" * 5000},
        {"constrain": ["0=trie:" + "x" * 5000]},
        {"constrain": ["0=trie:a\0b"]},
        {"constrain": ["0=regex:[["]},
        {"guided_json": {"$ref": "#"}},
    ],
)
def test_a_constraint_that_is_none_is_its_row_s(tmp_path: Path, wrong: dict[str, Any]) -> None:
    fine = {"html": "<p><mask></p>", "max_tokens": 2}
    lines = [json.dumps({**fine, **wrong}), json.dumps(fine)]
    assert sampled(tmp_path, lines) == {0: "error", 1: "ok"}
    assert set(status(tmp_path / "out")["failures"]) <= {"bad_data", "bad_value", "no_file"}


def test_deep_json_is_told_in_a_line(tmp_path: Path) -> None:
    deep = '{"a":' + "[" * 100_000
    (tmp_path / "config.json").write_text(deep)
    with pytest.raises(ModelError, match="cannot be read"):
        cm3kit.load(tmp_path, device="cpu")
    for name in ("vocab.json", "defaults.json", "image/tokenizer_config.json", "decoder/config.json"):
        model = edited(tmp_path, "vocab.json")
        (model / name).write_text(deep)
        with pytest.raises(Cm3kitError) as error:
            cm3kit.load(model, device="cpu")
        assert "\n" not in str(error.value)


RECIPE = ["data=", "loop.steps=2", "loop.rows=2", "loop.preview_every=0"]


def test_a_run_s_folder_is_one_process_s(tmp_path: Path) -> None:
    with locked(tmp_path / "run"):
        with pytest.raises(OutputError, match="another process trains there") as error:
            train("text", [], [f"data={tmp_path}"], tmp_path / "run")
        assert error.value.code == "in_use" and os.listdir(tmp_path / "run") == [LOCK]
    assert not (tmp_path / "run").exists()
    (tmp_path / "old").mkdir()
    (tmp_path / "old/x").write_text("kept")
    with (
        locked(tmp_path / "old"),
        (tmp_path / "old" / LOCK).open("ab") as other,
        pytest.raises(BlockingIOError),
    ):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with locked(tmp_path / "old"):
        assert (tmp_path / "old/x").read_text() == "kept"
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be made"), locked(tmp_path / "file/run"):
        pass


def test_a_refused_training_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text("mine: 1\n")
    with pytest.raises(Cm3kitError):
        train("text", [], [f"data={tmp_path / 'none'}"], tmp_path / "run")
    assert (tmp_path / "run/config.yaml").read_text() == "mine: 1\n"
    with pytest.raises(Cm3kitError):
        train("text", [], [f"data={tmp_path / 'none'}"], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_manifest_names_what_the_folder_holds(tmp_path: Path) -> None:
    with publishing(tmp_path / "a") as new:
        (new / "x.safetensors").write_bytes(b"weights")
        (new / "config.json").write_text("{}")
    assert verify(tmp_path / "a") is None
    (tmp_path / "a/README.md").write_text("A note.")
    assert verify(tmp_path / "a") is None
    (tmp_path / "a/y.safetensors").write_bytes(b"more")
    assert "does not name y.safetensors" in str(verify(tmp_path / "a"))
    (tmp_path / "a/y.safetensors").unlink()
    (tmp_path / "a/manifest.json").write_text("{}")
    assert "names no file" in str(verify(tmp_path / "a"))
    model = tmp_path / "toy"
    shutil.copytree(toy(), model)
    listed = json.loads((model / "manifest.json").read_text())
    gone = next(name for name in listed if name.endswith("model.safetensors"))
    for manifest in ({}, {name: entry for name, entry in listed.items() if name != gone}):
        (model / "manifest.json").write_bytes(json.dumps(manifest, indent=1, sort_keys=True).encode())
        with pytest.raises(ModelError, match="manifest"):
            cm3kit.load(model, device="cpu")
    assert torch.get_num_threads() >= 1


def edited(tmp_path: Path, name: str, **changes: Any) -> Path:
    """A copy of the toy without a manifest, one of whose settings files says something else."""
    model = tmp_path / "edited"
    shutil.rmtree(model, ignore_errors=True)
    shutil.copytree(toy(), model)
    (model / "manifest.json").unlink()
    settings = json.loads((model / name).read_text())
    (model / name).write_text(json.dumps({**settings, **changes}))
    return model


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("decoder/config.json", {"hidden_size": 10**7}),
        ("decoder/config.json", {"intermediate_size": 10**9}),
        ("decoder/config.json", {"vocab_size": 10**9}),
        ("decoder/config.json", {"num_hidden_layers": 10**9}),
        ("image/tokenizer_config.json", {"channels": [16, 16, 16 * 10**6]}),
    ],
)
def test_sizes_are_held_to_the_weights_before_anything_is_built(
    tmp_path: Path, name: str, changes: Any
) -> None:
    model, began = edited(tmp_path, name, **changes), time.monotonic()
    with pytest.raises(ModelError, match=next(iter(changes))) as error:
        cm3kit.load(model, device="cpu")
    assert time.monotonic() - began < 30 and "\n" not in str(error.value)
    assert cm3kit.load(edited(tmp_path, name), device="cpu")


class Panic(BaseException):
    """As packages in Rust raise it."""


def test_a_panic_of_a_package_becomes_a_line(
    kit: Kit, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from cm3kit import doctor
    from cm3kit.web import record

    def panic(*_: Any, **__: Any) -> Any:
        raise Panic("index out of bounds")

    monkeypatch.setattr(doctor, "checks", panic, raising=False)
    for name in [
        each for each in vars(doctor) if callable(getattr(doctor, each)) and not each.startswith("_")
    ]:
        monkeypatch.setattr(doctor, name, panic)
    assert command(["doctor"]) == 1
    err = capsys.readouterr().err
    assert "Panic" in err and err.count("\n") == 1
    monkeypatch.setattr(record.trees, "rights", panic)
    dropped = record.html_to_record(b"<p>x", panic, key="k")
    assert isinstance(dropped, record.Dropped) and dropped.reason == "failed"
    monkeypatch.setattr(type(kit.tokenizer), "encode", panic)
    ((_, made),) = kit.sample([Order("a red apple", "text", options=GenerateOptions(max_tokens=2))])
    assert isinstance(made, RuntimeError) and "Panic" in str(made)


def test_a_report_follows_no_links(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "secret.txt").write_text("the secret")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/b.txt").write_text("the secret")
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    (run_folder / "fine.txt").write_text("made")
    (run_folder / "a.txt").symlink_to(tmp_path / "secret.txt")
    (run_folder / "sub").symlink_to(tmp_path / "elsewhere")
    lines = [{"path": name, "seed": 1, "index": 0} for name in ("fine.txt", "a.txt", "sub/b.txt")]
    (run_folder / "manifest.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in lines))
    assert command(["show", "report", str(run_folder)]) == 0
    assert "2 files are missing" in capsys.readouterr().err
    page = (run_folder / "report.html").read_text()
    assert "made" in page and "the secret" not in page
    (tmp_path / "facts.json").write_text('{"model": "the secret"}')
    (run_folder / "run.json").symlink_to(tmp_path / "facts.json")
    assert command(["show", "report", str(run_folder), "--force"]) == 1
    assert (
        "symbolic link" in capsys.readouterr().err
        and "the secret" not in (run_folder / "report.html").read_text()
    )


def test_a_model_that_a_recipe_brings_along_is_not_loaded_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(toy(), tmp_path / "toy")
    monkeypatch.chdir(tmp_path)
    asked = [
        "generate",
        "a red apple",
        "--task",
        "text",
        "-m",
        "toy",
        "--seed",
        "1",
        "--max-tokens",
        "2",
        "-o",
        "a.txt",
    ]
    assert command([*asked, "--device", "cpu"]) == 0
    capsys.readouterr()
    assert command(["reproduce", "a.txt", "--check", "--device", "cpu"]) == 1
    err = capsys.readouterr().err
    assert "--trust-model" in err and str(tmp_path / "toy") in err and "untrusted_model" in err
    for more in (["--trust-model"], ["--model", "toy"]):
        assert command(["reproduce", "a.txt", "--check", "--device", "cpu", *more]) == 0
