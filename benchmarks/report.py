"""The report of a large run: its size, how long it takes to build and to load in Chromium, and what it asks for.

    python benchmarks/report.py outputs/run-1 outputs/run-2 --rows 1000

Results of the runs are repeated until there are as many as asked for.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests/tools"))

from browser import Browser  # noqa: E402

from cm3kit.json_lines import dump_jsonl  # noqa: E402
from cm3kit.provenance.recipes import name_of, rows  # noqa: E402
from cm3kit.viewing import report  # noqa: E402

SCROLL = """(async () => {
  let shown = 0;
  const frames = document.querySelectorAll('.frame');
  for (const each of [...frames].filter((_, place) => place % 10 === 0)) {
    each.scrollIntoView({ block: 'center' });
    for (let tries = 0; tries < 300 && !each.firstChild; tries += 1) await new Promise((done) => setTimeout(done, 10));
    await new Promise((done) => setTimeout(done, 60));
    shown += each.firstChild ? 1 : 0;
  }
  return [shown, frames.length];
})()"""


def gather(runs: list[Path], count: int, folder: Path) -> None:
    """A folder with so many results of the runs."""
    every = [(run, row) for run in runs for row in rows(run) if name_of(row)]
    found = []
    for number, (run, row) in enumerate(itertools.islice(itertools.cycle(every), count)):
        name = f"{number:06d}{Path(str(name_of(row))).suffix}"
        shutil.copy(run / str(name_of(row)), folder / name)
        found.append({**row, "path": name})
    (folder / "manifest.jsonl").write_text(dump_jsonl(found), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--pictures", type=Path, help="a folder for pictures of the window")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gather(given.runs, given.rows, folder)
        started = time.perf_counter()
        built = report.build(folder)
        path = folder / "report.html"
        path.write_bytes(built.content)
        took = time.perf_counter() - started
        print(
            f"{built.entries} results, {len(built.content) / 1e6:.2f} MB, built in {took:.1f} s", flush=True
        )
        page = Browser(1280, 900)
        try:
            listen = "window.told = 0; addEventListener('message', () => { window.told += 1; });"
            page.call("Page.addScriptToEvaluateOnNewDocument", source=listen)
            page.open(path.as_uri())
            timing = page.run("performance.getEntriesByType('navigation')[0].toJSON()")
            print(
                f"Chromium: DOM ready after {timing['domContentLoadedEventEnd'] / 1000:.2f} s,"
                f" loaded after {timing['loadEventEnd'] / 1000:.2f} s",
                flush=True,
            )
            if given.pictures:
                look(page, given.pictures)
            shown, frames = page.run(SCROLL)
            asked = [each["request"]["url"] for each in page.heard("Network.requestWillBeSent")]
            elsewhere = [url for url in asked if not url.startswith(("data:", "file:", "about:"))]
            print(
                f"{shown} of {-(-frames // 10)} frames looked at; requests elsewhere: {len(elsewhere)};"
                f" scripts of pages that ran: {page.run('window.told')}; connections: {len(page.trap.connections)}"
            )
            if elsewhere:
                print(json.dumps(elsewhere[:5]))
        finally:
            page.close()


def look(page: Browser, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, width, dark in (("wide", 1280, False), ("wide-dark", 1280, True), ("narrow-dark", 420, True)):
        page.size(width, 900)
        page.dark(dark)
        page.run("scrollTo(0, 0)")
        page.run("new Promise((done) => setTimeout(done, 800))")
        page.picture(folder / f"{name}.png")
        page.run("document.querySelector('.frame')?.scrollIntoView({ block: 'center' })")
        page.run("new Promise((done) => setTimeout(done, 800))")
        page.picture(folder / f"{name}-pages.png")
    page.size(1280, 900)
    page.dark(False)


if __name__ == "__main__":
    main()
