"""A model folder on held-out pages: the figures of `training.validation`, by what its decoders were trained for."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

import cm3kit.objectives  # noqa: F401  (they register themselves)
from cm3kit.data.token_shards import INDEX, TokenShards
from cm3kit.devices import resolve_device
from cm3kit.evaluation.spelt import spelt, words_of_pages
from cm3kit.fill.defaults import DIFFUSION
from cm3kit.fill.finding import find
from cm3kit.fill.folder import load_parts
from cm3kit.fill.parts import Parts, diffusion_backbone
from cm3kit.fill.styles import PromptStyle
from cm3kit.objectives.contract import Objective, TokenizerParts, read_settings
from cm3kit.registry import objective
from cm3kit.training.validation import Documents, held_documents, spread, validate
from cm3kit_tokenizers.errors import DataError
from cm3kit_tokenizers.sequence import PageTokenizer


def evaluate(
    data: Path, model: str | None = None, *, split: str = "rest", limit: int = 256, rounds: int = 4,
    rows: int = 4, seed: int = 0, device: str = "auto", style: PromptStyle | None = None,
    warn: Callable[[str], None] = lambda line: None,
) -> dict[str, float]:  # fmt: skip
    """Bits of held-out pages under each decoder of a model; the same call gives the same figures.

    A public model gets them as it reads pages, spelt in its own tokens; one of words alone without their pictures.

    Args:
        data: a corpus folder, or a folder of token shards, whose held-out documents are taken.
        split: which pages of a corpus.
        limit: at most so many, spread over the split.
        rounds: times a page that what is hidden is drawn.
        style: how a public model reads pages, page or plain; unless given, as it does by default.
        warn: is told what was left out.

    Raises:
        ConfigError: the device is not there, or the model reads pages in another way (`bad_value`).
        DataError: there are no such pages (`bad_data`).
        ModelError: there is no such model, or the shards are another tokenizer's.
    """
    parts = load_parts(find(model))
    tokenizer = PageTokenizer(parts.text, parts.vocab)
    documents = _documents(data, parts, tokenizer, split, limit, warn)
    if parts.public or style is not None:
        documents = spelt(documents, parts, style)
    out: dict[str, float] = {"documents": len(documents), "tokens": sum(map(len, documents))}
    for backbone, scored, isolated in _decoders(parts):
        # A packed row holds every page so many times.
        row = parts.defaults.window * scored.copies
        out |= validate(
            backbone.to(resolve_device(device)), scored, documents, tokenizer, parts.image, row,
            rows=rows, rounds=rounds, seed=seed, unseen=isolated,
        )  # fmt: skip
    return out


def _documents(
    data: Path, parts: Parts, tokenizer: PageTokenizer, split: str, limit: int, warn: Callable[[str], None]
) -> Documents:
    found: Documents
    if (data / INDEX).is_file():
        shards = TokenShards(data, parts.text.sha256, parts.image.sha256)
        numbers = [number for number, held in enumerate(shards.held.tolist()) if held]
        found = [shards[numbers[place]] for place in spread(len(numbers), limit)]
    elif not parts.vocab.image_size:
        found, lost = words_of_pages(data, tokenizer, split, limit)
        if lost:
            warn(f"{lost} pictures are left out of the pages: this model has words alone.")
    else:
        with tempfile.TemporaryDirectory() as cache:
            found = held_documents(data, tokenizer, parts.image, Path(cache), limit, split)
    if not found:
        raise DataError(f"{data} has no page of the split {split!r}.", code="bad_data")
    return found


def _decoders(parts: Parts) -> list[tuple[PreTrainedModel, Objective, bool]]:
    """Weights of each decoder, the objective that scores it, and whether its masked positions are isolated."""
    defaults = parts.defaults
    out: list[tuple[PreTrainedModel, Objective, bool]] = []
    if "cm3" in defaults.decoders:
        asked = defaults.objective or {"name": "cm3", "preset": defaults.preset}
        out.append((parts.backbone, _objective(parts, asked), False))
    if DIFFUSION in defaults.decoders:
        how = defaults.diffusion
        out.append((diffusion_backbone(parts), _objective(parts, how.objective), how.isolated_masks))
    return out


def _objective(parts: Parts, asked: Mapping[str, Any]) -> Objective:
    settings = read_settings(asked)
    known = TokenizerParts(parts.vocab, parts.text, parts.image.grid)
    made: Objective = objective[settings.name].build(settings, known)
    return made
