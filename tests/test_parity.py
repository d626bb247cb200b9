"""The same ids and pixels as taming-transformers' own modules; `make test-parity` installs it and runs this."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cm3kit.rng import generator
from cm3kit.training.reconstruct import LossWeights
from cm3kit_tokenizers.vq.families import Source, open_foreign
from cm3kit_tokenizers.vq.quantize import Codebook

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of old Python in its sources
    model = pytest.importorskip(
        "taming.modules.diffusionmodules.model",
        reason="taming-transformers is not installed; make test-parity installs it aside",
    )
    quantize = pytest.importorskip(
        "taming.modules.vqvae.quantize", reason="this taming-transformers needs einops", exc_type=ImportError
    )

torch.set_num_threads(1)
DDCONFIG: dict[str, Any] = {
    "double_z": False, "z_channels": 16, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32,
    "ch_mult": [1, 2, 2], "num_res_blocks": 1, "attn_resolutions": [16], "dropout": 0.0,
}  # fmt: skip


class Theirs(nn.Module):
    """taming's VQModel, put together without lightning."""

    def __init__(self, config: dict[str, Any], codes: int, dim: int) -> None:
        super().__init__()
        self.encoder, self.decoder = model.Encoder(**config), model.Decoder(**config)
        self.quantize = quantize.VectorQuantizer(codes, dim, beta=0.25)
        self.quant_conv = nn.Conv2d(config["z_channels"], dim, 1)
        self.post_quant_conv = nn.Conv2d(dim, config["z_channels"], 1)


@torch.no_grad()
def pair(config: dict[str, Any], codes: int, dim: int) -> tuple[Theirs, Tensor]:
    """A random network with norms that are not the identity and codes among its latents, and pixels in [−1, 1]."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        theirs = Theirs(config, codes, dim).eval()
    for name, each in theirs.named_parameters():
        if "norm" in name:
            each.add_(0.3 * torch.randn(each.shape, generator=generator(1)))
    side = config["resolution"]
    x_BCHW = torch.rand(2, 3, side, side, generator=generator(2)) * 2 - 1
    z_BDHW = theirs.quant_conv(theirs.encoder(x_BCHW))
    noise_KD = torch.randn(codes, dim, generator=generator(3))
    theirs.quantize.embedding.weight.copy_(z_BDHW.mean((0, 2, 3)) + z_BDHW.std((0, 2, 3)) * noise_KD)
    return theirs, x_BCHW


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"attn_resolutions": [32, 8]},
        {"ch_mult": [1, 1, 2, 2], "num_res_blocks": 2, "attn_resolutions": []},
    ],
    ids=["f4", "attention at two levels", "f8"],
)
def test_ids_are_equal_and_pixels_nearly(changes: dict[str, Any]) -> None:
    config = DDCONFIG | changes
    theirs, x_BCHW = pair(config, 256, 8)
    hints = {"model": {"params": {"ddconfig": config, "n_embed": 256, "embed_dim": 8}}}
    ours, notes = open_foreign(Source(theirs.state_dict(), hints, Path("last.ckpt")))
    with torch.no_grad():
        z_BDHW = theirs.quant_conv(theirs.encoder(x_BCHW))
        q_BDHW, _, (_, _, ids) = theirs.quantize(z_BDHW)
        y_BCHW = theirs.decoder(theirs.post_quant_conv(q_BDHW))
        latents_BDHW = ours.latents(x_BCHW)
        found = ours.quantizer.codes(latents_BDHW.permute(0, 2, 3, 1).reshape(-1, 8), ours.codebook_KD)
        vectors_BDHW = ours.codebook_KD[ids.flatten()].view(2, *q_BDHW.shape[2:], 8).permute(0, 3, 1, 2)
        pixels_BCHW = ours.render(vectors_BDHW)
    assert not notes and len(ids.unique()) > 20
    assert int((found != ids.flatten()).sum()) == 0
    assert float((pixels_BCHW - y_BCHW).abs().max()) < 1e-4


def test_the_swapped_commitment_has_tamings_loss_and_gradients() -> None:
    theirs = quantize.VectorQuantizer(32, 4, beta=0.25)
    with torch.no_grad():
        theirs.embedding.weight.copy_(torch.randn(32, 4, generator=generator(1)))
    weight = nn.Parameter(theirs.embedding.weight.detach().clone())
    book = Codebook(weight, restart_below=0.0, rotation=False, gradient=True)
    book.started.fill_(True)
    z_BDHW = torch.randn(2, 4, 3, 3, generator=generator(2))
    ours_BDHW, their_BDHW = (z_BDHW.clone().requires_grad_() for _ in range(2))
    q_BDHW, loss, _ = theirs(their_BDHW)
    (loss + q_BDHW.square().sum()).backward()
    found = book(ours_BDHW)
    bottleneck = LossWeights(swapped=True).bottleneck(found.commitment, found.moved)
    (bottleneck + found.vectors_BCHW.square().sum()).backward()
    assert torch.allclose(found.vectors_BCHW, q_BDHW) and torch.allclose(bottleneck, loss)
    assert torch.allclose(ours_BDHW.grad, their_BDHW.grad, atol=1e-6)
    assert torch.allclose(weight.grad, theirs.embedding.weight.grad, atol=1e-6)
