"""FlexAttention gives training what dense masks give it, and is asked for where it can be had.

Here its plain implementation runs, op by op. On a CPU that has a backward pass too, which PyTorch refuses because no
fused kernel has one; the refusals, PyTorch's and ours, are lifted where gradients are compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_toys import LOOP, V, four_pages, packed, task  # noqa: F401
from torch import Tensor
from torch.nn.attention import flex_attention as torchs
from transformers import BloomConfig, BloomForCausalLM, GPT2Config, GPT2LMHeadModel

from cm3kit.models import flex
from cm3kit.models.attention import block_mask, flex_mask, mask_mod
from cm3kit.models.backbone import BackboneConfig, build_backbone, forward
from cm3kit.models.flex import use_flex, why_no_kernel, why_not
from cm3kit.models.packing import Packer
from cm3kit.models.timestep import add_timestep
from cm3kit.rng import generator
from cm3kit.training.decoder import DecoderRecipe
from cm3kit.training.estimate import trace_decoder
from cm3kit.training.figures import Figures
from cm3kit.training.loop import train
from cm3kit_tokenizers.errors import ConfigError

torch.set_num_threads(1)
plain = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is compiled, and FlexAttention may learn."""
    monkeypatch.setattr(torchs, "_validate_device", lambda *given: None)

    def straight(*given: Any, training: bool = False, **options: Any) -> Any:
        return torchs.flex_attention(*given, **options)

    monkeypatch.setattr("transformers.integrations.flex_attention.compile_friendly_flex_attention", straight)
    monkeypatch.setattr("cm3kit.models.packing.why_no_kernel", lambda device: None)
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.mark.parametrize("length", [64, 256, 300])
def test_tiles_are_those_that_torch_finds_itself(length: int) -> None:
    numbers, draw = packed(length), generator(1)
    for unseen in (None, torch.rand(2, length, generator=draw) < 0.4):
        mod = mask_mod(*numbers, unseen)
        whole = torchs.create_mask(mod, 2, None, length, length, device="cpu")
        assert torch.equal(whole, block_mask(*numbers, unseen_BT=unseen))
        theirs = torchs.create_block_mask(mod, 2, None, length, length, device="cpu")
        ours = flex_mask(*numbers, unseen)
        assert ours.shape == theirs.shape and ours.BLOCK_SIZE == theirs.BLOCK_SIZE
        for name in ("kv_num_blocks", "q_num_blocks", "full_kv_num_blocks", "full_q_num_blocks",
                     "kv_indices", "q_indices", "full_kv_indices", "full_q_indices"):  # fmt: skip
            assert torch.equal(getattr(ours, name), getattr(theirs, name)), name


def test_tiles_inside_a_document_need_no_mask() -> None:
    documents = torch.tensor([1, 2]).repeat_interleave(256)[None]
    places = torch.arange(512)[None]
    full = flex_mask(documents, documents * 0, documents > 0)
    assert full.full_kv_num_blocks.flatten().tolist() == [2, 2, 2, 2] and full.kv_num_blocks.sum() == 0  # type: ignore[union-attr]
    causal = flex_mask(documents, places, documents < 0)
    assert causal.full_kv_num_blocks.flatten().tolist() == [0, 1, 0, 1]  # type: ignore[union-attr]
    assert causal.kv_num_blocks.flatten().tolist() == [1, 1, 1, 1]


