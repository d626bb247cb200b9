"""Filling N gaps of one page: one prefill for all, against encoding everything anew for each gap.

    OMP_NUM_THREADS=1 python benchmarks/infill.py [--quick] [--gaps 1 4 16] [--clock cpu] [--precision bf16-fp16]

Every case runs in a process of its own, so that its peak memory is its own. `--clock cpu` counts processor time, for
machines that are shared.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from cm3kit.decoders import Autoregressive, DecodeConfig, Grammar, Sampling
from cm3kit.decoders.settings import Precision
from cm3kit.models.backbone import BackboneConfig, build_backbone
from cm3kit.types import Canvas, Fill, MaskSpan
from cm3kit_tokenizers.vocab import Vocab

SHAPE = BackboneConfig(hidden_size=256, layers=8, heads=4, kv_heads=4, intermediate_size=704)
VOCAB = Vocab(text_size=5000, image_size=1024)
PAGE, WRITTEN = 512, 12
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
WAYS = ("one prefill", "parallel", "anew for each gap")


def page(gaps: int) -> Canvas:
    """A page of `PAGE` text ids with evenly spread gaps."""
    rng = torch.Generator().manual_seed(gaps)
    ids = torch.randint(VOCAB.text.start, VOCAB.text.stop, (PAGE,), generator=rng).tolist()
    prompt: list[int] = [VOCAB.eod]
    for gap in range(gaps):
        prompt += [*ids[gap * PAGE // gaps : (gap + 1) * PAGE // gaps], VOCAB.sentinel(gap)]
    blanks = [
        MaskSpan("attribute", len(prompt), WRITTEN, True, lead=(VOCAB.sentinel(gap),), gap=gap)
        for gap in range(gaps)
    ]
    return Canvas(tuple(prompt), tuple(blanks))


def anew(decoder: Autoregressive, row: Canvas) -> tuple[Fill, ...]:
    """What an engine without append-only infilling does."""
    prompt, fills = row.ids, []
    for span in row.spans:
        (result,) = decoder.fill([Canvas(prompt, (replace(span, at=len(prompt)),))])
        (fill,) = result.fills
        fills.append(fill)
        prompt = (*prompt, *span.lead, *fill.ids, VOCAB.eoss)
    return tuple(fills)


def case(
    gaps: int, way: str, repeats: int, clock: Callable[[], float], precision: Precision
) -> dict[str, float | str]:
    """Best seconds, peak memory over that of the loaded model, and what was written."""
    greedy = Sampling(temperature=0)
    config = DecodeConfig(text=greedy, image=greedy, batch_size=gaps if way == "parallel" else 1,
                          parallel=way == "parallel", precision=precision)  # fmt: skip
    decoder = Autoregressive(build_backbone(SHAPE, len(VOCAB)), Grammar(VOCAB, 64), config)
    row = page(gaps)
    decoder.fill([page(1)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fills: tuple[Fill, ...] = ()
    best = float("inf")
    for _ in range(repeats):
        start = clock()
        fills = anew(decoder, row) if way == "anew for each gap" else decoder.fill([row])[0].fills
        best = min(best, clock() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": best,
        "extra": (peak - before) / 1024,
        "peak": peak / 1024,
        "ids": str([fill.ids for fill in fills]),
    }


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description="Infilling with one prefill against encoding anew.")
    parser.add_argument("--quick", action="store_true", help="one run of each case")
    parser.add_argument("--gaps", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--precision", choices=["fp32", "bf16", "fp16-packed", "bf16-fp16"], default="fp32")
    parser.add_argument("--case", nargs=2, metavar=("GAPS", "WAY"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    repeats = 1 if args.quick else 5
    if args.case:
        gaps, way = map(int, args.case)
        print(json.dumps(case(gaps, WAYS[way], repeats, CLOCKS[args.clock], args.precision)))
        return
    print(
        f"{PAGE}-id page, {WRITTEN} ids a gap, {args.precision}, {torch.get_num_threads()} thread(s),"
        f" {args.clock} clock, best of {repeats}\n"
    )
    print("| gaps | way | seconds | speed-up | peak MiB | over the loaded model | same ids |")
    print("|---|---|---|---|---|---|---|")
    for gaps in args.gaps:
        found = {}
        for index, way in enumerate(WAYS):
            command = [sys.executable, __file__, "--clock", args.clock, "--precision", args.precision]
            command += ["--case", str(gaps), str(index), *(["--quick"] * args.quick)]
            found[way] = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout
            )
        slow = found["anew for each gap"]
        for way, one in found.items():
            same = "by design not" if way == "parallel" and gaps > 1 else str(one["ids"] == slow["ids"])
            cells = [str(gaps), way, f"{one['seconds']:.2f}", f"{slow['seconds'] / one['seconds']:.1f}"]
            print(
                "| " + " | ".join([*cells, f"{one['peak']:.0f}", f"{one['extra']:.0f}", same]) + " |",
                flush=True,
            )


if __name__ == "__main__":
    main()
