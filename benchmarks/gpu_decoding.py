"""Units of `gpu.py` about speed of decoding: the causal decoder against transformers, passes of the diffusion one."""

from __future__ import annotations

import time
from typing import Any

import torch
from gpu_answers import kit_on
from gpu_common import Context
from torch import Tensor
from transformers import PreTrainedModel

from cm3kit.decoders import Autoregressive, DecodeConfig, Grammar, Sampling
from cm3kit.fill.kit import GenerateOptions
from cm3kit.models.backbone import BackboneConfig, build_backbone
from cm3kit.types import Canvas, MaskSpan
from cm3kit_tokenizers.vocab import Vocab

SIZES = {
    "300M": BackboneConfig(hidden_size=1024, layers=20, heads=16, kv_heads=16, intermediate_size=3584),
    "1B": BackboneConfig(hidden_size=2048, layers=20, heads=32, kv_heads=32, intermediate_size=5632),
}
PROMPT = 64


def subject(where: Context, size: str) -> tuple[PreTrainedModel, Vocab]:
    """The model that ships, or random weights of a size, in fp32 on the device."""
    if size == "shipped":
        kit = kit_on(str(where.device))
        return kit.backbone, kit.vocab
    vocab = Vocab(text_size=5000, image_size=1024)
    return build_backbone(SIZES[size], len(vocab)).to(where.device), vocab


def half(model: PreTrainedModel) -> PreTrainedModel:
    """A copy in bf16."""
    with torch.device(model.device):
        copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    return copy.to(torch.bfloat16).eval()  # type: ignore[no-any-return]


def speed(where: Context, size: str, batch: int, peer: str) -> dict[str, Any]:
    """Ids a second of whole calls (64 given, the rest written), greedily: ours and `generate` of transformers.

    Ours are by graphs of the kernels of a step, and by those of a compiled step (`compile=on`).

    Args:
        peer: `plain`, or `compiled` for a static cache and a compiled step; then its first call does not count.
    """
    model, vocab = subject(where, size)
    count, repeats = (4, 1) if where.tiny else (64, 2)
    text = vocab.text
    rng = torch.Generator().manual_seed(0)
    ids_BT = torch.randint(text.start, text.stop, (batch, PROMPT), generator=rng)
    greedy, found = Sampling(temperature=0), dict[str, Any]()
    spans = (MaskSpan("image", PROMPT, count, True),)
    canvases = [Canvas(tuple(ids), spans) for ids in ids_BT.tolist()]
    ways = ("bf16", "auto"), ("fp32", "auto") if peer == "plain" else ("bf16", "on")
    # Without a GPU there is nothing to compile, and it is refused.
    for precision, mode in ways if where.cuda else [way for way in ways if way[1] == "auto"]:
        settings = {"batch_size": batch, "precision": precision, "compile": mode}
        config = DecodeConfig.model_validate({"text": greedy, "image": greedy, **settings})
        decoder, compiled = Autoregressive(model, Grammar(vocab, 64), config), mode == "on"
        start = time.perf_counter()
        decoder.fill(canvases)
        if compiled:
            found["ours, first call s"] = time.perf_counter() - start
        took = where.seconds(lambda decoder=decoder: decoder.fill(canvases), repeats)  # type: ignore[misc]
        found[f"ours {precision}{' compiled' if compiled else ''} ids/s"] = batch * count / took
    smaller, ids_BT = half(model), ids_BT.to(where.device)
    start = time.perf_counter()
    _generate(smaller, ids_BT, count, peer)
    found["first call s"] = time.perf_counter() - start
    took = where.seconds(lambda: _generate(smaller, ids_BT, count, peer), repeats)
    found[f"transformers bf16 {peer} ids/s"] = batch * count / took
    weights = sum(each.numel() for each in model.parameters())
    found["M weights"], found["GB read a second by ours, bf16"] = (
        weights / 1e6, 2 * weights * found["ours bf16 ids/s"] / batch / 1e9,
    )  # fmt: skip
    return found


@torch.no_grad()
def _generate(model: PreTrainedModel, ids_BT: Tensor, count: int, peer: str) -> None:
    more = {"cache_implementation": "static"} if peer == "compiled" else {}
    model.generate(
        ids_BT, attention_mask=torch.ones_like(ids_BT), min_new_tokens=count, max_new_tokens=count, do_sample=False,
        pad_token_id=0, **more,
    )  # fmt: skip


def passes(where: Context, batch: int) -> dict[str, Any]:
    """Pictures a second by both decoders of the model that ships, and passes a second of the diffusion one."""
    kit, found = kit_on(str(where.device)), dict[str, Any]()
    for decoder in ("diffusion", "cm3"):
        options = GenerateOptions(decoder=decoder, batch_size=batch)  # type: ignore[arg-type]
        kit.generate("red apple", n=1, options=options)
        calls: list[int] = []
        with where.alone():
            start = time.perf_counter()
            kit.generate(
                "red apple", n=batch, options=options, watch=lambda done, total, c=calls: c.append(done)
            )  # type: ignore[misc]
            where.sync()
            took = time.perf_counter() - start
        found[f"{decoder}: pictures/s"] = batch / took
        found[f"{decoder}: {'passes' if decoder == 'diffusion' else 'steps'}/s"] = len(calls) / took
    return found
