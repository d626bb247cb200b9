"""What files say of results: how they were made, from which prompt, how sure the model was, at what cost."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL
import torch
import transformers

import cm3kit
from cm3kit.fill.fillers import Trace
from cm3kit.fill.options import GenerateOptions, Modality
from cm3kit.fill.prompts import Prompt
from cm3kit.images import SOURCE_TYPE
from cm3kit.provenance.sources import sha256, source_of

if TYPE_CHECKING:
    from cm3kit.fill.kit import Filled, Kit, Result
    from cm3kit_tokenizers.page import Page

# Whose settings a task takes; infill takes those of each window.
MODALITIES: Mapping[str, Modality] = {
    "image": "image", "pair": "mixed", "text": "text", "caption": "text", "document": "text",
}  # fmt: skip


def how_made(kit: Kit, options: GenerateOptions, task: str) -> dict[str, Any]:
    """What has to be known to make the same result again."""
    usual, record = asdict(GenerateOptions()), kit.record(MODALITIES.get(task), options)
    chosen = {key: value for key, value in asdict(options).items() if value != usual[key]}
    return {
        "task": task,
        **record,
        # What auto is depends on the machine, so that the format itself is named.
        "options": {**chosen, "precision": record["precision"]},
        **surroundings(kit),
        "digital_source_type": SOURCE_TYPE,
    }


def surroundings(kit: Kit) -> dict[str, Any]:
    """What a result depends on besides what was asked for: the model's files, versions, the machine."""
    info = kit.info()
    kept: dict[str, Any] = {key: info[key] for key in ("sha256", "device", "dtype") if key in info}
    return {
        "model": info.get("name"),
        **kept,
        "version": getattr(cm3kit, "__version__", None),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pillow": PIL.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def whose(prompt: Prompt, shown: bool) -> dict[str, Any]:
    """The prompt as a record shows it: words, the path of a picture, or that it was bytes; nothing unless `shown`."""
    if not shown:
        return {}
    words = "(picture)" if isinstance(prompt.content, bytes) else str(prompt.content)
    told = {"prompt": words} | _hash(prompt.content)
    return told | ({} if prompt.id is None else {"id": prompt.id})


def _hash(content: str | bytes | Path) -> dict[str, str]:
    """The hash of a prompt that is a picture."""
    if isinstance(content, Path):
        return {"prompt_sha256": sha256(content.read_bytes())} if content.is_file() else {}
    return {"prompt_sha256": sha256(content)} if isinstance(content, bytes) else {}


def outcome(result: Result) -> dict[str, Any]:
    """What is known of a sample."""
    words = {} if result.text is None else {"text": result.text}
    return {**words, "logprob": result.logprob, "ended": result.ended, **cost(result.trace)}


def variant(filled: Filled, page: Page | None = None, folder: Path | None = None) -> dict[str, Any]:
    """What is known of a filled page; of which page it was made, if that is given with the folder that keeps it."""
    gaps = [asdict(gap) for gap in filled.gaps]
    told: dict[str, Any] = {"seed": filled.seed, "index": filled.index, "gaps": gaps, **cost(filled.trace)}
    if filled.warnings:
        told["warnings"] = list(filled.warnings)
    if page is not None and filled.spans:
        told["source"] = source_of(page, filled.spans, folder)
    return told


def cost(trace: Trace | None) -> dict[str, int]:
    """Forward passes, and places that they took through the layers; nothing of what was not written in place."""
    if trace is None:
        return {}
    return {"passes": trace.cost.forwards, "token_forwards": trace.cost.token_forwards}


def verification(traces: Iterable[Trace | None]) -> dict[str, Any] | None:
    """What a cache changed, over all results; None if nobody asked."""
    joined = Trace.joined(traces)
    return asdict(joined.verification) if joined and joined.verification is not None else None
