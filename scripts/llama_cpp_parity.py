"""Whether llama.cpp computes what a decoder here does: its converter on an exported folder, and its logits and ids.

python scripts/llama_cpp_parity.py --checkout llama.cpp [--model checkpoints/pictures] [--length 200] [--flash]

Needs a checkout of https://github.com/ggml-org/llama.cpp and the package llama-cpp-python, whose source archive has
such a checkout as `vendor/llama.cpp`. The recipe is that of docs/public-models.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import cm3kit
from cm3kit.interop.export import export_decoder
from cm3kit.models.backbone import forward, load_backbone

RECIPE = """
import convert_hf_to_gguf as converter
find = converter.get_model_class
def no_words(self):
    self._set_vocab_none()
    self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])
def of_ids(*names, **more):
    found = find(*names, **more)
    found.set_vocab = no_words
    return found
converter.get_model_class = of_ids
converter.main()
"""


class LlamaCpp:
    """A GGUF file in llama.cpp."""

    def __init__(self, path: Path, length: int, flash: bool) -> None:
        from llama_cpp import llama_cpp as library

        self._library: Any = library
        library.llama_backend_init()
        model = library.llama_model_load_from_file(str(path).encode(), library.llama_model_default_params())
        how = library.llama_context_default_params()
        how.n_ctx = how.n_batch = how.n_ubatch = length
        how.type_k = how.type_v = 0  # keys and values in fp32
        how.n_threads = how.n_threads_batch = 1
        how.flash_attn_type = int(flash)  # which rounds to 16 bits, and which it takes by itself
        self._context = library.llama_init_from_model(model, how)
        self.size = int(library.llama_vocab_n_tokens(library.llama_model_get_vocab(model)))

    def logits(self, ids: list[int]) -> Tensor:
        """Logits (T, V) of a row."""
        library = self._library
        library.llama_memory_clear(library.llama_get_memory(self._context), True)
        batch = library.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for place, id in enumerate(ids):
            batch.token[place], batch.pos[place], batch.logits[place] = id, place, 1
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
        if (failed := library.llama_decode(self._context, batch)) != 0:
            raise SystemExit(f"llama.cpp cannot compute a row of {len(ids)} ids: {failed}")
        found = np.ctypeslib.as_array(
            library.llama_get_logits(self._context), shape=(len(ids), self.size)
        ).copy()
        library.llama_batch_free(batch)
        return torch.from_numpy(found)


def convert(checkout: Path, folder: Path, file: Path) -> None:
    """An exported folder as a GGUF file, by the converter of a checkout."""
    command = [sys.executable, "-c", RECIPE, str(folder), "--outfile", str(file), "--outtype", "f32"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(checkout)}, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(done.stderr)


@torch.no_grad()
def greedy(model: Any, start: list[int], barred: list[int], most: int, ends: list[int]) -> list[int]:
    """The likeliest ids behind a row, up to an end."""
    ids = list(start)
    while len(ids) < len(start) + most and (len(ids) == len(start) or ids[-1] not in ends):
        row = model(ids)
        row[barred] = -torch.inf
        ids.append(int(row.argmax()))
    return ids[len(start) :]


def main() -> None:
    """Export, convert, compare, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkout", type=Path, required=True)
    parser.add_argument("--model", default="checkpoints/pictures")
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--write", type=int, default=120)
    parser.add_argument("--flash", action="store_true", help="with llama.cpp's flash attention")
    args = parser.parse_args()
    kit = cm3kit.load(args.model, device="cpu")
    vocab = kit.vocab
    row = torch.randint(len(vocab), (args.length,), generator=torch.Generator().manual_seed(0)).tolist()
    with tempfile.TemporaryDirectory() as name:
        folder, file = Path(name) / "exported", Path(name) / "model.gguf"
        export_decoder(args.model, folder, dtype="fp32")
        convert(args.checkout, folder, file)
        told = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
        theirs = LlamaCpp(file, args.length + args.write, args.flash)
        again, plain = load_backbone(file, 0), load_backbone(folder, 0)
    with torch.no_grad():
        own = forward(kit.backbone, torch.tensor([row]))[0]
        read_back = forward(again, torch.tensor([row]))[0, :, : len(vocab)]
    found = theirs.logits(row)
    barred = told["suppress_tokens"]
    start = [
        vocab.eod, vocab.markup_id("<title>"), *kit.text.encode("red apple", vocab.text.start),
        vocab.markup_id("</title>"),
    ]  # fmt: skip
    ours = greedy(
        lambda ids: forward(plain, torch.tensor([ids]))[0, -1],
        start,
        barred,
        args.write,
        told["eos_token_id"],
    )
    written = greedy(lambda ids: theirs.logits(ids)[-1], start, barred, args.write, told["eos_token_id"])
    same = (own.argmax(-1) == found[:, : len(vocab)].argmax(-1)).sum()
    print(json.dumps({
        "model": str(args.model), "vocabulary": theirs.size, "largest logit": round(float(own.abs().max()), 2),
        "difference of logits": float((own - found[:, : len(vocab)]).abs().max()),
        "likeliest ids equal": f"{int(same)} of {len(row)}",
        "difference of logits read back by transformers": float((own - read_back).abs().max()),
        "greedy ids equal": f"{sum(one == other for one, other in zip(ours, written, strict=False))} of {len(ours)}",
        "probability of suppressed ids, at most": float(found.softmax(-1)[:, barred].sum(-1).max()),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
