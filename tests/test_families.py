"""Checkpoints of other projects: against transformers, diffusers and small formulas, on random weights."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from diffusers import VQModel
from torch import Tensor
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAE, ChameleonVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE, JanusVQVAEConfig

from cm3kit.interop.conversion import convert
from cm3kit.rng import generator
from cm3kit_tokenizers.errors import Cm3kitError, ConfigError, ModelError
from cm3kit_tokenizers.vq.families import Source, families, open_foreign
from cm3kit_tokenizers.vq.model import ImageTokenizer, ImageTokenizerConfig, to_signed, to_uint8

torch.set_num_threads(1)
Tensors = dict[str, Tensor]
SMALL = ImageTokenizerConfig(
    resolution=16, channels=(32, 32, 64), layers_per_block=1, codes=48, code_dim=6, latent_channels=8,
    norm_groups=32, attention_levels=(2,),
)  # fmt: skip
DDCONFIG = {
    "double_z": False, "z_channels": 8, "resolution": 16, "in_channels": 3, "out_ch": 3, "ch": 32,
    "ch_mult": [1, 1, 2], "num_res_blocks": 1, "attn_resolutions": [4], "dropout": 0.0,
}  # fmt: skip
SETTINGS = {
    "model": {
        "target": "taming.models.vqgan.VQModel",
        "params": {"embed_dim": 6, "n_embed": 48, "ddconfig": DDCONFIG},
    }
}


def pixels(count: int = 4, side: int = 16) -> Tensor:
    return torch.randint(256, (count, 3, side, side), generator=generator(3), dtype=torch.uint8)


def shaken(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Norms that are not the identity, and codes that are far apart, so that a mistake would show."""
    rng = generator(seed)
    with torch.no_grad():
        for name, each in module.named_parameters():
            if "norm" in name or "embedding" in name:
                each.add_(0.3 * torch.randn(each.shape, generator=rng))
    return module.eval()


@cache
def ours() -> ImageTokenizer:
    """A small tokenizer whose codes are spread over its latents."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        made = ImageTokenizer(SMALL)
    shaken(made.network)
    with torch.no_grad():
        z_ND = made.latents(to_signed(pixels(3))).permute(0, 2, 3, 1).reshape(-1, 6)
        made.codebook_KD.copy_(z_ND[:48])
    return made.eval()


def taming_names() -> Tensors:
    """The weights of `ours` as taming writes them, by walking its modules in taming's order."""
    network, out = ours().network, {}

    def put(name: str, module: Any) -> None:
        out.update({f"{name}.{key}": each.clone() for key, each in module.state_dict().items()})

    def block(name: str, module: Any) -> None:
        for part in ("norm1", "conv1", "norm2", "conv2"):
            put(f"{name}.{part}", getattr(module, part))
        if module.conv_shortcut is not None:
            put(f"{name}.nin_shortcut", module.conv_shortcut)

    def attention(name: str, module: Any) -> None:
        put(f"{name}.norm", module.group_norm)
        parts = {"q": module.to_q, "k": module.to_k, "v": module.to_v, "proj_out": module.to_out[0]}
        for part, linear in parts.items():
            out[f"{name}.{part}.weight"] = linear.weight.detach()[:, :, None, None].clone()
            out[f"{name}.{part}.bias"] = linear.bias.detach().clone()

    for half in ("encoder", "decoder"):
        module = getattr(network, half)
        put(f"{half}.conv_in", module.conv_in)
        put(f"{half}.norm_out", module.conv_norm_out)
        put(f"{half}.conv_out", module.conv_out)
        for index in (0, 1):
            block(f"{half}.mid.block_{index + 1}", module.mid_block.resnets[index])
        attention(f"{half}.mid.attn_1", module.mid_block.attentions[0])
        levels = module.down_blocks if half == "encoder" else reversed(module.up_blocks)
        for number, level in enumerate(levels):
            name = f"{half}.{'down' if half == 'encoder' else 'up'}.{number}"
            for index, each in enumerate(level.resnets):
                block(f"{name}.block.{index}", each)
            for index, each in enumerate(getattr(level, "attentions", None) or ()):
                attention(f"{name}.attn.{index}", each)
            for key in ("downsample", "upsample"):
                for each in getattr(level, f"{key}rs", None) or ():
                    put(f"{name}.{key}.conv", each.conv)
    for name in ("quant_conv", "post_quant_conv"):
        put(name, getattr(network, name))
    out["quantize.embedding.weight"] = ours().codebook_KD.detach().clone()
    return out


