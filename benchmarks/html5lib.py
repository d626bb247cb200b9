"""The cases of html5lib-tests through cm3kit's page parser: trees, encodings, and what becomes of every input.

    git clone https://github.com/html5lib/html5lib-tests && git -C html5lib-tests checkout 9329e64
    python benchmarks/html5lib.py html5lib-tests

Later commits no longer hold `tree-construction`. A tree counts as claimed where a page is parsed whole and without
scripts, since cm3kit does nothing else; the encodings that are claimed are ASCII supersets, by mark or `<meta>`.
Every input of the suite, claimed or not, is also read as bytes: into a record that parses back to itself or a
reason, and into a page whose spans cut it up without a gap and that is spliced without a change.
"""

from __future__ import annotations

import argparse
import codecs
import json
import re
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import turbohtml

from cm3kit.web.reasons import REASONS, Refused
from cm3kit.web.record import Dropped, html_to_record
from cm3kit_tokenizers.errors import PageError
from cm3kit_tokenizers.html.encoding import codec_of
from cm3kit_tokenizers.html.minimal import render
from cm3kit_tokenizers.html.spans import parse_tree, runs, view
from cm3kit_tokenizers.page import Page

PREFIX = {turbohtml.Namespace.SVG: "svg ", turbohtml.Namespace.MATHML: "math "}
# The only attributes with a namespace, by the standard; elsewhere a colon is part of the name.
SPLIT = {
    "xlink": "actuate arcrole href role show title type".split(),
    "xml": ["lang", "space"],
    "xmlns": ["xlink"],
}


def cases(path: Path, codec: str = "utf-8") -> Iterator[dict[str, str]]:
    """Sections of each case of a .dat file."""
    case: dict[str, list[str]] = {}
    name = ""
    # Newlines as they stand: a carriage return is part of a case.
    for line in [*path.read_bytes().decode(codec, "surrogatepass").split("\n"), "#data"]:
        if line == "#data" and ("document" in case or "encoding" in case):
            yield {key: "\n".join(lines) for key, lines in case.items()}
            case = {}
        if re.fullmatch(
            "#(data|errors|new-errors|document|document-fragment|script-(on|off)|encoding)", line
        ):
            name = line[1:]
            case[name] = []
        elif name:
            case[name].append(line)


def written(node: Any, depth: int = 0) -> Iterator[str]:
    """Lines of the format of the suite, from the parsed tree."""
    for child in node.children:
        indent = "| " + "  " * depth
        if isinstance(child, turbohtml.Doctype):
            ids = (child.public_id, child.system_id)
            more = "" if ids == (None, None) else ' "{}" "{}"'.format(*(each or "" for each in ids))
            yield f"{indent}<!DOCTYPE {child.name}{more}>"
        elif isinstance(child, turbohtml.Element):
            yield f"{indent}<{PREFIX.get(child.namespace, '')}{child.tag}>"
            foreign = child.namespace in PREFIX
            attributes = [(_name(name, foreign), child.attr(name) or "") for name in child.attrs]
            for name, value in sorted(
                attributes, key=lambda each: each[0].encode("utf-16-be", "surrogatepass")
            ):
                yield f'{indent}  {name}="{value}"'
            yield from written(child, depth + 1)
        elif isinstance(child, turbohtml.DocumentFragment):
            yield indent + "content"
            yield from written(child, depth + 1)
        elif isinstance(child, turbohtml.Comment):
            yield f"{indent}<!-- {child.data} -->"
        elif isinstance(child, turbohtml.ProcessingInstruction):
            yield f"{indent}<?{child.target} {child.data}>"
        else:
            yield f'{indent}"{child.data}"'


def _name(name: str, foreign: bool) -> str:
    prefix, colon, local = name.partition(":")
    return f"{prefix} {local}" if foreign and colon and local in SPLIT.get(prefix, ()) else name


