"""Names, PNG metadata, sheets, records and diffs of what a run writes."""

from __future__ import annotations

import errno
import io
import json
import re
import xml.etree.ElementTree as ET
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cm3kit import images, json_lines
from cm3kit.batch import commands as jobs
from cm3kit.fill.prompts import Prompt, read_prompts
from cm3kit.provenance import outputs
from cm3kit.viewing import diff
from cm3kit_tokenizers.errors import Cm3kitError

RED = Image.new("RGB", (8, 6), "red")
RECORD = {
    "prompt": "a <red> “apple”\nnow", "seed": 7, "index": 2, "sampler": "cm3", "version": "0.1.0",
    "model": "emoji", "options": {"guidance": 3.0, "top_k": None, "temperature": 0.7},
}  # fmt: skip


def chunks(png: bytes) -> dict[str, str]:
    with Image.open(io.BytesIO(png)) as picture:
        picture.load()
        return dict(picture.text)  # type: ignore[attr-defined]


def test_run_ids_sort_by_time_and_do_not_repeat() -> None:
    moment = datetime(2026, 3, 4, 5, 6, 7)
    names = {outputs.run_id("data build", moment) for _ in range(50)}
    assert all(re.fullmatch(r"data-build-20260304T050607-[0-9a-f]{6}", name) for name in names)
    assert len(names) > 45


def test_plan_names_follow_the_output_argument(tmp_path: Path) -> None:
    def paths(output: str | None, seeds: list[int], suffix: str = ".png") -> list[str]:
        return [path.as_posix() for path in outputs.plan("run-x", output, suffix, seeds).paths]

    assert paths(None, [5, 5]) == ["outputs/run-x/000000-s5.png", "outputs/run-x/000001-s5.png"]
    assert paths(None, [5], ".html") == ["outputs/run-x/000000.html"]
    assert paths("a/x.png", [5]) == ["a/x.png"]
    assert paths("a/x.png", [5, 6]) == ["a/x-0000.png", "a/x-0001.png"]
    assert paths("new/", [5]) == paths("new", [5]) == ["new/000000-s5.png"]
    (tmp_path / "v1.2").mkdir()
    assert paths(f"{tmp_path}/v1.2", [3]) == [f"{tmp_path.as_posix()}/v1.2/000000-s3.png"]
    (tmp_path / "page").write_bytes(b"x")
    assert paths(f"{tmp_path}/page", [3], ".html") == [f"{tmp_path.as_posix()}/page"]


def test_plan_of_sheets_reports_and_records() -> None:
    single = outputs.plan("r", "x.png", ".png", [1, 1], sheet=True)
    assert single.sheet == Path("x-grid.png") and single.folder is None
    folder = outputs.plan("r", "f/", ".html", [1], report=True)
    assert {path.name for path in folder.all_paths} == {
        "000000.html", "diff.html", "run.json", "manifest.jsonl",
    }  # fmt: skip
    assert outputs.plan("r", "-", ".txt", [1, 2]).to_stdout


@pytest.mark.parametrize(
    ("output", "suffix", "seeds", "code"),
    [
        ("-", ".png", [1, 2], "bad_value"),
        ("-", ".html", [1, 2], "bad_value"),
        ("x.jpg", ".png", [1], "bad_value"),
        ("", ".png", [1], "cannot_write"),
        ("a\0b", ".png", [1], "cannot_write"),
    ],
)
def test_plans_that_cannot_be(output: str, suffix: str, seeds: list[int], code: str) -> None:
    with pytest.raises(Cm3kitError) as caught:
        outputs.plan("r", output, suffix, seeds)
    assert caught.value.code == code


def test_check_free_refuses_what_exists_or_stands_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"mine")
    planned = outputs.plan("r", f"{tmp_path}/x.png", ".png", [1])
    with pytest.raises(Cm3kitError, match=r"--force\. \[exists\]"):
        outputs.check_free(planned, force=False)
    outputs.check_free(planned, force=True)
    below = outputs.plan("r", f"{tmp_path}/x.png/y.png", ".png", [1])
    with pytest.raises(Cm3kitError, match="cannot_write"):
        outputs.check_free(below, force=True)
    too_long = outputs.plan("r", f"{tmp_path}/{'n' * 300}.png", ".png", [1])
    with pytest.raises(Cm3kitError, match="cannot_write"):
        outputs.check_free(too_long, force=False)


def test_png_metadata_reads_back() -> None:
    text = chunks(images.encode_png(RED, RECORD))
    assert json.loads(text["cm3kit"]) == RECORD
    first, *_, last = text["parameters"].splitlines()
    assert first == "a <red> “apple”"
    pairs = dict(pair.split(": ", 1) for pair in last.split(", "))
    assert pairs == {
        "Sampler": "cm3", "CFG scale": "3.0", "Seed": "7", "Sample": "2", "Temperature": "0.7",
        "Size": "8x6", "Model": "emoji", "Version": "cm3kit 0.1.0",
    }  # fmt: skip


