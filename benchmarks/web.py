"""Web pages as training data: speed beside other tools, byte-exact infilling, and kill -9 while preparing.

    OMP_NUM_THREADS=1 python benchmarks/web.py speed FOLDER...      pages/s and MB/s of a core, same pages, one run
    python benchmarks/web.py infill FOLDER... --pages 1000 --sets 10  bytes changed outside random gaps
    python benchmarks/web.py kill FOLDER --kills 20 --shards 4        records lost or doubled
    python benchmarks/web.py fuzz --seconds 60            pages made of hostile bits, and the slowest of them
    python benchmarks/web.py memory FOLDER...                         peak memory of a worker by size of the corpus

Debian packages with pages: `sh scripts/debian_packages.sh FOLDER python-skimage-doc grass-doc`. `speed` wants
beautifulsoup4 and resiliparse, and leaves out what is not installed.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import itertools
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import turbohtml

from cm3kit.web.reasons import REASONS, Refused
from cm3kit.web.record import Dropped, Record, html_to_record, read_pieces
from cm3kit_tokenizers.errors import PageError
from cm3kit_tokenizers.page import Page

TEXT = Path(__file__).parents[1] / "checkpoints/pictures/text"


def pages(folders: list[Path], count: int, largest: int = 1_000_000, seed: int = 0) -> list[Path]:
    """Pages of at most `largest` bytes, drawn evenly from the folders."""
    rng = random.Random(seed)
    drawn: list[Path] = []
    for number, folder in enumerate(folders):
        found = sorted(p for p in folder.rglob("*.html") if p.is_file() and 0 < p.stat().st_size <= largest)
        drawn += rng.sample(found, min(len(found), (count - len(drawn)) // (len(folders) - number)))
    return drawn


def no_picture(address: str) -> bytes:
    raise Refused("no_file")


def speed(args: argparse.Namespace) -> None:
    data = [path.read_bytes() for path in pages(args.folders, args.pages, args.largest)]
    megabytes = sum(map(len, data)) / 1e6
    best: dict[str, float] = {}
    ways = _ways()
    for _ in range(args.passes):
        for name, way in ways.items():
            start = time.process_time()
            for each in data:
                way(each)
            best[name] = min(best.get(name, 1e9), time.process_time() - start)
    print(f"{len(data)} pages, {megabytes:.1f} MB; CPU seconds, best of {args.passes} passes in turn")
    for name, seconds in best.items():
        print(f"{name:44} {len(data) / seconds:8.1f} pages/s {megabytes / seconds:7.2f} MB/s")


def _ways() -> dict[str, Callable[[bytes], object]]:
    from cm3kit_tokenizers.sequence import PageTokenizer
    from cm3kit_tokenizers.text import TextTokenizer
    from cm3kit_tokenizers.vocab import Vocab

    text = TextTokenizer.load(TEXT)
    tokenizer = PageTokenizer(text, Vocab(text.size, 4096))

    def tokens(data: bytes) -> object:
        found = html_to_record(data, no_picture)
        return tokenizer.encode(read_pieces(found.html)) if isinstance(found, Record) else found

    ways: dict[str, Callable[[bytes], object]] = {
        "turbohtml alone: the tree": lambda data: turbohtml.parse(data.decode("utf-8", "replace")),
        "cm3kit: record": lambda data: html_to_record(data, no_picture),
        "cm3kit: record and tokens": tokens,
    }
    if importlib.util.find_spec("bs4"):
        from bs4 import BeautifulSoup

        def soup(data: bytes, parser: str) -> object:
            tree = BeautifulSoup(data, parser)
            for each in tree(["script", "style", "nav", "header", "footer", "form", "iframe"]):
                each.decompose()
            for each in tree.find_all(True):
                each.attrs = {
                    name: each.attrs[name] for name in ("alt", "href", "src", "title") if name in each.attrs
                }
            return str(tree)

        library = text._tokenizer
        for parser in ("html.parser", *(["lxml"] if importlib.util.find_spec("lxml") else [])):
            name = f"BeautifulSoup ({parser}), stripped"
            ways[name] = partial(soup, parser=parser)
            ways[f"{name}, Hugging Face tokenizers"] = lambda data, parser=parser: library.encode(
                str(soup(data, parser))
            )
    if importlib.util.find_spec("resiliparse"):
        from resiliparse.extract.html2text import extract_plain_text
        from resiliparse.parse.encoding import bytes_to_str, detect_encoding

        ways["resiliparse: plain text"] = lambda data: extract_plain_text(
            bytes_to_str(data, detect_encoding(data))
        )
        ways["resiliparse: main content"] = lambda data: extract_plain_text(
            bytes_to_str(data, detect_encoding(data)), main_content=True, links=True, alt_texts=True
        )
    return ways


TAGS = tuple("p li td h1 h2 dt a code title img a@href a@title img@alt img@src".split())
FILLS = (
    "",
    "plain words",
    "a < b & \"c\" 'd' > e",
    "</p><script>x()</script>",
    "\u00e9\u4e2d\U0001f34e",
    "\n\t &amp; ",
)


def infill(args: argparse.Namespace) -> None:
    rng = random.Random(args.seed)
    counts: Counter[str] = Counter()
    for path in pages(args.folders, args.pages, args.largest):
        data = path.read_bytes()
        counts["pages"] += 1
        here = set(re.findall(rb"<([a-z0-9]+)", data.lower()))
        tags = [tag for tag in TAGS if tag.partition("@")[0].encode() in here]
        for _ in range(args.sets):
            page = _with_gaps(data, tags, rng) if tags else None
            if page is None:
                counts["sets without a gap"] += 1
                continue
            fills = {gap.index: rng.choice(FILLS) for gap in rng.sample(page.gaps, min(12, len(page.gaps)))}
            counts["sets"] += 1
            counts["gaps filled"] += len(fills)
            counts["bytes outside gaps"] += len(data)
            counts["bytes changed outside gaps"] += _changed(page, data, fills)
        if counts["pages"] % 100 == 0:
            print(json.dumps(counts), file=sys.stderr)
    print(json.dumps(counts))


def _with_gaps(data: bytes, tags: list[str], rng: random.Random) -> Page | None:
    try:
        page = Page.parse(data)
    except PageError:
        return None
    wanted = rng.randint(1, 3)
    for tried in range(40):
        if page.gaps and tried >= wanted:
            break
        tag, at, attribute = rng.choice(tags).partition("@")
        try:
            page = page.select(f"{tag}:nth-of-type({rng.randint(1, 4)}){at}{attribute}")
        except PageError:
            continue
    return page if page.gaps else None


def _changed(page: Page, data: bytes, fills: dict[int, str]) -> int:
    """Bytes outside the gaps that are not the source's: each fill alone, then all at once."""
    wrong, written = int(page.splice({}) != data), {}
    for gap in page.gaps:
        if gap.index in fills:
            out = page.splice({gap.index: fills[gap.index]})
            written[gap.index] = len(out) - len(data) + gap.end - gap.start
            wrong += out[: gap.start] != data[: gap.start]
            wrong += out[gap.start + written[gap.index] :] != data[gap.end :]
    out, at, shift = page.splice(fills), 0, 0
    for gap in page.gaps:
        if gap.index in fills:
            wrong += _differ(data[at : gap.start], out[at + shift : gap.start + shift])
            at = gap.end
            shift += written[gap.index] - (gap.end - gap.start)
    return wrong + _differ(data[at:], out[at + shift :])


