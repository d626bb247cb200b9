"""The number format that is chosen by itself: by device and model alone, the same bits in any batch, few bits lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import toy

import cm3kit
from cm3kit.decoders import kernels, precision
from cm3kit.decoders.diffusion.cached_forward import copies
from cm3kit.decoders.fast_llama import LeanEngine
from cm3kit.decoders.kernels import TILE, pack
from cm3kit.decoders.past import PlainPast
from cm3kit.decoders.precision import auto_precision, bits_lost
from cm3kit.decoders.prompts import Prompt
from cm3kit.fill.kit import GenerateOptions, Kit
from cm3kit.fill.tokenizing import find_tokenizer
from cm3kit.models.backbone import BackboneConfig, build_backbone, forward
from cm3kit.provenance.recipes import Recipe, read_recipe
from cm3kit.provenance.records import how_made
from cm3kit.provenance.reproducing import encode, rebuild
from cm3kit.rng import generator
from cm3kit_cli.main import run
from cm3kit_tokenizers.errors import ConfigError

torch.set_num_threads(1)
V = 80
CPUS: list[tuple[dict[str, bool], bool, tuple[str, str]]] = [
    ({"amx_bf16": True, "avx512_bf16": True}, True, ("bf16", "bf16")),
    ({"avx512_bf16": True}, True, ("bf16-fp16", "bf16")),
    ({}, True, ("fp16-packed", "fp32")),
    ({}, False, ("fp32", "fp32")),
]


@pytest.fixture(scope="module")
def kit() -> Kit:
    return cm3kit.load(toy(), device="cpu")


def net(**changes: Any) -> Any:
    shape = {"hidden_size": 32, "layers": 2, "heads": 2, "kv_heads": 1, "intermediate_size": 48, "std": 0.3}
    return build_backbone(BackboneConfig(**{**shape, **changes}), V)


@pytest.mark.parametrize(("known", "packed", "wanted"), CPUS)
def test_it_is_chosen_by_device_and_model(
    monkeypatch: pytest.MonkeyPatch, known: dict[str, bool], packed: bool, wanted: tuple[str, str]
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known)
    monkeypatch.setattr(precision, "has_fbgemm", lambda: packed)
    assert tuple(auto_precision(net(), many) for many in (False, True)) == wanted
    # A weight that is no number in fp16 is none in fp16-packed either.
    large = net()
    with torch.no_grad():
        large.model.layers[0].mlp.up_proj.weight[0, 0] = 7e4
    assert auto_precision(large, False) == ("fp32" if "fp16" in wanted[0] else wanted[0])
    monkeypatch.setattr(precision, "supports", lambda model: False)
    assert auto_precision(net(), False) == auto_precision(net(), True) == "fp32"
    monkeypatch.undo()
    assert auto_precision(net().to("meta"), False) == "fp32"  # as on every device that is no CPU


def formats(many: bool) -> list[str]:
    """All that auto may be on some CPU."""
    return sorted({wanted[many] for _, _, wanted in CPUS})


@pytest.mark.parametrize("format", formats(False))
@pytest.mark.parametrize("task", ["image", "text"])
def test_the_causal_decoder_writes_the_same_at_every_batch_size(kit: Kit, format: Any, task: Any) -> None:
    written = []
    for size in (1, 3, 16):
        options = GenerateOptions(batch_size=size, precision=format, decoder="cm3", max_tokens=24)
        made = kit.generate("red apple", task=task, n=17, seed=5, options=options)
        written.append([(each.codes, each.text, each.logprob) for each in made])
    assert written[0] == written[1] == written[2] and len({str(each) for each in written[0]}) > 8


@pytest.mark.parametrize("format", formats(True))
@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_the_diffusion_decoder_writes_the_same_at_every_batch_size(kit: Kit, format: Any, cache: Any) -> None:
    written = []
    for size in (1, 3, 16):
        options = GenerateOptions(
            batch_size=size, precision=format, decoder="diffusion", cache=cache, block_size=8, temperature=1.0
        )
        made = kit.generate("green pear", n=17, seed=5, options=options)
        written.append([(each.codes, each.logprob) for each in made])
    assert written[0] == written[1] == written[2] and len({str(each) for each in written[0]}) > 8


def test_the_image_tokenizer_gives_the_same_at_every_batch_size(kit: Kit) -> None:
    tokenizer = find_tokenizer(toy(), "cpu")
    assert {each.dtype for each in tokenizer.network.parameters()} == {torch.float32}
    pixels = torch.randint(0, 256, (16, 3, 16, 16), generator=generator(1), dtype=torch.uint8)
    codes = tokenizer.encode(pixels)
    drawn = tokenizer.decode(codes).int()
    for size in (1, 3):
        assert torch.equal(torch.cat([tokenizer.encode(each) for each in pixels.split(size)]), codes)
        # Pictures are drawn one by one where they go into files; together, a step of 255 is rounded otherwise.
        again = torch.cat([tokenizer.decode(each) for each in codes.split(size)]).int()
        assert (again - drawn).abs().max() <= 1


def test_a_product_that_is_not_steady_is_computed_in_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[int] = []

    def unsteady(weight_NK: Tensor, rows: int) -> Any:
        def multiply(x_MK: Tensor) -> Tensor:
            met.append(len(x_MK))
            return x_MK @ weight_NK.float().T + len(x_MK)

        return multiply

    weight, x = torch.randn(24, 16, generator=generator(2)), torch.randn(20, 16, generator=generator(3))
    for name, packer in {"fp16-packed": "_packed_fp16", "bf16": "_packed_bf16", "fp32": "_packed"}.items():
        monkeypatch.setattr(kernels, packer, unsteady)
        product = pack(weight, name, 1)  # type: ignore[arg-type]
        met.clear()
        whole = product(x)
        assert set(met) == {TILE} and torch.equal(product(x[:1]), whole[:1])


SOME: list[tuple[Any, int, set[int]]] = [
    (lambda rows: 0, 16, {1, 20, 70}),  # all alike
    (lambda rows: rows < 2, 16, {2, 20, 70}),  # alone another
    (lambda rows: rows > 32, 16, {1, 20, 32, 6}),  # many another, in steps
    (lambda rows: rows > 32, 256, {64, 96}),  # in prompts, padded to some that are alike
    (lambda rows: rows in (96, 250), 256, {32, 128}),  # some others in between
    (lambda rows: rows > 200, 256, {32, 96}),  # most at once
]


@pytest.mark.parametrize(("kernel", "rows", "wanted"), SOME)
def test_products_go_in_as_many_rows_as_are_summed_alike(
    monkeypatch: pytest.MonkeyPatch, kernel: Any, rows: int, wanted: set[int]
) -> None:
    met: list[int] = []

    def packed(weight_NK: Tensor, rows: int) -> Any:
        def multiply(x_MK: Tensor) -> Tensor:
            # A sum in another order differs by what rounding leaves, which a result in bf16 seldom shows.
            met.append(len(x_MK))
            sum_MN = torch.zeros(len(x_MK), len(weight_NK))
            for at in torch.arange(x_MK.shape[1]).roll(int(kernel(len(x_MK)))).tolist():
                sum_MN = sum_MN + x_MK[:, None, at].float() * weight_NK[None, :, at].float()
            return sum_MN.bfloat16()

        return multiply

    monkeypatch.setattr(kernels, "_packed_bf16", packed)
    weight, x = torch.randn(24, 16, generator=generator(2)), torch.randn(70, 16, generator=generator(3))
    product = pack(weight, "bf16", rows)
    met.clear()
    found = [product(x[:count]) for count in (1, 20, 70)]
    assert set(met) == wanted and all(torch.equal(each, found[-1][: len(each)]) for each in found)


@pytest.mark.parametrize("format", formats(False))
@pytest.mark.parametrize("width", [32, 512])
def test_a_prompt_has_the_same_bits_alone_and_beside_others(format: Any, width: int) -> None:
    model = net(hidden_size=width, intermediate_size=2 * width, heads=width // 16, std=0.05)
    engine, rng = LeanEngine(model, V, format, rows=16), generator(width)
    prompts = [
        Prompt(slot, torch.randint(V, (length,), generator=rng).tolist(), prefix)
        for slot, (length, prefix) in enumerate([(5, 0), (70, 0), (301, 0), (40, 9), (129, 0)])
    ]
    caches = [engine.open(len(prompts), 301) for _ in range(2)]
    together = engine.prefill_all(caches[0], prompts)
    alone = [engine.prefill(caches[1], each.slot, each.ids, each.prefix) for each in prompts]
    assert torch.equal(together, torch.stack(alone))
    assert all(torch.equal(*both) for both in zip(*(each.layers for each in caches), strict=True))


@pytest.mark.parametrize("format", formats(False))
@pytest.mark.parametrize("shape", [{}, {"heads": 4, "kv_heads": 4}], ids=["grouped", "plain"])
def test_what_follows_a_prompt_has_the_bits_of_steps(format: Any, shape: dict[str, int]) -> None:
    engine, rng = LeanEngine(net(**shape), V, format, rows=16), generator(1)
    if not engine.fused:
        pytest.skip(
            "this machine's kernel promises less, and rounding is all that scores have in common with steps"
        )
    ids = torch.randint(V, (3, 80), generator=rng)
    prompt, prefix, rows = ids[0, :29], 4, ids[:, 29:]
    cache, past = engine.open(3, 80), PlainPast()
    steps = [engine.prefill_all(cache, [Prompt(slot, prompt.tolist(), prefix) for slot in range(3)])]
    for place in range(29, 80):
        steps.append(engine.step(cache, cache.at([place] * 3, [True] * 3), ids[:, place]))
    first = engine.logits_of(engine.follow(prompt[None], past, prefix)[:, -1])
    assert torch.equal(first.expand(3, -1), steps[0])
    hidden = engine.follow(rows, copies(past, 3))
    for at, wanted in enumerate(steps[1:]):
        assert torch.equal(engine.logits_of(hidden[:, at]), wanted)


def test_bits_lost_are_the_divergence_of_what_two_models_say(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    assert bits_lost(model, V, "fp32") == 0
    lost = {each: bits_lost(model, V, each) for each in ("fp16-packed", "bf16", "int8")}  # type: ignore[arg-type]
    assert 0 < lost["fp16-packed"] < lost["bf16"] < lost["int8"] < 1
    assert lost["fp16-packed"] < bits_lost(model, V, "bf16-fp16") < lost["bf16"]
    # By transformers, on the ids that were written.
    told: list[list[int]] = []
    written = precision._written
    monkeypatch.setattr(
        precision, "_written", lambda *given: told.append(ids := list(written(*given))) or ids
    )
    for mask in (None, 3):
        told.clear()
        half = bits_lost(model, V, "bf16", mask)
        rounded = net()
        with torch.no_grad():
            for each in rounded.parameters():
                each.copy_(each.bfloat16())
            ids = torch.tensor(told)
            if mask is not None:
                draw, hidden = generator(0), []
                for row in told:
                    torch.randint(V, (), generator=draw)
                    for _ in row[1:]:
                        torch.multinomial(torch.ones(V), 1, generator=draw)
                    hidden.append(torch.rand(len(row), generator=draw) < 0.5)
                ids = ids.masked_fill(torch.stack(hidden), mask)
            ours, theirs = (
                forward(each, ids, "causal" if mask is None else "full").double().log_softmax(-1)
                for each in (model, rounded)
            )
        divergence = (ours.exp() * (ours - theirs)).sum(-1) / torch.tensor(2.0).log()
        own = (
            divergence[:, divergence.shape[1] // 2 - 1 :].mean()
            if mask is None
            else divergence[torch.stack(hidden)].mean()
        )
        # Activations are rounded too, which adds about as much again.
        assert 0.3 * float(own) < half < 5 * float(own)


def test_a_recipe_names_the_format_and_older_ones_mean_fp32(kit: Kit, tmp_path: Path) -> None:
    for decoder in ("cm3", "diffusion"):
        how = how_made(kit, GenerateOptions(decoder=decoder), "image")  # type: ignore[arg-type]
        chosen = how["precision"]
        assert chosen in formats(decoder == "diffusion") and how["options"]["precision"] == chosen
        asked = how_made(kit, GenerateOptions(decoder=decoder, precision="fp32"), "image")  # type: ignore[arg-type]
        assert asked["precision"] == asked["options"]["precision"] == "fp32"
    (made,) = kit.generate("red apple", seed=3, options=GenerateOptions(precision="fp32"))
    old = {"task": "image", "seed": 3, "index": 0, "prompt": "red apple", "options": {}}
    path = tmp_path / "old.png"
    path.write_bytes(encode(made, old))
    recipe = read_recipe(path)
    assert isinstance(recipe, Recipe) and rebuild(kit, recipe) == path.read_bytes()


def test_model_info_tells_formats_and_what_they_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["model", "info", str(toy()), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["data"]["precision"]
    assert told["image"] == {"precision": "fp32", "why": "others change codes"}
    for decoder, many in (("cm3", False), ("diffusion", True)):
        assert told[decoder]["precision"] in formats(many)
        assert 0 <= told[decoder]["bits_per_token_lost"] < 0.05


def test_a_format_that_a_diffusion_decoder_has_not_is_refused_in_a_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cm3kit.decoders.diffusion import backbone_denoiser

    monkeypatch.setattr(backbone_denoiser, "supports", lambda model: False)
    with pytest.raises(
        ConfigError, match="precision 'bf16': a diffusion decoder has it where it is a plain Llama"
    ):
        backbone_denoiser.BackboneDenoiser(net(), 1, V, precision="bf16")
