"""What a decoder of `causal-blocks` knows of the codes ahead: nats and best guesses by their place in a block.

    python benchmarks/ahead.py --decoder checkpoints/pictures/diffusion --data data/emoji [--pages 160]

Pictures of pages that were trained on are hidden block by block, with the codes before each block, and the first few
of it, given. Prints a Markdown table: mean nats of the code at each place, and how often it was the likeliest.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import defaultdict
from pathlib import Path

import torch

from cm3kit.data.corpus import load_documents
from cm3kit.fill.finding import find
from cm3kit.fill.folder import load_parts
from cm3kit.models.attention import block_mask
from cm3kit.models.backbone import head, hidden_states, load_backbone
from cm3kit.objectives import CausalBlocks, MaskedDiffusion
from cm3kit.objectives.gaps import GapLaw
from cm3kit.rng import generator
from cm3kit.training.collate import pack
from cm3kit_tokenizers.sequence import PageTokenizer

BLOCK = 8


@torch.no_grad()
def main() -> None:
    """Print the table, a row for each number of codes that are given of a block."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="pictures", help="whose tokenizers are used")
    parser.add_argument("--decoder", type=Path, default=Path("checkpoints/pictures/diffusion"))
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--pages", type=int, default=160)
    args = parser.parse_args()
    torch.set_num_threads(1)
    parts = load_parts(find(args.model))
    vocab, grid = parts.vocab, parts.image.grid
    backbone = load_backbone(args.decoder, len(vocab))
    law = GapLaw(all=0, picture=1, box=0, words=0)
    inner = MaskedDiffusion(
        vocab, law=law, continues=tuple(parts.text.continues), grid=grid, weighting="uniform"
    )
    objective = CausalBlocks(vocab, BLOCK, inner=inner, causal_weight=0.0)
    with tempfile.TemporaryDirectory() as cache:
        tokenizer = PageTokenizer(parts.text, vocab)
        documents = load_documents(args.data, tokenizer, parts.image, Path(cache))
    rng = generator(5)
    found: dict[tuple[int, int], list[tuple[float, bool]]] = defaultdict(list)
    for page in list(documents.draw(rng, args.pages)):
        layout = objective.lay_out(page, rng, 256)
        blocks = objective._blocks(layout.answers)
        places = {place: place - each.start for each in blocks for place in range(each.start, each.stop)}
        shown, one = inner.shown(layout, lambda id: False, False), dict.fromkeys(places, 1.0)
        for given in (0, 1, 2, 4, 7):
            hidden = {place: at >= given for place, at in places.items()}
            packed = pack([objective._ask(layout, shown, blocks, hidden, one, one)], 1, 512)
            mask_B1TT = block_mask(packed.documents_BT, packed.blocks_BT, packed.noisy_BT)
            asked_BT = (packed.weights_BT > 0) & (packed.targets_BT >= vocab.image.start)
            hidden_BTD = hidden_states(backbone, packed.ids_BT, mask_B1TT, packed.places_BT)
            logp_NV = head(backbone, hidden_BTD[asked_BT]).float().log_softmax(-1)
            targets_N = packed.targets_BT[asked_BT]
            nats = (-logp_NV.gather(-1, targets_N[:, None])[:, 0]).tolist()
            right = (logp_NV.argmax(-1) == targets_N).tolist()
            for place, cost, hit in zip((packed.places_BT[asked_BT] + 1).tolist(), nats, right, strict=True):
                found[given, places[place]].append((cost, hit))
    print("| given | " + " | ".join(f"place {at}" for at in range(BLOCK)) + " |")
    print("|---" * (BLOCK + 1) + "|")
    for given in (0, 1, 2, 4, 7):
        cells = []
        for at in range(BLOCK):
            seen = found.get((given, at), [])
            if not seen or at < given:
                cells.append("")
                continue
            costs, hits = zip(*seen, strict=True)
            cells.append(f"{sum(costs) / len(costs):.2f} · {sum(hits) / len(hits):.0%}")
        print(f"| {given} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
