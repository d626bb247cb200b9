"""Quality of a model on the picture dictionary, by metrics without downloaded weights.

python benchmarks/quality.py --model checkpoints/pictures --data data/emoji [--part recon,draw,words] [--names 20]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from justhtml import JustHTML

import cm3kit
from cm3kit.data.dictionary import Entry
from cm3kit.data.pictures import PictureSet, load_pictures
from cm3kit.evaluation.retrieval import Index, top
from cm3kit.evaluation.words import compare
from cm3kit.fill.kit import GenerateOptions, Kit
from cm3kit_tokenizers.vq.losses import psnr


def recon(kit: Kit, pictures: PictureSet, args: argparse.Namespace) -> dict[str, Any]:
    """PSNR of held-out pictures and share of codes in use over all pictures."""
    codes_BN = torch.cat([kit.image.encode(each) for each in torch.split(pictures.pixels_BCHW, 64)])
    held = pictures.weights_B == 0
    again = torch.cat([kit.image.decode(each) for each in torch.split(codes_BN[held], 64)])
    scores = psnr(pictures.pixels_BCHW[held], again)
    total = 10 * torch.log10(255**2 / (pictures.pixels_BCHW[held].float() - again.float()).square().mean())
    return {
        "held_out": int(held.sum()),
        "psnr_mean_db": round(float(scores.mean()), 2),
        "psnr_of_mean_error_db": round(float(total), 2),
        "codes_used": round(len(codes_BN.unique()) / kit.image.size, 4),
        "tokens": codes_BN.shape[1],
        "pixels": pictures.pixels_BCHW.shape[-1],
    }


def chosen(entries: Sequence[Entry], split: str, count: int) -> list[Entry]:
    """All held-out entries of a split, or `count` seen ones drawn with a fixed seed."""
    found = [entry for entry in entries if entry.split == split]
    return random.Random(0).sample(found, min(count, len(found))) if split == "train" else found


def draw(kit: Kit, pictures: PictureSet, args: argparse.Namespace) -> dict[str, Any]:
    """Share of samples whose nearest picture among all is the named one."""
    index = Index.build(pictures.names, pictures.pixels_BCHW)
    out: dict[str, Any] = {"candidates": len(pictures.names)}
    for split in ("train", "tone", "rest"):
        entries = chosen(pictures.entries, split, args.names)[: args.names]
        ranks = []
        for done, entry in enumerate(entries):
            made = kit.generate(entry.name, n=args.n, seed=7, options=options_of(args, args.n))
            pixels = kit.image.pixels([each.image for each in made if each.image is not None])
            ranks.append(index.ranks(pixels, [entry.name] * len(made)))
            _note("draw", split, done, len(entries))
        all_ranks = torch.cat(ranks)
        out[split] = {
            "names": len(entries), "samples": len(all_ranks),
            "top1": round(top(all_ranks, 1), 3), "top5": round(top(all_ranks, 5), 3),
        }  # fmt: skip
    return out


def options_of(args: argparse.Namespace, rows: int) -> GenerateOptions:
    """What the command line asks for; no more places than rows, since rows without a sample compute along."""
    return GenerateOptions(
        guidance=args.guidance, temperature=args.temperature, top_p=args.top_p, batch_size=min(rows, 8),
        decoder=args.decoder, sampler=args.sampler, steps=args.steps,
    )  # fmt: skip


CAPTION = '<!DOCTYPE html><img alt="<mask>" src="pictures/{slug}.png">'
TITLE = """<!DOCTYPE html><title><mask></title>
<h1><mask></h1>
<p>{definition}.</p>
<p><img alt="<mask>" src="pictures/{slug}.png"></p>"""
DEFINITION = """<!DOCTYPE html><title>{name}</title>
<h1>{name}</h1>
<p><mask></p>
<p><img alt="{name}" src="pictures/{slug}.png"></p>"""


def words(kit: Kit, pictures: PictureSet, args: argparse.Namespace) -> dict[str, Any]:
    """Caption, title and definition gaps on pages: exact match, similarity, ended, well-formed."""
    out: dict[str, Any] = {}
    formed: list[bool] = []
    for split in ("train", "tone", "rest"):
        entries = [e for e in chosen(pictures.entries, split, args.names) if e.definition][: args.names]
        rows: dict[str, list[tuple[str, str, bool]]] = {"caption": [], "title": [], "definition": []}
        for done, entry in enumerate(entries):
            sentence = entry.definition[:1].upper() + entry.definition[1:]
            for kind, form, right in (
                ("caption", CAPTION, entry.name),
                ("title", TITLE, entry.name),
                ("definition", DEFINITION, sentence),
            ):
                page = form.format(slug=entry.slug, name=entry.name, definition=sentence)
                parsed = cm3kit.Page.parse(page.encode(), base=args.data)
                filled = kit.infill(parsed, seed=7, options=options_of(args, 1))[0]
                formed.append(not JustHTML(filled.html.decode(), collect_errors=True).errors)
                gaps = filled.gaps[:1] if kind != "title" else filled.gaps[:2]
                text = [gap.text.split(". A kind of")[0].rstrip(".") for gap in gaps]
                rows[kind] += [(each, right, gap.ended) for each, gap in zip(text, gaps, strict=True)]
            _note("words", split, done, len(entries))
        out[split] = {kind: asdict(compare(*zip(*each, strict=True))) for kind, each in rows.items()}
    return {**out, "well_formed": round(sum(formed) / len(formed), 4), "pages": len(formed)}


def _note(part: str, split: str, done: int, total: int) -> None:
    if done % 20 == 19:
        print(f"{part} {split} {done + 1}/{total}", file=sys.stderr, flush=True)


PARTS = {"recon": recon, "draw": draw, "words": words}
KINDS = {"train": "{} seen names", "tone": "{} held-out skin tones", "rest": "{} other held-out names"}


def table(result: dict[str, Any]) -> str:
    """The figures as the rows of a Markdown table, as they stand in the model's card."""
    rows = []
    if recon := result.get("recon"):
        side, mean, total = (recon[key] for key in ("pixels", "psnr_mean_db", "psnr_of_mean_error_db"))
        rows.append(
            f"reconstruction of {recon['held_out']} held-out pictures, {recon['tokens']} codes for {side} × {side}"
            f" pixels | {mean:.2f} dB mean PSNR ({total:.2f} dB of the mean error)"
        )
        rows.append(f"codes in use over all pictures | {recon['codes_used']:.1%}")
    for split, kind in KINDS.items() if "draw" in result else ():
        found, count = result["draw"][split], result["draw"]["candidates"]
        rows.append(
            f"drawn from {kind.format(found['names'])}: the named picture is the nearest / among the 5 nearest"
            f" of {count} | {found['top1']:.0%} / {found['top5']:.0%}"
        )
    for kind in ("caption", "title", "definition") if "words" in result else ():
        each = [result["words"][split][kind] for split in KINDS]
        rows.append(
            f"{kind} gaps, exact / edit similarity: seen; held-out tones; other held-out | "
            + "; ".join(f"{one['exact']:.0%} / {one['similarity']:.2f}" for one in each)
        )
    if words := result.get("words"):
        every = [one for split in KINDS for one in words[split].values()]
        count = sum(one["count"] for one in every)
        ended = sum(one["ended"] * one["count"] for one in every) / count
        rows.append(
            f"gaps that ended with an end id; well-formed pages | {ended:.1%} of {count};"
            f" {words['well_formed']:.0%} of {words['pages']}"
        )
    return "\n".join(f"| {row} |" for row in ("what | figure", "--- | ---", *rows))


def main() -> None:
    """Measure the chosen parts and print one JSON object, or a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="pictures")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--part", default="recon,draw,words")
    parser.add_argument("-n", type=int, default=1)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--temperature", type=float)
    parser.add_argument("--top-p", type=float)
    parser.add_argument("--decoder", choices=("cm3", "diffusion"))
    parser.add_argument("--sampler", help="a preset of the diffusion decoder")
    parser.add_argument("--steps", type=int, help="passes of the diffusion decoder")
    parser.add_argument("--names", type=int, default=200, help="the most names of a split")
    parser.add_argument("--markdown", action="store_true", help="print a table")
    args = parser.parse_args()
    torch.set_num_threads(1)
    kit = cm3kit.load(args.model)
    pictures = load_pictures(args.data, kit.image)
    result = {}
    for part in args.part.split(","):
        start = time.perf_counter()
        result[part] = PARTS[part](kit, pictures, args)
        result[part]["seconds"] = round(time.perf_counter() - start, 1)
    print(table(result) if args.markdown else json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
