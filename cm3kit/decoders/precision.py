"""Which number format `--precision auto` is: by the device and the model alone, never by the other rows of a batch.

It is one in which a row has the same bits whatever stands beside it (`kernels`), and that costs few bits of quality,
which `bits_lost` measures. On CUDA no format has been seen to have the first, so that there it is fp32 unless one is
asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cm3kit.decoders.fast_llama import LeanEngine, supports
from cm3kit.decoders.kernels import has_fbgemm
from cm3kit.decoders.past import PlainPast
from cm3kit.decoders.settings import Precision
from cm3kit.models.plain import DecoderWeights, device_of
from cm3kit.rng import generator

LARGEST = 60_000.0  # of a weight that is to be a number in fp16
PROBE = 4, 64  # rows and ids of what a model writes for its formats to be compared on


def auto_precision(model: DecoderWeights, many: bool) -> Precision:
    """The format of a model's products.

    Args:
        many: whether products are of many rows at once (diffusion), where weights that are read faster gain nothing and
            products in bf16 do; or of a few.
    """
    if device_of(model).type != "cpu" or not supports(model):
        return "fp32"
    known = torch.cpu.get_capabilities()
    if known.get("amx_bf16") or (many and known.get("avx512_bf16")):
        return "bf16"
    if many or not has_fbgemm() or not _fits_fp16(model):
        return "fp32"
    return "bf16-fp16" if known.get("avx512_bf16") else "fp16-packed"


def _fits_fp16(model: DecoderWeights) -> bool:
    """Whether all weights are numbers in fp16 after norms have been folded into them."""
    widths = [float(each.detach().abs().max()) for each in model.parameters() if each.ndim == 2]
    norms = [float(each.detach().abs().max()) for each in model.parameters() if each.ndim == 1]
    return max(widths, default=0.0) * max([1.0, *norms]) < LARGEST


@torch.no_grad()
def bits_lost(model: DecoderWeights, vocab_size: int, precision: Precision, mask: int | None = None) -> float:
    """Bits per token that a format loses: the mean KL divergence from the model in fp32.

    The model writes rows from a random id on, in fp32; the divergence of its next-id distribution in the format is
    averaged over the ids of their second half, behind the first as a prompt. A diffusion decoder has half of the ids of
    such rows masked.

    Args:
        mask: id of an open slot, of a diffusion decoder.
    """
    formats: tuple[Precision, Precision] = ("fp32", precision)
    exact, other = (LeanEngine(model, vocab_size, each, rows=8) for each in formats)
    rng, (rows, length) = generator(0), PROBE
    length = min(length, exact.window)
    total, count = 0.0, 0
    for _ in range(rows):
        ids = _written(exact, int(torch.randint(vocab_size, (), generator=rng)), length, rng)
        hidden_T = None if mask is None else torch.rand(length, generator=rng) < 0.5
        ours_NV, theirs_NV = (_says(engine, ids, mask, hidden_T) for engine in (exact, other))
        total += float((ours_NV.exp() * (ours_NV - theirs_NV)).sum())
        count += len(ours_NV)
    return total / math.log(2) / max(1, count)


def _says(engine: LeanEngine, ids: Sequence[int], mask: int | None, hidden_T: Tensor | None) -> Tensor:
    """Log-probabilities (N, V) of each id of the second half, behind the first, or of each that is hidden."""
    if mask is None or hidden_T is None:
        size, past, ids_1T = max(1, len(ids) // 2), PlainPast(), torch.tensor([list(ids)])
        seen_11TT = torch.ones(1, 1, len(ids), len(ids), dtype=torch.bool, device=engine.device).tril()
        prompt_ND = engine.extend(ids_1T[:, :size], seen_11TT[..., :size, :size], 0, past)[0, -1:]
        rest_ND = engine.extend(ids_1T[:, size:], seen_11TT[..., size:, :], size, past)[0]
        return engine.logits_of(torch.cat([prompt_ND, rest_ND])).double().log_softmax(-1)
    ids_1T = torch.tensor([list(ids)]).masked_fill(hidden_T, mask)
    hidden_ND = engine.encode(ids_1T, [len(ids)])[0][hidden_T]
    return engine.logits_of(hidden_ND).double().log_softmax(-1)


def _written(engine: LeanEngine, first: int, length: int, rng: torch.Generator) -> Sequence[int]:
    cache = engine.open(1, length)
    logits_V, ids = engine.prefill(cache, 0, [first]), [first]
    while len(ids) < length:
        ids.append(int(torch.multinomial(logits_V.softmax(-1).cpu(), 1, generator=rng)))
        write = cache.at([len(ids) - 1], [True])
        logits_V = engine.step(cache, write, torch.tensor(ids[-1:], device=engine.device))[0]
    return ids
