"""Bits per id of held-out pages: the evidence bound of masked diffusion, by stratified times."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from cm3kit.objectives import MaskedDiffusion
from cm3kit.rng import generator
from cm3kit.training.collate import pack
from cm3kit.training.decoder import DecoderTask


@torch.no_grad()
def bits_per_id(
    task: DecoderTask,
    model: nn.Module,
    objective: MaskedDiffusion,
    documents: Sequence[Sequence[int]],
    rounds: int = 8,
    rows: int = 4,
    seed: int = 0,
) -> dict[str, float]:
    """The bound of −log₂ p per hidden id that a model reaches on documents (LLaDA, arXiv:2502.09992, eq. 3).

    Args:
        task: gives window and attention.
        objective: with bound weights and no divisor but ids; its draws depend on `seed` alone, so that models
            are compared on the same questions.
        rounds: times that each document is asked about, at times spread evenly.

    Returns:
        `all`, `image` and `text`: mean bits per id that could be hidden, of all ids and of each kind.
    """
    totals = {"image": [0.0, 0.0], "text": [0.0, 0.0]}
    window, rng = task.recipe.window, generator(seed)
    for _ in range(rounds):
        examples = objective.make_examples(documents, rng, window)
        while examples:
            packed = pack(examples, rows, window)
            placed = set(packed.documents_BT.flatten().tolist())
            nats_BT = task.nats(model, packed, task.recipe.loop.steps, rng)
            image_BT = packed.targets_BT >= task.vocab.image.start
            for kind, of_BT in (("image", image_BT), ("text", ~image_BT)):
                totals[kind][0] += float((nats_BT * packed.weights_BT * of_BT).sum())
            for number in placed - {0}:
                each = examples[number - 1]
                gaps = [place for span in each.spans for place in range(span.start, span.stop)]
                images = sum(each.ids[place] >= task.vocab.image.start for place in gaps)
                totals["image"][1] += images
                totals["text"][1] += len(gaps) - images
            examples = [each for number, each in enumerate(examples, 1) if number not in placed]
    (image, images), (text, texts) = totals["image"], totals["text"]
    scale = 1 / math.log(2)
    return {
        "all": scale * (image + text) / max(1.0, images + texts),
        "image": scale * image / max(1.0, images),
        "text": scale * text / max(1.0, texts),
    }
