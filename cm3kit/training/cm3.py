"""What `train cm3` trains: a causal decoder on pages whose spans are moved behind sentinels (arXiv:2201.07520)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Generator, Tensor, nn
from transformers import PreTrainedModel

from cm3kit.config import Settings
from cm3kit.data.corpus import load_documents
from cm3kit.models.backbone import (
    BackboneConfig,
    build_backbone,
    forward,
    load_backbone,
    packed_mask,
    packed_positions,
    save_backbone,
)
from cm3kit.objectives import PRESETS, CausalMask
from cm3kit.pipelines.folder import Defaults
from cm3kit.training.loop import LoopSettings
from cm3kit.training.preview import preview
from cm3kit.types import Exercise
from cm3kit_tokenizers.sequence import PageTokenizer
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import Vocab
from cm3kit_tokenizers.vq.model import ImageTokenizer


class Cm3Recipe(Settings):
    """Everything that `train cm3` needs.

    `text` and `image` are folders of trained tokenizers; `window` is the length of a packed row;
    `p_ar` replaces the preset's share of documents without a span;
    `backbone_from` is a folder or hub id to start from instead of fresh weights of `backbone`; `previews`
    are the prompts that previews draw.
    """

    data: Path = Path("data/emoji")
    text: Path = Path("runs/text/final")
    image: Path = Path("runs/vqgan/final")
    preset: str = "recommended"
    p_ar: float | None = Field(None, ge=0, le=1)
    window: int = Field(512, ge=16)
    backbone: BackboneConfig = BackboneConfig()
    backbone_from: str | None = None
    previews: tuple[str, ...] = ("red apple", "waving hand: dark skin tone", "blue heart", "flag: Italy")
    loop: LoopSettings = LoopSettings()


class Packed(NamedTuple):
    """Exercises side by side in rows; `documents_BT` numbers them from 1, 0 is padding."""

    ids_BT: Tensor
    weights_BT: Tensor
    documents_BT: Tensor


def pack(exercises: list[Exercise], rows: int, window: int) -> Packed:
    """Place each exercise in the first row with room; those that fit nowhere are left out."""
    ids_BT = torch.zeros(rows, window, dtype=torch.long)
    weights_BT = torch.zeros(rows, window)
    documents_BT = torch.zeros(rows, window, dtype=torch.long)
    used = [0] * rows
    for number, each in enumerate(exercises, 1):
        size = len(each.ids)
        row = next((row for row in range(rows) if used[row] + size <= window), None)
        if row is None:
            continue
        place = slice(used[row], used[row] + size)
        ids_BT[row, place] = torch.tensor(each.ids)
        weights_BT[row, place] = torch.tensor(each.weights)
        weights_BT[row, place.start] = 0.0  # nothing before a document's first id predicts it
        documents_BT[row, place] = number
        used[row] += size
    return Packed(ids_BT, weights_BT, documents_BT)


class Scorer(nn.Module):
    """The backbone behind one call, so that compiling and distributed wrappers see all of it."""

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, ids_BT: Tensor, mask_B1TT: Tensor, positions_BT: Tensor) -> Tensor:
        """Nats (B, T − 1) of each next id; inside this call, so that compiling fuses softmax and loss."""
        logits_BTV = forward(self.backbone, ids_BT, mask_B1TT, positions_BT)[:, :-1].float()
        target_BT = logits_BTV.gather(-1, ids_BT[:, 1:, None])[..., 0]
        nats_BT: Tensor = logits_BTV.logsumexp(-1) - target_BT
        return nats_BT


class Cm3Task:
    """Causal-mask training on packed pages; implements `cm3kit.training.loop.Task`."""

    def __init__(self, recipe: Cm3Recipe, cache: Path) -> None:
        self.recipe = recipe
        text, self.image = TextTokenizer.load(recipe.text), ImageTokenizer.load(recipe.image)
        self.vocab = Vocab(text.size, self.image.size)
        self.tokenizer = PageTokenizer(text, self.vocab)
        self.documents = load_documents(recipe.data, self.tokenizer, self.image, cache)
        preset = PRESETS[recipe.preset]
        if recipe.p_ar is not None:
            preset = replace(preset, p_ar=recipe.p_ar)
        self.objective = CausalMask(self.vocab, preset, continues=tuple(text.continues), grid=self.image.grid)
        size = len(self.vocab)
        fresh = recipe.backbone_from is None
        backbone = (
            build_backbone(recipe.backbone, size) if fresh else load_backbone(str(recipe.backbone_from), size)
        )
        self.model = Scorer(backbone).train()
        self._mean = sum(map(len, self.documents.ids)) / len(self.documents.ids) + 6

    def batch(self, rng: Generator, size: int) -> Packed:
        """`size` rows of packed exercises."""
        count = int(1.3 * size * self.recipe.window / self._mean) + 2
        drawn = self.documents.draw(rng, count)
        return pack(
            [self.objective.exercise(ids, rng, self.recipe.window) for ids in drawn], size, self.recipe.window
        )

    def loss(
        self, model: nn.Module, batch: Packed, step: int, rng: Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Mean cross-entropy of the weighed targets, with nats per image code and per other id apart."""
        device = next(model.parameters()).device
        ids_BT, weights_BT, documents_BT = (each.to(device) for each in batch)
        nats_BT = model(ids_BT, packed_mask(documents_BT), packed_positions(documents_BT))
        targets_BT, weights_BT = ids_BT[:, 1:], weights_BT[:, 1:]
        total = (nats_BT * weights_BT).sum() / weights_BT.sum()
        with torch.no_grad():
            image_BT = weights_BT * (targets_BT >= self.vocab.image.start)
            other_BT = weights_BT - image_BT
            figures = {
                "image": float((nats_BT * image_BT).sum() / image_BT.sum().clamp_min(1)),
                "text": float((nats_BT * other_BT).sum() / other_BT.sum().clamp_min(1)),
                "filled": float((documents_BT > 0).float().mean()),
            }
        return total, figures

    def preview(self, model: nn.Module, path: Path) -> None:
        """A few prompts as pictures, and a page with its gaps filled."""
        defaults = Defaults(window=self.recipe.window, preset=self.recipe.preset)
        text, prompts = self.tokenizer.text, self.recipe.previews
        preview(text, self.image, self.vocab, self.model.backbone, defaults, prompts, path)

    def export(self, model: nn.Module, folder: Path) -> None:
        """The backbone in half precision, and the id space."""
        save_backbone(self.model.backbone, folder, half=True)
