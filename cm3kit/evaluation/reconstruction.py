"""Reconstruction quality of an image tokenizer, and its use of codes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cm3kit.evaluation.frechet import Moments, frechet
from cm3kit.evaluation.inception import FEATURES, Inception
from cm3kit.fill.tokenizing import find_tokenizer, listed, read, usual_batch
from cm3kit_tokenizers.errors import Cm3kitError, ConfigError, DataError
from cm3kit_tokenizers.vq.losses import psnr, ssim
from cm3kit_tokenizers.vq.model import to_signed
from cm3kit_tokenizers.vq.search import encode


def reconstruction(
    folder: Path, model: str | Path | None, *, batch: int | None = None, limit: int | None = None, device: str = "auto",
    precision: str = "auto", search: int = 0, inception: Path | None = None,
    watch: Callable[[int, int], None] = lambda done, total: None, warn: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:  # fmt: skip
    """Figures over the pictures below a folder, at the tokenizer's size.

    Args:
        limit: at most so many pictures, spread evenly over the folder.
        search: rounds of search for codes that are drawn better.
        inception: file of the network by whose features pictures and reconstructions are compared.

    Returns:
        `psnr` in dB (mean over pictures) and `psnr_of_mean` (of the mean error), `ssim` (window 7, uniform), `l1` in
        [0, 255], `used` (share of codes that occur), `dead` (codes that do not), `perplexity` and `entropy` (bits a
        code) of all codes together, `pictures`, `skipped`; with `inception` also `rfid`.

    Raises:
        DataError: no picture could be read (`bad_data`).
        ConfigError: there are too few pictures for `rfid` (`bad_value`).
        ModelError: a model or the Inception file is not usable.
    """
    tokenizer, names = find_tokenizer(model, device, precision), listed(folder)
    batch = batch or usual_batch(tokenizer)
    if limit is not None and limit < len(names):
        names = [names[index * len(names) // limit] for index in range(limit)]
    rival = (
        Rival(inception, len(names), tokenizer.codebook_KD.device, warn) if inception is not None else None
    )
    counts_K = torch.zeros(tokenizer.size)
    rows: list[Tensor] = []
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
            codes_BN = encode(tokenizer, x_BCHW.to(tokenizer.codebook_KD.device), search)
            counts_K += torch.bincount(codes_BN.flatten().cpu(), minlength=tokenizer.size)
            y_BCHW = tokenizer.decode(codes_BN).cpu()
            rows.append(scores(x_BCHW, y_BCHW))
            if rival is not None:
                rival.add(x_BCHW, y_BCHW)
    watch(len(names), len(names))
    if not rows:
        raise DataError(f"{folder}: none of {skipped} pictures could be read.", code="bad_data")
    distance = rival.figures(warn) if rival is not None else {}
    return figures(torch.cat(rows), counts_K) | distance | {"skipped": skipped}


class Rival:
    """Collects Inception features of pictures and of their reconstructions.

    Args:
        path: of Inception's weights.
        expected: how many pictures there will be; ConfigError if they are fewer than Inception has features.
    """

    def __init__(self, path: Path, expected: int, device: torch.device, warn: Callable[[str], None]) -> None:
        if expected <= FEATURES:
            raise ConfigError(
                f"rFID compares covariances of {FEATURES:,} features, so {expected:,} pictures are too few: it takes"
                f" {FEATURES + 1:,}, and 10,000 or more for a figure to be quoted. Give more, or no --inception.",
                code="bad_value",
            )
        self.network, self.device = Inception.open(path, warn).to(device), device
        self.pictures, self.reconstructions = Moments(), Moments()

    def add(self, x_BCHW: Tensor, y_BCHW: Tensor) -> None:
        """Add pictures and their reconstructions, both uint8."""
        self.pictures.add(self.network(x_BCHW.to(self.device)))
        self.reconstructions.add(self.network(y_BCHW.to(self.device)))

    def figures(self, warn: Callable[[str], None]) -> dict[str, float]:
        """`rfid`, unless too few pictures could be read."""
        if self.pictures.count <= FEATURES:
            warn(f"no rfid: {self.pictures.count:,} pictures could be read, and it takes {FEATURES + 1:,}")
            return {}
        return {"rfid": frechet(self.pictures, self.reconstructions)}


def scores(x_BCHW: Tensor, y_BCHW: Tensor) -> Tensor:
    """PSNR, SSIM, L1 and mean squared error of each picture: (B, 4)."""
    each = [ssim(to_signed(x[None]), to_signed(y[None])) for x, y in zip(x_BCHW, y_BCHW, strict=True)]
    difference_BCHW = x_BCHW.float() - y_BCHW.float()
    l1_B, l2_B = difference_BCHW.abs().mean((1, 2, 3)), difference_BCHW.square().mean((1, 2, 3))
    return torch.stack([psnr(x_BCHW, y_BCHW), torch.stack(each), l1_B, l2_B], 1)


def figures(scores_B4: Tensor, counts_K: Tensor) -> dict[str, Any]:
    """Means of `scores`, and how evenly codes occur that were counted; see `reconstruction`."""
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
