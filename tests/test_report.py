"""The report of a run: what it shows, and that nothing in it runs or loads; pictures in a terminal."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shlex
import sys
from html.parser import HTMLParser
from pathlib import Path

import browser as browsers
import pytest
from PIL import Image
from toys import toy

from cm3kit.json_lines import dump_jsonl
from cm3kit.viewing import report
from cm3kit.viewing.display import display, marks_of
from cm3kit.viewing.halfblocks import half_blocks, strip
from cm3kit_cli import render
from cm3kit_cli.main import run
from cm3kit_tokenizers import DataError

SAYS = "parent.postMessage('hacked','*')"
LINES = (Path(__file__).parent / "data/payloads.txt").read_text(encoding="utf-8").splitlines()
# `@` is what is to run; where CSS has an at-rule it stays.
PAYLOADS = [re.sub(r"@(?!import|font-face|keyframes)", SAYS, line) for line in LINES]

# Bring every frame into sight, where it is put up, and give what is in it time to do something.
SCROLL = """(async () => {
  let shown = 0;
  const frames = document.querySelectorAll('.frame');
  for (const each of frames) {
    each.scrollIntoView({ block: 'center' });
    for (let tries = 0; tries < 500 && !each.firstChild; tries += 1) await new Promise((done) => setTimeout(done, 10));
    await new Promise((done) => setTimeout(done, 25));
    shown += each.firstChild ? 1 : 0;
  }
  return [shown, frames.length];
})()"""


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A run in which every prompt, name, word and page is a payload."""
    png = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(png, "PNG")
    rows = []
    for number, payload in enumerate(PAYLOADS):
        name = f"{number:04d}"
        (tmp_path / f"{name}.html").write_text(f"<!DOCTYPE html><title>x</title><p>{payload}</p>")
        (tmp_path / f"{name}.png").write_bytes(png.getvalue())
        (tmp_path / f"{name}.txt").write_text(payload)
        for suffix in (".html", ".png", ".txt"):
            rows.append(
                {"path": name + suffix, "prompt": payload, "text": payload, "seed": payload, "error": payload}
            )
    (tmp_path / "manifest.jsonl").write_text(dump_jsonl(rows))
    told = {
        "task": PAYLOADS[0],
        "model": PAYLOADS[3],
        "options": {PAYLOADS[4]: PAYLOADS[5]},
        "sha256": {PAYLOADS[6]: "x"},
    }
    (tmp_path / "run.json").write_text(json.dumps(told))
    return tmp_path


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy's run of pictures, and one of a page with gaps."""
    home = tmp_path_factory.mktemp("shown")
    model = ["-m", str(toy()), "-q", "--seed", "1", "--max-tokens", "8"]
    page = "<!DOCTYPE html><title>Fruit</title><p>A <mask> pear & <b>more</b></p><img src='<mask>' alt=x>"
    (home / "page.html").write_text(page)
    assert (
        run(
            [
                "generate",
                "it's red",
                "-n",
                "3",
                "--temperature",
                "0.5",
                "--report",
                "-o",
                f"{home}/a/",
                *model,
            ]
        )
        == 0
    )
    assert (
        run(["infill", f"{home}/page.html", "--variants", "2", "--report", "-o", f"{home}/b/", *model]) == 0
    )
    return home


