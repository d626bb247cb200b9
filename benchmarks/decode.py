"""Tokens a second of cm3kit's decoder against transformers' `generate`, on the same weights in the same run.

    OMP_NUM_THREADS=1 python benchmarks/decode.py [--quick] [--model emoji] [--clock cpu] [--compiled]

Runs of all contestants alternate, and the fastest tenth of the steps of each counts, so that what else the
machine does disturbs little and touches all alike; of whole calls, prompts included, the fastest counts. `generate`
runs in fp32 and in bf16 with its dynamic cache and SDPA, greedily and without processors of logits; with `--compiled`
also in both with its static cache, which it compiles (`CompileConfig` as it comes; not counted, as all first calls
are not, but printed). cm3kit runs in each of its formats, greedily and with its grammar. `--clock cpu` counts
processor time, for shared machines. `--prefill` measures prompts alone: keys, values and the logits behind the last id.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import CompileConfig, PreTrainedModel
from transformers.generation import StoppingCriteria, StoppingCriteriaList

from cm3kit.compiling import is_compile_failure, reason
from cm3kit.decoders import Autoregressive, DecodeConfig, Grammar, Sampling
from cm3kit.decoders.fast_llama import LeanEngine
from cm3kit.decoders.kernels import MIXED
from cm3kit.decoders.prompts import Prompt
from cm3kit.models.backbone import BackboneConfig, build_backbone
from cm3kit.types import Canvas, MaskSpan, Step
from cm3kit_tokenizers.vocab import Vocab

PRECISIONS: dict[str, int] = {"fp32": 4, "bf16": 2, "fp16-packed": 2, "bf16-fp16": 2, "int8": 1}
SIZES = {
    "shipped": BackboneConfig(hidden_size=256, layers=8, heads=4, kv_heads=4, intermediate_size=704),
    "45M": BackboneConfig(hidden_size=512, layers=12, heads=8, kv_heads=8, intermediate_size=1536),
}
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
PROMPT = 64
COMPILE = CompileConfig()
COMPILE._compile_all_devices = True


@dataclass(frozen=True)
class Subject:
    """A model under test."""

    name: str
    model: PreTrainedModel
    grammar: Grammar


class Ticks(StoppingCriteria):  # type: ignore[misc]
    """Notes the time of every step of `generate`, and stops nothing."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.times = clock, [clock()]

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:  # noqa: D102
        self.times.append(self.clock())
        return torch.zeros(len(input_ids), dtype=torch.bool)


@dataclass(frozen=True)
class Taken:
    """Seconds of each step, and of the whole call with its prompts."""

    steps: list[float]
    whole: float


def taken(times: list[float]) -> Taken:
    """What a call took, from when it began and when each step was over; the first two steps hold the prefill."""
    return Taken([after - before for before, after in pairwise(times[2:])], times[-1] - times[0])


def prompts(subject: Subject, batch: int, length: int) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    text = subject.grammar.vocab.text
    return torch.randint(text.start, text.stop, (batch, length), generator=rng)


def generate_steps(
    model: PreTrainedModel, ids_BT: Tensor, count: int, clock: Callable[[], float], compiled: bool = False
) -> Taken:
    ticks = Ticks(clock)
    # Without a configuration transformers compiles for GPUs alone.
    static = {"cache_implementation": "static", "compile_config": COMPILE} if compiled else {}
    model.generate(
        ids_BT,
        attention_mask=torch.ones_like(ids_BT),
        min_new_tokens=count,
        max_new_tokens=count,
        do_sample=False,
        pad_token_id=0,
        stopping_criteria=StoppingCriteriaList([ticks]),
        **static,
    )
    return taken(ticks.times)


def our_steps(decoder: Autoregressive, ids_BT: Tensor, count: int, clock: Callable[[], float]) -> Taken:
    times = [clock()]

    def tick(step: Step) -> None:
        times.append(clock())

    spans = (MaskSpan("image", ids_BT.shape[1], count, True),)
    decoder.fill([Canvas(tuple(ids), spans) for ids in ids_BT.tolist()], tick)
    return taken(times)


