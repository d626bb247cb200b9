"""What a public causal model makes of pages that it was never taught: bits per byte of their words, and what it writes.

python benchmarks/page_skill.py --model smollm2 [--pages samples/pages] [--shipped checkpoints/pictures] [--infill 3]

Of every page the longest text of a paragraph is held out. Its bits per byte are those of its tokens behind the page up
to it, as the model reads it (`--prompt-style page`), and behind the beginning of a document alone; the shipped decoder
reads the same page in its own ids. Then a gap takes the place of that text, the model fills it, and each filled page is
read back: it is well-formed if every byte outside the gap is the page's own, and the gap holds text alone.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import resource
import sys
import time
from pathlib import Path

import torch

import cm3kit
from cm3kit.fill.kit import GenerateOptions, Kit
from cm3kit.fill.styles import spelling
from cm3kit.models.backbone import forward
from cm3kit_tokenizers.document import Gap, Image
from cm3kit_tokenizers.page import Page

PARAGRAPH = re.compile(rb"<(?:p|li|td|figcaption)[^>]*>([^<>]{30,})<")


def held_out(folder: Path) -> list[tuple[Path, bytes, str]]:
    """Pages with `<mask>` where their longest text was, and that text."""
    found = []
    for path in sorted(folder.glob("*.html")):
        data = path.read_bytes()
        texts = sorted(PARAGRAPH.finditer(data), key=lambda each: len(each[1]))
        if texts and b"&" not in texts[-1][1]:
            start, stop = texts[-1].span(1)
            found.append((path, data[:start] + b"<mask>" + data[stop:], texts[-1][1].decode()))
    return found


@torch.no_grad()
def bits(kit: Kit, before: list[int], words: str) -> float:
    """Bits of a text's tokens behind others."""
    vocab = kit.vocab
    text = kit.text.encode(words, vocab.text.start)
    ids = torch.tensor([[*before, *text]])
    logits_TV = forward(kit.backbone, ids)[0].float()
    logp_TV = logits_TV[len(before) - 1 : -1].log_softmax(-1)
    return -float(logp_TV.gather(1, ids[0, len(before) :, None]).sum()) / math.log(2)


def before_gap(kit: Kit, path: Path, data: bytes, pictures: bool) -> list[int]:
    """Ids of a page up to its gap, as the model reads them."""
    page = Page.parse(data, path.parent)
    nodes = page.nodes(lambda src: False)
    ids = kit.tokenizer.encode([each for each in nodes if pictures or not isinstance(each, Image)])
    place = next(place for place, each in enumerate(ids) if isinstance(each, Gap))
    begun = [kit.vocab.eod, *(each for each in ids[:place] if isinstance(each, int))]
    spelt = spelling(kit.parts.defaults.prompt_style, kit.text, kit.vocab, None)
    return begun if spelt is None else spelt.spell(begun)[0]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--pages", type=Path, default=Path("samples/pages"))
    parser.add_argument("--shipped", default="checkpoints/pictures")
    parser.add_argument("--infill", type=int, default=3)
    args = parser.parse_args()
    pages = held_out(args.pages)
    size = sum(len(words.encode()) for _, _, words in pages)
    begun = time.perf_counter()
    kit, shipped = cm3kit.load(args.model, device="cpu"), cm3kit.load(args.shipped, device="cpu")
    loaded = time.perf_counter() - begun
    found = {
        "with the page": sum(
            bits(kit, before_gap(kit, path, data, False), words) for path, data, words in pages
        ),
        "without": sum(bits(kit, [kit.vocab.eod], words) for _, _, words in pages),
        "shipped decoder, with the page": sum(
            bits(shipped, before_gap(shipped, path, data, True), words) for path, data, words in pages
        ),
    }
    sound = written = 0
    for path, data, words in pages[: args.infill]:
        page = Page.parse(data, path.parent)
        for each in kit.infill(page, seed=1, options=GenerateOptions(max_tokens=48)):
            written += 1
            start, stop = data.split(b"<mask>")
            whole = each.html.startswith(start) and each.html.endswith(stop)
            inside = each.html[len(start) : len(each.html) - len(stop)]
            sound += whole and b"<" not in inside and not Page.parse(each.html).gaps
            print(f"{path.name}: {words!r}\n  written: {each.gaps[0].text!r}", file=sys.stderr)
    told = {
        "model": args.model, "pages": len(pages), "bytes": size,
        "bits per byte": {name: round(value / size, 4) for name, value in found.items()},
        "well-formed": f"{sound} of {written}", "seconds to load": round(loaded, 1),
        "seconds in all": round(time.perf_counter() - begun, 1),
        "peak MB": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }  # fmt: skip
    print(json.dumps(told))


if __name__ == "__main__":
    main()
