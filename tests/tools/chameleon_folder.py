"""A tiny folder of Chameleon or Anole: the released files, tensor names and tokens, and random weights.

It imports nothing of this project.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

CODES, SIDE, LEVELS, WIDTH = 32, 16, (1, 1, 2), 32
LENGTH = (SIDE // 2 ** (len(LEVELS) - 1)) ** 2  # codes of a picture
WORDS = 280
TEXTS = [
    "a red apple and a green apple",
    "the blue square, the red square",
    "naïve café 12345, nobody watches seven foxes",
] * 3
# In the released tokenizer codes do not lie in the order of their numbers here and there; here nowhere.
ORDER = [(7 * place + 3) % CODES for place in range(CODES)]


def name(code: int) -> str:
    return "IMGIMG" + "".join(chr(ord("A") + int(digit)) for digit in str(code)) + "Z"


SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
RESERVED = ("<eoss>", "<racm3:break>", "<reserved08706>", "<image>")
IDS = {token: id for id, token in enumerate((*SPECIALS, *(name(code) for code in ORDER), *RESERVED))}
ROWS = len(IDS) + WORDS


def config(**sizes: int) -> ChameleonConfig:
    vq = {"resolution": SIDE, "base_channels": WIDTH, "channel_multiplier": list(LEVELS), "num_res_blocks": 1,
          "latent_channels": 8, "embed_dim": 6, "num_embeddings": CODES, "attn_resolutions": None}  # fmt: skip
    tiny = {"vocab_size": ROWS, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256}  # fmt: skip
    return ChameleonConfig(
        bos_token_id=0, eos_token_id=2, pad_token_id=1, rope_theta=10_000.0, vq_config=vq,
        vocabulary_map=dict(IDS) | _words(), **(tiny | sizes),
    )  # fmt: skip


def stock(seed: int = 5) -> Any:
    """transformers' own model with these weights, its codebook the latents of random pictures."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        made: Any = ChameleonForConditionalGeneration(config()).eval()
        with torch.no_grad():
            for each in made.parameters():
                wide = each.ndim > 1
                each.copy_(
                    torch.randn_like(each) * (2.5 / each[0].numel() ** 0.5)
                    if wide
                    else 1 + 0.2 * torch.randn_like(each)
                )
            vq = made.model.vqmodel
            seen = vq.quant_conv(vq.encoder(torch.rand(2, 3, SIDE, SIDE) * 2 - 1))
            vq.quantize.embedding.weight.copy_(seen.permute(0, 2, 3, 1).reshape(-1, 6)[:CODES])
    return made


def decoder(seed: int = 6) -> dict[str, torch.Tensor]:
    """The half of the VQGAN that draws, which transformers has not, by taming-transformers' names."""
    rng = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(*shape, generator=rng) * (0.3 if len(shape) > 1 else 0.1) + (len(shape) == 1)
        for name, shape in _shapes()
    }


def _shapes() -> Iterator[tuple[str, tuple[int, ...]]]:
    widest = WIDTH * LEVELS[-1]

    def conv(at: str, out: int, into: int, side: int = 3) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{at}.weight", (out, into, side, side)
        yield f"{at}.bias", (out,)

    def norm(at: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{at}.weight", (width,)
        yield f"{at}.bias", (width,)

    def block(at: str, into: int, out: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield from norm(f"{at}.norm1", into)
        yield from conv(f"{at}.conv1", out, into)
        yield from norm(f"{at}.norm2", out)
        yield from conv(f"{at}.conv2", out, out)
        if into != out:
            yield from conv(f"{at}.nin_shortcut", out, into, 1)

    yield from conv("decoder.conv_in", widest, 8)
    for number in (1, 2):
        yield from block(f"decoder.mid.block_{number}", widest, widest)
    yield from norm("decoder.mid.attn_1.norm", widest)
    for part in ("q", "k", "v", "proj_out"):
        yield from conv(f"decoder.mid.attn_1.{part}", widest, widest, 1)
    into = widest
    for level in reversed(range(len(LEVELS))):
        out = WIDTH * LEVELS[level]
        for number in range(2):
            yield from block(f"decoder.up.{level}.block.{number}", into, out)
            into = out
        if level:
            yield from conv(f"decoder.up.{level}.upsample.conv", out, out)
    yield from norm("decoder.norm_out", WIDTH)
    yield from conv("decoder.conv_out", 3, WIDTH)


def write(folder: Path, draws: bool = True, dtype: torch.dtype = torch.float32) -> Path:
    """A folder as it is released: Anole's, which draws, or Chameleon's, which does not."""
    made = folder / ("Anole-7b-v0.1-hf" if draws else "chameleon-7b")
    made.mkdir(parents=True)
    raw = config().to_dict() | {"architectures": ["ChameleonForConditionalGeneration"]}
    (made / "config.json").write_text(json.dumps(raw))
    whole = {name: each.detach().to(dtype).contiguous() for name, each in stock().state_dict().items()}
    if draws:
        whole |= {f"model.vqmodel.{name}": each.to(dtype) for name, each in decoder().items()}
    names, index = sorted(whole), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: whole[name] for name in part}, made / shard, metadata={"format": "pt"})
        index |= dict.fromkeys(part, shard)
    told = {"metadata": {"total_size": sum(each.nbytes for each in whole.values())}, "weight_map": index}
    (made / "model.safetensors.index.json").write_text(json.dumps(told))
    (made / "tokenizer.json").write_text(json.dumps(tokenizer()))
    return made


def _trained() -> dict[str, Any]:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("<sentinel:[0-9]+>"), "isolated"),
            pre_tokenizers.Split(Regex("(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z"), "isolated"),
            pre_tokenizers.Split(Regex("([\\t\\n]|    |  )"), "isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    made.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=WORDS, show_progress=False, initial_alphabet=letters, min_frequency=1),
    )
    assert made.get_vocab_size() == WORDS
    found: dict[str, Any] = json.loads(made.to_str())
    return found


def _words() -> dict[str, int]:
    return {token: len(IDS) + id for token, id in _trained()["model"]["vocab"].items()}


def tokenizer() -> dict[str, Any]:
    saved = _trained()
    saved["model"]["vocab"] = dict(IDS) | {
        token: len(IDS) + id for token, id in saved["model"]["vocab"].items()
    }
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    saved["added_tokens"] = [
        {"id": IDS[token], "content": token, **flags} for token in (*SPECIALS, *RESERVED)
    ]
    return saved
