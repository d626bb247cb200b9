"""What a public causal model makes of pages that it was never taught: bits per byte of their words, and what it writes.

python benchmarks/page_skill.py [--model smollm2] [--pages benchmarks/plain/pages.txt] [--styles page plain chat]
                                [--gaps 60] [--shipped checkpoints/pictures]

`--pages` is a folder of HTML, or a text file of pages: a title, paragraphs, and an empty line behind each page. Every
paragraph of 30 bytes and more but a page's first one is held out in turn. Its bits per byte are those of its tokens
behind what the model reads of the page in each style, and behind the beginning of a document alone; the shipped decoder
reads the page up to it in its own ids. Bytes are those of the words in UTF-8.

Then gaps of many kinds take the place of words: whole paragraphs, words inside of them, items, cells, headings, links
and values. Each filled page is read by the parser of Python's library, and is well-formed if it has the tags and values
of the page with one letter in the gap.
"""

from __future__ import annotations

import argparse
import html
import json
import math
import re
import resource
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import torch

import cm3kit
from cm3kit.fill.kit import GenerateOptions, Kit
from cm3kit.models.backbone import forward
from cm3kit_tokenizers.document import Gap, Image
from cm3kit_tokenizers.page import Page

GAP = "<mask>"
PARAGRAPH = re.compile(r"<(?:p|li|td|figcaption)[^>]*>([^<>]{30,})</")
INSIDE = (
    "<p>{}</p>",
    "<p>{words} {}</p>",
    "<ul><li>{words}</li><li>{}</li></ul>",
    "<h2>{}</h2>",
    "<blockquote><p>{}</p></blockquote>",
    "<table><tr><td>{words}</td><td>{}</td></tr></table>",
    '<p><a href="a.html">{}</a> {words}</p>',
    "<p>{words} <em>{}</em></p>",
    '<img src="a.png" alt="{}">',
    "<p>{words} <code>{}</code></p>",
)


def pages(source: Path) -> list[tuple[str, str]]:
    """Names and HTML of the pages of a folder, or of a text file."""
    if source.is_dir():
        return [(path.name, path.read_text(encoding="utf-8")) for path in sorted(source.glob("*.html"))]
    found = []
    for block in source.read_text(encoding="utf-8").strip().split("\n\n"):
        title, *paragraphs = map(html.escape, block.split("\n"))
        body = "\n".join(f"<p>{each}</p>" for each in paragraphs)
        found.append((title, f"<!DOCTYPE html>\n<title>{title}</title>\n<h1>{title}</h1>\n{body}\n"))
    return found


def held_out(source: Path) -> Iterator[tuple[str, str, str]]:
    """Names, pages with a gap where a paragraph was, and the words of it."""
    for name, data in pages(source):
        texts = [each for each in PARAGRAPH.finditer(data) if "&" not in each[1]]
        for each in texts[1:] or texts:
            yield name, data[: each.start(1)] + GAP + data[each.end(1) :], each[1]


@torch.no_grad()
def bits(kit: Kit, before: tuple[int, ...], words: str) -> float:
    """Bits of a text's tokens behind others."""
    text = kit.text.encode(words, kit.vocab.text.start)
    ids = torch.tensor([[*before, *text]])
    logits_TV = forward(kit.backbone, ids)[0].float()
    logp_TV = logits_TV[len(before) - 1 : -1].log_softmax(-1)
    return -float(logp_TV.gather(1, ids[0, len(before) :, None]).sum()) / math.log(2)


def before_gap(kit: Kit, data: str, style: str) -> tuple[int, ...]:
    """What the model reads before it writes into a page's gap."""
    page = Page.parse(data.encode(), Path())
    ids = kit.tokenizer.encode(page.nodes(lambda src: False))
    options = GenerateOptions(prompt_style=style, max_tokens=96)  # type: ignore[arg-type]
    canvas = kit.filler(options).window(ids, options, 0)
    return canvas.ids[: canvas.spans[0].at]


def nodes_before(data: str) -> list[Any]:
    """The nodes of a page up to its gap."""
    nodes = Page.parse(data.encode(), Path()).nodes(lambda src: False)
    place = next(place for place, each in enumerate(nodes) if isinstance(each, Gap))
    return [each for each in nodes[:place] if not isinstance(each, Image)]


