"""The network of an image tokenizer: that of diffusers' `VQModel`, to the bit, without importing diffusers.

Names and order of weights, the order in which fresh ones are drawn, and every operation are those of
`diffusers.VQModel`, so that folders, checkpoints and seeds mean the same in both. Up to the names it is the VQGAN of
taming-transformers (arXiv:2012.09841).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from cm3kit_tokenizers.vq.config import ImageTokenizerConfig

EPS = 1e-6
MANY, LARGE = 64, 2**31  # rows, and twice the numbers, from which nearest upsampling wants them contiguous


class VqNetwork(nn.Module):
    """Encoder, codebook and decoder, and the 1 × 1 convolutions between the widths of network and codes."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        latent, width = config.latent_channels, config.code_dim
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(latent, width, 1)
        self.quantize = Codes(config.codes, width)
        self.post_quant_conv = nn.Conv2d(width, latent, 1)
        self.decoder = Decoder(config)


class Codes(nn.Module):
    """The vectors of the codes; fresh ones are within 1 / K of zero."""

    def __init__(self, codes: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, width)
        self.embedding.weight.data.uniform_(-1.0 / codes, 1.0 / codes)


class Encoder(nn.Module):
    """Pixels (B, 3, H, W) to latents (B, latent_channels, h, w)."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        widths, groups = config.channels, config.norm_groups
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for level, width in enumerate(widths):
            before, attends = widths[max(0, level - 1)], level in config.attention_levels
            block = Level(before, width, config.layers_per_block, groups, attends)
            if level < len(widths) - 1:
                block.downsamplers = nn.ModuleList([Downsample(width)])
            self.down_blocks.append(block)
        self.mid_block = Middle(widths[-1], groups, config.attention)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], config.latent_channels, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Latents."""
        x_BCHW = self.conv_in(x_BCHW)
        for block in self.down_blocks:
            x_BCHW = block(x_BCHW)
        x_BCHW = F.silu(self.conv_norm_out(self.mid_block(x_BCHW)))
        found: Tensor = self.conv_out(x_BCHW)
        return found


class Decoder(nn.Module):
    """Latents (B, latent_channels, h, w) to pixels (B, 3, H, W)."""

    def __init__(self, config: ImageTokenizerConfig) -> None:
        super().__init__()
        widths, groups = config.channels[::-1], config.norm_groups
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.up_blocks = nn.ModuleList()
        self.mid_block = Middle(widths[0], groups, config.attention)
        for place, width in enumerate(widths):
            before, last = widths[max(0, place - 1)], place == len(widths) - 1
            attends = len(widths) - 1 - place in config.attention_levels
            block = Level(before, width, config.layers_per_block + 1, groups, attends)
            if not last:
                block.upsamplers = nn.ModuleList([Upsample(width)])
            self.up_blocks.append(block)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], EPS)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Pixels."""
        x_BCHW = self.mid_block(self.conv_in(x_BCHW))
        for block in self.up_blocks:
            x_BCHW = block(x_BCHW)
        found: Tensor = self.conv_out(F.silu(self.conv_norm_out(x_BCHW)))
        return found


class Level(nn.Module):
    """Residual blocks of one resolution, each with attention behind it or none, and what changes the resolution."""

    def __init__(self, before: int, width: int, blocks: int, groups: int, attends: bool) -> None:
        super().__init__()
        resnets, attentions = [], []
        # Drawn in turns, and listed apart.
        for place in range(blocks):
            resnets.append(Residual(width if place else before, width, groups))
            attentions += [SpatialAttention(width, groups)] if attends else []
        if attends:
            self.attentions = nn.ModuleList(attentions)
        self.resnets = nn.ModuleList(resnets)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The same number of pixels, half or twice as many on a side."""
        attentions = getattr(self, "attentions", None)
        for place, resnet in enumerate(self.resnets):
            x_BCHW = resnet(x_BCHW)
            x_BCHW = x_BCHW if attentions is None else attentions[place](x_BCHW)
        for name in ("downsamplers", "upsamplers"):
            for each in getattr(self, name, ()):
                x_BCHW = each(x_BCHW)
        return x_BCHW


class Middle(nn.Module):
    """Two residual blocks, with attention between them or without."""

    def __init__(self, width: int, groups: int, attends: bool) -> None:
        super().__init__()
        first = Residual(width, width, groups)
        self.attentions = nn.ModuleList([SpatialAttention(width, groups)] if attends else [])
        self.resnets = nn.ModuleList([first, Residual(width, width, groups)])

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The same shape."""
        x_BCHW = self.resnets[0](x_BCHW)
        for attention in self.attentions:
            x_BCHW = attention(x_BCHW)
        found: Tensor = self.resnets[1](x_BCHW)
        return found


class Residual(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1 × 1 convolution of x where the width changes."""

    def __init__(self, before: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, before, EPS)
        self.conv1 = nn.Conv2d(before, width, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, width, EPS)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(before, width, 1) if before != width else None

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The same size, `width` channels."""
        y_BCHW = self.conv1(F.silu(self.norm1(x_BCHW)))
        y_BCHW = self.conv2(F.silu(self.norm2(y_BCHW)))
        if self.conv_shortcut is not None:
            # Gradients of other strides than their weights make DDP warn.
            x_BCHW = self.conv_shortcut(x_BCHW.contiguous() if self.training else x_BCHW)
        found: Tensor = x_BCHW + y_BCHW
        return found


class SpatialAttention(nn.Module):
    """Every pixel looks at every other, by one head, and what it saw is added to it."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, EPS)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The same shape."""
        rows, width, high, wide = x_BCHW.shape
        x_BTC = self.group_norm(x_BCHW.view(rows, width, high * wide)).transpose(1, 2)
        q, k, v = (
            each(x_BTC).view(rows, -1, 1, width).transpose(1, 2) for each in (self.to_q, self.to_k, self.to_v)
        )
        seen_BTC = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(rows, -1, width)
        out_BTC = self.to_out[0](seen_BTC.to(q.dtype))
        found: Tensor = out_BTC.transpose(-1, -2).reshape(rows, width, high, wide) + x_BCHW
        return found


class Downsample(nn.Module):
    """Half as many pixels on a side; padding is on the right and below alone."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H / 2, W / 2)."""
        found: Tensor = self.conv(F.pad(x_BCHW, (0, 1, 0, 1)))
        return found


class Upsample(nn.Module):
    """Twice as many pixels on a side, each of the nearest one, and a convolution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, 2 H, 2 W)."""
        if len(x_BCHW) >= MANY or 2 * x_BCHW.numel() > LARGE:
            x_BCHW = x_BCHW.contiguous()
        found: Tensor = self.conv(F.interpolate(x_BCHW, scale_factor=2.0, mode="nearest"))
        return found
