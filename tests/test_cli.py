"""The command line: what goes to standard output, what to standard error, and what bad input gets."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.main import get_command

import cm3kit
from cm3kit.fill.kit import GenerateOptions
from cm3kit_cli import options, render
from cm3kit_cli.main import app, run
from cm3kit_tokenizers.errors import ModelError, PictureError
from cm3kit_tokenizers.page import Page

ROOT = Path(__file__).parents[1]
FOLDERS = os.pathsep.join(map(str, (ROOT, ROOT / "cli", ROOT / "tokenizers")))
ENVIRONMENT = os.environ | {"PYTHONPATH": FOLDERS}
PAGE = b'<!DOCTYPE html><title>Fruit</title><p class="intro">An <mask> is red.</p><img src="a.png" alt="x">'


@dataclass
class FakeKit:
    """Answers as a `Kit` does, at once and without weights."""

    failure: BaseException | None = None

    def info(self) -> dict[str, Any]:
        return {"name": "fake", "sha256": {"decoder": "00"}, "card": "A model.\nOf nothing."}

    def record(self, modality: str | None, options: Any) -> dict[str, Any]:
        return {"decoder": options.decoder or "cm3", "sampler": options.sampler or "cm3", "precision": "fp32"}

    def schedule(self, prompt: Any, *, task: str = "image", options: Any) -> list[list[list[int]]]:
        if self.failure:
            raise self.failure
        return [[[1, 2, 4, 1]]] if not isinstance(prompt, Page) else [[[4, 4, 4], [2]], [[1]]]

    def generate(
        self, prompt: Any, *, task: str, n: int, seed: int, options: Any, watch: Callable[[int, int], None]
    ) -> list[Any]:
        from cm3kit.fill.kit import Result

        if self.failure:
            raise self.failure
        if task == "caption" and isinstance(prompt, Path) and not prompt.is_file():
            raise PictureError(f"{prompt} does not exist; check the path", code="no_file")
        results = []
        for index in range(n):
            watch(index + 1, n)
            drawn = task in ("image", "pair")
            image = Image.new("RGB", (16, 16), (index * 40, 0, seed % 256)) if drawn else None
            text = f"{prompt!s} {index}" if task in ("text", "caption", "pair") else None
            html = f"<!DOCTYPE html><title>{index}</title>" if task == "document" else None
            kind: Any = {"image": "image", "document": "page", "pair": "pair"}.get(task, "text")
            made = Result(kind, image, text, html, seed=seed, index=index, logprob=-1.5, ended=True)
            results.append(made)
        return results

    def infill(
        self, page: Page, *, variants: int, seed: int, options: Any, watch: Callable[[int, int], None]
    ) -> list[Any]:
        from cm3kit.fill.kit import Filled, FilledGap

        if self.failure:
            raise self.failure
        made = []
        for index in range(variants):
            watch(index + 1, variants)
            words = {gap.index: f"filled {index}" for gap in page.gaps if gap.kind != "image"}
            gaps = [
                FilledGap(index=each, kind="content", text=text, logprob=-0.5, ended=True, line=1)
                for each, text in words.items()
            ]
            made.append(Filled(html=page.splice(words), gaps=gaps, seed=seed, index=index))
        return made


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeKit:
    """A folder of its own, with a page and a picture in it, and a model that needs no weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CM3KIT_MODEL", raising=False)
    monkeypatch.delenv("CM3KIT_DEBUG", raising=False)
    (tmp_path / "page.html").write_bytes(PAGE)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    kit = FakeKit()

    def load(name: str | Path | None = None, device: str = "auto") -> FakeKit:
        if name not in (None, "fake"):
            raise ModelError(f"no model {str(name)!r}; did you mean 'fake'?", code="unknown_model")
        return kit

    monkeypatch.setattr(cm3kit, "load", load, raising=False)
    return kit


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


Capture = pytest.CaptureFixture[str]