def source(tensors: Tensors, hints: dict[str, Any] | None = None) -> Source:
    return Source(tensors, hints if hints is not None else SETTINGS, Path("last.ckpt"))


def latents_ND() -> Tensor:
    with torch.no_grad():
        return ours().latents(to_signed(pixels())).permute(0, 2, 3, 1).reshape(-1, 6)


def test_taming_lightning_file_becomes_a_folder_that_diffusers_opens(tmp_path: Path) -> None:
    extra = {"loss.discriminator.main.0.weight": torch.zeros(2), "colorize": torch.zeros(3)}
    torch.save({"state_dict": taming_names() | extra, "epoch": 3}, tmp_path / "last.ckpt")
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(SETTINGS))
    told = convert(tmp_path / "last.ckpt", tmp_path / "made")
    made = ImageTokenizer.load(tmp_path / "made")
    assert told["family"] == "taming" and told["grid"] == [4, 4] and told["notes"] == []
    assert made.config.model_dump(exclude={"origin", "fit"}) == SMALL.model_dump(exclude={"origin", "fit"})
    assert set(made.config.origin) == {"family", "last.ckpt"} and len(made.config.origin["last.ckpt"]) == 64
    codes_BN = ours().encode(pixels())
    assert len(codes_BN.unique()) > 10 and torch.equal(made.encode(pixels()), codes_BN)
    assert torch.equal(made.decode(codes_BN), ours().decode(codes_BN))
    theirs = VQModel.from_pretrained(tmp_path / "made")
    with torch.no_grad():
        z_BDHW = theirs.encode(to_signed(pixels())).latents
    assert torch.equal(theirs.quantize(z_BDHW)[2][2].view(4, -1), codes_BN)
    assert {path.name for path in (tmp_path / "made").iterdir()} == {
        "config.json", "diffusion_pytorch_model.safetensors", "tokenizer_config.json", "manifest.json",
    }  # fmt: skip
    with pytest.raises(Cm3kitError, match="exists"):
        convert(tmp_path / "last.ckpt", tmp_path / "made")


def test_the_tokenizer_inside_a_latent_diffusion_model_is_found(tmp_path: Path) -> None:
    inside = {f"first_stage_model.{name}": each for name, each in taming_names().items()}
    torch.save(
        {"state_dict": inside | {"model.diffusion_model.out.weight": torch.zeros(1)}}, tmp_path / "m.ckpt"
    )
    whole = {"model": {"params": {"first_stage_config": SETTINGS["model"]}}}
    (tmp_path / "m.yaml").write_text(yaml.safe_dump(whole))
    made = convert(tmp_path / "m.ckpt", tmp_path / "made")
    assert (
        made["resolution"] == 16
        and not made["notes"]
        and torch.equal(ImageTokenizer.load(tmp_path / "made").encode(pixels()), ours().encode(pixels()))
    )