def compare(
    subject: Subject,
    batch: int,
    count: int,
    repeats: int,
    clock: Callable[[], float],
    args: argparse.Namespace,
) -> dict[str, tuple[float, float]]:
    """Seconds of a step and of a whole call for each contestant."""
    ids_BT = prompts(subject, batch, args.prompt)
    greedy = Sampling(temperature=0)
    contestants: dict[str, Callable[[], Taken]] = {}
    models = {"fp32": subject.model, "bf16": half(subject.model)}
    for precision, model in models.items():
        contestants[f"generate {precision}"] = lambda model=model: generate_steps(model, ids_BT, count, clock)  # type: ignore[misc]
        if args.compiled:
            name, twin = f"generate {precision}, compiled", copy.deepcopy(model)
            contestants[name] = lambda twin=twin: generate_steps(twin, ids_BT, count, clock, True)  # type: ignore[misc]
    for precision in args.formats:
        config = DecodeConfig.model_validate(
            {"text": greedy, "image": greedy, "batch_size": batch, "precision": precision}
        )
        decoder = Autoregressive(subject.model, subject.grammar, config)
        contestants[f"cm3kit {precision}"] = lambda decoder=decoder: our_steps(decoder, ids_BT, count, clock)  # type: ignore[misc]
    found: dict[str, list[Taken]] = {name: [] for name in contestants}
    for repeat in range(repeats + 1):
        for name, run in [*contestants.items()]:
            try:
                once = run()
            except Exception as error:
                if "compiled" not in name or not is_compile_failure(error):
                    raise
                print(
                    f"{name}: left out, as it cannot be compiled: {reason(error)}",
                    file=sys.stderr,
                    flush=True,
                )
                del contestants[name], found[name]
                continue
            found[name] += [once] if repeat else []
            if "compiled" in name and not repeat:
                print(f"{name}: first call {once.whole:.0f} s", file=sys.stderr, flush=True)
    return {
        name: (
            statistics.quantiles([step for each in those for step in each.steps], n=10)[0],
            min(each.whole for each in those),
        )
        for name, those in found.items()
    }


def half(model: PreTrainedModel) -> PreTrainedModel:
    copy = type(model)(model.config).eval()
    copy.load_state_dict(model.state_dict())
    return copy.to(torch.bfloat16)


def prefill(subject: Subject, repeats: int, clock: Callable[[], float], args: argparse.Namespace) -> None:
    """Print how long prompts alone take, the fastest of some runs."""
    print(f"\n### {subject.name}: prompts alone\n\n| prompts | contestant | ms | against transformers bf16 |")
    print("|---|---|---|---|")
    models = {"fp32": subject.model, "bf16": half(subject.model)}
    for batch in args.batches:
        ids_BT = prompts(subject, batch, args.prompt)
        runs: dict[str, Callable[[], Any]] = {}
        for precision, model in models.items():
            runs[f"transformers {precision}"] = lambda model=model, ids=ids_BT: model(
                ids, use_cache=True, logits_to_keep=1
            )  # type: ignore[misc]
        for precision in args.formats:
            engine = LeanEngine(subject.model, len(subject.grammar), precision, batch)
            cache = engine.open(batch, args.prompt + 1)
            rows = [Prompt(slot, ids) for slot, ids in enumerate(ids_BT.tolist())]
            runs[f"cm3kit {precision}"] = lambda made=(engine, cache, rows): made[0].prefill_all(*made[1:])  # type: ignore[misc]
        best = dict.fromkeys(runs, math.inf)
        for _ in range(repeats + 1):
            for name, run in runs.items():
                start = clock()
                with torch.no_grad():
                    run()
                best[name] = min(best[name], clock() - start)
        for name, seconds in best.items():
            ratio = best["transformers bf16"] / seconds
            print(f"| {batch} x {args.prompt} | {name} | {1000 * seconds:.0f} | {ratio:.2f} |", flush=True)


def bits(subject: Subject, rows: list[tuple[int, ...]]) -> dict[str, float]:
    """Mean bits a token of the ids under each precision."""
    found = {}
    for precision in PRECISIONS:
        if precision == MIXED:  # it depends on where prompts end: `decoders.precision.bits_lost`
            continue
        engine = LeanEngine(subject.model, len(subject.grammar), precision, 4)  # type: ignore[arg-type]
        total = count = 0.0
        for ids in rows:
            log_p = engine.score(ids[:-1]).double().log_softmax(-1)
            total -= float(log_p.gather(1, torch.tensor(ids[1:])[:, None]).sum()) / math.log(2)
            count += len(ids) - 1
        found[precision] = total / count
    return found


