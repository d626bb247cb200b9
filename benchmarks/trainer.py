"""Tokens a second of our training loop and of the Trainer of transformers, on the same model and documents in one run.

python benchmarks/trainer.py [--steps 30] [--rounds 3] [--compile] [--precision bf16] [--size 45M]

Documents are random ids, log-normal in length (median 90, σ 0.6, less than the window), and what is asked is the next
id. Ours packs documents in rows, where each sees itself alone. The Trainer pads each batch to its longest document,
as its collator for language models does (`trainer`), also where documents of like length are drawn together (`by
length`); or it is given rows that documents are cut into end to end, where they see one another (`concatenated`),
which asks for something else but pads nothing. All use fused AdamW on one thread, in fp32, or with bf16 autocast
(`bf16=True` of the Trainer, `loop.precision=bf16` here). A token that is asked for
counts, padding does not. They take turns, so that what else the machine does hits all; seconds are of the processor,
after the first three steps of each turn. Prints the median over rounds of tokens a second, and the ratio to the first,
as JSON.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from kill import build
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from cm3kit.data.corpus import Documents
from cm3kit.models.backbone import BackboneConfig
from cm3kit.rng import generator
from cm3kit.training.collate import Packed
from cm3kit.training.decoder import DecoderRecipe, DecoderTask
from cm3kit.training.loop import LoopSettings, train
from cm3kit.training.observe import Seen

WARM, WINDOW, ROWS = 3, 256, 8
THEIRS = ("trainer", "by length", "concatenated")
SIZES = {
    "1M": BackboneConfig(hidden_size=128, layers=4, heads=2, kv_heads=2, intermediate_size=352),
    "45M": BackboneConfig(hidden_size=512, layers=12, heads=8, kv_heads=8, intermediate_size=1536),
}


def documents(count: int, vocab: int) -> Documents:
    """Random documents, all drawn alike."""
    rng = generator(1)
    lengths = (torch.randn(count, generator=rng) * 0.6).exp().mul(90).clamp(8, WINDOW - 8).long().tolist()
    ids = tuple(torch.randint(20, vocab, (length,), generator=rng).tolist() for length in lengths)
    return Documents(ids, torch.ones(count), tuple(map(str, range(count))))


class Clock:
    """Processor seconds and tokens, from the end of the warm-up to the last step."""

    def __init__(self) -> None:
        self.asked, self.padded = 0, 0
        self.first = self.last = (0.0, 0)

    def note(self, step: int) -> None:
        """A step is over."""
        self.last = (time.process_time(), self.asked)
        if step == WARM:
            self.first = self.last

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return (self.last[1] - self.first[1]) / (self.last[0] - self.first[0])


class Counted(DecoderTask):
    """Counts the ids that are asked for."""

    clock = Clock()

    def batch(self, rng: Any, size: int) -> Packed:
        """As it is."""
        made = super().batch(rng, size)
        self.clock.asked += int((made.weights_BT > 0).sum())
        self.clock.padded += int((made.documents_BT == 0).sum())
        return made


class Ours:
    """An observer that looks at a clock."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def begin(self, step: int, total: int) -> None:
        """Nothing to do."""

    def saw(self, seen: Seen) -> None:
        """A step is over."""
        self.clock.note(seen.step)

    def end(self) -> None:
        """Nothing is left."""