def test_chameleons_encoder_in_transformers_gives_the_same_ids() -> None:
    config = ChameleonVQVAEConfig(
        embed_dim=6, num_embeddings=48, latent_channels=8, resolution=16, base_channels=32,
        channel_multiplier=[1, 1, 2], num_res_blocks=1, attn_resolutions=[4],
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        theirs: Any = shaken(ChameleonVQVAE(config), seed=4)
    with torch.no_grad():
        z_BDHW = theirs.quant_conv(theirs.encoder(to_signed(pixels())))
        theirs.quantize.embedding.weight.copy_(z_BDHW.permute(0, 2, 3, 1).reshape(-1, 6)[:48])
    decoder = {name: each for name, each in taming_names().items() if "decoder" in name or "post_" in name}
    made, _ = open_foreign(source(dict(theirs.state_dict()) | decoder))
    codes_BN = made.encode(pixels())
    assert len(codes_BN.unique()) > 10
    assert torch.equal(codes_BN.flatten(), theirs.encode(to_signed(pixels())).image_tokens.flatten())
    with torch.no_grad():
        assert (made.latents(to_signed(pixels())) - z_BDHW).abs().max() < 1e-5


def test_januss_decoder_in_transformers_draws_the_same_pixels() -> None:
    config = JanusVQVAEConfig(
        embed_dim=6, num_embeddings=48, latent_channels=8, base_channels=32, channel_multiplier=[1, 1, 2],
        num_res_blocks=1, num_patches=4,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        theirs: Any = shaken(JanusVQVAE(config), seed=5)
    tensors = {
        re.sub(r"^decoder\.up\.(\d)", lambda level: f"decoder.up.{2 - int(level[1])}", name): each
        for name, each in theirs.state_dict().items()
    }
    made, _ = open_foreign(source(tensors))
    codes_BN = torch.randint(48, (3, 16), generator=generator(6))
    with torch.no_grad():
        unit_KD = F.normalize(made.codebook_KD, dim=1)
        vectors_BDHW = unit_KD[codes_BN].view(3, 4, 4, 6).permute(0, 3, 1, 2)
        difference = made.render(vectors_BDHW) - theirs.decode(codes_BN)
    assert difference.abs().max() < 1e-4


def test_gumbel_codes_are_the_likeliest_ones_and_never_sampled() -> None:
    tensors = taming_names()
    table_KD = tensors.pop("quantize.embedding.weight")
    weight_KD, bias_K = torch.randn(48, 6, generator=generator(8)), torch.randn(48, generator=generator(9))
    tensors |= {
        "quantize.embed.weight": table_KD,
        "quantize.proj.weight": weight_KD[:, :, None, None],
        "quantize.proj.bias": bias_K,
    }
    made, _ = open_foreign(source(tensors))
    assert made.config.quantizer == "gumbel_argmax"
    expected = (latents_ND().double() @ weight_KD.double().T + bias_K.double()).argmax(1)
    assert torch.equal(made.encode(pixels()).flatten(), expected) and len(expected.unique()) > 3
    assert torch.equal(made.decode(expected.view(4, 16)), ours().decode(expected.view(4, 16)))


def llamagen_names() -> Tensors:
    out = {}
    for name, each in taming_names().items():
        parts = name.split(".")
        if parts[1] in ("down", "up"):
            number = int(parts[2]) if parts[0] == "encoder" else 2 - int(parts[2])
            parts[1:4] = ["conv_blocks", str(number), {"block": "res"}.get(parts[3], parts[3])]
        elif parts[1] == "mid":
            parts[2] = {"block_1": "0", "attn_1": "1", "block_2": "2"}[parts[2]]
        out[".".join(parts)] = each
    return out | {"quantize.codebook_used": torch.zeros(65536)}


def test_llamagens_codes_are_those_of_the_smallest_angle(tmp_path: Path) -> None:
    torch.save({"model": llamagen_names(), "steps": 5}, tmp_path / "vq.pt")
    convert(tmp_path / "vq.pt", tmp_path / "made", changes={"resolution": 16}, half=True)
    made = ImageTokenizer.load(tmp_path / "made")
    assert made.config.quantizer == "vq_l2"
    z_ND, codes_KD = latents_ND().double(), ours().codebook_KD.detach().double()
    cosine_NK = (z_ND @ codes_KD.T) / z_ND.norm(dim=1, keepdim=True) / codes_KD.norm(dim=1)
    exact, _ = open_foreign(source(llamagen_names()))
    assert torch.equal(exact.encode(pixels()).flatten(), cosine_NK.argmax(1))
    assert not torch.equal(exact.encode(pixels()), ours().encode(pixels()))
    assert torch.allclose(exact.codebook_KD.norm(dim=1), torch.ones(48), atol=1e-6)
    assert (made.encode(pixels()) == exact.encode(pixels())).float().mean() > 0.9  # of half-precision weights


def test_ibq_takes_averaged_weights_and_the_largest_inner_product() -> None:
    averaged = taming_names()
    live = {name: each + 0.5 for name, each in averaged.items()}
    kept = {f"model_ema.{name.replace('.', '')}": each for name, each in averaged.items()}
    hints = {"model": {"class_path": "src.IBQ.models.ibqgan.IBQ", "init_args": SETTINGS["model"]["params"]}}
    tensors = live | kept | {"model_ema.decay": torch.tensor(0.99), "model_ema.num_updates": torch.tensor(1)}
    made, notes = open_foreign(source(tensors, hints))
    assert (made.config.origin["family"], made.config.quantizer, notes) == ("ibq", "vq_dot", ())
    expected = (latents_ND().double() @ ours().codebook_KD.detach().double().T).argmax(1)
    assert torch.equal(made.encode(pixels()).flatten(), expected)
    assert not torch.equal(expected, ours().encode(pixels()).flatten())


def test_a_flax_msgpack_is_read(tmp_path: Path) -> None:
    msgpack = pytest.importorskip("msgpack")
    tree: dict[str, Any] = {}
    for name, each in taming_names().items():
        path = re.sub(r"\b(down|up|block|attn)\.(\d)", r"\1_\2", name).split(".")
        kind = {"weight": "scale" if "norm" in path[-2] else "kernel", "bias": "bias"}[path[-1]]
        path[-1] = "embedding" if "embedding" in path else kind
        array = (each.permute(2, 3, 1, 0) if each.ndim == 4 else each).contiguous().numpy()
        inner = tree
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
        packed = msgpack.packb([list(array.shape), array.dtype.name, array.tobytes()], use_bin_type=True)
        inner[path[-1]] = msgpack.ExtType(1, packed)
    (tmp_path / "flax_model.msgpack").write_bytes(msgpack.packb(tree))
    (tmp_path / "config.json").write_text(json.dumps(DDCONFIG | {"n_embed": 48, "embed_dim": 6}))
    assert convert(tmp_path, tmp_path / "made")["family"] == "flax"
    made = ImageTokenizer.load(tmp_path / "made")
    assert made.config.resolution == 16
    assert torch.equal(made.encode(pixels()), ours().encode(pixels()))
    (tmp_path / "flax_model.msgpack").write_bytes(msgpack.packb(tree)[:-9])
    with pytest.raises(ModelError, match="not a flax checkpoint"):
        convert(tmp_path, tmp_path / "again")


def test_amuseds_folder_reads_pixels_from_0_to_1(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        theirs = VQModel(
            block_out_channels=(32, 32, 64), down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3, layers_per_block=2, latent_channels=64,
            num_vq_embeddings=40, vq_embed_dim=64, mid_block_add_attention=False, lookup_from_codebook=True,
            force_upcast=True, sample_size=32,
        )  # fmt: skip
    shaken(theirs)
    x_BCHW = pixels().float() / 255
    with torch.no_grad():
        z_BDHW = theirs.encode(x_BCHW).latents
        theirs.quantize.embedding.weight.copy_(z_BDHW.permute(0, 2, 3, 1).reshape(-1, 64)[:40])
        codes_N = theirs.quantize(z_BDHW)[2][2]
        shape = (4, 4, 4, 64)
        y_BCHW = theirs.decode(codes_N, force_not_quantize=True, shape=shape).sample
    theirs.save_pretrained(tmp_path / "vqvae")
    told = convert(tmp_path / "vqvae", tmp_path / "made", changes={"resolution": 16})
    made = ImageTokenizer.load(tmp_path / "made")
    assert told["pixel_range"] == "unit" and any("[0, 1]" in note for note in told["notes"])
    codes_BN = made.encode(pixels())
    assert len(codes_BN.unique()) > 10 and torch.equal(codes_BN.flatten(), codes_N)
    with torch.no_grad():
        again_BCHW = made.render(made.codebook_KD[codes_BN].view(shape).permute(0, 3, 1, 2))
    assert ((again_BCHW + 1) / 2 - y_BCHW).abs().max() < 1e-4
    assert torch.equal(made.decode(codes_BN), (y_BCHW * 255).round().clamp(0, 255).to(torch.uint8))
    with pytest.raises(ModelError, match="model convert"):
        ImageTokenizer.load(tmp_path / "vqvae")


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"act_fn": "relu"}, "act_fn = 'relu' is not supported"),
        ({"_class_name": "AutoencoderKL"}, "is of 'AutoencoderKL', not of a VQModel"),
        ({"up_block_types": ["UpDecoderBlock2D"] * 3}, "are not supported"),
        ({"num_vq_embeddings": 50}, r"quantize.embedding.weight is \(48, 6\), expected \(50, 6\)"),
        ({"block_out_channels": [32, 32, 30]}, "multiples of norm_groups"),
    ],
)
def test_a_diffusers_folder_that_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    ours().save(tmp_path / "a")
    settings = json.loads((tmp_path / "a/config.json").read_text())
    (tmp_path / "a/config.json").write_text(json.dumps(settings | changes))
    with pytest.raises(Cm3kitError, match=said) as caught:
        convert(tmp_path / "a", tmp_path / "b")
    assert "\n" not in str(caught.value) and not (tmp_path / "b").exists()