def sampled(subject: Subject, count: int, length: int) -> list[tuple[int, ...]]:
    """Pages that the model itself writes: their bits rise by the divergence of the reduced model."""
    start = (subject.grammar.vocab.eod,)
    spans = (MaskSpan("document", len(start), length, end=subject.grammar.vocab.eod),)
    rows = [Canvas(start, spans, seed=seed) for seed in range(count)]
    results = Autoregressive(subject.model, subject.grammar, DecodeConfig()).fill(rows)
    fills = [fill for each in results for fill in each.fills]
    return [(*start, *fill.ids) for fill in fills if len(fill.ids) > 1]


def bandwidth(clock: Callable[[], float]) -> float:
    """Bytes a second that one thread reads, from a block that no cache holds."""
    block = torch.ones(64 * 2**20)
    best = math.inf
    for _ in range(5):
        start = clock()
        block.sum()
        best = min(best, clock() - start)
    return block.nbytes / best


def weight_count(model: PreTrainedModel) -> int:
    """Weights that a step reads: every matrix, and the output head."""
    inner = sum(each.numel() for each in model.model.layers.parameters() if each.ndim == 2)
    return int(inner + model.get_output_embeddings().weight.numel())


def report(
    subject: Subject, count: int, repeats: int, clock: Callable[[], float], args: argparse.Namespace
) -> None:
    weights = weight_count(subject.model)
    print(f"\n### {subject.name}: {weights / 1e6:.1f} M weights a step\n")
    print("| batch | contestant | tokens/s | against generate fp32 | against generate bf16 | of read bandwidth"
          f" | whole call of {args.prompt} + {count} ids, tokens/s | against generate bf16 |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for batch in args.batches:
        found, speed = compare(subject, batch, count, repeats, clock, args), bandwidth(clock)
        for name, (seconds, whole) in found.items():
            ratios = [found[f"generate {base}"][0] / seconds for base in ("fp32", "bf16")]
            share = weights * PRECISIONS[name.split()[1].rstrip(",")] / seconds / speed
            cells = [
                str(batch),
                name,
                f"{batch / seconds:.0f}",
                *(f"{ratio:.2f}" for ratio in ratios),
                f"{share:.0%}",
                f"{batch * count / whole:.0f}",
                f"{found['generate bf16'][1] / whole:.2f}",
            ]
            print("| " + " | ".join(cells) + " |", flush=True)
    if not args.bits:
        return
    rows = sampled(subject, 4 if count < 32 else 12, 120)
    found = bits(subject, rows)
    tokens = sum(len(ids) - 1 for ids in rows)
    print(
        f"\nbits a token on {tokens} ids that the fp32 model wrote: {found['fp32']:.4f} in fp32; change: ",
        end="",
    )
    print(", ".join(f"{name} {found[name] - found['fp32']:+.4f}" for name in found if name != "fp32"))


def subjects(model: str | None, sizes: list[str]) -> list[Subject]:
    if model is not None:
        from cm3kit.fill.kit import load

        kit = load(model)
        grammar = Grammar(kit.vocab, math.prod(kit.image.grid), None)
        return [Subject(model, kit.backbone, grammar)]
    vocab = Vocab(text_size=5000, image_size=1024)
    return [Subject(name, build_backbone(SIZES[name], len(vocab)), Grammar(vocab, 64)) for name in sizes]


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description="Decoding speed against transformers' generate.")
    parser.add_argument("--model", help="a saved model instead of random weights of the usual sizes")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--prompt", type=int, default=PROMPT, help="ids of a prompt")
    parser.add_argument("--new", type=int, help="ids to write; 48 unless given, or 16 with --quick")
    parser.add_argument("--formats", nargs="+", choices=list(PRECISIONS), default=list(PRECISIONS))
    parser.add_argument(
        "--compiled", action="store_true", help="transformers with a compiled static cache too"
    )
    parser.add_argument("--prefill", action="store_true", help="measure prompts alone")
    parser.add_argument("--no-bits", dest="bits", action="store_false", help="no bits per token")
    parser.add_argument("--quick", action="store_true", help="fewer steps and repeats")
    args = parser.parse_args()
    count, repeats = (16, 1) if args.quick else (48, args.repeats)
    count = args.new or count
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {args.clock} clock,"
          f" {args.prompt}-id prompts, first decile of {repeats} x {count} steps;"
          f" one thread reads {bandwidth(CLOCKS[args.clock]) / 1e9:.1f} GB/s")  # fmt: skip
    for subject in subjects(args.model, args.sizes):
        if args.prefill:
            prefill(subject, repeats, CLOCKS[args.clock], args)
        else:
            report(subject, count, repeats, CLOCKS[args.clock], args)


if __name__ == "__main__":
    main()
