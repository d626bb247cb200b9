"""What a decoder makes of pages that it was not trained on: bits, by kind of id and by objective.

Every figure depends on weights, pages and seed alone, so those of one training can be compared with one another.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cm3kit.data.corpus import listing, load_documents
from cm3kit.models.attention import block_mask
from cm3kit.models.backbone import head, hidden_states
from cm3kit.models.timestep import is_timed
from cm3kit.objectives.contract import Objective
from cm3kit.rng import generator
from cm3kit.training.collate import Packed, pack
from cm3kit.types import Example
from cm3kit_tokenizers.sequence import PageTokenizer
from cm3kit_tokenizers.vocab import Vocab
from cm3kit_tokenizers.vq.model import ImageTokenizer

Documents = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class _Look:
    """What positions attend to besides what an example says: the left only, or not an id; and an id never scored."""

    causal: bool
    unseen: int | None
    excluded: int | None


@dataclass
class Tally:
    """Nats of what was asked for, by kind of id; how many ids that stands for, and how often `<eoss>` was likeliest."""

    nats: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    asked: Counter[str] = field(default_factory=Counter)
    text_bytes: int = 0
    ends: int = 0
    ends_hit: int = 0

    def figures(self, prefix: str, tokenizer: PageTokenizer, image: ImageTokenizer) -> dict[str, float]:
        """Bits, named and divided; what there was none of is left out."""
        bits = {kind: nats / math.log(2) for kind, nats in self.nats.items()}
        out = {}
        if total := self.asked.total():
            out["bits_per_token"] = sum(bits.values()) / total
        if self.text_bytes:
            out["text_bits_per_byte"] = bits.get("text", 0.0) / self.text_bytes
        if codes := self.asked["image"]:
            out["image_bits_per_code"] = bits.get("image", 0.0) / codes
            rows, columns = image.grid
            share = rows * columns / image.config.resolution**2
            out["image_bits_per_pixel"] = share * out["image_bits_per_code"]
        if self.ends:
            out["eoss_hit_rate"] = self.ends_hit / self.ends
        return {prefix + name: value for name, value in out.items()}


def validate(
    backbone: PreTrainedModel,
    objective: Objective,
    documents: Documents,
    tokenizer: PageTokenizer,
    image: ImageTokenizer,
    window: int,
    *,
    causal_attention: bool = False,
    unseen: bool = False,
    rows: int = 4,
    rounds: int = 2,
    seed: int = 0,
) -> dict[str, float]:
    """Bits of documents (ids, without `<eod>`) by what a decoder was trained for.

    A causal decoder reads each page as it stands (`bits_per_token`, `text_bits_per_byte`, `image_bits_per_code`,
    `image_bits_per_pixel`: exact −log₂ p), and then, where it fills gaps, what its objective hides (`fill_…`, with
    `fill_eoss_hit_rate`: how often `<eoss>` was the likeliest id where a filling ends). A diffusion decoder gets the
    evidence bound of what its objective hides (`bound_…`; LLaDA, arXiv:2502.09992, eq. 3), per id that could be
    hidden. What is hidden is drawn `rounds` times a page.

    Bits per byte are of text ids by the bytes that they stand for, without markup. Bits per pixel are those of the
    picture's codes over its pixels (not over their channels); what the image tokenizer loses is not in them.

    Args:
        causal_attention: whether the decoder looks left whatever the objective.
        unseen: whether masked positions are attended to by no other position, as in training.
        rows: of one pass.
        seed: of what is hidden.
    """
    out: dict[str, float] = {}
    for prefix, asked in objective.validation().items():
        tally, rng = Tally(), generator(seed)
        for _ in range(rounds if prefix else 1):
            examples = asked.make_examples(documents, rng, window)
            mask = tokenizer.vocab.mask
            look = _Look(causal_attention, mask if unseen else None, mask if objective.masks else None)
            _ask(backbone, examples, tokenizer, (rows, window), look, tally)
        out |= tally.figures(prefix, tokenizer, image)
    return out


def _asked(example: Example, vocab: Vocab) -> list[int]:
    """The ids that an example could ask for: those that weigh, or under diffusion all that could be hidden."""
    if example.noisy is None:
        return [id for id, weight in zip(example.ids, example.weights, strict=True) if weight > 0]
    size = sum(example.noisy)
    if example.spans:
        return [example.ids[place] for span in example.spans for place in range(span.start, span.stop)]
    return [id for id in example.ids[:size] if id != vocab.eod]


@torch.no_grad()
def _ask(
    backbone: PreTrainedModel,
    examples: list[Example],
    tokenizer: PageTokenizer,
    shape: tuple[int, int],
    look: _Look,
    tally: Tally,
) -> None:
    """Add a decoder's answers to all examples to a tally, in packed rows of a shape (rows, window)."""
    vocab, pieces = tokenizer.vocab, tokenizer.text.pieces
    for each in examples:
        asked = _asked(each, vocab)
        tally.asked.update(_kind(id, vocab) for id in asked)
        tally.text_bytes += sum(len(pieces[id - vocab.text.start]) for id in asked if id in vocab.text)
    while examples:
        packed = pack(examples, *shape)
        placed = set(packed.documents_BT.flatten().tolist())
        targets, weights, nats, right = _answers(backbone, packed, look)
        for target, weight, cost, hit in zip(targets, weights, nats, right, strict=True):
            tally.nats[_kind(target, vocab)] += weight * cost
            if target == vocab.eoss:
                tally.ends, tally.ends_hit = tally.ends + 1, tally.ends_hit + hit
        examples = [each for number, each in enumerate(examples, 1) if number not in placed]


