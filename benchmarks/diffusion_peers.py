"""Time, passes and memory of masked-diffusion decoders on the same weights, in the same run, for the same ids.

    OMP_NUM_THREADS=1 python benchmarks/diffusion_peers.py [--reference generate.py] [--sizes small wide] [--block 16]
                                                           [--precision bf16]

The contestants are LLaDA's own loop, read from a file that you name, diffusers' `LLaDA2Pipeline` with its scheduler
and with ours, and `Diffusion`. All write as many ids at each pass, the surest first, in one block, so that the ids must
come out alike; the run stops if they do not. With `--block` the model is one whose blocks never look at later ones, as
LLaDA 2's, every block takes `--steps` passes, and ours keeps what is finished, which the peers compute anew. In bf16
each rounds in its own way, so that the share of ids that are the first's is printed instead.

Runs alternate and the fastest of each counts. Memory is the peak beyond the loaded weights, each in a process of its
own. `--clock cpu` counts processor time, for machines that are shared.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import BlockRefinementScheduler, LLaDA2Pipeline
from torch import Tensor
from transformers import PreTrainedModel

from cm3kit.decoders.diffusion.backbone_denoiser import BackboneDenoiser
from cm3kit.decoders.diffusion.cached import ExactCache
from cm3kit.decoders.diffusion.denoiser import Denoiser
from cm3kit.decoders.diffusion.loop import Diffusion
from cm3kit.decoders.diffusion.presets import presets
from cm3kit.decoders.fast_llama import LeanEngine
from cm3kit.decoders.grammar.unconstrained import Free
from cm3kit.decoders.settings import Precision
from cm3kit.interop.external import ModuleDenoiser
from cm3kit.interop.scheduler import MaskedDiffusionScheduler
from cm3kit.models.backbone import BackboneConfig, build_backbone
from cm3kit.types import Canvas, MaskSpan

EOSS, MASK = 2, 3
SHAPE = {"heads": 4, "kv_heads": 4, "tie_embeddings": False, "max_positions": 1024}
SIZES: dict[str, tuple[dict[str, Any], int]] = {
    "small": ({"hidden_size": 192, "layers": 6, "intermediate_size": 512}, 7275),
    "wide": ({"hidden_size": 256, "layers": 6, "intermediate_size": 704}, 126_464),
    "45M": ({"hidden_size": 512, "layers": 12, "heads": 8, "kv_heads": 8, "intermediate_size": 1536}, 6024),
}
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Task:
    """A prompt of so many ids in each of the rows, as many masks after it, and the passes to fill them in.

    Where there are blocks, the passes are those of one.
    """

    size: str
    rows: int
    length: int
    steps: int
    block: int | None = None

    @property
    def prompt_BP(self) -> Tensor:
        """Ids (B, P) without a mask or an end."""
        rng = torch.Generator().manual_seed(0)
        return torch.randint(4, SIZES[self.size][1], (self.rows, self.length), generator=rng)


@dataclass(frozen=True)
class Result:
    """What one contestant took: seconds, passes of the model over the canvas, and bytes."""

    contestant: str
    task: Task
    seconds: float
    passes: int
    alike: float
    memory: int | None = None


class Bidirectional(torch.nn.Module):
    """The backbone as LLaDA and diffusers call it, which looks everywhere, or up to its block. Counts its passes."""

    def __init__(self, backbone: PreTrainedModel, block: int | None = None) -> None:
        super().__init__()
        self.backbone, self.passes, self.block = backbone, 0, block
        self.device, self.dtype = torch.device("cpu"), backbone.dtype

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> SimpleNamespace:
        """Logits (B, T, V) of everything; no row is padded here, so the mask says nothing."""
        self.passes += 1
        if self.block is None:
            output = self.backbone(input_ids=input_ids, is_causal=False, use_cache=False)
        else:
            block_T = torch.arange(input_ids.shape[1]) // self.block
            seen_TT = block_T[None] <= block_T[:, None]
            output = self.backbone(input_ids=input_ids, attention_mask=seen_TT[None, None], use_cache=False)
        return SimpleNamespace(logits=output.logits)


def backbone(size: str) -> PreTrainedModel:
    shape, vocab = SIZES[size]
    model = build_backbone(BackboneConfig.model_validate({**SHAPE, **shape, "std": 0.08}), vocab)
    # Peers write the mask where the model prefers it; ours never does. No id but these two has logit 0 everywhere.
    model.get_output_embeddings().weight.data[[EOSS, MASK]] = 0.0
    return model


Run = Callable[[Task], tuple[Tensor, int]]
"""Ids (B, L) that were written, and passes."""


def reference(path: Path, model: Bidirectional) -> Run:
    spec = importlib.util.spec_from_file_location("llada_generate", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(task: Task) -> tuple[Tensor, int]:
        before = model.passes
        ids_BT = module.generate(
            model,
            task.prompt_BP,
            steps=task.steps * (task.length // (task.block or task.length)),
            gen_length=task.length,
            block_length=task.block or task.length,
            mask_id=MASK,
        )
        return ids_BT[:, task.length :], model.passes - before

    return run


def pipeline(scheduler: Any, model: Bidirectional) -> Run:
    pipe = LLaDA2Pipeline(model, scheduler)
    pipe.set_progress_bar_config(disable=True)

    def run(task: Task) -> tuple[Tensor, int]:
        before = model.passes
        # The prompt fills the first block, so that the second sees the whole canvas. Above 1 only schedules count.
        found = pipe(
            input_ids=task.prompt_BP, gen_length=task.length, block_length=task.block or task.length, threshold=1.5,
            num_inference_steps=task.steps, editing_threshold=None, mask_token_id=MASK, eos_token_id=None,
            output_type="seq",
        )  # fmt: skip
        return found.sequences, model.passes - before

    return run


def ours(denoiser: Denoiser, vocab: int) -> Run:
    def run(task: Task) -> tuple[Tensor, int]:
        blocks = {"block_size": task.block, "cache": "exact"} if task.block else {}
        config = presets["uniform"].config(steps=task.steps, batch_size=task.rows, **blocks)
        decoder = Diffusion(
            denoiser, lambda board: Free(board, vocab, MASK, EOSS), config, eoss=EOSS, image=range(0)
        )
        spans = (MaskSpan("content", task.length, task.length, True, task.length),)
        written = decoder.fill([Canvas(tuple(ids), spans) for ids in task.prompt_BP.tolist()])
        return torch.tensor([each.ids[task.length :] for each in written]), written[0].cost.forwards

    return run


def contestants(
    size: str, path: Path | None, block: int | None = None, precision: Precision = "fp32"
) -> dict[str, Run]:
    model, vocab = backbone(size), SIZES[size][1]
    wrapped = Bidirectional(model if precision == "fp32" else copy.deepcopy(model).bfloat16(), block)
    found = {} if path is None else {"LLaDA generate.py": reference(path, wrapped)}
    found |= {
        "diffusers pipeline": pipeline(BlockRefinementScheduler(), wrapped),
        "diffusers pipeline, cm3kit scheduler": pipeline(MaskedDiffusionScheduler(), wrapped),
    }
    if block is not None:
        engine = LeanEngine(model, vocab, "fp32", rows=16)
        return {
            **found,
            "cm3kit, transformers module": ours(ExactCache(model, MASK, vocab, block), vocab),
            "cm3kit": ours(ExactCache(model, MASK, vocab, block, engine=engine), vocab),
        }
    if precision == "fp32":
        found["cm3kit, transformers module"] = ours(ModuleDenoiser(model, MASK, attention="full"), vocab)
    return {**found, "cm3kit": ours(BackboneDenoiser(model, MASK, vocab, precision=precision), vocab)}


def compare(
    task: Task, runs: dict[str, Run], repeats: int, clock: Callable[[], float], exact: bool
) -> dict[str, tuple[float, int, float]]:
    """Seconds, passes and the share of ids that are the first's; SystemExit if all are to be, and are not."""
    best: dict[str, tuple[float, int, float]] = {}
    first: Tensor | None = None
    for _ in range(repeats):
        for name, run in runs.items():
            start = clock()
            ids, passes = run(task)
            seconds = clock() - start
            first = ids if first is None else first
            alike = float((ids == first).double().mean())
            if exact and alike < 1:
                raise SystemExit(f"{name} wrote other ids than {next(iter(runs))} did in {task}")
            now = seconds, passes, alike
            best[name] = min(best.get(name, now), now)
    return best


