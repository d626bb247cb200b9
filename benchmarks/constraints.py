"""Measure constraints: outputs that keep to theirs over kinds, decoders and orders; and a trie of a million titles.

Run: python benchmarks/constraints.py [--model emoji] [--outputs 5000] [--titles 1000000]
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import cm3kit
from cm3kit.canvas import ConstraintSpec
from cm3kit.decoders.grammar.language import Language
from cm3kit.decoders.grammar.token_trie import TokenTrie
from cm3kit.fill.kit import GenerateOptions, Kit
from cm3kit_tokenizers.page import Page

TITLES = ["red apple", "green pear", "big 'book'", "a < b & c", "banana split", "the book of fruit"]
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1, 2, 3]}, "b": {"type": "boolean"}},
    "required": ["a"],
}
HTML = (
    "<title>a <mask choices='red|green &amp; blue|\\|'></title><p>in <mask regex='(19|20)[0-9]{{2}}'> and <em>"
    "<mask trie=titles.txt></em> so</p><img alt='a <mask json-schema=\"{schema}\">' src='data:,'>"
    "<p><mask regex='[a-z]+( [a-z]+)*'></p>"
)
CHECKS = {
    0: lambda text: text in ("red", "green & blue", "|"),
    1: lambda text: re.fullmatch("(19|20)[0-9]{2}", text) is not None,
    2: lambda text: text in TITLES,
    3: lambda text: json.loads(text)["a"] in (1, 2, 3) and {*json.loads(text)} <= {"a", "b"},
    4: lambda text: re.fullmatch("[a-z]+( [a-z]+)*", text) is not None,
}
KINDS = ("choices", "regex", "trie", "json-schema", "regex without a longest answer")
WARM: dict[str, Any] = {"decoder": "diffusion", "temperature": 1.0, "max_tokens": 16}
WAYS: dict[str, dict[str, Any]] = {
    "cm3": {"decoder": "cm3", "max_tokens": 16},
    "cm3, parallel": {"decoder": "cm3", "max_tokens": 16, "parallel": True},
    "by probability": {**WARM, "steps": 4},
    "by entropy": {**WARM, "order": "entropy"},
    "by margin": {**WARM, "order": "margin", "steps": 2},
    "at random": {**WARM, "order": "random", "steps": 3},
    "left to right": {**WARM, "order": "left-to-right"},
    "ancestral": {**WARM, "sampler": "ancestral"},
    "remasked": {**WARM, "sampler": "ancestral", "modifiers": ("remdm-cap",), "steps": 6},
}


def outputs(kit: Kit, wanted: int) -> None:
    """Fill a page with five constrained gaps in every way, and look at what came out."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "titles.txt").write_text("\n".join(TITLES), encoding="utf-8")
        Path(folder, "schema.json").write_text(json.dumps(SCHEMA))
        page = Page.parse(HTML.format(schema="schema.json").encode(), Path(folder))
        each = -(-wanted // (len(WAYS) * len(KINDS)))
        total: Counter[str] = Counter()
        for way, options in WAYS.items():
            found: Counter[str] = Counter()
            for filled in kit.infill(page, variants=each, seed=7, options=GenerateOptions(**options)):
                for gap in filled.gaps:
                    found["outputs"] += 1
                    found["keep"] += bool(CHECKS[gap.index](gap.text))
                    found[f"cut: {KINDS[gap.index]}"] += not gap.ended
                    found["told as kept"] += bool(gap.satisfied)
            total += found
            print(f"{way:16} {dict(+found)}", flush=True)
    print(f"{'all':16} {dict(+total)}", flush=True)


def trie(kit: Kit, count: int) -> None:
    """Build a trie of made-up titles, and walk it from left to right and at random."""
    rng = np.random.default_rng(0)
    syllables = [
        a + b for a in "b c d f g k l m n p r s t v st br".split() for b in "a e i o u ar en il on".split()
    ]
    titles: set[str] = set()
    while len(titles) < count:
        picks = rng.integers(0, len(syllables), (count, 6)).tolist()
        sizes = rng.integers(2, 7, count).tolist()
        for row, size in zip(picks, sizes, strict=True):
            words = [syllables[each] for each in row[:size]]
            titles.add(f"{''.join(words[:3]).title()} {''.join(words[3:])}".strip() + f" {row[0] % 10}")
    listed = sorted(titles)[:count]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "titles.txt")
        path.write_text("\n".join(listed), encoding="utf-8")
        spec = ConstraintSpec("trie", str(path), " ")
        started, cpu = time.perf_counter(), time.process_time()
        language = kit.grammar._languages.of(spec, kit.vocab.eoss)  # type: ignore[union-attr]
        wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    assert isinstance(language, TokenTrie) and len(language.arrays) == count
    tokens = len(language.arrays.tokens_M) / count
    print(f"titles {count:,}: {sum(map(len, listed)) / count:.1f} bytes and {tokens:.2f} tokens each")
    print(f"build: {cpu:.1f} s of CPU ({wall:.1f} s); {language.arrays.nbytes / count:.1f} bytes per title")
    walk(language, rng)


def walk(language: Language, rng: np.random.Generator) -> None:
    """Time per token, the first one apart: what may stand there, and going on."""
    for name, exact_slots in (("left to right", 0), ("16 slots at random", 16)):
        first: list[float] = []
        rest: list[float] = []
        for _ in range(200):
            if exact_slots:
                one(
                    language.slots(exact_slots, False),
                    rng.permutation(exact_slots).tolist(),
                    rng,
                    first,
                    rest,
                )
                continue
            run, left = language.run(32, False), 32
            while left:
                start = time.process_time()
                id = int(rng.choice(np.flatnonzero(run.allowed(left).numpy())))
                if id != language.end:
                    run.take(id)
                (rest if left < 32 else first).append(time.process_time() - start)
                left = left - 1 if id != language.end else 0
        print(
            f"{name}: {1e3 * np.mean(rest):.3f} ms per token, {1e3 * np.mean(first):.3f} ms the first of a gap"
        )


def one(
    slots: Any, order: list[int], rng: np.random.Generator, first: list[float], rest: list[float]
) -> None:
    """Fill one gap in an order, asking for all open slots at each step, as the decoder does."""
    for step, slot in enumerate(order):
        start = time.process_time()
        masks = {at: slots.allowed(at) for at in order[step:]}
        slots.commit(slot, int(rng.choice(np.flatnonzero(masks[slot].numpy()))))
        (rest if step else first).append(time.process_time() - start)


def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pictures")
    parser.add_argument("--outputs", type=int, default=5000)
    parser.add_argument("--titles", type=int, default=1_000_000)
    given = parser.parse_args()
    kit = cm3kit.load(given.model, device="cpu")
    if given.titles:
        trie(kit, given.titles)
    if given.outputs:
        outputs(kit, given.outputs)


if __name__ == "__main__":
    main()