def test_png_always_says_that_a_model_made_it() -> None:
    with_prompt, without = (chunks(images.encode_png(RED, record)) for record in (RECORD, None))
    assert set(without) == {"XML:com.adobe.xmp"} and without.items() <= with_prompt.items()
    packet = re.sub(r"<\?xpacket.*?\?>", "", without["XML:com.adobe.xmp"])
    names = {key: value for node in ET.fromstring(packet).iter() for key, value in node.attrib.items()}
    key = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType"
    assert names[key].endswith("/digitalsourcetype/trainedAlgorithmicMedia")


def test_png_keeps_pixels_and_is_reproducible() -> None:
    first = images.encode_png(RED, RECORD)
    assert first == images.encode_png(RED, dict(RECORD))
    with Image.open(io.BytesIO(first)) as picture:
        assert picture.tobytes() == RED.tobytes()


@pytest.mark.parametrize("start", ["<!DOCTYPE html><html><head>", "<html lang=de>", "<p>", "<HEAD >"])
def test_mark_html_adds_a_generator_and_a_record_that_stays_inert(start: str) -> None:
    page = f"{start}<title>t</title>"
    record = {"prompt": "</script><img src=x onerror=alert(1)>", "version": "1"}
    marked = outputs.mark_html(page, record)

    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.tags: list[str] = []
            self.scripts: list[str] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.tags.append(tag)

        def handle_data(self, data: str) -> None:
            self.scripts += [data] if self.tags[-1:] == ["script"] else []

    reader = Reader()
    reader.feed(marked)
    assert "img" not in reader.tags and reader.tags.count("script") == 1
    assert json.loads(reader.scripts[0]) == record
    assert outputs.mark_html(page).count("<script") == 0 and 'name="generator"' in outputs.mark_html(page)


def test_grid_puts_pictures_in_reading_order() -> None:
    colours = ["red", "lime", "blue", "yellow", "cyan"]
    tiles = [Image.new("RGB", (10, 8), colour) for colour in colours]
    sheet = images.grid(tiles, columns=3)
    step_x, step_y = 10 + images.MARGIN, 8 + images.MARGIN
    assert sheet.size == (3 * step_x + images.MARGIN, 2 * step_y + images.MARGIN)
    for place, tile in enumerate(tiles):
        x, y = images.MARGIN + place % 3 * step_x, images.MARGIN + place // 3 * step_y
        assert sheet.crop((x, y, x + 10, y + 8)).tobytes() == tile.tobytes()
    assert sheet.getpixel((sheet.width - 6, sheet.height - 6)) == (255, 255, 255)


def test_grid_captions_are_drawn_within_their_tile() -> None:
    tiles = [Image.new("RGB", (40, 8), "white")] * 2
    sheet = images.grid(tiles, columns=2, captions=["a very long caption indeed, too long", ""])
    ink = [x for x in range(sheet.width) for y in range(sheet.height) if sheet.getpixel((x, y)) != (255,) * 3]
    assert ink and max(ink) < images.MARGIN + 40
    assert sheet.height == 8 + images.CAPTION + 4 + 2 * images.MARGIN


def test_grid_stays_within_its_largest_side() -> None:
    wide = [Image.new("L", (9000, 4))] * 4
    assert max(images.grid(wide).size) <= images.MAX_SHEET_SIDE


@pytest.mark.parametrize(("count", "columns", "captions"), [(0, None, []), (1, 0, []), (1, 1, ["a", "b"])])
def test_grid_refuses_nonsense(count: int, columns: int | None, captions: list[str]) -> None:
    with pytest.raises(Cm3kitError, match="bad_value"):
        images.grid([RED] * count, columns, captions)


def test_json_has_no_nan_and_jsonl_is_one_object_a_line() -> None:
    rows = [{"a": float("nan"), "b": [float("inf"), 1.5]}, {"t": "two\nlines", "p": Path("x/y")}]
    lines = json_lines.dump_jsonl(rows).splitlines()
    assert [json.loads(line) for line in lines] == [
        {"a": None, "b": [None, 1.5]}, {"t": "two\nlines", "p": "x/y"},
    ]  # fmt: skip


def test_unified_diff_shows_only_what_changed() -> None:
    before, after = b"<p>one</p>\n<p><mask></p>\n<p>three</p>\n", b"<p>one</p>\n<p>two</p>\n<p>three</p>\n"
    text = diff.unified(before, after, "x.html")
    assert "-<p><mask></p>\n" in text and "+<p>two</p>\n" in text and "x.html (before)" in text
    assert diff.unified(before, before) == ""
    assert len(diff.unified(b"a" * 10**6, b"b" * 10**6)) < 2000
    assert "+\xff" in diff.unified(b"a\n", b"\xff\n")


