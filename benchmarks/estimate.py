"""Memory that `cm3kit estimate` foresees against what training then takes, on six configurations.

    python benchmarks/estimate.py --data data/emoji --model checkpoints/pictures

Each training of a few steps, its export and its estimate run in processes of their own. Measured is the peak of the
resident set (`ru_maxrss`); `above` compares what both say beyond the process before training, which is the part that is
foreseen and not measured. Pages are a few of the corpus, previews are off.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cm3kit.config import read_yaml, resolve
from cm3kit.training.decoder import DecoderRecipe
from cm3kit.training.estimate import estimate_decoder, estimate_vqgan
from cm3kit.training.run import recipe_path, run
from cm3kit.training.vqgan import VqganRecipe

SMALL = {"hidden_size": 192, "layers": 6, "heads": 3, "kv_heads": 3, "intermediate_size": 512}
LARGE = {"hidden_size": 512, "layers": 12, "heads": 8, "kv_heads": 8, "intermediate_size": 1376}
MIDDLE = {
    "family": "qwen3",
    "hidden_size": 384,
    "layers": 4,
    "heads": 6,
    "kv_heads": 3,
    "intermediate_size": 1024,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "cm3, 6 × 192, 4 × 512, fp32": ("cm3", {"backbone": SMALL, "window": 512, "loop": {"batch_size": 4}}),
    "cm3, 6 × 192, 4 × 512 in 2 micro-batches, recomputed, fp32": (
        "cm3", {"backbone": SMALL, "window": 512, "loop": {"batch_size": 4, "accumulate": 2, "recompute": True}}),
    "mdm, 12 × 512, 1 × 256, fp32": ("mdm", {"backbone": LARGE, "window": 256, "loop": {"batch_size": 1}}),
    "block, qwen3 4 × 384, dropout, 2 × 512, fp32": (
        "block", {"backbone": MIDDLE | {"dropout": 0.1}, "window": 512, "loop": {"batch_size": 2}}),
    "cm3 from llama 12 × 512, LoRA 8, 2 × 256, fp32": (
        "cm3", {"warm": {}, "lora": {"rank": 8}, "window": 256, "loop": {"batch_size": 2}}),
    "vqgan, as shipped, 8 pictures, fp32": ("vqgan", {"loop": {"batch_size": 8}, "codebook": {"start": 1}}),
}  # fmt: skip


def main() -> None:
    """Foresee and measure each case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--model", type=Path, default=Path("checkpoints/pictures"))
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of cases, from 0")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        corpus = few_pages(args.data, Path(folder) / "corpus")
        for number, (name, (kind, settings)) in enumerate(CASES.items()):
            if args.only and number not in args.only:
                continue
            recipe = settings | {"data": str(corpus)}
            loop = {"steps": args.steps, "precision": "fp32", "save_every": 10**6, **settings["loop"]}
            recipe["loop"] = loop
            if kind != "vqgan":
                recipe |= {"text": f"{args.model}/text", "image": f"{args.model}/image", "previews": []}
            if "warm" in settings:
                recipe["warm"] = {"source": str(public_decoder(args.model, Path(folder) / "llama"))}
            foreseen = apart(lambda recipe=recipe, kind=kind: foresee(kind, recipe))
            output = Path(folder) / f"run-{number}"
            before, peak = apart(
                lambda recipe=recipe, kind=kind, output=output: measure(kind, recipe, output)
            )
            above = (foreseen["peak"] - foreseen["process"]) / max(1, peak - foreseen["process"]) - 1
            row = {
                "case": name, "foreseen_MB": round(foreseen["peak"] / 1e6), "measured_MB": round(peak / 1e6),
                "error": round(foreseen["peak"] / peak - 1, 4), "above_error": round(above, 4),
                "process_MB": round(foreseen["process"] / 1e6), "before_MB": round(before / 1e6),
                **{f"{part}_MB": round(foreseen[part] / 1e6, 1)
                   for part in ("weights", "gradients", "moments", "average", "activations", "slack", "export")},
            }  # fmt: skip
            rows.append(row)
            print(row, file=sys.stderr, flush=True)
            shutil.rmtree(output)
    print(json.dumps(rows, indent=1, ensure_ascii=False))


def few_pages(data: Path, corpus: Path, count: int = 24) -> Path:
    """A corpus of some pages, with their pictures."""
    (corpus / "pictures").mkdir(parents=True)
    for path in sorted(data.glob("*.html"))[:count]:
        shutil.copy(path, corpus)
    names = {name for path in corpus.glob("*.html") for name in _pictures(path)}
    for name in names:
        (corpus / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(data / name, corpus / name)
    return corpus


def _pictures(page: Path) -> list[str]:
    import re

    return re.findall(r'src="(pictures/[^"]+)"', page.read_text(encoding="utf-8"))


def public_decoder(model: Path, folder: Path) -> Path:
    """A folder as others publish it, with random weights."""
    if not folder.exists():
        tokenizer = Tokenizer.from_file(str(model / "text/tokenizer.json"))
        PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
        config = LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(), hidden_size=512, num_hidden_layers=12, num_attention_heads=8,
            num_key_value_heads=8, intermediate_size=1376, max_position_embeddings=512, tie_word_embeddings=True,
        )  # fmt: skip
        apart(lambda: LlamaForCausalLM(config).save_pretrained(folder))
    return folder


def foresee(kind: str, recipe: dict[str, Any]) -> dict[str, Any]:
    """The estimate."""
    if kind == "vqgan":
        return estimate_vqgan(resolve(VqganRecipe, [shipped_tokenizer(), recipe])).as_dict()
    objective = {"cm3": "cm3", "mdm": "masked-diffusion", "block": "block-diffusion"}[kind]
    return estimate_decoder(
        resolve(DecoderRecipe, [{"objective": {"name": objective}}, recipe]), timed=False
    ).as_dict()


def shipped_tokenizer() -> dict[str, Any]:
    """The shape of the recipe that ships."""
    shipped = read_yaml(recipe_path(Path("emoji-vqgan")))
    return {name: shipped[name] for name in ("tokenizer", "codebook", "loss") if name in shipped}


def measure(kind: str, recipe: dict[str, Any], output: Path) -> tuple[int, int]:
    """Train; the peak of the resident set before, and over all, in bytes."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    merged = {**shipped_tokenizer(), **recipe} if kind == "vqgan" else recipe
    path = output.with_suffix(".yaml")
    path.write_text(json.dumps(merged), encoding="utf-8")
    run(kind, [path], (), output, device="cpu")
    return before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def apart(act: Callable[[], Any]) -> Any:
    """What a function returns in a forked process of its own."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def child() -> None:
        theirs.send(act())

    process = context.Process(target=child)
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        raise SystemExit("a process has failed; see above") from None
    finally:
        process.join()


if __name__ == "__main__":
    main()
