"""Records of results: settings, prompt, log-probabilities and cost."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL
import torch

import cm3kit
from cm3kit.fill.fillers import Trace
from cm3kit.fill.options import GenerateOptions, Modality
from cm3kit.fill.prompts import Prompt
from cm3kit.images import SOURCE_TYPE
from cm3kit.provenance.sources import sha256, source_of

if TYPE_CHECKING:
    from cm3kit.fill.kit import Filled, Kit, Result
    from cm3kit_tokenizers.page import Page

# Which decoder's settings a task uses; infill uses those of each window.
MODALITIES: Mapping[str, Modality] = {
    "image": "image", "pair": "mixed", "text": "text", "caption": "text", "document": "text",
}  # fmt: skip


def how_made(kit: Kit, options: GenerateOptions, task: str) -> dict[str, Any]:
    """The settings that are needed to reproduce a result."""
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
    """Other dependencies of a result: the model's files, versions, the machine."""
    info = kit.info()
    kept: dict[str, Any] = {key: info[key] for key in ("sha256", "device", "dtype") if key in info}
    return {
        "model": info.get("name"),
        **kept,
        "version": getattr(cm3kit, "__version__", None),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "pillow": PIL.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def whose(prompt: Prompt, shown: bool) -> dict[str, Any]:
    """The prompt in a record: text, the path of a picture, or a note that it was bytes; empty unless `shown`."""
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
    """Record fields of a sample."""
    words = {} if result.text is None else {"text": result.text}
    said = {"warnings": list(result.warnings)} if result.warnings else {}
    return {**words, "logprob": result.logprob, "ended": result.ended, **cost(result.trace), **said}


def variant(filled: Filled, page: Page | None = None, folder: Path | None = None) -> dict[str, Any]:
    """Record fields of a filled page; with `page` and `folder` also its source."""
    gaps = [asdict(gap) for gap in filled.gaps]
    told: dict[str, Any] = {"seed": filled.seed, "index": filled.index, "gaps": gaps, **cost(filled.trace)}
    if filled.warnings:
        told["warnings"] = list(filled.warnings)
    if page is not None and filled.spans:
        told["source"] = source_of(page, filled.spans, folder)
    return told


def cost(trace: Trace | None) -> dict[str, int]:
    """Forward passes, and positions computed by them; empty without a trace."""
    if trace is None:
        return {}
    return {"passes": trace.cost.forwards, "token_forwards": trace.cost.token_forwards}


def verification(traces: Iterable[Trace | None]) -> dict[str, Any] | None:
    """Differences between cached and uncached results, summed over all results; None if not requested."""
    joined = Trace.joined(traces)
    return asdict(joined.verification) if joined and joined.verification is not None else None
