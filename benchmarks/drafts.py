"""Drafts on real pages: ids per pass and processor time, beside writing without.

    OMP_NUM_THREADS=1 python benchmarks/drafts.py [--model emoji] [--pages samples/pages] [--batch N] [--quick]

Every way writes the same ids, which is checked; runs take turns, so that a busy machine is unfair to none.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import cm3kit
from cm3kit.decoders.causal.autoregressive import Autoregressive
from cm3kit.decoders.fast_llama import LeanEngine
from cm3kit.decoders.precision import auto_precision
from cm3kit.fill.kit import GenerateOptions, Kit
from cm3kit.models.backbone import BackboneConfig, build_backbone
from cm3kit.types import Result

CASES = {
    "titles and headings": "title, h1", "paragraphs": "p", "names of pictures": "img@alt", "pictures": "img@src",
}  # fmt: skip
REPEATS = 3


class Watched:
    """Collects the results of the causal decoder."""

    def __init__(self) -> None:
        self.results: list[Result] = []
        plain = Autoregressive.fill

        def fill(decoder: Autoregressive, *given: Any) -> list[Result]:
            found = plain(decoder, *given)
            self.results += found
            return found

        Autoregressive.fill = fill  # type: ignore[method-assign]

    def take(self) -> list[Result]:
        """Those since the last call."""
        found, self.results = self.results, []
        return found


def pages(kit: Kit, folder: Path, css: str) -> list[cm3kit.Page]:
    """The pages of a folder with such elements, these made gaps."""
    found = []
    for path in sorted(folder.glob("*.html")):
        page = cm3kit.Page.parse(path.read_bytes(), path.parent)
        try:
            page = page.select(css)
            kit.infill(page)
        except cm3kit.Cm3kitError:
            continue  # there is none, or it is longer than the model's window
        found.append(page)
    return found


def measure(
    run: Callable[[GenerateOptions], object], ways: Sequence[str], watched: Watched, size: int
) -> None:
    """Print a line for each way."""
    taken: dict[str, list[float]] = {way: [] for way in ways}
    found: dict[str, list[Result]] = {}
    for _ in range(REPEATS):
        for way in ways:
            watched.take()
            start = time.process_time()
            run(GenerateOptions(draft=way, batch_size=size))  # type: ignore[arg-type]
            taken[way].append(time.process_time() - start)
            found[way] = watched.take()
    for way in ways:
        assert [each.fills for each in found[way]] == [each.fills for each in found["none"]], "the ids differ"
        ids = sum(len(fill.logprobs) for each in found[way] for fill in each.fills)
        passes = sum(each.cost.partial for each in found[way])
        best, ratio = min(taken[way]), min(taken["none"]) / min(taken[way])
        print(
            f"    {way:10} {ids:6} ids  {ids / max(1, passes):5.2f} per pass  {best:7.2f} CPU-s  × {ratio:.2f}"
        )


def passes_cost(sizes: Sequence[int] = (1, 3, 5, 9)) -> None:
    """What a pass over several ids costs, in passes over one, for models of several sizes with random weights."""
    shapes = {"4 M": (192, 6, 3, 512), "45 M": (512, 12, 8, 1408), "150 M": (1024, 12, 16, 2816)}
    for name, (hidden, layers, heads, inner) in shapes.items():
        config = BackboneConfig(
            hidden_size=hidden, layers=layers, heads=heads, kv_heads=heads, intermediate_size=inner
        )
        model = build_backbone(config, 8192)
        engine = LeanEngine(model, 8192, auto_precision(model, many=False), 1)
        cache = engine.open(1, 512)
        engine.prefill(cache, 0, list(range(256)))
        best = dict.fromkeys(sizes, float("inf"))
        for _ in range(12):
            for size in sizes:
                writes = [cache.at([256 + step], [True]) for step in range(size)]
                ids_Q1 = torch.arange(size)[:, None]
                start = time.process_time()
                engine.verify(cache, writes, ids_Q1)
                best[size] = min(best[size], time.process_time() - start)
        costs = ", ".join(f"{size}: {best[size] / best[1]:.2f}" for size in sizes)
        print(
            f"{name}, {engine.precision}: {1e3 * best[1]:.1f} ms over one id; over so many, as multiples: {costs}"
        )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=None)
    parser.add_argument("--pages", type=Path, default=Path("samples/pages"))
    parser.add_argument("--batch", type=int, default=1, help="results of each page, made together")
    parser.add_argument("--quick", action="store_true", help="few pages")
    given = parser.parse_args()
    passes_cost()
    kit, watched = cm3kit.load(given.model, "cpu"), Watched()
    how = kit.parts.defaults.diffusion
    ways = ["none", "lookup"] + ["diffusion"] * (how.trained_cache == "causal" and how.layout == "behind")
    for size in (given.batch,):
        for name, css in CASES.items():
            chosen = pages(kit, given.pages, css)[: 4 if given.quick else None]
            print(f"{name} of {len(chosen)} pages, batch {size}", flush=True)

            def infill(
                options: GenerateOptions, chosen: Sequence[cm3kit.Page] = chosen, size: int = size
            ) -> None:
                for page in chosen:
                    kit.infill(page, variants=size, seed=1, options=options)

            measure(infill, ways, watched, size)
        print(f"whole pages from words, batch {size}", flush=True)

        def generate(options: GenerateOptions, size: int = size) -> None:
            kit.generate("red apple", task="document", n=2 * size, seed=1, options=options)

        measure(generate, ways, watched, size)


if __name__ == "__main__":
    main()