@plain
@pytest.mark.parametrize("family", ["llama", "qwen3", "timed"])
def test_logits_and_gradients_are_those_of_the_dense_mask(eager: None, family: str) -> None:
    length, draw = 150, generator(2)
    kind: Any = "llama" if family == "timed" else family
    shape = BackboneConfig(family=kind, hidden_size=96, layers=2, heads=6, kv_heads=3, intermediate_size=64)
    model = build_backbone(shape.model_copy(update={"std": 0.2}), V)
    times = torch.rand(2, length, generator=draw) if family == "timed" else None
    if times is not None:
        add_timestep(model, 16)
    ids, places = torch.randint(0, V, (2, length), generator=draw), torch.arange(length).expand(2, -1)
    numbers = packed(length, 3)
    hidden = torch.rand(2, length, generator=draw) < 0.4
    cases = [(*numbers, None), (*numbers, hidden), (numbers[0], places, numbers[2] & False, None)]
    answers: dict[bool, list[Tensor]] = {False: [], True: []}
    for switched, found in answers.items():
        if switched:
            use_flex(model.train())
        for *given, unseen in cases if family == "llama" else cases[:1]:
            documents, blocks, noisy = given
            mask = (flex_mask if switched else block_mask)(documents, blocks, noisy, unseen_BT=unseen)
            model.zero_grad()
            logits = forward(model, ids, mask, places, times)
            logits.square().mean().backward()
            found += [logits.detach(), *(each.grad.clone() for each in model.parameters())]
    for ours, theirs in zip(*answers.values(), strict=True):
        assert torch.allclose(ours, theirs, atol=2e-5, rtol=1e-4)
    # Dense masks and none go where they have always gone.
    with torch.no_grad():
        dense = forward(model, ids, block_mask(*numbers), places, times)
        assert torch.equal(dense, answers[False][0])
        causal = forward(model, ids, "causal", None, times)
        model.set_attn_implementation("sdpa")
        assert torch.equal(causal, forward(model, ids, "causal", None, times))


@plain
def test_operands_are_of_one_type_where_autocast_would_have_made_them_so(eager: None) -> None:
    model = build_backbone(BackboneConfig(family="qwen3", hidden_size=64, layers=2, heads=4, std=0.2), V)
    use_flex(model)
    numbers, ids = packed(100), torch.randint(0, V, (2, 100), generator=generator(4))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours, theirs = (forward(model, ids, make(*numbers)) for make in (flex_mask, block_mask))
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert (ours - theirs).abs().max() < 0.03 * theirs.abs().max()


