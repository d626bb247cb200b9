"""An estimate of what a training will need: parameters, memory, time.

Memory is not guessed from a formula: a whole step (forward, backward, AdamW, averages) runs on fake tensors, which have
shapes and no content, while every storage is counted. What the process holds besides is measured on this machine, as
the tokenizers and pages are read for it anyway. An image tokenizer is small enough to be tried out on real pictures.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from cm3kit.data.bundle import INDEX as BUNDLE
from cm3kit.data.corpus import listing
from cm3kit.data.token_shards import INDEX, TokenShards
from cm3kit.models.backbone import build_backbone
from cm3kit.models.empty import empty_backbone
from cm3kit.models.expand import expand
from cm3kit.models.lora import add_lora
from cm3kit.models.packing import Packer
from cm3kit.models.timestep import add_timestep
from cm3kit.models.transplant import borrow_text
from cm3kit.objectives.contract import TokenizerParts
from cm3kit.registry import objective
from cm3kit.training.collate import all_scored
from cm3kit.training.decoder import DecoderRecipe, Scorer
from cm3kit.training.finished import image_of, text_of
from cm3kit.training.live import Live, peak_while, refilled, resident, torch_is_warm
from cm3kit.training.parallel import recompute
from cm3kit.training.precision import computes_bf16
from cm3kit.training.speed import peak_flops, step_flops
from cm3kit.training.task import LoopSettings
from cm3kit.training.trial import backward, drawing_seconds, fastest, step_seconds
from cm3kit.training.validation import held_documents, spread
from cm3kit.training.vqgan import VqganRecipe, VqganTask
from cm3kit_tokenizers.sequence import PageTokenizer
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import Vocab
from cm3kit_tokenizers.vq.model import ImageTokenizer

SAMPLE = 32  # pages that are read to estimate the length of all
COUNTS = 2, 4  # pictures of the steps that are measured
# Of decoders, fitted to the five cases of benchmarks/estimate.py: what the C library keeps of freed activations, in the
# holes that they leave, and bytes that the loop loads besides what is tried out here.
SLACK, LOADED = 0.05, 80_000_000
BYTES_OF_ID = 36  # a number and a place in a list


@dataclass(frozen=True, slots=True)
class Estimate:
    """The estimate of a training. Sizes are bytes, times seconds, on this machine and with its number of threads.

    Attributes:
        parameters: of the model; `trained` are those that learn.
        tokens_per_step: ids (or codes) of a batch.
        weights: in fp32, and `gradients`, `moments` (AdamW's two) and `average` (EMA) likewise.
        activations: the rest of the memory in use at the peak of a step, with the logits.
        slack: what the C library holds besides, in the holes that freed activations leave.
        export: what the end of training takes besides the first four, for the averaged copy in half precision.
        process: the interpreter, its libraries, the tokenizers and the pages in memory.
        peak: most memory of the process at once.
        flops_per_step: of the model's products; see `training.speed`.
        seconds_per_step: of a step, tried out on one and two layers; None where that is not possible.
        seconds_at_best: of a step that does nothing but these products, as fast as this processor can.
        seconds: of the whole training.
    """

    parameters: int
    trained: int
    tokens_per_step: int
    weights: int
    gradients: int
    moments: int
    average: int
    activations: int
    slack: int
    export: int
    process: int
    peak: int
    flops_per_step: float
    seconds_per_step: float | None
    seconds_at_best: float
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """The same as a mapping."""
        return asdict(self)


def estimate_decoder(recipe: DecoderRecipe, timed: bool = True, fast: bool | None = None) -> Estimate:
    """What a training of a decoder needs.

    Args:
        timed: try out how long a step takes, instead of telling it from the FLOPs alone.
        fast: compute in bf16; unless given, as training would here.

    Raises:
        Cm3kitError: the recipe, its data or its tokenizers cannot be used, as at the start of training.
    """
    text = text_of(recipe) if recipe.warm.source is None else _borrowed_text(recipe)
    image = image_of(recipe)
    parts = TokenizerParts(Vocab(text.size, image.size), text, image.grid)
    documents, pages = _pages(recipe.data, PageTokenizer(text, parts.vocab), image)
    return estimate_on(recipe, parts, documents, pages, timed, fast=fast)


def estimate_on(
    recipe: DecoderRecipe, parts: TokenizerParts, documents: Sequence[Sequence[int]], pages: int = 0,
    timed: bool = True, device: str = "cpu", fast: bool | None = None,
) -> Estimate:  # fmt: skip
    """What a training of a decoder needs on such documents.

    Args:
        documents: some of them, as ids, from which batches are drawn to see how long that takes.
        pages: bytes that all documents take in memory.
        device: where steps are tried out.
    """
    torch_is_warm()
    gc.collect()
    process = resident() + pages + LOADED
    fast, size = _fast(recipe.loop, device) if fast is None else fast, len(parts.vocab)
    model, sizes, activations = trace_decoder(recipe, size, fast)
    config = model.backbone.config
    layers, width = config.num_hidden_layers, config.hidden_size
    rows, window = recipe.loop.batch_size, recipe.window
    flops = step_flops(model, rows, window, layers, width)
    at_best = flops / peak_flops(device, torch.bfloat16 if fast else torch.float32)
    tried = None
    if timed and recipe.warm.source is None and recipe.backbone_from is None:
        tried = step_seconds(recipe, size, fast, device)
        if documents and not recipe.loop.workers:
            asked = objective[recipe.objective.name].build(recipe.objective, parts)
            tried += drawing_seconds(asked, documents, rows, window)
    held = activations, int(SLACK * activations)
    return _estimate(model, recipe.loop, rows * window, sizes, held, process, flops, tried, at_best)


def estimate_vqgan(recipe: VqganRecipe) -> Estimate:
    """What a training of an image tokenizer needs, from steps on two and on four pictures.

    Raises:
        Cm3kitError: the recipe or its pictures cannot be used, as at the start of training.
    """
    task = VqganTask(recipe)
    torch_is_warm()
    gc.collect()
    model, rng = task.model, torch.Generator().manual_seed(0)
    sizes = Sizes.of(model)
    process = resident() - sizes.weights
    fast, peaks, took = _fast(recipe.loop), [], []
    model.codebook.started.fill_(True)  # what comes late, codes and a discriminator, is there

    def learn(pixels: Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            loss = task.loss(model, pixels, recipe.loop.steps - 1, rng)[0]
        backward(loss)

    learn(task.batch(rng, 1))
    for count in COUNTS:
        pixels = task.batch(rng, count)
        peaks.append(peak_while(partial(learn, pixels)))
        took.append(fastest(partial(learn, pixels), 1))
    size, (few, more) = recipe.loop.batch_size, COUNTS
    rows = -(-size // recipe.loop.accumulate)
    peak = peaks[0] + max(0, peaks[1] - peaks[0]) * (rows - few) / (more - few)
    activations = max(0, int(peak) - process - sizes.weights - sizes.gradients)
    seconds = took[1] / more * size
    tokens, flops = task.work(size)
    at_best = flops / peak_flops("cpu", torch.bfloat16 if fast else torch.float32)
    return _estimate(model, recipe.loop, tokens, sizes, (activations, 0), process, flops, seconds, at_best)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of weights and buffers, of gradients, of AdamW's moments and of averages."""

    weights: int
    gradients: int
    moments: int
    average: int

    @classmethod
    def of(cls, model: nn.Module) -> Sizes:
        """What a model's training holds between steps."""
        weights = sum(each.numel() * each.element_size() for each in (*model.parameters(), *model.buffers()))
        learning = sum(
            each.numel() * each.element_size() for each in model.parameters() if each.requires_grad
        )
        state = sum(each.numel() * 4 for each in _distinct(model))
        return cls(weights, learning, 2 * learning, state)


def trace_decoder(recipe: DecoderRecipe, vocab_size: int, fast: bool) -> tuple[Scorer, Sizes, int]:
    """A decoder of fake tensors, its sizes, and the other memory of a step at its peak, in bytes."""
    loop = recipe.loop
    shape = -(-loop.batch_size // loop.accumulate), recipe.window
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.device("meta"):
        backbone = _backbone(recipe, vocab_size)
    packer = Packer(recipe.packing, backbone.train(), loop.compile)
    masks = packer.largest(shape, device)
    with FakeTensorMode(allow_non_fake_inputs=True), Live() as live:
        model = Scorer(refilled(backbone)).train()
        sizes = Sizes.of(model)
        if loop.recompute:
            recompute(model)
        learning = [each for each in model.parameters() if each.requires_grad]
        optimizer = torch.optim.AdamW(learning, fused=True)
        average = {name: each.detach().float().clone() for name, each in _state(model).items()}
        ids_BT = torch.zeros(shape, dtype=torch.long)
        times = (torch.zeros(shape),) if recipe.timestep is not None else ()
        peaks = list[int]()
        for made in (masks[0], *masks):  # of which the first makes the moments
            mask = made.clone() if isinstance(made, Tensor) else made  # one that is counted
            live.peak = live.now
            optimizer.zero_grad()
            for _ in range(min(2, loop.accumulate)):
                with torch.autocast("cpu", torch.bfloat16, enabled=fast):
                    loss = model(ids_BT, all_scored(ids_BT), mask, ids_BT, *times)[0] / torch.ones(())
                backward(loss)
                del loss
            nn.utils.clip_grad_norm_(learning, loop.clip)
            optimizer.step()
            with torch.no_grad():
                for name, each in _state(model).items():
                    average[name].lerp_(each.float(), 0.5)
            peaks.append(live.peak)
            del mask
    held = sizes.weights + sizes.gradients + sizes.moments + sizes.average
    return model, sizes, max(peaks[1:]) - held


def _borrowed_text(recipe: DecoderRecipe) -> TextTokenizer:
    instead = text_of(recipe) if recipe.warm.text == "recipe" else None
    return borrow_text(str(recipe.warm.source), instead).text


def _pages(folder: Path, tokenizer: PageTokenizer, image: ImageTokenizer) -> tuple[list[list[int]], int]:
    """Some pages of a corpus as ids, and the bytes that all of them will take; shards stay on disk."""
    if (folder / INDEX).is_file():
        shards = TokenShards(folder)
        return [shards[place] for place in spread(len(shards), SAMPLE)], 0
    if (folder / BUNDLE).is_file():
        return [], 0
    count = sum(each.split == "train" for each in listing(folder))
    with tempfile.TemporaryDirectory() as cache:
        some = held_documents(folder, tokenizer, image, Path(cache), SAMPLE, "train")
    return some, int(BYTES_OF_ID * count * sum(map(len, some)) / max(1, len(some)))


def _backbone(recipe: DecoderRecipe, size: int) -> PreTrainedModel:
    source = recipe.warm.source or recipe.backbone_from
    if source is None:
        model = build_backbone(recipe.backbone, size)
    else:
        model = empty_backbone(source, size)
    if recipe.expand:
        model = expand(model, recipe.expand)
    if recipe.lora.rank:
        add_lora(model, recipe.lora, range(size - 1))
    if recipe.timestep is not None:
        add_timestep(model, recipe.timestep)
    return model


def _estimate(
    model: nn.Module, loop: LoopSettings, tokens: int, sizes: Sizes, step: tuple[int, int], process: int, flops: float,
    tried: float | None, at_best: float,
) -> Estimate:  # fmt: skip
    # Live weights aside, a copy that becomes half precision bit by bit, and before it one with adapters merged in.
    export = sizes.average + sizes.weights * (
        2 if any(not each.requires_grad for each in model.parameters()) else 1
    )
    activations, slack = step
    held = sizes.weights + sizes.gradients + sizes.moments + sizes.average
    return Estimate(
        sum(each.numel() for each in model.parameters()),
        sum(each.numel() for each in model.parameters() if each.requires_grad),
        tokens, sizes.weights, sizes.gradients, sizes.moments, sizes.average, activations, slack, export, process,
        process + held + max(activations + slack, export), flops, tried, at_best, loop.steps * (tried or at_best),
    )  # fmt: skip


def _fast(loop: LoopSettings, device: str = "cpu") -> bool:
    return computes_bf16(device == "cpu") if loop.precision == "auto" else loop.precision == "bf16"


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: each for name, each in model.state_dict().items() if each.is_floating_point()}


def _distinct(model: nn.Module) -> Sequence[Tensor]:
    """What the averages copy: every name of the state, tied weights as often as they are named."""
    return list(model.state_dict().values())
