"""An estimate of what reinforcement learning will need, as `training.estimate` gives for other trainings."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from cm3kit.fill.defaults import DIFFUSION, Defaults
from cm3kit.fill.finding import find
from cm3kit.fill.runs import INDEX
from cm3kit.models.empty import empty_backbone
from cm3kit.models.families import family_of, read_config
from cm3kit.models.lora import add_lora
from cm3kit.models.transplant import borrow_text
from cm3kit.training import estimate as estimating
from cm3kit.training.live import Live, refilled, resident
from cm3kit.training.parallel import recompute
from cm3kit.training.rl.policy import Policy
from cm3kit.training.rl.prompts import read_items
from cm3kit.training.rl.recipe import RLRecipe
from cm3kit.training.speed import peak_flops, step_flops
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import Vocab

AROUND = 32  # ids of markup or of a conversation around a prompt
ANSWER = 96  # ids of an answer where nothing says how long it is
# Tables of logits of a row that picking ids from it has at once: masked, log-probabilities, sorted ones with their ids.
TABLES = 5
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def estimate_rl(recipe: RLRecipe) -> estimating.Estimate:
    """The estimate of a reinforcement learning; its time is that of matrix products alone.

    Activations are those of the fuller of two moments: `rows` rows forward and back, with logits where answers are
    scored, or a batch of rollouts. With a reference, its weights count among those of the process.

    Raises:
        Cm3kitError: the model or the prompts cannot be used, as at the start of training.
    """
    folder = find(recipe.model)
    public = not (folder / INDEX).is_file()
    text, vocab = _tokens(folder, public)
    answer = _answer(recipe, folder, public, vocab)
    items = read_items(recipe.prompts, recipe.task, recipe.hold_out)
    asked = (
        item.name if item.page is None else item.page.data.decode(item.page.codec, "replace")
        for item in items
    )
    words = max(len(text.encode(each, vocab.text.start)) for each in asked)
    length = words + answer + AROUND
    process = resident() + estimating.LOADED
    fast = estimating._fast(recipe.loop)
    with torch.device("meta"):
        backbone = _backbone(recipe, folder, public, len(vocab))
    config = backbone.config
    model, sizes, step = _traced(recipe, backbone, len(vocab), length, answer, fast)
    if recipe.loss.needs_reference and not recipe.lora.rank:
        process += sizes.weights
    rolled = TABLES * answer * len(vocab) * 4 + _places(recipe) * answer * len(vocab) * 4
    if not public:
        rolled += sizes.weights  # the engine's copy
    rows = _rows(recipe, answer)
    layers, width = config.num_hidden_layers, config.hidden_size
    flops = step_flops(model, rows, length, layers, width) * 4 / 3
    flops += (
        step_flops(model, recipe.loop.batch_size * _passes(recipe, answer), length, layers, width)
        / 3
        / recipe.updates
    )
    activations = max(step, rolled)
    at_best = flops / peak_flops("cpu", torch.bfloat16 if fast else torch.float32)
    return estimating._estimate(
        model, recipe.loop, rows * length, sizes, (activations, int(estimating.SLACK * activations)), process, flops,
        None, at_best,
    )  # fmt: skip


def _tokens(folder: Path, public: bool) -> tuple[TextTokenizer, Vocab]:
    if public:
        text = borrow_text(str(folder)).text
        return text, Vocab(text.size, 0)
    vocab = Vocab.from_dict(json.loads((folder / "vocab.json").read_text(encoding="utf-8")))
    return TextTokenizer.load(folder / "text"), vocab


def _answer(recipe: RLRecipe, folder: Path, public: bool, vocab: Vocab) -> int:
    """Ids of an answer."""
    told = recipe.sampling.get("length") or recipe.sampling.get("max_tokens")
    if isinstance(told, int):
        return told
    if recipe.task in ("image", "pair") and vocab.image_size:
        shape = json.loads((folder / "image/config.json").read_text(encoding="utf-8"))
        side: int = int(shape["sample_size"]) // 2 ** (len(shape["block_out_channels"]) - 1)
        return side * side
    return ANSWER


def _places(recipe: RLRecipe) -> int:
    return int(recipe.sampling.get("batch_size") or 8)


def _passes(recipe: RLRecipe, answer: int) -> int:
    """Forward passes of a rollout; those of a causal decoder are of one id each, as much as one of a row."""
    if recipe.estimator.name == "causal":
        return 1
    if recipe.sampling.get("schedule") == "ascending":
        return math.ceil(math.log2(answer + 1))
    return int(recipe.sampling.get("steps") or answer)


def _rows(recipe: RLRecipe, answer: int) -> int:
    """Rows of an update that are scored."""
    forwards = {"one-pass": 1, "coupled": 3, "causal": 1}.get(recipe.estimator.name, _passes(recipe, answer))
    return recipe.loop.batch_size * forwards


def _backbone(recipe: RLRecipe, folder: Path, public: bool, size: int) -> PreTrainedModel:
    source = folder
    if not public:
        defaults = Defaults.of(folder)
        writes = recipe.sampling.get("decoder") or defaults.decoders[0]
        own = writes == DIFFUSION and (folder / DIFFUSION).is_dir()
        source = folder / (DIFFUSION if own else "decoder")
    model = empty_backbone(str(source), size)
    if recipe.lora.rank:
        # Frozen weights stay in the number format of their files.
        raw = read_config(source) or {}
        stored = (
            str(raw.get("dtype") or raw.get("torch_dtype") or "float32")
            if public and family_of(source)
            else ""
        )
        model = model.to(DTYPES.get(stored, torch.float32))
        add_lora(model, recipe.lora, ())
    return model


def _traced(
    recipe: RLRecipe, backbone: PreTrainedModel, size: int, length: int, answer: int, fast: bool
) -> tuple[Policy, estimating.Sizes, int]:
    """A policy of fake tensors, its sizes, and the other memory of an update at its peak, in bytes."""
    with FakeTensorMode(allow_non_fake_inputs=True), Live() as live:
        model = Policy(refilled(backbone), None, size).train()
        sizes = estimating.Sizes.of(model)
        if recipe.loop.recompute:
            recompute(model)
        learning = [each for each in model.parameters() if each.requires_grad]
        optimizer = torch.optim.AdamW(learning, fused=True)
        average = [each.detach().float().clone() for each in model.state_dict().values()]
        shape, count = (recipe.rows, length), recipe.rows * answer
        ids_BT, rows_N = torch.zeros(shape, dtype=torch.long), torch.zeros(count, dtype=torch.long)
        for _ in range(2):  # of which the first makes the moments
            live.peak = live.now
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=fast):
                logp_N, _ = model(
                    ids_BT, ids_BT, ids_BT, ids_BT, ids_BT, ids_BT.float(), rows_N, rows_N, rows_N
                )
            logp_N.sum().backward()
            del logp_N
            optimizer.step()
        peak = live.peak
        del average
    held = sizes.weights + sizes.gradients + sizes.moments + sizes.average
    return model, sizes, max(0, peak - held)
