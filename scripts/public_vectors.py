"""What the authors' modelling code gives for the tiny folders of `tests/tools/public_folders.py`: logits and ids.

python scripts/public_vectors.py --dllm CHECKOUT --llada FILE > tests/data/public_vectors.json

Run it where the authors' code runs: transformers 4.46.2 and torch 2.13, without this project. It reads

- `dllm/pipelines/llada/models` and `dllm/pipelines/dream/models` of https://github.com/ZHZisZZ/dllm at commit
  ca176752fbceec49c6b4777a2c18ae88e4eb10ed: modeling_llada.py, modeling_dream.py and generation_utils.py as the authors
  publish them beside their weights (DiffuCoder's weights come with Dream's);
- `generate.py` of https://github.com/ML-GSAI/LLaDA at commit b7e6c3565f194352da44b38dd12b6970597309f3.

Neither is part of this repository. Seeds of weights and prompts are in `public_folders` and below.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
PROMPT_SEED, LENGTH = 5, 24
LLADA_CASES: list[dict[str, Any]] = [
    {"gen_length": 16, "steps": 16, "block_length": 16, "cfg_scale": 0.0},
    {"gen_length": 16, "steps": 5, "block_length": 16, "cfg_scale": 0.0},
    {"gen_length": 24, "steps": 12, "block_length": 8, "cfg_scale": 0.0},
    {"gen_length": 24, "steps": 24, "block_length": 24, "cfg_scale": 0.0},
    {"gen_length": 12, "steps": 6, "block_length": 12, "cfg_scale": 1.5},
]
DREAM_CASES: list[dict[str, Any]] = [
    {"max_new_tokens": 16, "steps": 16, "alg": "entropy"},
    {"max_new_tokens": 16, "steps": 5, "alg": "entropy"},
    {"max_new_tokens": 24, "steps": 12, "alg": "entropy"},
    {"max_new_tokens": 16, "steps": 8, "alg": "maskgit_plus"},
    {"max_new_tokens": 16, "steps": 7, "alg": "topk_margin"},
]


def package(name: str, folder: Path) -> None:
    """A package of that folder whose own `__init__` is not run."""
    module = types.ModuleType(name)
    module.__path__ = [str(folder)]
    sys.modules[name] = module


def script(name: str, path: Path) -> Any:
    """One file as a module."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def llada(folders: Any) -> torch.nn.Module:
    """The authors' module with the weights of the tiny folder."""
    settings = importlib.import_module("llada_models.configuration_llada")
    code = importlib.import_module("llada_models.modeling_llada")
    config = settings.LLaDAConfig(**folders.LLADA)
    inner = code.create_model_config_from_pretrained_config(config)
    inner.init_device = "cpu"
    model = code.LLaDAModelLM(config, model=code.LLaDAModel(inner, init_params=False))
    model.load_state_dict(folders.tensors("llada"), strict=True)
    return model.eval()


def dream(folders: Any, family: str) -> torch.nn.Module:
    """The authors' module with the weights of the tiny folder."""
    settings = importlib.import_module("dream_models.configuration_dream")
    code = importlib.import_module("dream_models.modeling_dream")
    config = settings.DreamConfig(**folders.DREAM)
    config._attn_implementation = "sdpa"
    model = code.DreamModel(config)
    model.load_state_dict(folders.tensors(family), strict=True)
    return model.eval()


def prompt(case: int, words: int) -> torch.Tensor:
    """Ids of text."""
    return torch.randint(words, (1, 5 + case), generator=torch.Generator().manual_seed(PROMPT_SEED + case))


@torch.no_grad()
def vectors(folders: Any, family: str, generate: Any) -> dict[str, Any]:
    """Logits of a row that has masks in it, and what is written after five prompts."""
    mask = folders.CONFIGS[family]["mask_token_id"]
    row = prompt(LENGTH - 5, folders.WORDS)
    row[0, 3::4] = mask
    found: dict[str, Any] = {"row": row[0].tolist(), "cases": []}
    if family == "llada":
        model = llada(folders)
        logits = model(row).logits[0]
    else:
        model = dream(folders, family)
        logits = model(row, "full").logits[0]
    found["logits"] = [[round(value, 6) for value in logits[place].tolist()] for place in (0, 7, LENGTH - 1)]
    found["places"] = [0, 7, LENGTH - 1]
    for number, case in enumerate(LLADA_CASES if family == "llada" else DREAM_CASES):
        ids = prompt(number, folders.WORDS)
        if family == "llada":
            out = generate(model, ids, torch.ones_like(ids), temperature=0.0, mask_id=mask, **case)
        else:
            code = importlib.import_module("dream_models.generation_utils")
            tokens = {
                "mask_token_id": mask,
                "pad_token_id": folders.WORDS,
                "bos_token_id": None,
                "eos_token_id": None,
            }
            how = code.DreamGenerationConfig(temperature=0.0, alg_temp=0.0, **tokens, **case)
            model.generation_config = how
            out = model.diffusion_generate(ids, generation_config=how)
        written = out[0, ids.shape[1] :].tolist()
        assert mask not in written, f"{family}, case {number}: the authors' code wrote the mask"
        found["cases"].append({"settings": case, "prompt": ids[0].tolist(), "ids": written})
    return found


def main() -> None:
    """Print the vectors of all three families."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dllm", type=Path, required=True, help="a checkout of dllm")
    parser.add_argument("--llada", type=Path, required=True, help="LLaDA's generate.py")
    args = parser.parse_args()
    package("llada_models", args.dllm / "dllm/pipelines/llada/models")
    package("dream_models", args.dllm / "dllm/pipelines/dream/models")
    folders = script("public_folders", ROOT / "tests/tools/public_folders.py")
    generate = script("llada_generate", args.llada).generate
    found = {family: vectors(folders, family, generate) for family in folders.CONFIGS}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
