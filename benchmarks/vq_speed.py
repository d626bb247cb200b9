"""Pictures a second through image tokenizers, beside diffusers' VQModel and taming-transformers, in one run.

python benchmarks/vq_speed.py [--model checkpoints/pictures] [--shape f16-256,shipped] [--repeat 3]

`f16-256` has random weights in the shape of taming-transformers' ImageNet models; `shipped` is the tokenizer of
--model. taming-transformers takes part where it can be imported. Seconds are of the processor, one thread, the best
of the repeats, all contestants taking turns. Ids are compared with those of fp32. Prints one Markdown table.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cm3kit.fill.finding import find
from cm3kit.rng import generator
from cm3kit_tokenizers.vq.model import ImageTokenizer, ImageTokenizerConfig, to_signed

F16 = ImageTokenizerConfig(
    resolution=256, channels=(128, 128, 256, 256, 512), layers_per_block=2, codes=16384, code_dim=256,
    latent_channels=256, norm_groups=32, attention_levels=(4,),
)  # fmt: skip
Call = Callable[[], Any]


def random_tokenizer(config: ImageTokenizerConfig, pixels_BCHW: Tensor) -> ImageTokenizer:
    """Random weights, with codes spread as the latents of some pixels are."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(0)
        made = ImageTokenizer(config).eval()
        z_BDHW = made.latents(to_signed(pixels_BCHW))
        noise_KD = torch.randn(made.codebook_KD.shape, generator=generator(1))
        made.codebook_KD.copy_(z_BDHW.mean((0, 2, 3)) + z_BDHW.std((0, 2, 3)) * noise_KD)
    return made


def copied(tokenizer: ImageTokenizer) -> ImageTokenizer:
    """Another tokenizer with the same weights."""
    with torch.random.fork_rng(devices=[]):
        made = ImageTokenizer(tokenizer.config)
    made.load_state_dict(tokenizer.state_dict())
    return made.eval()


def taming(tokenizer: ImageTokenizer) -> tuple[Any, Any, Any] | None:
    """taming's encoder, quantizer and decoder of this shape (its own random weights), if it can be imported."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from taming.modules.diffusionmodules.model import Decoder, Encoder
            from taming.modules.vqvae.quantize import VectorQuantizer
    except ImportError:
        return None
    config, width = tokenizer.config, tokenizer.config.channels[0]
    shape = {
        "double_z": False, "z_channels": config.latent_channels, "resolution": config.resolution, "in_channels": 3,
        "out_ch": 3, "ch": width, "ch_mult": [each // width for each in config.channels],
        "num_res_blocks": config.layers_per_block, "dropout": 0.0,
        "attn_resolutions": [config.resolution >> level for level in config.attention_levels],
    }  # fmt: skip
    if config.norm_groups != 32 or config.latent_channels != config.code_dim:
        return None  # taming's norms have 32 groups; its 1 × 1 convolutions are left out here
    return (
        Encoder(**shape).eval(),
        VectorQuantizer(config.codes, config.code_dim, 0.25),
        Decoder(**shape).eval(),
    )


def contestants(tokenizer: ImageTokenizer, pixels_BCHW: Tensor) -> dict[str, tuple[Call, Call]]:
    """Encoding and decoding of the same pictures by each."""
    x_BCHW, B = to_signed(pixels_BCHW), len(pixels_BCHW)
    codes_BN = tokenizer.encode(pixels_BCHW)
    shape = (B, *tokenizer.grid, tokenizer.config.code_dim)
    theirs = tokenizer.as_diffusers()

    def encode() -> Tensor:
        ids: Tensor = theirs.quantize(theirs.encode(x_BCHW).latents)[2][2]
        return ids.view(B, -1)

    found: dict[str, tuple[Call, Call]] = {
        "diffusers, fp32": (
            encode, lambda: theirs.decode(codes_BN.flatten(), force_not_quantize=True, shape=shape).sample,
        )
    }  # fmt: skip
    if (parts := taming(tokenizer)) is not None:
        encoder, quantizer, decoder = parts
        vectors_BDHW = tokenizer.codebook_KD.detach()[codes_BN].view(shape).permute(0, 3, 1, 2).contiguous()
        found["taming-transformers, fp32"] = (
            lambda: quantizer(encoder(x_BCHW)),
            lambda: decoder(vectors_BDHW),
        )
    kinds = {
        "ours, fp32": tokenizer,
        "ours, fp32, channels last": copied(tokenizer).channels_last(),
        "ours, bf16": copied(tokenizer).lower(torch.bfloat16),
        "ours, bf16, channels last": copied(tokenizer).channels_last().lower(torch.bfloat16),
    }
    for name, each in kinds.items():
        found[name] = (
            lambda each=each: each.encode(pixels_BCHW), lambda each=each: each.decode(codes_BN),
        )  # type: ignore[misc]  # fmt: skip
    return found


@torch.inference_mode()
def measure(
    tokenizer: ImageTokenizer, pixels_BCHW: Tensor, repeat: int
) -> dict[str, tuple[float, float, Any, Any]]:
    """Seconds a picture of encoding and decoding, ids and pixels, by contestant."""
    entrants = contestants(tokenizer, pixels_BCHW)
    best = {name: [math.inf, math.inf] for name in entrants}
    results: dict[str, list[Any]] = {name: [None, None] for name in entrants}
    for _ in range(repeat):
        for name, calls in entrants.items():
            for side, call in enumerate(calls):
                start = time.process_time()
                results[name][side] = call()
                best[name][side] = min(best[name][side], (time.process_time() - start) / len(pixels_BCHW))
    return {name: (*best[name], *results[name]) for name in entrants}


def rows(shape: str, found: dict[str, tuple[float, float, Any, Any]]) -> list[str]:
    """A line of the table for each."""
    ids_BN, y_BCHW = found["ours, fp32"][2:]
    lines = []
    for name, (encoding, decoding, ids, drawn) in found.items():
        same, error = "", ""
        if isinstance(ids, Tensor):
            same = f"{float((ids != ids_BN).float().mean()):.2%}"
        if name.startswith("ours") and name != "ours, fp32":
            l2 = float((drawn.float() - y_BCHW.float()).square().mean())
            error = f"{10 * math.log10(255**2 / l2):.1f} dB" if l2 else "equal"
        lines.append(f"| {shape} | {name} | {1 / encoding:.2f} | {1 / decoding:.2f} | {same} | {error} |")
    return lines


def main() -> None:
    """Measure each shape."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="pictures")
    parser.add_argument("--shape", default="f16-256,shipped")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| shape | which | encode /s | decode /s | ids that differ | drawn, against fp32 |")
    print("|---|---|---|---|---|---|")
    for shape in args.shape.split(","):
        if shape == "f16-256":
            pixels_BCHW = torch.randint(0, 256, (1, 3, 256, 256), generator=generator(2), dtype=torch.uint8)
            tokenizer = random_tokenizer(F16, pixels_BCHW)
        else:
            from cm3kit.data.pictures import load_pictures

            tokenizer = ImageTokenizer.load(find(args.model) / "image")
            pixels_BCHW = load_pictures(args.data, tokenizer).held_out(32)
        print("\n".join(rows(shape, measure(tokenizer, pixels_BCHW, args.repeat))), flush=True)


if __name__ == "__main__":
    main()