def _differ(one: bytes, other: bytes) -> int:
    return 0 if one == other else sum(a != b for a, b in itertools.zip_longest(one, other))


def kill(args: argparse.Namespace) -> None:
    from cm3kit.web.parts import part_folders, read_part, read_rejects
    from cm3kit.web.report import validate
    from cm3kit.web.runner import prepare
    from cm3kit.web.settings import WebSettings
    from cm3kit.web.sources import SourceOptions, load_sources

    rng, place, work = random.Random(args.seed), str(args.folders[0]), Path(tempfile.mkdtemp())
    how: dict[str, Any] = {
        "settings": WebSettings.model_validate({"pictures": {"size": 64}}), "options": SourceOptions(pages=2),
    }  # fmt: skip
    load_sources()
    importlib.import_module("pyarrow.parquet")
    picture = (Path(__file__).parents[1] / "samples/pictures/banana.png").read_bytes()
    html_to_record(b"<p>x<img src=a>", lambda address: picture)
    dead = 0
    for _ in range(args.kills):
        # Forked, so that no time passes before they work, on a machine that is busy too.
        shards = [
            _fork(lambda n=n: prepare(place, work / "killed", shard=(n, args.shards), **how))
            for n in range(args.shards)
        ]
        # Until a part or three are done, or the time is over: kills land inside the work on a busy machine too.
        start, wanted = time.monotonic(), _parts(work) + rng.randint(0, 3)
        while _parts(work) < wanted and time.monotonic() - start < args.wait:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, args.wait / 20))
        for each in shards:
            os.kill(each, signal.SIGKILL)
        dead += sum(os.waitstatus_to_exitcode(os.waitpid(each, 0)[1]) == -signal.SIGKILL for each in shards)
    done = _parts(work)
    found = prepare(place, work / "killed", **how)
    prepare(place, work / "calm", **how)
    keys: Counter[str] = Counter()
    for part in part_folders(work / "killed"):
        keys.update(row["key"] for row in read_part(part, ["key"]))
        keys.update(line["key"] for line in read_rejects(part))
    files = [
        {p.relative_to(work / run): p.read_bytes() for p in (work / run).rglob("*") if p.is_file()}
        for run in ("killed", "calm")
    ]
    print(
        f"{dead} processes killed in {args.kills} rounds; {done} of {found['parts']} parts were done by then;"
        f" pages {found['pages']['in']}, told {len(keys)}, doubled {sum(n > 1 for n in keys.values())};"
        f" faults {len(validate(work / 'killed'))}; files beside those of a calm run:"
        f" {len(files[0].keys() - files[1].keys())} more, {len(files[1].keys() - files[0].keys())} fewer,"
        f" {sum(files[0][name] != files[1][name] for name in files[0].keys() & files[1].keys())} different"
    )
    shutil.rmtree(work)