def test_report_is_sandboxed_and_self_contained() -> None:
    hostile = b'<p>old</p><script src="http://evil/x.js"></script><img src=x onerror="alert(1)">'
    report = diff.side_by_side(hostile, [hostile.replace(b"old", b"new"), hostile], "<x>.html")

    class Reader(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[tuple[str, dict[str, str | None]]] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.seen.append((tag, dict(attrs)))

    reader = Reader()
    reader.feed(report)
    tags = [tag for tag, _ in reader.seen]
    frames = [attributes for tag, attributes in reader.seen if tag == "iframe"]
    assert not {"script", "img", "x", "link"} & set(tags)
    assert len(frames) == 4 and all(f["sandbox"] == "" and "src" not in f for f in frames)
    assert str(frames[0]["srcdoc"]).endswith(hostile.decode())
    policy = [a["content"] for tag, a in reader.seen if tag == "meta" and "http-equiv" in a]
    assert policy == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    ]
    assert "<del>old</del><ins>new</ins>" in report and "no change" in report


@settings(derandomize=True, max_examples=60, deadline=None)
@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=30))
def test_report_never_lets_page_text_out(left: str, middle: str, right: str) -> None:
    before, after = f"{left}<mask>{right}".encode(), f"{left}{middle}{right}".encode()
    report = diff.side_by_side(before, [after])
    frame = re.findall(r'srcdoc="([^"]*)"', report)
    assert len(frame) == 2 and report.count("<iframe") == 2
    assert not re.search(r"<pre>[^<]*(<(?!/?(del|ins|pre)>)[^<]*)+</pre>", report)


def test_write_all_takes_everything_back_when_one_file_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "kept.txt"
    kept.write_bytes(b"mine")
    written: list[Path] = []

    def failing(path: Path, content: bytes, force: bool = False) -> None:
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        path.write_bytes(content)
        written.append(path)

    monkeypatch.setattr(jobs, "write_atomic", failing)
    files = [(tmp_path / "new/deep" / name, b"x") for name in ("a", "b", "c")]
    with pytest.raises(Cm3kitError):
        jobs.write_all(files, force=False)
    assert len(written) == 2 and list(tmp_path.iterdir()) == [kept] and kept.read_bytes() == b"mine"


def test_write_all_writes_and_respects_force(tmp_path: Path) -> None:
    path = tmp_path / "a/b.txt"
    jobs.write_all([(path, b"one")], force=False)
    with pytest.raises(Cm3kitError, match="exists"):
        jobs.write_all([(path, b"two")], force=False)
    assert path.read_bytes() == b"one"
    jobs.write_all([(path, b"two")], force=True)
    assert path.read_bytes() == b"two" and [p.name for p in path.parent.iterdir()] == ["b.txt"]


def test_prompt_files_of_every_kind(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("red apple\n\n  blue heart \n")
    (tmp_path / "p.jsonl").write_text('{"prompt": "red apple", "seed": 3, "id": "a"}\n\n{"prompt": "sun"}\n')
    (tmp_path / "p.csv").write_text('\ufeffprompt,seed,id\n"red, apple",3,a\nsun,,\n', encoding="utf-8")
    assert read_prompts(tmp_path / "p.txt") == (Prompt("red apple"), Prompt("blue heart"))
    assert read_prompts(tmp_path / "p.jsonl") == (Prompt("red apple", 3, "a"), Prompt("sun"))
    assert read_prompts(tmp_path / "p.csv") == (Prompt("red, apple", 3, "a"), Prompt("sun"))


def test_columns_that_are_not_read_are_named_once(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "a", "n": 2}\n{"prompt": "b", "n": 3, "style": "ink"}\n')
    said: list[str] = []
    assert len(read_prompts(tmp_path / "p.jsonl", said.append)) == 2
    (line,) = said
    assert "not read: n, style;" in line
    (tmp_path / "q.csv").write_text("prompt,seed,id\nsun,1,x\n")
    read_prompts(tmp_path / "q.csv", said.append)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("p.txt", b" \n", "empty_file"),
        ("p.txt", b"\xff\xfe", "empty_file"),
        ("p.txt", b"\xff\x41", "bad_data"),
        ("p.pdf", b"x", "bad_value"),
        ("p.jsonl", b"{", "bad_data"),
        ("p.jsonl", b"[" * 100_000, "bad_data"),
        ("p.jsonl", b'{"prompt": 3}', "bad_data"),
        ("p.jsonl", b'{"prompt": "x", "seed": -1}', "bad_data"),
        ("p.jsonl", b'{"prompt": "x", "seed": 1.5}', "bad_data"),
        ("p.csv", b"words\nx\n", "bad_data"),
        ("p.csv", b"prompt\nx,y\n", "bad_data"),
        ("p.parquet", b"PAR1", "bad_data"),
        ("p.csv", b'prompt\n"x\n', "bad_data"),
    ],
)
def test_prompt_files_that_are_wrong(tmp_path: Path, name: str, content: bytes, code: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(Cm3kitError) as caught:
        read_prompts(tmp_path / name)
    assert caught.value.code == code and "\n" not in str(caught.value)
