"""Descriptions of Debian's packages, long and in one line: summarisation in miniature.

Built from apt's own lists (`Translation-en`), which `apt-get -o Acquire::Languages=en update` fetches.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from html import escape
from pathlib import Path
from typing import Any

from cm3kit.data.text_pages import new_corpus, split_of, write_page, write_rows
from cm3kit_tokenizers.errors import DataError

LONGEST = 4000
READERS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress, ".bz2": bz2.decompress, ".xz": lzma.decompress, ".lzma": lzma.decompress,
}  # fmt: skip
COMMANDS = (("lz4", "-dc"), ("/usr/lib/apt/apt-helper", "cat-file"))
"""What reads `.lz4`, which Python cannot."""


def build(
    packages: Path, output: Path, report: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Build the corpus from apt's lists and return its figures.

    Args:
        packages: a folder with files `…Translation-en`, packed or not, at any depth (such as `/var/lib/apt/lists`).
        output: a folder that does not exist; it gets `pages/`, `manifest.jsonl` (page, split, weight), `rows.jsonl`
            (page, split, text, summary) and `LICENSES.md`.
        report: called with (rows done, rows in all).

    Raises:
        DataError: there is no list, or one cannot be read. OutputError: `output` exists or cannot be written.
    """
    paths = sorted(path for path in packages.rglob("*Translation-en*") if path.is_file())
    if not paths:
        raise DataError(
            f"{packages} holds no file Translation-en; fetch some with apt-get -o Acquire::Languages=en update, and"
            " give the folder of apt's lists.",
            code="no_file",
        )
    pairs: dict[tuple[str, str], str] = {}
    dropped: Counter[str] = Counter()
    for path in paths:
        for package, synopsis, text in read_descriptions(unpacked(path)):
            reason = _unfit(synopsis, text)
            if reason or (synopsis, text) in pairs:
                dropped[reason or "duplicate"] += 1
                continue
            pairs[synopsis, text] = package
    rows, lines = [], []
    with new_corpus(output) as working:
        for done, ((synopsis, text), package) in enumerate(pairs.items(), 1):
            # Packages of one source share their first paragraph, so that it is what splits them.
            split = split_of(text.partition("\n")[0])
            rows.append({"page": package, "split": split, "text": text, "summary": synopsis})
            body = "".join(f"<p>{escape(each, quote=False)}</p>" for each in text.split("\n"))
            html = f"<title>{escape(synopsis, quote=False)}</title>{body}"
            lines.append(
                {**write_page(working, f"{done // 1000:03}/{done:06}-{package}", html), "split": split}
            )
            report(done, len(pairs))
        write_rows(working / "rows.jsonl", rows)
        write_rows(working / "manifest.jsonl", lines)
        (working / "LICENSES.md").write_text(LICENSES, encoding="utf-8")
    held = sum(row["split"] == "test" for row in rows)
    return {"pages": len(lines), "held out": held, "lists": len(paths), "dropped": dict(dropped)}


def unpacked(path: Path) -> str:
    """The text of a list, whatever packed it; DataError where nothing here can read it."""
    try:
        if path.suffix == ".lz4":
            return _by_command(path)
        return READERS.get(path.suffix, bytes)(path.read_bytes()).decode("utf-8", "replace")
    except (OSError, EOFError, lzma.LZMAError, ValueError, subprocess.CalledProcessError) as error:
        raise DataError(
            f"{path} cannot be read: {' '.join(str(error).split())[:200]}.", code="bad_data"
        ) from error


def _by_command(path: Path) -> str:
    for program, argument in COMMANDS:
        if shutil.which(program):
            made = subprocess.run([program, argument, str(path)], capture_output=True, check=True)
            return made.stdout.decode("utf-8", "replace")
    raise DataError(f"{path} is packed by lz4; unpack it first (lz4 -d).", code="bad_data")


def read_descriptions(text: str) -> Iterator[tuple[str, str, str]]:
    """Name, synopsis and long text of each package, the latter with one line for each paragraph."""
    for record in text.split("\n\n"):
        name = re.search(r"^Package: (.+)$", record, re.M)
        told = re.search(r"^Description-en: (.*)\n((?: .*(?:\n|\Z))*)", record, re.M)
        if name and told:
            yield name[1].strip(), " ".join(told[1].split()), _paragraphs(told[2])


def _paragraphs(body: str) -> str:
    """Lines joined to paragraphs; a line of ` .` ends one, and one that is indented further stands by itself."""
    out: list[str] = [""]
    for line in body.split("\n"):
        content = line[1:]
        if content.strip() == ".":
            out.append("")
        elif content.startswith(" "):
            out += [content.strip(), ""]
        else:
            out[-1] = f"{out[-1]} {content.strip()}".strip()
    return "\n".join(each for each in out if each)


def _unfit(synopsis: str, text: str) -> str:
    if not synopsis or len(text.split()) < 8:
        return "too short"
    if len(text) > LONGEST:
        return "too long"
    return "transitional" if re.search(r"\b(transitional|dummy) (dummy )?package", synopsis) else ""


LICENSES = """# Where this corpus comes from

Descriptions of Debian's packages, as apt fetches them (`Translation-en`), © their maintainers; each stands under the
licence of its package's packaging, /usr/share/doc/PACKAGE/copyright.

One in five is held out (`test`): those whose first paragraph has a SHA-256 that begins with a byte below 51, so that
packages of one source are on one side.
"""
