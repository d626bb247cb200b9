"""What a diffusion decoder gains by looking both ways and by hearing the time: the same small budget for each.

python benchmarks/backbone.py --data data/emoji --model checkpoints/pictures [--steps 600]

Prints bits per hidden id (the evidence bound) of held-out pages for models that differ in attention and timestep
conditioning alone, trained from the same weights on the same questions (after MeDiM, arXiv:2510.06131, sec. 4.3).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import torch

from cm3kit.data.corpus import load_documents
from cm3kit.evaluation.bound import bits_per_id
from cm3kit.models.backbone import BackboneConfig, load_backbone
from cm3kit.objectives import MaskedDiffusion
from cm3kit.objectives.masked_diffusion import DiffusionSettings, MaskedDiffusionSettings
from cm3kit.rng import generator
from cm3kit.training.decoder import DecoderRecipe, DecoderTask
from cm3kit.training.loop import LoopSettings, train

SHAPE = BackboneConfig(hidden_size=128, layers=4, heads=2, kv_heads=2, intermediate_size=352)


def recipe(args: argparse.Namespace, causal: bool, timed: bool) -> DecoderRecipe:
    """One of the four models."""
    return DecoderRecipe(
        data=args.data,
        text=args.model / "text",
        image=args.model / "image",
        objective=MaskedDiffusionSettings(diffusion=DiffusionSettings(cond_dropout=0.0)),
        window=256,
        backbone=SHAPE,
        attention="causal" if causal else "objective",
        timestep=64 if timed else None,
        previews=(),
        loop=LoopSettings(
            steps=args.steps,
            batch_size=4,
            learning_rate=2e-3,
            save_every=args.steps,
            preview_every=10**9,
            ema=0.99,
        ),
    )


def main() -> None:
    """Train and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--model", type=Path, default=Path("checkpoints/pictures"))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--cache", type=Path, default=Path("runs/backbone-ablation"))
    args = parser.parse_args()
    found = []
    for causal in (False, True):
        for timed in (False, True):
            task = DecoderTask(recipe(args, causal, timed), args.cache)
            with tempfile.TemporaryDirectory() as folder:
                final = train(
                    task, task.recipe.loop, Path(folder), device="cpu",
                    report=lambda step, total, figures: print(
                        f"\r{step}/{total} {figures['loss']:.3f}", end="", file=sys.stderr
                    ),
                )  # fmt: skip
                task.model.backbone = load_backbone(final, len(task.vocab))
            held = load_documents(args.data, task.tokenizer, task.image, args.cache, split="rest").ids
            picked = [held[i] for i in torch.randperm(len(held), generator=generator(0))[:300].tolist()]
            objective = task.objective
            assert isinstance(objective, MaskedDiffusion)
            bits = bits_per_id(task, task.model.eval(), objective, picked, rounds=4)
            row = {
                "attention": "causal" if causal else "full",
                "timestep": timed,
                "parameters": sum(each.numel() for each in task.model.parameters()),
                "steps": args.steps,
                **{f"bits_{name}": round(value, 4) for name, value in bits.items()},
            }
            print(f"\n{row}", file=sys.stderr)
            found.append(row)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
