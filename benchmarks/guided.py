"""Fuzz the page parser and splice by coverage: atheris looks for pages that reach code that no page reached before.

    pip install atheris
    OMP_NUM_THREADS=1 python benchmarks/guided.py CORPUS --seconds 300 --seeds FOLDER

CORPUS is a folder to write to and to go on from. What `web.py fuzz` asks of its soups is asked here too: a page is a
record that parses back to itself, or a reason; a splice changes nothing outside its gaps; and no other error comes
out. The first page that breaks this ends the run, and lies in CORPUS as `crash-…`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["cm3kit_tokenizers", "cm3kit.web"]):
    from web import BITS, FILLS, TAGS, _changed, no_picture, pages

    from cm3kit.web.reasons import REASONS
    from cm3kit.web.record import Dropped, html_to_record, read_pieces
    from cm3kit.web.settings import HTLM, WebSettings
    from cm3kit_tokenizers.errors import PageError
    from cm3kit_tokenizers.html.minimal import render
    from cm3kit_tokenizers.page import Page

RULES = (
    WebSettings(),
    WebSettings.model_validate(
        {**HTLM, "pictures": {"missing": "drop", "alt_from": ["figcaption", "title"]}}
    ),
)
counts = {"executions": 0, "records": 0, "splices": 0, "pages with gaps read": 0}


def one(data: bytes) -> None:
    """Try a page; the byte in front of it chooses the rules, the gaps and what is written into them."""
    counts["executions"] += 1
    rng, page = random.Random(data[:1]), data[1:]
    found = html_to_record(page, no_picture, RULES[rng.randrange(2)])
    if isinstance(found, Dropped):
        assert found.reason in REASONS, found.reason
    else:
        counts["records"] += 1
        assert render(found.nodes()) == found.html == render(read_pieces(found.html)), "does not parse back"
    if (cut := _cut(page, rng)) is None:
        return
    fills = {gap.index: rng.choice(FILLS) for gap in cut.gaps[:12]}
    counts["splices"] += len(fills) + 1
    assert not _changed(cut, page, fills), "bytes changed outside gaps"
    try:
        cut.nodes()
        counts["pages with gaps read"] += 1
    except PageError:
        pass


def _cut(page: bytes, rng: random.Random) -> Page | None:
    """The page with the gaps that it writes, and up to three more; None where there is none."""
    try:
        cut = Page.parse(page)
    except PageError:
        return None
    there = [tag for tag in TAGS if b"<" + tag.partition("@")[0].encode() in page]
    for tag in rng.sample(there, min(3, len(there))):
        try:
            cut = cut.select(tag)
        except PageError:
            continue
    return cut if cut.gaps else None


def _words(path: Path) -> None:
    """What libFuzzer puts into pages, in its own notation."""
    lines = [
        "".join(f"\\x{byte:02x}" for byte in bit) for bit in (*BITS, b"<mask size=12>", b"<span>") if bit
    ]
    path.write_text("\n".join(f'"{line}"' for line in lines))


def main() -> None:
    """Run for some time, then tell what was done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--seeds", nargs="*", type=Path, default=[], help="folders of pages to begin with")
    parser.add_argument("--largest", type=int, default=1024, help="bytes of a page")
    args = parser.parse_args()
    args.corpus.mkdir(parents=True, exist_ok=True)
    for number, page in enumerate(pages(args.seeds, 200) if args.seeds else []):
        (args.corpus / f"seed-{number}").write_bytes(page.read_bytes()[-args.largest :])
    words = args.corpus.parent / f"{args.corpus.name}.dict"
    _words(words)
    start = time.monotonic()

    def told(data: bytes) -> None:
        one(data)
        if time.monotonic() - start > args.seconds:
            print(json.dumps(counts | {"seconds": round(time.monotonic() - start)}), flush=True)
            os._exit(0)  # an exit of another kind is a finding to libFuzzer

    flags = [f"-dict={words}", f"-max_len={args.largest}", f"-artifact_prefix={args.corpus}/", "-timeout=20"]
    atheris.Setup([sys.argv[0], *flags, str(args.corpus)], told)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