def changed(**changes: Tensor | None) -> Tensors:
    tensors = taming_names() | {name.replace("/", "."): each for name, each in changes.items()}
    return {name: each for name, each in tensors.items() if each is not None}  # type: ignore[misc]


@pytest.mark.parametrize(
    "tensors, hints, said",
    [
        (
            {"decoder/conv_in/weight": None, "decoder/conv_in/bias": None}, SETTINGS,
            r"\(2 tensors\): missing decoder.conv_in.bias, decoder.conv_in.weight\. Likely cause: the file is",
        ),
        (
            {"decoder/adaptive/0/gamma/weight": torch.zeros(2)}, SETTINGS,
            "unexpected decoder.adaptive.0.gamma.weight. Likely cause: it is Open-MAGVIT2",
        ),
        (
            {"post_quant_conv/weight": torch.zeros(8, 4, 1, 1)},
            {"model": {"params": {"n_embed": 16384, "embed_dim": 4}}},
            r"post_quant_conv.weight is \(8, 4, 1, 1\), expected \(8, 6, 1, 1\). Likely cause: the settings are of"
            r" another checkpoint \(n_embed = 16384 there, 48 in the weights; embed_dim = 4 there",
        ),
        ({"quantize/embedding/weight": None}, SETTINGS, "has no codebook"),
        ({"encoder/conv_out/weight": None}, SETTINGS, "lacks encoder.conv_out.weight"),
        ({"quant_conv/weight": torch.full((6, 8, 1, 1), torch.nan)}, None, ""),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_grouped_with_its_likely_cause(
    tmp_path: Path, tensors: dict[str, Any], hints: dict[str, Any] | None, said: str
) -> None:
    if hints is None:
        torch.save(changed(**tensors), tmp_path / "a.pt")
        with pytest.raises(ModelError, match=r"quant_conv.weight holds values that are not finite"):
            convert(tmp_path / "a.pt", tmp_path / "made")
        return
    with pytest.raises(ModelError, match=said) as caught:
        open_foreign(source(changed(**tensors), hints))
    assert caught.value.code == "bad_checkpoint" and "\n" not in str(caught.value)


def test_a_wrong_family_is_told_which_one_it_is() -> None:
    with pytest.raises(ModelError, match="not of the family taming: it looks like the family llamagen"):
        open_foreign(source(llamagen_names()), "taming")
    with pytest.raises(ConfigError, match="Did you mean 'llamagen'"):
        open_foreign(source(llamagen_names()), "lamagen")
    with pytest.raises(ModelError, match="of none of the known families"):
        open_foreign(source({"a.weight": torch.zeros(1)}))
    assert [name for name in families if families[name]().detect(source(llamagen_names()))] == ["llamagen"]
    with pytest.raises(ConfigError, match="resolution"):
        open_foreign(source(taming_names()), changes={"resolution": 17})


def test_pixels_of_an_old_settings_file_are_as_before(tmp_path: Path) -> None:
    ours().save(tmp_path)
    old = {
        "resolution",
        "channels",
        "layers_per_block",
        "codes",
        "code_dim",
        "latent_channels",
        "norm_groups",
    }
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings = {
        name: value for name, value in settings.items() if name in {*old, "attention", "attention_levels"}
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    made = ImageTokenizer.load(tmp_path)
    assert made.config == SMALL
    distances_NK = torch.cdist(latents_ND().double(), ours().codebook_KD.detach().double())
    assert torch.equal(made.encode(pixels()).flatten(), distances_NK.argmin(1))
    with torch.no_grad():
        x_BCHW = (
            made.as_diffusers()
            .decode(made.encode(pixels()), force_not_quantize=True, shape=(4, 4, 4, 6))
            .sample
        )
    assert torch.equal(made.decode(made.encode(pixels())), to_uint8(x_BCHW))
