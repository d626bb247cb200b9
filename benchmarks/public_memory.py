"""Peak memory of opening a public model, against the size of its files.

python benchmarks/public_memory.py [--family llada] [--layers 24] [--width 1024] [--rows 32768] [--shards 4]

Writes a folder of the family with random bf16 weights in shards, opens it in a new process as `-m` does, and prints the
largest resident set of that process above what it held before, in bytes and as a share of the files. Pages of the files
that are mapped and not copied count as resident too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import ChameleonForConditionalGeneration

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "tools"))
import chameleon_folder
import public_folders

OPEN = """
import json, resource, sys
from pathlib import Path
from cm3kit.interop.public import open_public
folder = Path(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
parts = open_public(folder)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
held = sum(each.nbytes for each in parts.backbone.parameters())
print(json.dumps({"before": before, "peak": after - before, "weights": held, "dtype": str(parts.backbone.dtype)}))
"""


def configured(family: str, made: Path, layers: int, width: int, rows: int) -> dict[str, list[int]]:
    """Write the configuration of that size over that of a tiny folder; the shapes of its tensors by name."""
    raw: dict[str, Any] = json.loads((made / "config.json").read_text(encoding="utf-8"))
    sizes = {
        "llada": {"d_model": width, "n_layers": layers, "n_heads": width // 64, "n_kv_heads": width // 64,
                  "mlp_hidden_size": 3 * width, "embedding_size": rows, "vocab_size": rows},
    }.get(family, {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 64,
                   "num_key_value_heads": width // 64, "intermediate_size": 3 * width, "vocab_size": rows})  # fmt: skip
    (made / "config.json").write_text(json.dumps(raw | sizes), encoding="utf-8")
    whole: dict[str, list[int]] = {}
    if family == "chameleon":
        with torch.device("meta"):
            stock = ChameleonForConditionalGeneration(chameleon_folder.config(**sizes))
        return {name: [*each.shape] for name, each in stock.state_dict().items()}
    for name, like in public_folders.tensors(family).items():
        for layer in range(layers) if ".0." in name else [None] * (".1." not in name):
            scale = {32: width, 16: width, 48: 3 * width, public_folders.ROWS: rows}
            key = name if layer is None else name.replace(".0.", f".{layer}.", 1)
            whole[key] = [scale[each] for each in like.shape]
    return whole


def large(family: str, folder: Path, layers: int, width: int, rows: int, shards: int) -> tuple[Path, int]:
    """A folder of that size and the bytes of its weights."""
    if family == "chameleon":
        made = chameleon_folder.write(folder, draws=False)
    else:
        made = public_folders.write(family, folder)
    for path in made.glob("*.safetensors*"):
        path.unlink()
    whole, index, total = configured(family, made, layers, width, rows), dict[str, str](), 0
    names = sorted(whole)
    for shard in range(shards):
        part = {name: (torch.randn(whole[name]) * 0.02).bfloat16() for name in names[shard::shards]}
        total += sum(each.nbytes for each in part.values())
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        save_file(part, made / file, metadata={"format": "pt"})
        index |= dict.fromkeys(part, file)
    told = {"metadata": {"total_size": total}, "weight_map": index}
    (made / "model.safetensors.index.json").write_text(json.dumps(told), encoding="utf-8")
    return made, total


def main() -> None:
    """Write, open, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=[*public_folders.CONFIGS, "chameleon"], default="llada")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rows", type=int, default=32_768)
    parser.add_argument("--shards", type=int, default=4)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, size = large(args.family, Path(name), args.layers, args.width, args.rows, args.shards)
        done = subprocess.run(
            [sys.executable, "-c", OPEN, str(folder)], capture_output=True, text=True, check=True
        )
    told = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps({"family": args.family, "files": size, **told, "share": round(told["peak"] / size, 3)}))


if __name__ == "__main__":
    main()
