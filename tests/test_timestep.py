"""The time changes nothing at first, then whatever training makes of it, and is saved beside the weights."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GemmaConfig,
    GemmaForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedModel,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from cm3kit.models.backbone import (
    BackboneConfig,
    build_backbone,
    forward,
    head,
    hidden_states,
    load_backbone,
    save_backbone,
)
from cm3kit.models.embeddings import init_mask_embedding
from cm3kit.models.timestep import add_timestep, is_timed, plain_state, sinusoid
from cm3kit_tokenizers.errors import ConfigError, ModelError

TINY = BackboneConfig(
    hidden_size=32, layers=2, heads=4, kv_heads=2, intermediate_size=48, max_positions=64, std=0.2
)
SIZES = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
V = 50
T03 = torch.tensor([0.3])


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(0))


def tiny(**changes: object) -> PreTrainedModel:
    return build_backbone(TINY.model_copy(update=changes), V)


def own(model: PreTrainedModel) -> dict[str, torch.nn.Parameter]:
    return {name: each for name, each in model.named_parameters() if "timestep" in name.split(".")}


def shaken(model: PreTrainedModel, width: int = 16) -> PreTrainedModel:
    """A model whose time matters, as after training."""
    add_timestep(model, width)
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for each in own(model).values():
            each.add_(torch.randn(each.shape, generator=rng), alpha=0.2)
    return model


def step(model: PreTrainedModel, rows: torch.Tensor, times: torch.Tensor) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    cross_entropy(forward(model, rows, "full", times=times).flatten(0, 1), rows.roll(1).flatten()).backward()
    optimizer.step()
    optimizer.zero_grad()


def granite() -> PreTrainedModel:
    return GraniteForCausalLM(GraniteConfig(**SIZES, residual_multiplier=0.3))


def gemma() -> PreTrainedModel:
    return GemmaForCausalLM(GemmaConfig(**SIZES))


def experts() -> PreTrainedModel:
    return Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SIZES, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda: tiny(),
        lambda: tiny(tie_embeddings=False),
        lambda: tiny(family="qwen3"),
        lambda: tiny(family="qwen3", tie_embeddings=False),
        granite,
        gemma,
        experts,
    ],
    ids=["llama", "llama-untied", "qwen3", "qwen3-untied", "granite", "gemma", "experts"],
)
def test_a_new_time_changes_no_bit_and_one_step_makes_it_count(make: Callable[[], PreTrainedModel]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
    rows, early, late = ids(2, 9), torch.tensor([0.1, 0.2]), torch.tensor([0.8, 1.0])
    with torch.no_grad():
        plain = [forward(model, rows, attention) for attention in ("causal", "full")]
        state, names = torch.get_rng_state(), set(model.state_dict())
        assert add_timestep(model) is model
        assert torch.equal(torch.get_rng_state(), state)
        assert set(plain_state(model)) == names
        for times in (early, late, torch.rand(2, 9)):
            for attention, before in zip(("causal", "full"), plain, strict=True):
                assert torch.equal(forward(model, rows, attention, times=times), before)
    step(model, rows, early)
    with torch.no_grad():
        change = forward(model, rows, times=early) - forward(model, rows, times=late)
    assert change.abs().max() > 1e-4


def test_after_a_step_gradients_reach_every_weight_of_the_time() -> None:
    model, rows, times = add_timestep(tiny()), ids(3, 9), torch.tensor([0.1, 0.5, 0.9])
    before = {name: each.detach().clone() for name, each in own(model).items()}
    step(model, rows, times)
    moved = {name for name, each in own(model).items() if not torch.equal(each, before[name])}
    assert moved == {f"model.layers.{n}.timestep.{kind}" for n in (0, 1) for kind in ("weight", "bias")}
    forward(model, rows, "full", times=times).square().sum().backward()
    for name, each in own(model).items():
        assert each.grad is not None and each.grad.abs().max() > 0, name
    grads = [each.grad for name, each in own(model).items() if name.startswith("model.layers")]
    assert all(part.abs().max() > 0 for each in grads if each is not None for part in each.chunk(6))


def test_the_sinusoid_is_that_of_diffusers() -> None:
    times = torch.tensor([0.0, 0.001, 0.37, 1.0])
    known = get_timestep_embedding(1000 * times, 256, flip_sin_to_cos=True, downscale_freq_shift=0)
    assert torch.allclose(sinusoid(times, 256), known, atol=1e-4)
    assert sinusoid(times[:, None].expand(4, 3), 8).shape == (4, 3, 8)


def test_a_layer_computes_the_equations() -> None:
    model = shaken(tiny(family="qwen3", layers=1))
    layer, times, x = model.model.layers[0], torch.tensor([[0.2, 0.9, 0.4]]), torch.randn(1, 3, 32)
    place = torch.arange(3)[None]
    rotary = model.model.rotary_emb(x, place)
    with torch.no_grad():
        condition = model.timestep(times)
        raw = layer.timestep(condition * condition.sigmoid())
        b1, s1, g1, b2, s2, g2 = (raw[..., 32 * part : 32 * (part + 1)] for part in range(6))
        given = layer(x, position_embeddings=rotary, conditioning=condition)

        def norm(y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
            return y / (y.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

        # The modules' own forward, so that no hook takes part.
        wanted = norm(x, layer.input_layernorm.weight) * (1 + s1) + b1
        attended, _ = layer.self_attn.forward(wanted, position_embeddings=rotary, attention_mask=None)
        y = x + (1 + g1) * attended
        z = norm(y, layer.post_attention_layernorm.weight) * (1 + s2) + b2
        y = y + (1 + g2) * layer.mlp.forward(z)
    assert torch.allclose(given, y, atol=1e-5)


def test_times_stay_in_their_row_and_with_their_id() -> None:
    model, rows = shaken(tiny()), ids(3, 9)
    with torch.no_grad():
        together = forward(model, rows, "full", times=torch.tensor([0.1, 0.5, 0.9]))
        other = forward(model, rows, "full", times=torch.tensor([0.1, 0.6, 0.9]))
        assert torch.equal(together[[0, 2]], other[[0, 2]])
        assert (together[1] - other[1]).abs().max() > 1e-3
        for row, time in enumerate((0.1, 0.5, 0.9)):
            alone = forward(model, rows[row : row + 1], "full", times=torch.tensor([time]))
            assert torch.allclose(together[row : row + 1], alone, atol=1e-5)
        each = torch.tensor([0.1, 0.5, 0.9])[:, None].expand(3, 9).clone()
        assert torch.allclose(forward(model, rows, "full", times=each), together, atol=1e-5)
        each[1, 4] = 0.7  # under the causal pattern only this id and those after it can notice
        causal = forward(model, rows, times=torch.tensor([0.1, 0.5, 0.9])) - forward(model, rows, times=each)
        changed = causal.abs().amax(-1) > 1e-4
    assert changed.tolist() == [[False] * 9, [False] * 4 + [True] * 5, [False] * 9]


def test_threads_do_not_see_each_others_times() -> None:
    model, rows = shaken(tiny()), ids(2, 20)
    wanted: dict[float, torch.Tensor] = {}
    wrong: list[float] = []

    def run(time: float) -> None:
        with torch.no_grad():
            for _ in range(20):
                if not torch.equal(forward(model, rows, times=torch.full((2,), time)), wanted[time]):
                    wrong.append(time)

    with torch.no_grad():
        for time in (0.1, 0.9):
            wanted[time] = forward(model, rows, times=torch.full((2,), time))
    threads = [threading.Thread(target=run, args=(time,)) for time in wanted]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not wrong and not torch.equal(*wanted.values())


def test_a_compiled_layer_hears_the_time() -> None:
    model, x = shaken(tiny(layers=1)), torch.randn(2, 5, 32)
    rotary = model.model.rotary_emb(x, torch.arange(5)[None])

    def run(times: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = model.model.layers[0](
            x, position_embeddings=rotary, conditioning=model.timestep(times)
        )
        return found

    compiled = torch.compile(run, backend="eager", fullgraph=True)
    with torch.no_grad():
        for times in (torch.tensor([0.2, 0.9]), torch.tensor([0.9, 0.2])):
            assert torch.equal(compiled(times), run(times))
        assert not torch.equal(compiled(times), compiled(times.flip(0)))


def test_gradients_are_the_same_if_layers_are_computed_again() -> None:
    model, rows, times = shaken(tiny()), ids(2, 9), torch.tensor([0.2, 0.9])

    def gradients() -> list[torch.Tensor]:
        model.zero_grad()
        forward(model, rows, "full", times=times).square().mean().backward()
        return [each.grad.clone() for each in model.parameters() if each.grad is not None]

    plain = gradients()
    assert len(plain) == len(list(model.parameters()))
    model.train()
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable()
    calls = []
    model.model.layers[0].input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    again = gradients()
    assert len(calls) == 2
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, again, strict=True))


def test_a_copy_is_its_own_model() -> None:
    model, rows = shaken(tiny()), ids(1, 6)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = forward(model, rows, times=T03)
        assert torch.equal(forward(twin, rows, times=T03), before)
        for each in own(twin).values():
            each.add_(1.0)
        assert not torch.equal(forward(twin, rows, times=T03), before)
        assert torch.equal(forward(model, rows, times=T03), before)


@pytest.mark.parametrize("tied", [True, False])
def test_a_time_is_saved_beside_a_folder_that_transformers_opens(tmp_path: Path, tied: bool) -> None:
    model, rows = shaken(tiny(tie_embeddings=tied), width=24), ids(1, 6)
    save_backbone(model, tmp_path)
    again = load_backbone(tmp_path, V)
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        assert torch.equal(forward(again, rows, times=T03), forward(model, rows, times=T03))
        assert torch.allclose(theirs(rows).logits, forward(tiny(tie_embeddings=tied), rows), atol=1e-6)
    assert json.loads((tmp_path / "timestep.json").read_text()) == {"width": 24}
    save_backbone(model, tmp_path, half=True)
    halved = load_backbone(tmp_path, V + 3)
    assert halved.timestep.first.weight.dtype == torch.float32
    with torch.no_grad():
        near = forward(halved, rows, times=T03)[..., :V]
    assert torch.allclose(near, forward(model, rows, times=T03), atol=0.05)
    save_backbone(tiny(), tmp_path)  # an untimed model leaves no time behind
    assert not is_timed(load_backbone(tmp_path, V))


@pytest.mark.parametrize(
    "harm", ["missing", "unexpected", "expected", "finite", "width", "No such file", "truncated"]
)
def test_a_time_that_does_not_fit_is_refused(tmp_path: Path, harm: str) -> None:
    save_backbone(add_timestep(tiny(), 16), tmp_path)
    path, settings = tmp_path / "timestep.safetensors", tmp_path / "timestep.json"
    tensors = load_file(path)
    name = "model.layers.1.timestep.weight"
    if harm == "missing":
        del tensors[name]
    elif harm == "unexpected":
        tensors["model.layers.2.timestep.weight"] = torch.zeros(3)
    elif harm == "expected":
        settings.write_text('{"width": 32}')
        name = "timestep.first.weight"
    elif harm == "finite":
        tensors[name][0, 0] = torch.inf
    save_file(tensors, path)
    if harm == "width":
        settings.write_text('{"size": 16}')
    elif harm == "No such file":
        settings.unlink()
    elif harm == "truncated":
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ModelError, match="header is damaged" if harm == "truncated" else harm) as caught:
        load_backbone(tmp_path, V)
    assert caught.value.code == "bad_checkpoint" and "\n" not in str(caught.value)
    if harm in ("missing", "expected", "finite"):
        assert name in str(caught.value)


def test_times_are_given_exactly_where_they_are_wanted() -> None:
    timed, plain, rows = add_timestep(tiny()), tiny(), ids(2, 6)
    for call in (
        lambda: forward(timed, rows),
        lambda: timed(rows),
        lambda: forward(plain, rows, times=torch.rand(2)),
        lambda: add_timestep(timed),
    ):
        with pytest.raises(ConfigError) as caught:
            call()
        assert caught.value.code == "bad_config"
    for shape in ((3,), (6,), (2, 5), ()):
        with pytest.raises(ConfigError, match="shape"):
            forward(timed, rows, times=torch.rand(shape))
    for width in (0, 7, -2):
        with pytest.raises(ConfigError, match="width"):
            add_timestep(tiny(), width)
    assert not is_timed(plain) and not own(plain)


def test_layers_of_another_build_are_refused() -> None:
    # Gemma 2 normalises after the branches too, under names of which four are the same.
    with torch.random.fork_rng():
        model = Gemma2ForCausalLM(Gemma2Config(**SIZES))
    with pytest.raises(ConfigError, match="Gemma2ForCausalLM takes no time") as caught:
        add_timestep(model)
    assert caught.value.code == "bad_config" and not own(model)


def toy(model: PreTrainedModel, timed: bool) -> float:
    """Share of right answers where the answer is the id itself early, and the next id late."""
    model.train()
    rng = torch.Generator().manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for number in range(31):
        rows = torch.randint(0, 10, (16, 8), generator=rng)
        late = torch.rand(16, generator=rng) < 0.5
        times = torch.where(late, 0.9, 0.1) if timed else None
        logits = forward(model, rows, "full", times=times)
        answers = (rows + late[:, None]) % 10
        if number < 30:
            optimizer.zero_grad()
            cross_entropy(logits.flatten(0, 1), answers.flatten()).backward()
            optimizer.step()
    return float((logits.argmax(-1) == answers).float().mean())


def test_what_depends_on_the_time_is_learnt_with_it_alone() -> None:
    small = BackboneConfig(hidden_size=32, layers=2, heads=4, intermediate_size=48, max_positions=16)
    assert toy(add_timestep(build_backbone(small, 10)), timed=True) > 0.95
    assert toy(build_backbone(small, 10), timed=False) < 0.75


def test_the_first_id_depends_on_the_last_without_the_causal_mask_alone() -> None:
    model, rows = shaken(tiny()), ids(1, 9)
    other = rows.clone()
    other[0, -1] = (rows[0, -1] + 1) % V
    with torch.no_grad():
        causal = [forward(model, each, "causal", times=T03)[0, 0] for each in (rows, other)]
        full = [forward(model, each, "full", times=T03)[0, 0] for each in (rows, other)]
    assert torch.equal(*causal)
    assert (full[0] - full[1]).abs().max() > 1e-3


def test_logits_of_a_slot_come_from_the_hidden_state_at_that_slot() -> None:
    model, rows = shaken(tiny()), ids(1, 9)
    with torch.no_grad():
        logits = forward(model, rows, "full", times=T03)
        hidden = hidden_states(model, rows, "full", times=T03)
        for layer in model.model.layers:  # without attention a place knows of its own id alone
            layer.self_attn.o_proj.weight.zero_()
        alone = forward(model, rows, "full", times=T03)
        for slot in range(9):
            assert torch.allclose(head(model, hidden[:, slot]), logits[:, slot], atol=1e-5)
            other = rows.clone()
            other[0, slot] = (rows[0, slot] + 1) % V
            changed = (forward(model, other, "full", times=T03) - alone)[0].abs().amax(-1) > 1e-4
            assert changed.nonzero().flatten().tolist() == [slot]


@pytest.mark.parametrize("tied", [True, False])
def test_the_mask_begins_as_the_mean_of_the_other_ids(tied: bool) -> None:
    model = tiny(tie_embeddings=tied)
    table, top = model.model.embed_tokens.weight, model.lm_head.weight
    before, before_top = table.detach().clone(), top.detach().clone()
    assert init_mask_embedding(model, 3, "keep") is model and torch.equal(table, before)
    init_mask_embedding(model, 3)
    rest = [index for index in range(V) if index != 3]
    assert torch.allclose(table[3], before[rest].mean(0), atol=1e-6)
    assert torch.equal(table[rest], before[rest])
    assert (top is table) == tied and torch.equal(top[rest], before_top[rest])
    assert torch.equal(top[3], table[3] if tied else before_top[3])
    for wrong in (-1, V):
        with pytest.raises(ConfigError, match="mask id"):
            init_mask_embedding(model, wrong)
    with pytest.raises(ConfigError, match="mean or keep"):
        init_mask_embedding(model, 3, "median")  # type: ignore[arg-type]


@pytest.mark.parametrize("tied", [True, False])
def test_a_vocabulary_grows_by_mean_rows_if_asked(tmp_path: Path, tied: bool) -> None:
    model = tiny(tie_embeddings=tied)
    save_backbone(model, tmp_path)
    grown, drawn = load_backbone(tmp_path, V + 4, mean=True), load_backbone(tmp_path, V + 4)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        old, new, other = (each.state_dict()[name] for each in (model, grown, drawn))
        assert new.shape == (V + 4, 32) and torch.equal(new[:V], old)
        assert torch.allclose(new[V:], old.mean(0).expand(4, 32), atol=1e-6)
        assert not torch.allclose(other[V], other[V + 1], atol=1e-3)