def test_generate_writes_numbered_pictures_a_sheet_and_records(
    fake: FakeKit, tmp_path: Path, capsys: Capture
) -> None:
    assert run(["generate", "red apple", "-n", "3", "--seed", "7", "-o", "out/"]) == 0
    out, err = capsys.readouterr()
    names = ["000000-s7.png", "000001-s7.png", "000002-s7.png", "grid.png"]
    assert out.splitlines() == [f"out/{name}" for name in names] and "seed" not in err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*names, "run.json", "manifest.jsonl"}
    rows = [json.loads(line) for line in (tmp_path / "out/manifest.jsonl").read_text().splitlines()]
    assert [(row["path"], row["index"], row["prompt"]) for row in rows] == [
        (name, index, "red apple") for index, name in enumerate(names[:3])
    ]
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["seed"] == 7 and record["model"] == "fake" and record["sha256"] == {"decoder": "00"}
    with Image.open(tmp_path / "out/000001-s7.png") as picture:
        made = json.loads(picture.text["cm3kit"])  # type: ignore[attr-defined]
        assert picture.getpixel((0, 0)) == (40, 0, 7)
    assert (made["prompt"], made["seed"], made["index"]) == ("red apple", 7, 1)


def test_generate_makes_a_run_folder_and_prints_its_seed(
    fake: FakeKit, tmp_path: Path, capsys: Capture
) -> None:
    assert run(["generate", "apple"]) == 0
    out, err = capsys.readouterr()
    (path,) = out.splitlines()
    seed = int(err.split()[1])
    assert path.startswith("outputs/generate-") and path.endswith(f"000000-s{seed}.png")
    assert run(["generate", "apple", "-q", "--no-grid", "-n", "2", "-o", "x.png"]) == 0
    assert capsys.readouterr() == ("x-0000.png\nx-0001.png\n", "")


def test_generate_words_go_to_standard_output(fake: FakeKit, tmp_path: Path, capsys: Capture) -> None:
    before = contents(tmp_path)
    assert run(["generate", "apple", "--task", "text", "-n", "2", "--seed", "1"]) == 0
    assert capsys.readouterr() == ("apple 0\napple 1\n", "")
    assert run(["generate", "a.png", "--task", "caption", "--seed", "1"]) == 0
    assert capsys.readouterr().out == "a.png 0\n" and contents(tmp_path) == before


def test_generate_sends_one_picture_down_a_pipe(fake: FakeKit, capfdbinary: Any) -> None:
    assert run(["generate", "apple", "-o", "-", "--seed", "9"]) == 0
    with Image.open(io.BytesIO(capfdbinary.readouterr().out)) as picture:
        assert picture.format == "PNG" and picture.getpixel((0, 0)) == (0, 0, 9)


def test_generate_documents_are_marked(fake: FakeKit, tmp_path: Path) -> None:
    assert run(["generate", "apple", "--task", "document", "--seed", "1", "-o", "d.html"]) == 0
    page = (tmp_path / "d.html").read_text()
    assert page.startswith("<!DOCTYPE html><meta name=") and '"prompt": "apple"' in page


def test_no_prompt_metadata_keeps_the_prompt_out_of_every_file(fake: FakeKit, tmp_path: Path) -> None:
    before = contents(tmp_path)
    assert run(["generate", "a secret", "-n", "2", "--no-prompt-metadata", "--seed", "1", "-o", "o/"]) == 0
    new = {name: data for name, data in contents(tmp_path).items() if name not in before}
    assert len(new) == 5 and not any(b"secret" in data for data in new.values())
    assert all(b"trainedAlgorithmicMedia" in data for name, data in new.items() if name.endswith(".png"))


def test_prompt_files_run_row_by_row(fake: FakeKit, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "sun", "seed": 5, "id": "s"}\n{"prompt": "moon"}\n')
    assert run(["generate", "--prompt-file", "p.jsonl", "--seed", "2", "-n", "2", "-o", "o/", "--json"]) == 0
    samples = json.loads(capsys.readouterr().out)["data"]["samples"]
    assert [(s["prompt"], s["seed"], s["index"], s.get("id")) for s in samples] == [
        ("sun", 5, 0, "s"), ("sun", 5, 1, "s"), ("moon", 2, 0, None), ("moon", 2, 1, None),
    ]  # fmt: skip
    assert [Path(s["path"]).name for s in samples] == [
        "000000-s5.png", "000001-s5.png", "000002-s2.png", "000003-s2.png",
    ]  # fmt: skip