def test_nothing_of_the_runs_own_becomes_markup(hostile: Path) -> None:
    content = report.build(hostile).content.decode()
    assert content == report.build(hostile).content.decode()
    tags = Tags()
    tags.feed(content)
    kinds = [tag for tag, _ in tags.seen]
    assert kinds.count("script") == 2 and not {
        "iframe",
        "svg",
        "link",
        "base",
        "object",
        "body onload",
    } & set(kinds)
    for tag, attributes in tags.seen:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        assert tag != "img" or attributes.get("src", "data:image/")[:11] == "data:image/"  # type: ignore[index]
        assert (attributes.get("href") or "#r")[:2] == "#r"
    script = re.findall(r"<script>(.*?)</script>", content, re.S)
    digest = base64.b64encode(hashlib.sha256(script[-1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in content and len(script) == 1


@pytest.mark.skipif(browsers.PROGRAM is None, reason="Chromium is not installed")
def test_no_payload_runs_or_loads_in_a_browser(hostile: Path) -> None:
    (hostile / "report.html").write_bytes(report.build(hostile).content)
    page = browsers.Browser(1000, 800)
    try:
        listen = "window.hacked = 0; addEventListener('message', () => { window.hacked += 1; });"
        page.call("Page.addScriptToEvaluateOnNewDocument", source=listen)
        page.open((hostile / "report.html").as_uri())
        assert page.run(SCROLL) == [len(PAYLOADS)] * 2
        assert page.run("window.hacked") == 0 and not page.heard("Page.javascriptDialogOpening")
        blocked = {
            each["requestId"] for each in page.heard("Network.loadingFailed") if each.get("blockedReason")
        }
        asked = [
            each["request"]["url"]
            for each in page.heard("Network.requestWillBeSent")
            if each["requestId"] not in blocked
        ]
        assert not [url for url in asked if not url.startswith(("data:", "file:", "about:"))]
        sandboxes = page.run(
            "[...new Set([...document.querySelectorAll('iframe')].map((e) => e.getAttribute('sandbox')))]"
        )
        assert sandboxes == [""] and page.run("location.href").endswith("report.html")
        assert not page.trap.connections
    finally:
        page.close()


def test_the_report_has_every_result_and_a_command_that_a_shell_reads(shown: Path) -> None:
    content = (shown / "a/report.html").read_text()
    assert content.count("<article") == 3 and content.count('class="made"') == 3 and "3 results" in content
    facts = json.loads((shown / "a/run.json").read_text())
    (row, *_) = [json.loads(line) for line in (shown / "a/manifest.jsonl").read_text().splitlines()]
    words = shlex.split(report.command({**row, **facts}))
    assert words[:3] == ["cm3kit", "generate", "it's red"]
    assert (
        ["-n", "3"] == words[words.index("-n") :][:2] and "--temperature" in words and "--max-tokens" in words
    )
    assert not re.search(r"https?://", re.sub(r"<tr>.*?</tr>", "", content, flags=re.S))


def test_a_filled_page_is_shown_before_and_after_with_what_is_new_marked(shown: Path) -> None:
    content = (shown / "b/report.html").read_text()
    found = re.search(r'id="data">(.*?)</script>', content, re.S)
    assert found is not None
    frames = json.loads(found[1])["frames"]
    assert len(frames) == 4 and "<mask>" in frames[0] and content.count("<figcaption>before") == 2
    assert frames[1].count("<cm3kit-new>") == 1 and " data-cm3kit-new=" in frames[1]
    assert "<ins>" in content and all(frame.startswith("<meta http-equiv=") for frame in frames)


def test_marks_stand_only_where_an_element_may() -> None:
    source = {
        "spans": [[7, 9], [17, 19], [0, 0]],
        "gaps": [
            {"kind": "content", "inside": ["title"]},
            {"kind": "content", "inside": ["p"]},
            {"kind": "image"},
        ],
    }
    (mark,) = marks_of(source)
    copy = display(b"<title>ab</title>cd", marks=[mark])
    assert copy.endswith("<title>ab</title><cm3kit-new>cd</cm3kit-new>")


def test_open_gaps_are_visible_of_every_kind() -> None:
    page = (
        b'<head><meta name=x content="<mask>"><title><mask></title></head><p>a <mask choices="b|c"></p>'
        b'<p title="<mask>">d</p><img alt="<mask>" src=e.png><img alt="<mask>" src="<mask>"><select title="<mask>">'
    )
    copy = display(page)
    body = copy[copy.index("<p>") :]
    # A picture is a square that takes no clicks, an attribute a chip with its name; in the head nothing is put.
    assert (
        body.count("data:image/svg+xml;base64,") == 1
        and '<img alt="<mask>" data-cm3kit-gap="" src="data:' in body
    )
    assert '<p title="<mask>"><cm3kit-gap data-of="title"></cm3kit-gap>d' in body
    assert body.count('><cm3kit-gap data-of="alt"></cm3kit-gap>') == 2 and body.endswith(
        '<select title="<mask>">'
    )
    assert "<cm3kit-gap" not in copy[: copy.index("<p>")].partition("</style>")[2]
    assert "cm3kit-gap" not in display(b"<p title=x>no gap</p><img src=x>")


def test_a_folder_without_a_run_has_no_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "report", str(tmp_path)]) == 1
    (tmp_path / "manifest.jsonl").write_text('{"path": "gone.png"}\n{"error": "x"}\n{torn')
    with pytest.raises(DataError, match="no existing file"):
        report.build(tmp_path)
    assert "[no_file]" in capsys.readouterr().err


def test_the_command_writes_beside_the_run(shown: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "report", str(shown / "a")]) == 1
    assert "[exists]" in capsys.readouterr().err
    assert run(["show", "report", str(shown / "a"), "-o", str(shown / "x.html"), "--json", "-q"]) == 0
    told = json.loads(capsys.readouterr().out)["data"]
    assert told["results"] == 3 and told["bytes"] == (shown / "x.html").stat().st_size
    assert run(["generate", "x", "--report", "-o", "x.png"]) == 1


def test_half_blocks_are_two_pixels_a_character(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = Image.new("RGB", (4, 4), "red")
    picture.paste((0, 0, 255), (0, 1, 4, 2))
    first, second = half_blocks(picture, 4).split("\n")
    assert first == "\x1b[38;2;255;0;0;48;2;0;0;255m▀" * 4 + "\x1b[0m"
    assert second == "\x1b[38;2;255;0;0;48;2;255;0;0m▀" * 4 + "\x1b[0m"
    picture.save(tmp_path / "x.png")
    lines = strip([tmp_path / "x.png"] * 3, 40).split("\n")
    assert len(lines) == 17 and lines[-1] == "and 2 more"
    assert run(["show", "preview", str(tmp_path / "x.png"), "--columns", "4"]) == 0
    assert capsys.readouterr().out == f"{first}\n{second}\n"


def test_previews_are_for_terminals_that_show_colours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (4, 4), "red").save(tmp_path / "x.png")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    render.previews([tmp_path / "x.png"])
    assert capsys.readouterr() == ("", "")
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    render.previews([tmp_path / "x.png", tmp_path / "x.txt"])
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 16 and "▀" in err
    monkeypatch.setenv("NO_COLOR", "1")
    render.previews([tmp_path / "x.png"])
    assert capsys.readouterr() == ("", "")