@plain
@pytest.mark.parametrize(
    "changes",
    [
        {"objective": {"name": "cm3"}},
        {"objective": {"name": "masked-diffusion"}, "isolated_masks": True, "timestep": 16},
        {"objective": {"name": "block-diffusion"}},
        {"objective": {"name": "causal-blocks"}},
        {"objective": {"name": "hybrid"}, "anneal": 0.5},
        {"objective": {"name": "masked-diffusion"}, "attention": "causal"},
    ],
    ids=lambda changes: str(changes["objective"]["name"]),
)
def test_every_objective_has_the_loss_of_dense_masks(
    eager: None, corpus: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    def never(*numbers: Tensor, **given: Any) -> Tensor:
        raise AssertionError("a dense mask was made")

    for step in (0, 3) if "anneal" in changes else (3,):  # which is before and after annealing
        found = []
        for packing in ("dense", "flex"):
            made = task(corpus, packing, **changes)
            batch = made.batch(generator(5), 2)
            with monkeypatch.context() as patch:
                if packing == "flex" and not (made.recipe.anneal and step == 0):
                    patch.setattr("cm3kit.models.packing.block_mask", never)
                loss, figures = made.loss(made.model, batch, step, generator(6))
            loss.backward()  # type: ignore[no-untyped-call]
            length = torch.stack([each.grad.norm() for each in made.model.parameters()])  # type: ignore[union-attr]
            found.append((loss.detach(), length, torch.tensor(list(Figures({}, [(1.0, figures)]).values()))))
        for ours, theirs in zip(*found, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


@plain
def test_a_run_has_the_losses_of_dense_masks_and_exports_no_word_of_it(
    eager: None, corpus: Path, tmp_path: Path
) -> None:
    for packing in ("dense", "flex"):
        loop = LOOP.model_copy(update={"accumulate": 2, "recompute": packing == "flex"})
        made = task(corpus, packing, loop=loop)
        final = train(made, loop, tmp_path / packing, device="cpu")
        assert (made.model.backbone.config._attn_implementation == flex.NAME) == (packing == "flex")
        config = json.loads((final / "config.json").read_text())
        assert config["model_type"] == "llama" and flex.NAME not in str(config)
    ours, theirs = (
        [json.loads(line) for line in (tmp_path / each / "log.jsonl").read_text().splitlines()]
        for each in ("flex", "dense")
    )
    assert len(ours) == len(theirs) == 3
    for mine, yours in zip(ours, theirs, strict=True):
        assert mine.keys() == yours.keys() and "held bits_per_token" in ours[1]
        for name in mine.keys() - {"seconds"}:
            assert mine[name] == pytest.approx(yours[name], rel=1e-4, abs=1e-6), name


@plain
def test_a_compiled_model_is_not_compiled_again_for_every_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_backbone(BackboneConfig(hidden_size=32, layers=1, heads=2, kv_heads=1), V)
    use_flex(model)
    compiled = torch.compile(lambda ids, mask: forward(model, ids, mask), backend="eager", fullgraph=True)
    ids = torch.randint(0, V, (2, 140), generator=generator(7))
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(3):
            numbers = packed(140, seed)
            assert torch.allclose(
                compiled(ids, flex_mask(*numbers)), forward(model, ids, block_mask(*numbers)), atol=1e-5
            )


def test_what_a_model_cannot_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch, corpus: Path) -> None:
    shape = BackboneConfig(hidden_size=64, layers=1, heads=4, kv_heads=4, intermediate_size=16)
    own = "does not hand its attention such masks"
    with torch.random.fork_rng(devices=[]):
        bloom = BloomForCausalLM(BloomConfig(vocab_size=V, hidden_size=64, n_layer=1, n_head=4))
        tokens = {"bos_token_id": None, "eos_token_id": None}
        gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=64, n_layer=1, n_head=4, **tokens))
    models: dict[str, Any] = {f"BloomForCausalLM {own}": bloom, f"GPT2LMHeadModel {own}": gpt2}
    for said, changes in {
        "it knows no dropout of attention weights, and this model's is 0.1": {"dropout": 0.1},
        "heads are 16 numbers wide or more, and these 8": {"heads": 8, "kv_heads": 8},
    }.items():
        models[said] = build_backbone(shape.model_copy(update=changes), V).train()
    for said, model in models.items():
        before = model.config._attn_implementation
        with pytest.raises(ConfigError) as error:
            Packer("flex", model, False)
        assert error.value.args[0].startswith(f"packing = flex: {said}; leave it out, and")
        assert model.config._attn_implementation == before
    able, state = build_backbone(shape, V), torch.get_rng_state()
    Packer("dense", able, False)
    assert able.config._attn_implementation == "sdpa" and why_not(able) is None
    Packer("flex", able, False)
    assert able.config._attn_implementation == flex.NAME and why_not(able) is None
    assert torch.equal(state, torch.get_rng_state())
    made = task(corpus, "flex")
    with pytest.raises(
        ConfigError, match=r"packing = flex: FlexAttention has no backward pass on cpu; leave"
    ):
        made.loss(made.model, made.batch(generator(5), 2), 0, generator(6))


def test_where_there_is_no_kernel_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setattr(flex, "find_spec", lambda name: name == "triton")
    assert why_no_kernel(cuda) is None and why_no_kernel(cpu) == "FlexAttention has no backward pass on cpu"
    monkeypatch.setattr(flex, "find_spec", lambda name: None)
    assert why_no_kernel(cuda) == "FlexAttention needs Triton, which is not installed"
    with torch.no_grad():
        assert why_no_kernel(cpu) is None


def test_an_estimate_counts_no_mask_that_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = {"hidden_size": 32, "layers": 1, "heads": 2, "kv_heads": 2, "intermediate_size": 32}
    recipe = {"window": 512, "backbone": shape, "loop": {"batch_size": 4, "precision": "fp32"}}
    dense = trace_decoder(DecoderRecipe.model_validate(recipe), 64, fast=False)[2]
    asked = DecoderRecipe.model_validate({**recipe, "packing": "flex"})
    with pytest.raises(ConfigError, match="packing = flex"):
        trace_decoder(asked, 64, fast=False)
    monkeypatch.setattr("cm3kit.models.packing.why_no_kernel", lambda device: None)
    saved = dense - trace_decoder(asked, 64, fast=False)[2]
    # A byte of a pair at least, and five where SDPA makes numbers of it.
    assert 4 * 512 * 512 <= saved <= 6 * 4 * 512 * 512