def _answers(
    backbone: PreTrainedModel, packed: Packed, look: _Look
) -> tuple[list[int], list[float], list[float], list[bool]]:
    """Target, weight, nats and whether it was the likeliest, of each place that weighs."""
    on = Packed(*(each.to(backbone.device) for each in packed))
    if look.causal:
        mask_B1TT = block_mask(on.documents_BT, on.places_BT, torch.zeros_like(on.noisy_BT))
    else:
        unseen_BT = None if look.unseen is None else on.ids_BT == look.unseen
        mask_B1TT = block_mask(on.documents_BT, on.blocks_BT, on.noisy_BT, unseen_BT=unseen_BT)
    times_BT = on.times_BT if is_timed(backbone) else None
    hidden_BTD = hidden_states(backbone, on.ids_BT, mask_B1TT, on.places_BT, times_BT)
    chosen_BT = on.weights_BT > 0
    targets_N: Tensor = on.targets_BT[chosen_BT]
    logits_NV = head(backbone, hidden_BTD[chosen_BT]).float()
    if look.excluded is not None:
        logits_NV[:, look.excluded] = -torch.inf
    nats_N = logits_NV.logsumexp(-1) - logits_NV.gather(-1, targets_N[:, None])[:, 0]
    right_N = logits_NV.argmax(-1) == targets_N
    return targets_N.tolist(), on.weights_BT[chosen_BT].tolist(), nats_N.tolist(), right_N.tolist()


def _kind(id: int, vocab: Vocab) -> str:
    return "image" if id in vocab.image else "text" if id in vocab.text else "other"


def held_documents(
    folder: Path,
    tokenizer: PageTokenizer,
    image: ImageTokenizer,
    cache: Path,
    count: int,
    split: str = "rest",
) -> list[list[int]]:
    """At most so many documents of a split, spread over it; none where the folder has no such page."""
    pages = [page for page in listing(folder) if page.split == split]
    chosen = [pages[place].path for place in spread(len(pages), count)]
    if not chosen:
        return []
    return list(load_documents(folder, tokenizer, image, cache, split, chosen).ids)


def spread(count: int, most: int) -> list[int]:
    """At most so many of `count` numbers, spread evenly."""
    return [place * count // min(count, most) for place in range(min(count, most))]