def _parts(work: Path) -> int:
    return len(list((work / "killed/parts").glob("[0-9]*")))


def _fork(work: Callable[[], object]) -> int:
    child = os.fork()
    if not child:
        try:
            work()
        finally:
            os._exit(0)
    return child


BITS = (
    b"< > / = \" ' & &amp; &#0; <p> </p> <div> </div> <a href= <img src=a.png <img srcset= <table> </table> <tr> <td>"
    b" <select> <option> <svg> <math> <foreignObject> <template> <!-- --> <![CDATA[ ]]> <script> </script> <style>"
    b" <pre> <i> <b> </b> <base href=// <meta charset=gbk> <frameset> <plaintext> <picture> <source srcset= <figure>"
    b" <figcaption> <mask> <title> \0 \xff \xf0\x9f\x8d\x8e \xed\xa0\x80 <li> <ul> <dl> <dt> <h1> <caption> <form>"
    b" <button> <nobr> <ruby> , ;"
).split(b" ")


def fuzz(args: argparse.Namespace) -> None:
    """Random soups, mutated and repeated: each a record that parses back to itself, or a reason; and spliced."""
    from cm3kit_tokenizers.html.minimal import render

    rng, end = random.Random(args.seed), time.monotonic() + args.seconds
    counts: Counter[str] = Counter()
    slowest: list[tuple[float, bytes]] = []
    while time.monotonic() < end:
        bits = [
            rng.choice(BITS) if rng.random() < 0.9 else rng.randbytes(rng.randrange(6))
            for _ in range(rng.randrange(40))
        ]
        page = b"".join(bits) * (rng.choice((1, 1, 1, 1, 1, 50, 2000)))
        start = time.process_time()
        found = html_to_record(page, no_picture)
        spent = time.process_time() - start
        counts["executions"] += 1
        tags = [tag for tag in TAGS if b"<" + tag.partition("@")[0].encode() in page]
        if page and tags and len(page) < 20_000 and (cut := _with_gaps(page, tags, rng)):
            fills = {gap.index: rng.choice(FILLS) for gap in cut.gaps[:12]}
            counts["splices"] += len(fills) + 1
            if _changed(cut, page, fills):
                counts["bytes changed outside gaps"] += 1
                print("changed outside gaps:", page[:300])
        if isinstance(found, Dropped):
            counts[found.reason] += found.reason in REASONS
        elif render(found.nodes()) != found.html:
            counts["does not parse back"] += 1
            print("does not parse back:", page[:300])
        slowest = sorted(
            [*slowest, (spent * 1e6 / max(2000, len(page)), page)], reverse=True, key=lambda each: each[0]
        )[:3]
    print(json.dumps(counts))
    for share, page in slowest:
        print(f"{share:8.3f} s/MB  {len(page)} bytes of {page[:100]!r}")


def memory(args: argparse.Namespace) -> None:
    """Peak memory of a process that prepares the pages once, 4 and 16 times over under other names."""
    for times in (1, 4, 16):
        with tempfile.TemporaryDirectory() as work:
            for number, path in itertools.product(range(times), pages(args.folders, args.pages)):
                shutil.copy(path, Path(work) / f"{path.stem[:60]}-{path.stat().st_ino}-{number}.html")
            child = [sys.executable, __file__, "peak", work]
            print(times, subprocess.run(child, capture_output=True, text=True, check=True).stdout.strip())


def peak(args: argparse.Namespace) -> None:
    from cm3kit.web.runner import prepare

    with tempfile.TemporaryDirectory() as work:
        found = prepare(str(args.folders[0]), Path(work) / "out")
    print(found["pages"], f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("speed", "infill", "kill", "fuzz", "memory", "peak"))
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--pages", type=int, default=300)
    parser.add_argument("--largest", type=int, default=1_000_000, help="bytes of a page")
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--sets", type=int, default=10)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--wait", type=float, default=8, help="longest time before a kill, in seconds")
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    globals()[args.what](args)


if __name__ == "__main__":
    main()
