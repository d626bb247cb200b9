"""How well an image tokenizer gives pictures back, and how well it uses its codes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cm3kit.pipelines.tokenizing import find_tokenizer, listed, read, usual_batch
from cm3kit_tokenizers.errors import Cm3kitError, DataError
from cm3kit_tokenizers.vq.losses import psnr, ssim
from cm3kit_tokenizers.vq.model import to_signed


def reconstruction(
    folder: Path, model: str | Path | None, *, batch: int | None = None, limit: int | None = None, device: str = "auto",
    precision: str = "fp32", watch: Callable[[int, int], None] = lambda done, total: None,
    warn: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Figures over the pictures below a folder, at the tokenizer's size.

    Args:
        limit: at most so many pictures, spread evenly over the folder.

    Returns:
        `psnr` in dB (mean over pictures) and `psnr_of_mean` (of the mean error), `ssim` (window 7, uniform), `l1` in
        [0, 255], `used` (share of codes that occur), `dead` (codes that do not), `perplexity` and `entropy` (bits a
        code) of all codes together, `pictures`, `skipped`.

    Raises:
        DataError: no picture could be read (`bad_data`).
    """
    tokenizer, names = find_tokenizer(model, device, precision), listed(folder)
    batch = batch or usual_batch(tokenizer)
    if limit is not None and limit < len(names):
        names = [names[index * len(names) // limit] for index in range(limit)]
    counts_K = torch.zeros(tokenizer.size)
    scores: list[Tensor] = []
    skipped = 0
    for start in range(0, len(names), batch):
        watch(start, len(names))
        pixels: list[Tensor] = []
        for name in names[start : start + batch]:
            try:
                found = read(folder, name, tokenizer)
            except (Cm3kitError, OSError) as error:
                skipped += 1
                warn(f"left out: {name}: {error}")
                continue
            pixels += [found.pixels_CHW] if found is not None else []
        if pixels:
            x_BCHW = torch.stack(pixels)
            codes_BN = tokenizer.encode(x_BCHW.to(tokenizer.codebook_KD.device))
            counts_K += torch.bincount(codes_BN.flatten().cpu(), minlength=tokenizer.size)
            scores.append(_scores(x_BCHW, tokenizer.decode(codes_BN).cpu()))
    watch(len(names), len(names))
    if not scores:
        raise DataError(f"{folder}: none of {skipped} pictures could be read.", code="bad_data")
    return _figures(torch.cat(scores), counts_K) | {"skipped": skipped}


def _scores(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """PSNR, SSIM, L1 and mean squared error of each picture: (B, 4)."""
    each = [ssim(to_signed(x[None]), to_signed(y[None])) for x, y in zip(x_BCHW, y_BCHW, strict=True)]
    difference_BCHW = x_BCHW.float() - y_BCHW.float()
    l1_B, l2_B = difference_BCHW.abs().mean((1, 2, 3)), difference_BCHW.square().mean((1, 2, 3))
    return torch.stack([psnr(x_BCHW, y_BCHW), torch.stack(each), l1_B, l2_B], 1)


def _figures(scores_B4: Tensor, counts_K: Tensor) -> dict[str, Any]:
    shares_K = counts_K / counts_K.sum()
    entropy = -float((shares_K * shares_K.clamp_min(1e-12).log2()).sum())
    mean = scores_B4.double().mean(0).tolist()
    return {
        "pictures": len(scores_B4),
        "psnr": mean[0],
        "psnr_of_mean": 10 * math.log10(255**2 / max(mean[3], 1e-10)),
        "ssim": mean[1],
        "l1": mean[2],
        "used": float((counts_K > 0).float().mean()),
        "dead": int((counts_K == 0).sum()),
        "perplexity": 2**entropy,
        "entropy": entropy,
    }