def trees(folder: Path, counts: Counter[str], verbose: bool) -> None:
    for path in sorted(folder.rglob("*.dat")):
        for case in cases(path):
            counts["tree cases"] += 1
            if "document-fragment" in case or "script-on" in case:
                counts["not claimed: fragments, scripts"] += 1
                continue
            counts["trees claimed"] += 1
            try:
                found = "\n".join(written(parse_tree(case["data"])))
            except Exception:  # noqa: BLE001 - a crash is what is looked for
                counts["crashes"] += 1
                print("crash:", path.name, repr(case["data"][:200]), traceback.format_exc())
                continue
            same = found == case["document"].rstrip("\n")
            counts["same tree" if same else "another tree"] += 1
            if not same and verbose:
                print(
                    path.name,
                    repr(case["data"][:200]),
                    "expected",
                    case["document"],
                    "found",
                    found,
                    sep="\n",
                )


def encodings(folder: Path, counts: Counter[str], verbose: bool) -> None:
    for path in sorted(folder.glob("*.dat")):
        for case in cases(path, "latin-1"):
            data = case["data"].encode("latin-1")
            counts["encoding cases"] += 1
            try:
                found = codecs.lookup(codec_of(data)).name
            except PageError as error:
                found = error.code
            meant = case["encoding"].strip().lower()
            meant = codecs.lookup({"windows-1252": "cp1252"}.get(meant, meant)).name
            # Where nothing is named, cm3kit takes a page for UTF-8 if it can be, the suite for windows-1252.
            named = found != "utf-8" or meant != "cp1252"
            same = "same encoding" if found == meant else "another encoding"
            counts[same if named else "no encoding named"] += 1
            if named and found != meant and verbose:
                print(path.name, repr(case["data"][:200]), "expected", meant, "found", found)


def inputs(folder: Path) -> Iterator[bytes]:
    """Every input of the suite as bytes."""
    for path in sorted(folder.rglob("*.dat")):
        yield from (case["data"].encode("latin-1") for case in cases(path, "latin-1"))
    for path in sorted((folder / "tokenizer").glob("*.test")):
        for case in next(iter(json.loads(path.read_text("utf-8")).values())):
            text = case["input"]
            if case.get("doubleEscaped"):
                text = re.sub(r"\\u([0-9A-Fa-f]{4})", lambda found: chr(int(found[1], 16)), text)
            yield text.encode("utf-8", "surrogatepass")


def no_picture(address: str) -> bytes:
    raise Refused("no_file")


def whole(data: bytes, counts: Counter[str]) -> None:
    """An input as a page: its record, its spans, its splice."""
    counts["pages"] += 1
    found = html_to_record(data, no_picture)
    if isinstance(found, Dropped):
        counts[f"dropped: {found.reason}"] += 1
        counts["faults"] += found.reason not in REASONS
    else:
        counts["records"] += 1
        counts["faults"] += render(found.nodes()) != found.html
    try:
        page = Page.parse(data)
    except PageError as error:
        counts[f"no page: {error.code}"] += 1
        return
    text = view(data)
    at = 0
    for run in runs(text, parse_tree(text)):
        counts["faults"] += run.start != at
        at = run.end
    counts["faults"] += at != len(text)
    counts["faults"] += page.splice({}) != data


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="html5lib-tests")
    parser.add_argument("--verbose", action="store_true", help="show every difference")
    args = parser.parse_args()
    counts: Counter[str] = Counter({"crashes": 0, "faults": 0, "another tree": 0, "another encoding": 0})
    trees(args.folder / "tree-construction", counts, args.verbose)
    encodings(args.folder / "encoding", counts, args.verbose)
    for data in dict.fromkeys(inputs(args.folder)):
        try:
            whole(data, counts)
        except Exception:  # noqa: BLE001 - a crash is what is looked for
            counts["crashes"] += 1
            print("crash:", repr(data[:200]), traceback.format_exc())
    for name, count in sorted(counts.items()):
        print(f"{name:34} {count:6}")


if __name__ == "__main__":
    main()