def test_prompt_comes_from_standard_input(
    fake: FakeKit, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"from a pipe\n")))
    assert run(["generate", "-p", "-", "--task", "text", "--seed", "1"]) == 0
    assert capsys.readouterr().out == "from a pipe 0\n"


def test_synonyms_of_flags_are_understood(
    fake: FakeKit, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    seen: list[Any] = []
    real = fake.generate

    def spy(*given: Any, **named: Any) -> list[Any]:
        seen.append(named["options"])
        return real(*given, **named)

    monkeypatch.setattr(fake, "generate", spy)
    arguments = ["generate", "x", "--cfg", "2.5", "--temp=0.5", "--top-k", "3", "--task", "text", "-q"]
    assert run(arguments) == 0
    assert (seen[0].guidance, seen[0].temperature, seen[0].top_k, seen[0].top_p) == (2.5, 0.5, 3, None)


def test_flags_of_the_diffusion_decoder_become_options(
    fake: FakeKit, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    seen: list[Any] = []
    real = fake.generate

    def spy(*given: Any, **named: Any) -> list[Any]:
        seen.append(named["options"])
        return real(*given, **named)

    monkeypatch.setattr(fake, "generate", spy)
    line = (
        "generate x --task text -q --decoder diffusion --sampler cosine --steps 5 --schedule ascending,mode=paper"
        " --order maskgit,tau=2.5 --accept top --threshold 0.5 --eoser --block-size 8 --cache dual"
        " --verify-cache --length 3"
    )
    assert run(line.split()) == 0
    assert seen[0] == GenerateOptions(
        decoder="diffusion", sampler="cosine", steps=5, schedule={"name": "ascending", "mode": "paper"},
        order={"name": "maskgit", "tau": 2.5}, accept="top", threshold=0.5, eoser=True, block_size=8,
        cache="dual", verify_cache=True, length=3,
    )  # fmt: skip
    assert run("generate x --task text -q --decoder diffusion --no-eoser --length auto".split()) == 0
    assert seen[1] == GenerateOptions(decoder="diffusion", eoser=False, length="auto")
    assert run("generate x --task text -q --decoder diffusion --schedule explicit,counts=[1,2]".split()) == 0
    assert seen[2].schedule == {"name": "explicit", "counts": [1, 2]}
    line = "generate x --task text -q --decoder diffusion --remasker remdm-cap,eta=0.1 --remasker edit"
    assert run([*line.split(), "--set", "eoser.hard=0.5", "--set", "confidence=tempered"]) == 0
    assert seen[3].modifiers == ({"name": "remdm-cap", "eta": 0.1}, "edit")
    assert seen[3].overrides == ("eoser.hard=0.5", "confidence=tempered")


def test_any_decoder_is_trained_by_any_objective(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("cm3kit.training.run", lambda *given, **_: seen.append(given) or Path("runs/x"))
    assert run("train mdm --objective hybrid --set objective.share=0.3 -q".split()) == 0
    assert seen[0][0] == "mdm" and seen[0][2] == ["objective.name=hybrid", "objective.share=0.3"]


def test_schedules_are_printed_and_nothing_is_made(fake: FakeKit, tmp_path: Path, capsys: Capture) -> None:
    before = contents(tmp_path)
    assert run("generate x --decoder diffusion --show-schedule".split()) == 0
    assert capsys.readouterr() == ("canvas 0: 8 positions in 4 passes\n  1, 2, 4, 1\n", "")
    assert run("infill page.html --decoder diffusion --show-schedule".split()) == 0
    lines = [
        "canvas 0: 14 positions in 4 passes",
        "  block 0: 4 × 3",
        "  block 1: 2",
        "canvas 1: 1 positions in 1 passes",
    ]
    assert capsys.readouterr().out.splitlines() == [*lines, "  1"]
    assert run("generate x --decoder diffusion --show-schedule --json".split()) == 0
    assert json.loads(capsys.readouterr().out)["data"]["boards"] == [
        {"places": 8, "passes": 4, "blocks": [[1, 2, 4, 1]]}
    ]
    assert contents(tmp_path) == before


def test_pairs_are_pictures_whose_words_are_told(fake: FakeKit, tmp_path: Path, capsys: Capture) -> None:
    assert run("generate --task pair -n 2 --seed 1 -o p/".split()) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == ["p/000000-s1.png", "p/000001-s1.png", "p/grid.png"]
    assert err.splitlines() == ["sample 0: 0", "sample 1: 1"]
    rows = [json.loads(line) for line in (tmp_path / "p/manifest.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == [" 0", " 1"]


def test_infill_keeps_every_other_byte(fake: FakeKit, tmp_path: Path, capsys: Capture) -> None:
    assert run(["infill", "page.html", "-o", "out.html", "--seed", "1"]) == 0
    out, err = capsys.readouterr()
    assert out == "out.html\n" and "gap 0 line 1 content -0.50: filled 0" in err
    assert (tmp_path / "out.html").read_bytes() == PAGE.replace(b"<mask>", b"filled 0")


def test_infill_variants_report_and_diff(fake: FakeKit, tmp_path: Path, capsys: Capture) -> None:
    assert run(["infill", "page.html", "--variants", "2", "--diff", "-o", "o/", "--seed", "1"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == ["o/000000.html", "o/000001.html", "o/diff.html"]
    assert (tmp_path / "o/a.png").read_bytes() == (tmp_path / "a.png").read_bytes()
    assert "+" in err and "filled 1 is red" in err
    report = (tmp_path / "o/diff.html").read_text()
    assert report.count("<iframe sandbox") == 4 and "<ins>filled 0</ins>" in report


def test_infill_targets_from_flags(fake: FakeKit, tmp_path: Path) -> None:
    (tmp_path / "plain.html").write_bytes(PAGE.replace(b"<mask>", b"apple"))
    arguments = ["infill", "plain.html", "--select", "p.intro", "--select", "img@alt", "-o", "o.html", "-q"]
    assert run(arguments) == 0
    page = (tmp_path / "o.html").read_bytes()
    assert b'<p class="intro">filled 0</p>' in page and b'alt="filled 0"' in page


def test_infill_copies_only_pictures_of_the_page_s_folder(fake: FakeKit, tmp_path: Path) -> None:
    (tmp_path / "site/in").mkdir(parents=True)
    (tmp_path / "a.png").rename(tmp_path / "site/in/a b.png")
    (tmp_path / "secret.png").write_bytes((tmp_path / "site/in/a b.png").read_bytes())
    (tmp_path / "site/notes.txt").write_text("private")
    sources = (
        "in/a%20b.png?v=1",
        "../secret.png",
        "/etc/hostname",
        "notes.txt",
        "missing.png",
        "http://x/y.png",
    )
    page = "<p><mask></p>" + "".join(f'<img src="{src}">' for src in sources)
    (tmp_path / "site/page.html").write_text(page)
    assert run(["infill", "site/page.html", "-o", "o/", "-q"]) == 0
    files = {str(path.relative_to(tmp_path / "o")) for path in (tmp_path / "o").rglob("*") if path.is_file()}
    assert files == {"000000.html", "in/a b.png", "run.json", "manifest.jsonl"}


def test_infill_to_standard_output_and_in_place(fake: FakeKit, tmp_path: Path, capfdbinary: Any) -> None:
    expected = PAGE.replace(b"<mask>", b"filled 0")
    assert run(["infill", "page.html", "-o", "-", "-q"]) == 0
    assert capfdbinary.readouterr() == (expected, b"")
    assert run(["infill", "page.html", "--in-place", "-q"]) == 0
    assert (tmp_path / "page.html").read_bytes() == expected
    assert sorted(contents(tmp_path)) == ["a.png", "page.html"]


def test_model_info_and_list(fake: FakeKit, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cm3kit.fill.formats.formats", lambda kit: {"cm3": {"precision": "fp32"}})
    assert run(["model", "info"]) == 0
    assert (
        capsys.readouterr().out
        == "name: fake\nprecision:\n  cm3:\n    precision: fp32\n\nA model.\nOf nothing.\n"
    )
    assert run(["model", "info", "--verbose"]) == 0
    assert "sha256:\n  decoder: 00\n" in capsys.readouterr().out
    assert run(["model", "info", "fake", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"]["name"] == "fake"


def test_json_is_one_envelope(fake: FakeKit, capsys: Capture) -> None:
    assert run(["infill", "page.html", "--json", "--seed", "3", "-o", "o.html"]) == 0
    out, _ = capsys.readouterr()
    envelope = json.loads(out)
    assert out.count("\n") == 1 and list(envelope) == [
        "schema", "ok", "command", "version", "run_id", "data", "warnings", "error",
    ]  # fmt: skip
    assert (envelope["schema"], envelope["ok"], envelope["command"]) == ("cm3kit/1", True, "infill")
    assert envelope["run_id"].startswith("infill-2") and envelope["error"] is None
    (variant,) = envelope["data"]["variants"]
    assert variant["path"] == "o.html" and variant["gaps"][0]["text"] == "filled 0"


MISUSES = [
    ("usage", "generate"),
    ("usage", "generate a b"),
    ("usage", "generate x --sede 3"),
    ("usage", "generate x -n 0"),
    ("usage", "generate x -n many"),
    ("usage", "generate x --task picture"),
    ("usage", "generate x --temperature nan"),
    ("usage", "generate x --temperature -1"),
    ("usage", "generate x --top-p 2"),
    ("usage", "generate x --top-k -1"),
    ("usage", "generate x --seed -1"),
    ("usage", "generate x --seed 1e3"),
    ("usage", "generate x --seed 9223372036854775808"),
    ("usage", "generate x -g inf"),
    ("usage", "generate x --max-tokens 0"),
    ("usage", "generate x --batch-size 0"),
    ("usage", "generate x --prompt y"),
    ("usage", "generate x --seed"),
    ("no_file", "generate --prompt-file missing.txt"),
    ("empty_file", "generate --prompt-file empty.txt"),
    ("bad_value", "generate --prompt-file a.png"),
    ("bad_value", "generate x -o - -n 2"),
    ("bad_value", "generate x -o x.jpg"),
    ("exists", "generate x -o a.png"),
    ("exists", "generate x -n 2 -o full/"),
    ("cannot_write", "generate x -o a.png/x.png"),
    ("cannot_write", "generate x -o a.png/"),
    ("cannot_write", "generate x -o="),
    ("unknown_model", "generate x -m fak"),
    ("no_file", "generate missing.png --task caption"),
    ("usage", "generate x --steps 4"),
    ("usage", "generate x --no-eoser"),
    ("usage", "generate x --traj t.traj.safetensors"),
    ("usage", "generate x --show-schedule"),
    ("usage", "generate x --decoder cm3 --sampler llada"),
    ("usage", "generate x --decoder diffusion --precision bf8"),
    ("usage", "generate x --decoder ar"),
    ("usage", "generate x --decoder diffusion --cache all"),
    ("usage", "generate x --remasker edit"),
    ("usage", "generate x --decoder cm3 --set confidence=tempered"),
    ("usage", "generate x --decoder diffusion --length 0"),
    ("usage", "generate x --decoder diffusion --length some"),
    ("usage", "generate x --decoder diffusion --order maskgit,tau"),
    ("usage", "generate x --decoder diffusion --threshold nan"),
    ("exists", "generate x --decoder diffusion --traj a.png"),
    ("cannot_write", "generate x --decoder diffusion --traj full"),
    ("usage", "infill page.html --decoder diffusion --parallel"),
    ("usage", "infill page.html --block-size 8"),
    ("exists", "infill page.html --decoder diffusion --traj plain.html"),
    ("exists", "infill page.html --decoder diffusion --in-place --traj plain.html"),
    ("usage", "infill"),
    ("usage", "infill page.html --variants 0"),
    ("usage", "infill page.html --image a.png"),
    ("usage", "infill page.html --box 0,0,1,1"),
    ("usage", "infill page.html --in-place -o x.html"),
    ("usage", "infill page.html --in-place --variants 2"),
    ("usage", "infill page.html --selct p"),
    ("no_file", "infill missing.html"),
    ("unreadable_file", "infill full"),
    ("empty_file", "infill empty.txt"),
    ("not_html", "infill wide.html"),
    ("no_mask", "infill plain.html"),
    ("bad_selector", "infill plain.html --select ]["),
    ("bad_selector", "infill plain.html --select table"),
    ("gap_place", "infill script.html"),
    ("page_too_deep", "infill deep.html"),
    ("bad_box", "infill page.html --image a.png --box 1,2,3"),
    ("bad_box", "infill page.html --image a.png --box a,b,c,d"),
    ("bad_box", "infill page.html --image a.png --box 0,0,0,4"),
    ("bad_box", "infill page.html --image a.png --box 4,4,8,8"),
    ("bad_selector", "infill page.html --image b.png --box 0,0,1,1"),
    ("exists", "infill page.html -o plain.html"),
    ("unknown_model", "infill page.html --model nothing"),
    ("usage", "sample run page.html"),
    ("usage", "sample run empty.txt -o new --shard"),
    ("bad_value", "sample run empty.txt -o new --shard 2/2"),
    ("usage", "sample run empty.txt -o new --best-of 0"),
    ("usage", "sample run empty.txt -o new --traj t"),
    ("usage", "sample run empty.txt -o new --steps 3"),
    ("no_file", "sample run missing.txt -o new"),
    ("empty_file", "sample run empty.txt -o new"),
    ("bad_value", "sample run a.png -o new"),
    ("unknown_model", "sample run page.html.txt -o new -m fak"),
    ("no_file", "sample status full"),
    ("no_file", "sample merge full"),
    ("no_file", "sample export full -o new"),
    ("unknown_name", "sample run page.html.txt -o new --best-of 2 --score beauty"),
    ("usage", "train"),
    ("usage", "train cm4"),
    ("usage", "train cm3 --max-steps 0"),
    ("no_file", "train vqgan -c missing.yaml"),
    ("bad_config", "train vqgan --set nonsense"),
    ("usage", "train vqgan --objective hybrid"),
    ("unknown_name", "train mdm --objective hybird"),
    ("bad_config", "train vqgan -c full/x.yaml"),
    ("usage", "data build emoji"),
    ("usage", "data build noto"),
    ("no_file", "data build emoji --packages missing -o new"),
    ("exists", "data build emoji --packages missing -o full"),
    ("no_file", "data stats missing"),
    ("unknown_model", "model info nothing"),
    ("usage", "model lost"),
    ("usage", "genrate x"),
    ("usage", "--versoin"),
    ("usage", "generate x --best-of 0"),
    ("unknown_name", "generate x --best-of 2 --score beauty"),
    ("bad_value", "generate x --best-of 2 --task text"),
]


def prepare(folder: Path) -> None:
    (folder / "empty.txt").write_bytes(b"")
    (folder / "page.html.txt").write_bytes(b"a prompt")
    (folder / "plain.html").write_bytes(b'<p class="intro">Nothing is missing.</p>')
    (folder / "script.html").write_bytes(b"<p>x</p><script>var a = '<mask>';</script>")
    (folder / "deep.html").write_bytes(b"<div>" * 100_000 + b"<mask>")
    (folder / "wide.html").write_bytes("<p><mask></p>".encode("utf-16"))
    (folder / "full").mkdir()
    (folder / "full/000001-s1.png").write_bytes(b"mine")
    (folder / "full/x.yaml").write_text("surprise: 1\n")


def spelt(line: str) -> list[str]:
    """The arguments of a line, with a fixed seed where a random one would be printed."""
    arguments = [argument.replace("-o=", "--output=") for argument in line.split()]
    seeded = arguments[0] in ("generate", "infill") and "--seed" not in arguments
    return arguments + (["--seed", "1"] if seeded else [])


@pytest.mark.parametrize(("code", "line"), MISUSES, ids=[line for _, line in MISUSES])
def test_misuse_gets_one_line_and_writes_nothing(
    fake: FakeKit, tmp_path: Path, capsys: Capture, code: str, line: str
) -> None:
    prepare(tmp_path)
    before = contents(tmp_path)
    status = run(spelt(line))
    out, err = capsys.readouterr()
    assert status == (2 if code == "usage" else 1), err
    assert out == "" and err.count("\n") == 1 and err.endswith(f"[{code}]\n"), err
    assert err.startswith("cm3kit") and "Traceback" not in err and len(err) < 600
    assert contents(tmp_path) == before and not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(("code", "line"), MISUSES[::8], ids=[line for _, line in MISUSES[::8]])
def test_misuse_in_json_is_an_envelope(
    fake: FakeKit, tmp_path: Path, capsys: Capture, code: str, line: str
) -> None:
    prepare(tmp_path)
    assert run([*spelt(line), "--json"]) in (1, 2)
    envelope = json.loads(capsys.readouterr().out)
    assert envelope["ok"] is False and envelope["error"]["code"] == code
    assert envelope["error"]["message"] and "\n" not in envelope["error"]["message"]


def test_json_and_a_result_on_standard_output_exclude_one_another(fake: FakeKit, capsys: Capture) -> None:
    for line in ("generate x -o - --json", "infill page.html -o - --json"):
        assert run(line.split()) == 2
        assert json.loads(capsys.readouterr().out)["error"]["code"] == "usage"


def test_near_misses_are_suggested(fake: FakeKit, capsys: Capture) -> None:
    for arguments, word in ((["genrate"], "generate"), (["generate", "x", "--sede", "1"], "--seed")):
        assert run(arguments) == 2
        assert word in capsys.readouterr().err.split("Try:")[0]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--temperature warm", "'--temperature': 'warm': Input should be a valid number"),
        ("--temperature -3", "'--temperature': '-3': Input should be greater than or equal to 0"),
        ("--draft best", "'--draft': 'best' is not one of 'none', 'lookup', 'diffusion'. Try: "),
    ],
)
def test_a_wrong_value_is_told_with_its_flag(
    fake: FakeKit, arguments: str, says: str, capsys: Capture
) -> None:
    assert run(["generate", "x", *arguments.split()]) == 2
    err = capsys.readouterr().err
    assert says in err and "Value error" not in err and err.count("\n") == 1


def memory() -> MemoryError:
    return MemoryError()


FAILURES: list[tuple[Callable[[], BaseException], str, int]] = [
    (memory, "no_memory", 1),
    (lambda: OSError(28, "No space left on device", "x"), "no_space", 1),
    (KeyboardInterrupt, "interrupted", 130),
    (lambda: ModuleNotFoundError("no", name="xformers"), "missing_extra", 1),
    (lambda: ZeroDivisionError("two\nlines \x1b[31m"), "internal", 1),
    (lambda: RuntimeError(f"Command: g++ {'-x ' * 50_000}"), "internal", 1),
]


@pytest.mark.parametrize(("failure", "code", "status"), FAILURES, ids=[code for _, code, _ in FAILURES])
def test_failures_inside_are_one_line_too(
    fake: FakeKit, capsys: Capture, failure: Callable[[], BaseException], code: str, status: int
) -> None:
    fake.failure = failure()
    assert run(["generate", "x", "--seed", "1"]) == status
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.endswith(f"[{code}]\n") and "\x1b" not in err
    assert len(err) < 600 and not Path("outputs").exists()


def test_verbose_shows_where_a_bug_is(fake: FakeKit, capsys: Capture) -> None:
    fake.failure = ZeroDivisionError("inside")
    assert run(["generate", "x", "--verbose"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing(
    fake: FakeKit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    before, calls = contents(tmp_path), []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 4:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert run(["generate", "x", "-n", "4", "-o", "new/", "--seed", "1"]) == 1
    assert capsys.readouterr().err.endswith("[no_space]\n")
    assert len(calls) > 4 and contents(tmp_path) == before and not (tmp_path / "new").exists()


def test_sigterm_unwinds_and_says_143(
    fake: FakeKit, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def killed(*args: Any, **rest: Any) -> list[Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError("the signal did not arrive")

    monkeypatch.setattr(fake, "generate", killed)
    assert run(["generate", "x", "--seed", "1"]) == 143
    assert capsys.readouterr().err == "cm3kit generate: terminated [interrupted]\n"
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_progress_is_a_line_every_ten_seconds_when_not_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    clock = iter([0.0, 4.0, 10.0, 12.0, 21.0])
    monkeypatch.setattr(render, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    with render.progress("drawing") as watch:
        for done in range(1, 5):
            watch(done, 4)
    assert capsys.readouterr() == ("", "drawing 2/4 after 10 s\ndrawing 4/4 after 21 s\n")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=120)


def test_version_and_bare_help() -> None:
    version = python("-m", "cm3kit_cli", "--version")
    assert version.returncode == 0 and version.stdout == f"cm3kit {render.version()}\n"
    bare = python("-m", "cm3kit_cli")
    assert bare.returncode == 0 and "generate" in bare.stdout and bare.stderr == ""


@pytest.mark.parametrize("command", ["", "generate", "infill", "train cm3", "data build emoji", "model info"])
def test_help_exists_and_honours_no_color(
    command: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert run([*command.split(), "--help"]) == 0
    out, err = capsys.readouterr()
    assert "Usage" in out and "\x1b[3" not in out and err == ""


def every_command(group: Any = None, before: str = "") -> list[str]:
    """Names of all commands, those of groups too."""
    found = []
    for name, command in (group or get_command(app)).commands.items():
        own = f"{before}{name}"
        found += every_command(command, f"{own} ") if hasattr(command, "commands") else [own]
    return found


def test_the_reference_names_every_flag_and_no_other(capsys: Capture) -> None:
    known = set()
    for command in every_command():
        assert run([*command.split(), "--help"]) == 0
        known |= set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", capsys.readouterr().out))
    reference = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", reference))
    assert known - named == set()
    assert named - known == {"--version", "--plugin"} | (named & set(options.SYNONYMS))


def test_help_imports_little_more_than_typer() -> None:
    """What makes help quick, without a clock: typer, the command line itself, and a few modules of the library."""
    count = "print(len(sys.modules), file=sys.stderr)"
    alone = python("-c", f"import sys, typer; {count}")
    helped = python("-c", f"import sys; from cm3kit_cli.main import run; run(['--help']); {count}")
    assert helped.returncode == 0 and "Usage" in helped.stdout
    assert int(helped.stderr) < int(alone.stderr) + 50


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m cm3kit_cli generate --help | true"
    child = subprocess.run(
        ["bash", "-c", command], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert child.returncode == 0 and child.stderr == ""


def test_an_interrupt_during_the_imports_is_told_in_one_line() -> None:
    script = """
import sys

class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Interrupted())
from cm3kit_cli.start import run
sys.exit(run())
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "cm3kit: interrupted\n")


def test_warnings_go_to_standard_error_unless_it_is_to_be_quiet(capsys: Capture) -> None:
    render.warn_of(["one\nline"], quiet=False)
    render.notes_to(False)("a note")
    render.warn_of(["another"], quiet=True)
    render.notes_to(True)("another note")
    assert capsys.readouterr() == ("", "warning: one line\na note\n")
