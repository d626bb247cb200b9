"""What a search for better codes gains, and what it costs: PSNR of held-out pictures by rounds.

python benchmarks/search.py --model checkpoints/pictures --data data/emoji [--rounds 0,1,2,4] [--pictures 192]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from cm3kit.data.pictures import load_pictures
from cm3kit.evaluation.reconstruction import scores
from cm3kit.fill.tokenizing import find_tokenizer
from cm3kit_tokenizers.vq.search import encode


def main() -> None:
    """Print one Markdown table; seconds are of the processor, one thread."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="pictures")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--rounds", default="0,1,2,4")
    parser.add_argument(
        "--pictures", type=int, default=192, help="at most so many, spread over the held-out ones"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    tokenizer = find_tokenizer(args.model, "cpu")
    x_BCHW = load_pictures(args.data, tokenizer).held_out(args.pictures)
    print(
        "| rounds | pictures | PSNR | SSIM | codes that differ | CPU-s a picture |\n|---|---|---|---|---|---|",
        flush=True,
    )
    plain_BN = tokenizer.encode(x_BCHW)
    for rounds in map(int, args.rounds.split(",")):
        start = time.process_time()
        codes_BN = torch.cat([encode(tokenizer, each_BCHW, rounds) for each_BCHW in torch.split(x_BCHW, 8)])
        seconds = (time.process_time() - start) / len(x_BCHW)
        mean = scores(x_BCHW, tokenizer.decode(codes_BN)).mean(0).tolist()
        differ = float((codes_BN != plain_BN).float().mean())
        row = (
            f"| {rounds} | {len(x_BCHW)} | {mean[0]:.2f} dB | {mean[1]:.4f} | {differ:.1%} | {seconds:.2f} |"
        )
        print(row, flush=True)


if __name__ == "__main__":
    main()