class Skeleton(HTMLParser):
    """Tags and values of a page, in order; texts are left out."""

    def __init__(self, data: str) -> None:
        super().__init__()
        self.found: list[Any] = []
        self.feed(data)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A tag with its values, but for that of a gap."""
        self.found.append((tag, [(name, value) for name, value in attrs if name != "alt"], len(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """A closing tag."""
        self.found.append(tag)

    def handle_comment(self, data: str) -> None:
        """A comment."""
        self.found.append(data)

    def handle_decl(self, decl: str) -> None:
        """A doctype."""
        self.found.append(decl)


def with_gaps(source: Path, count: int) -> Iterator[tuple[str, str]]:
    """Pages with a gap of one of the kinds of `INSIDE` behind their first paragraph."""
    known = pages(source)
    for number in range(count):
        name, data = known[number % len(known)]
        words = " ".join(data.split("<p>")[-1].split("</p>")[0].split()[:6])
        kind = INSIDE[number % len(INSIDE)].replace("{words}", words).replace("{}", GAP)
        head, end, _ = data.partition("</p>")
        yield f"{name}: {kind}", f"{head}{end}\n{kind}\n<p>{words}.</p>\n"


def filled(kit: Kit, source: Path, count: int, style: str, most: int) -> tuple[int, int]:
    """How many of the pages are well-formed, and the tokens written; what was written goes to standard error."""
    sound = tokens = 0
    for number, (name, data) in enumerate(with_gaps(source, count)):
        options = GenerateOptions(max_tokens=most, prompt_style=style, temperature=(0.7, 1.5)[number % 2])  # type: ignore[arg-type]
        (each,) = kit.infill(Page.parse(data.encode(), Path()), seed=number, options=options)
        start, stop = data.split(GAP)
        whole = each.html.decode()
        kept = whole.startswith(start) and whole.endswith(stop)
        sound += kept and Skeleton(whole).found == Skeleton(data.replace(GAP, "x")).found
        said = each.gaps[0].text or ""
        tokens += len(kit.text.encode(said))
        print(f"{style} | {name}\n  {said!r}", file=sys.stderr)
    return sound, tokens


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--pages", type=Path, default=Path(__file__).parent / "plain" / "pages.txt")
    parser.add_argument("--shipped", default="checkpoints/pictures")
    parser.add_argument("--styles", nargs="+", default=["page", "plain", "chat"])
    parser.add_argument("--gaps", type=int, default=60, help="pages filled in each style")
    parser.add_argument("--max-tokens", type=int, default=24)
    return parser.parse_args()


def main() -> None:
    """Measure and write."""
    args = arguments()
    texts = list(held_out(args.pages))
    size = sum(len(words.encode()) for _, _, words in texts)
    begun = time.process_time()
    kit, shipped = cm3kit.load(args.model, device="cpu"), cm3kit.load(args.shipped, device="cpu")
    loaded = time.process_time() - begun
    found = {
        f"{style}, with the page": [
            bits(kit, before_gap(kit, data, style), words) for _, data, words in texts
        ]
        for style in args.styles
    }
    found["without"] = [bits(kit, (kit.vocab.eod,), words) for _, _, words in texts]
    found["shipped decoder, with the page"] = [
        bits(shipped, (shipped.vocab.eod, *shipped.tokenizer.encode(nodes_before(data))), words)
        for _, data, words in texts
    ]
    lower = {
        name: sum(one < other for one, other in zip(each, found["without"], strict=True))
        for name, each in found.items()
    }
    scored = time.process_time() - begun - loaded
    sound = {style: filled(kit, args.pages, args.gaps, style, args.max_tokens) for style in args.styles}
    written = time.process_time() - begun - loaded - scored
    told = {
        "model": args.model, "pages": len({name for name, _, _ in texts}), "paragraphs": len(texts), "bytes": size,
        "bits per byte": {name: round(sum(each) / size, 4) for name, each in found.items()},
        "paragraphs below without": {name: count for name, count in lower.items() if name != "without"},
        "well-formed": {style: f"{count} of {args.gaps}" for style, (count, _) in sound.items()},
        "tokens written": sum(tokens for _, tokens in sound.values()),
        "processor seconds": {"loading": round(loaded, 1), "bits": round(scored, 1), "filling": round(written, 1)},
        "peak MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }  # fmt: skip
    print(json.dumps(told))


if __name__ == "__main__":
    main()