class Theirs(TrainerCallback):
    """The same for the Trainer."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """A step is over."""
        self.clock.note(state.global_step)


def ours(task: Counted, start: dict[str, torch.Tensor], steps: int, compiled: bool, folder: Path) -> Clock:
    """A turn of our loop."""
    task.model.load_state_dict(start)
    task.clock = Clock()
    loop = task.recipe.loop.model_copy(update={"steps": steps, "save_every": 10**6, "compile": compiled})
    # One step less than all, so that nothing is exported.
    train(task, loop.model_copy(update={"steps": steps + 1}), folder, device="cpu", max_steps=steps,
          observers=[Ours(task.clock)])  # fmt: skip
    return task.clock


def theirs(model: Any, held: Documents, way: str, steps: int, folder: Path, bf16: bool) -> Clock:
    """A turn of the Trainer."""
    ids = list(held.ids)
    # As many documents as our rows hold, so that a step learns from about as much.
    batch = round(ROWS * WINDOW * 0.93 * len(ids) / sum(map(len, ids)))
    if way == "concatenated":
        joined, batch = [each for one in ids for each in one], ROWS
        ids = [joined[start : start + WINDOW] for start in range(0, len(joined) - WINDOW, WINDOW)]
    clock = Clock()

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in rows)
        ids_BT, seen_BT = torch.zeros(len(rows), longest, dtype=torch.long), torch.zeros(len(rows), longest)
        for place, row in enumerate(rows):
            size = len(row["input_ids"])
            ids_BT[place, :size], seen_BT[place, :size] = torch.tensor(row["input_ids"]), 1
            clock.asked, clock.padded = clock.asked + size - 1, clock.padded + longest - size
        labels_BT = ids_BT.masked_fill(seen_BT == 0, -100)
        return {"input_ids": ids_BT, "attention_mask": seen_BT.long(), "labels": labels_BT}

    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=batch, max_steps=steps, use_cpu=True, report_to=[],
        save_strategy="no", logging_strategy="no", optim="adamw_torch_fused", learning_rate=1e-3, disable_tqdm=True,
        weight_decay=0.01, adam_beta2=0.95, seed=0, bf16=bf16,
        train_sampling_strategy="group_by_length" if way == "by length" else "random",
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=arguments, train_dataset=[{"input_ids": each} for each in ids], data_collator=collate,
        callbacks=[Theirs(clock)],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)  # writes to standard output
    trainer.train()
    return clock


def main() -> None:
    """Take turns, and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="measure ours compiled too")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of all")
    parser.add_argument("--size", choices=list(SIZES), default="1M")
    parser.add_argument("--ways", nargs="+", choices=[*THEIRS, "ours"], default=[*THEIRS, "ours"])
    args = parser.parse_args()
    torch.set_num_threads(1)
    loop = LoopSettings(batch_size=ROWS, precision=args.precision, preview_every=10**6, learning_rate=1e-3)
    rates: dict[str, list[float]] = {}
    padding: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        corpus, place = Path(name) / "corpus", Path(name) / "runs"
        corpus.mkdir()
        build(corpus)
        recipe = DecoderRecipe(
            data=corpus, text=corpus, image=corpus / "image", window=WINDOW, backbone=SIZES[args.size], loop=loop,
            previews=(), objective={"name": "next-token"},
        )  # fmt: skip
        task = Counted(recipe, corpus / "cache")
        task.documents = documents(2000, len(task.vocab))
        task._mean = sum(map(len, task.documents.ids)) / 2000 + 1
        start = copy.deepcopy(task.model.state_dict())
        for turn in range(args.rounds):
            for way in (*args.ways, *(["ours, compiled"] if args.compile else [])):
                folder = place / f"{turn}-{way}"
                if way in THEIRS:
                    task.model.load_state_dict(start)
                    model = copy.deepcopy(task.model.backbone).train()
                    clock = theirs(model, task.documents, way, args.steps, folder, args.precision == "bf16")
                else:
                    clock = ours(task, start, args.steps, "compiled" in way, folder)
                rates.setdefault(way, []).append(clock.rate)
                padding[way] = clock.padded / (clock.asked + clock.padded)
                print(f"{way}: {clock.rate:.0f} tokens/s", file=sys.stderr)
    medians = {way: statistics.median(each) for way, each in rates.items()}
    print(json.dumps({
        way: {"tokens_per_second": round(rate), f"of {args.ways[0]}": round(rate / medians[args.ways[0]], 2),
              "padding": round(padding[way], 3), "rounds": [round(each) for each in rates[way]]}
        for way, rate in medians.items()
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
