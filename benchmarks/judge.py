"""A judge of drawn pictures: a small classifier that tells a picture's name, and who drew it.

It learns from all artists' pictures of the corpus `pictures` that are trained on (no held-out cell, name or artist),
seen moved, turned and in other light, and is used in no training. `python benchmarks/judge.py --data data/pictures -o
outputs/judge` trains it; with `--check` alone it says how well it tells held-out cells.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cm3kit.data.views import ViewSettings, view
from cm3kit.evaluation.judge import SIZE, Judge
from cm3kit.rng import generator
from cm3kit.training.precision import computes_bf16

LOOK = ViewSettings(count=2, shift=0.08, turn=12.0, scale=(0.8, 1.1), light=0.25, grounds=0.3)


def read(folder: Path, splits: tuple[str, ...]) -> tuple[Tensor, Tensor, list[str], list[str]]:
    """Pictures over white and their opacity, uint8, with names and artists."""
    things = {
        row["slug"]: row["name"]
        for row in map(json.loads, (folder / "things.jsonl").read_text().splitlines())
    }
    rows = [json.loads(line) for line in (folder / "pictures.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["split"] in splits and row["artist"] not in ("scene", "clipart")]
    white, opacity = [], []
    for row in rows:
        with Image.open(folder / row["file"]) as opened:
            picture = opened.convert("RGBA").resize((SIZE, SIZE))
        over = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
        white.append(torch.from_numpy(np.array(over)).permute(2, 0, 1))
        opacity.append(torch.from_numpy(np.array(picture.getchannel("A")))[None])
    return (
        torch.stack(white),
        torch.stack(opacity),
        [things[row["slug"]] for row in rows],
        [row["artist"] for row in rows],
    )


def train(folder: Path, seconds: float, device: str, batch: int = 128, most: int = 40_000) -> Judge:
    """Train for so many seconds (of processor time without a GPU).

    One-cycle rate over the steps that fit, label smoothing, exponential average.
    """
    white, opacity, names, artists = read(folder, ("train",))
    judge = Judge(sorted(set(names)), sorted(set(artists)))
    number = {name: index for index, name in enumerate(judge.names)}
    hand = {name: index for index, name in enumerate(judge.artists)}
    name_N, hand_N = (
        torch.tensor([number[each] for each in names]).to(device),
        torch.tensor([hand[each] for each in artists]).to(device),
    )
    white, opacity = white.to(device), opacity.to(device)
    judge = judge.to(device, memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=0.05)
    average = torch.optim.swa_utils.AveragedModel(
        judge, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995), use_buffers=True
    )
    # On a processor that is shared, its own seconds count.
    kind = torch.device(device).type
    clock = time.process_time if kind == "cpu" else time.monotonic
    start, step, done = clock(), 0, 0.0
    while done < 1 and step < most:
        rng = generator(7, step)
        pick_B = torch.randint(len(white), (batch,), generator=rng).to(device)
        done = max((clock() - start) / seconds, step / most)
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, done / 0.1 + 0.01, max(0.0, 1 - done) / 0.5 + 1e-3)
        pixels = view(white[pick_B], opacity[pick_B], LOOK, rng)
        with torch.autocast(kind, torch.bfloat16, enabled=computes_bf16(kind == "cpu")):
            by_name, by_hand = judge(pixels.to(memory_format=torch.channels_last))
        loss = nn.functional.cross_entropy(by_name.float(), name_N[pick_B], label_smoothing=0.1)
        loss = loss + 0.3 * nn.functional.cross_entropy(by_hand.float(), hand_N[pick_B], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update_parameters(judge)
        step += 1
        if step % 200 == 0:
            print(f"step {step} loss {float(loss.detach()):.3f} {clock() - start:.0f} s", flush=True)
    judge.load_state_dict(average.module.state_dict())
    return judge.float().to("cpu").eval()


def check(judge: Judge, folder: Path, split: str = "cell") -> dict[str, float]:
    """How well it tells pictures that it has not seen: name among the first and the first five, and artist."""
    white, _, names, artists = read(folder, (split,))
    known = [place for place, name in enumerate(names) if name in set(judge.names)]
    if not known:
        return {"pictures": 0}
    white, names, artists = white[known], [names[each] for each in known], [artists[each] for each in known]
    ranks = [
        rank
        for part, own in zip(white.split(256), _parts(names), strict=True)
        for rank in judge.ranks(part, own)
    ]
    hands = [each for part in white.split(256) for each in judge.drawn_by(part)]
    count = len(ranks)
    return {
        "pictures": count, "top1": sum(rank == 0 for rank in ranks) / count,
        "top5": sum(rank < 5 for rank in ranks) / count,
        "artist": sum(map(str.__eq__, hands, artists)) / count,
    }  # fmt: skip


def _parts(names: list[str]) -> list[list[str]]:
    return [names[start : start + 256] for start in range(0, len(names), 256)]


def main() -> None:
    """Train or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data/pictures"))
    parser.add_argument("-o", "--output", type=Path, default=Path("outputs/judge"))
    parser.add_argument("--seconds", type=float, default=1500)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--check", action="store_true", help="Check what is there instead of training.")
    args = parser.parse_args()
    if not args.check:
        train(args.data, args.seconds, args.device).save(args.output)
    print(json.dumps(check(Judge.load(args.output), args.data), indent=1))


if __name__ == "__main__":
    main()