def peak(name: str, task: Task, path: Path | None, precision: Precision) -> int | None:
    """Bytes at the peak beyond the loaded weights, in a process of its own; None where the system does not say."""
    wanted = json.dumps({"name": name, "task": asdict(task)})
    command = [sys.executable, __file__, "--child", wanted, "--precision", precision]
    if path is not None:
        command += ["--reference", str(path)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]
    return None if answer == "None" else int(answer)


def child(name: str, task: Task, path: Path | None, precision: Precision) -> None:
    run = contestants(task.size, path, task.block, precision)[name]
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not status.exists() or not clear.exists():
        print(None)
        return
    clear.write_text("5")
    before = _status(status, "VmRSS")
    run(task)
    print(_status(status, "VmHWM") - before)


def _status(path: Path, field: str) -> int:
    line = next(line for line in path.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def measure(
    tasks: list[Task], path: Path | None, repeats: int, clock: str, memory: bool, precision: Precision
) -> list[Result]:
    results = []
    for size in dict.fromkeys(task.size for task in tasks):
        runs = contestants(size, path, tasks[0].block, precision)
        for task in [each for each in tasks if each.size == size]:
            found = compare(task, runs, repeats, CLOCKS[clock], precision == "fp32")
            each = f" for each of {task.length // task.block} blocks" if task.block else ""
            print(
                f"\n### {size}, {task.rows} x ({task.length} + {task.length}) ids in {task.steps} passes{each}\n"
            )
            print(
                "| contestant | seconds | ms a pass | passes | times as fast as the first | ids alike | peak MiB |"
            )
            print("|---|---|---|---|---|---|---|", flush=True)
            first = next(iter(found.values()))[0]
            for name, (seconds, passes, alike) in found.items():
                bytes_ = peak(name, task, path, precision) if memory else None
                results.append(Result(name, task, seconds, passes, alike, bytes_))
                shown = "-" if bytes_ is None else f"{bytes_ / 2**20:.0f}"
                cells = [name, f"{seconds:.2f}", f"{1000 * seconds / passes:.0f}", str(passes)]
                cells += [f"{first / seconds:.2f}", f"{alike:.0%}", shown]
                print("| " + " | ".join(cells) + " |", flush=True)
    return results


def main() -> None:
    """Print the tables as Markdown, and write the numbers as JSON."""
    parser = argparse.ArgumentParser(description="Masked-diffusion decoders side by side.")
    parser.add_argument("--reference", type=Path, help="LLaDA's generate.py")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--length", type=int, default=64, help="ids of the prompt, and of the answer")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument(
        "--block", type=int, help="ids of a block, a part of --length, of a model trained in blocks"
    )
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="with full attention")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall")
    parser.add_argument("--no-memory", action="store_true", help="start no processes to measure memory")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        wanted = json.loads(args.child)
        child(wanted["name"], Task(**wanted["task"]), args.reference, args.precision)
        return
    if args.block and args.precision != "fp32":
        parser.error("--precision is for full attention; leave --block out")
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), {args.clock} clock, {args.precision},"
        f" best of {args.repeats}"
    )
    tasks = [
        Task(size, rows, args.length, args.steps, args.block) for size in args.sizes for rows in args.rows
    ]
    memory = not args.no_memory
    results = measure(tasks, args.reference, args.repeats, args.clock, memory, args.precision)
    if args.json:
        args.json.write_text(
            json.dumps([asdict(each) for each in results], indent=1) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
