"""The loss from hidden states is that of whole logits, and no tensor is as large as those."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from cm3kit.models import linear_loss
from cm3kit.models.backbone import BackboneConfig, build_backbone, head
from cm3kit.models.linear_loss import FEWEST, chunk_size, linear_nats
from cm3kit.models.lora import LoraSettings, add_lora
from cm3kit.rng import generator

torch.set_num_threads(1)
V, D = 300, 32


def made(kind: str) -> Any:
    tokens = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    shape: dict[str, Any] = dict(
        vocab_size=V, hidden_size=D, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=32, initializer_range=0.3, **tokens,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        if kind == "granite":
            return GraniteForCausalLM(GraniteConfig(logits_scaling=3.0, **shape))
        if kind == "gemma2":
            return Gemma2ForCausalLM(Gemma2Config(final_logit_softcapping=2.0, head_dim=16, **shape))
        if kind == "phi":
            model = PhiForCausalLM(PhiConfig(**shape))
            torch.nn.init.normal_(model.lm_head.bias)
            return model
    config = BackboneConfig(hidden_size=D, layers=1, heads=2, kv_heads=2, intermediate_size=32, std=0.3)
    model = build_backbone(config.model_copy(update={"tie_embeddings": kind != "untied"}), V)
    if kind == "adapted":
        add_lora(model, LoraSettings(rank=4), range(V - 20, V), 0)
    return model


def asked(count: int) -> tuple[Tensor, Tensor, Tensor]:
    draw = generator(1)
    hidden_ND = torch.randn(count, D, generator=draw)
    weights_N = torch.rand(count, generator=draw) * (torch.rand(count, generator=draw) < 0.7)
    return hidden_ND, torch.randint(0, V, (count,), generator=draw), weights_N


def whole(model: Any, hidden_ND: Tensor, targets_N: Tensor, weights_N: Tensor) -> tuple[Tensor, Tensor]:
    nats_N = torch.nn.functional.cross_entropy(head(model, hidden_ND).float(), targets_N, reduction="none")
    return (nats_N * weights_N).sum(), nats_N.detach()


def answers(ask: Callable[..., tuple[Tensor, Tensor]], model: Any, count: int) -> list[Tensor]:
    hidden_ND, targets_N, weights_N = asked(count)
    hidden_ND.requires_grad_()
    model.zero_grad()
    total, nats_N = ask(model, hidden_ND, targets_N, weights_N)
    (total / 7).backward()  # type: ignore[no-untyped-call]
    assert hidden_ND.grad is not None and not nats_N.requires_grad
    learned = [each.grad for each in model.parameters() if each.grad is not None]
    assert learned
    return [total.detach(), nats_N, hidden_ND.grad, *(each.clone() for each in learned)]


@pytest.mark.parametrize("kind", ["tied", "untied", "granite", "gemma2", "phi", "adapted"])
def test_loss_and_gradients_are_those_of_whole_logits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_loss, "LOGITS", (FEWEST * V, FEWEST * V))
    model = made(kind).train()
    for count in (1, FEWEST, 3 * FEWEST + 5):
        for ours, theirs in zip(
            answers(linear_nats, model, count), answers(whole, model, count), strict=True
        ):
            assert ours.dtype == theirs.dtype
            assert (ours - theirs).abs().max() <= 2e-6 * max(1.0, float(theirs.abs().max()))


@pytest.mark.parametrize("kind", ["tied", "gemma2", "phi", "adapted"])
def test_an_excluded_id_has_no_share(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_loss, "LOGITS", (FEWEST * V, FEWEST * V))
    model = made(kind).train()

    def without(model: Any, hidden_ND: Tensor, targets_N: Tensor, weights_N: Tensor) -> tuple[Tensor, Tensor]:
        logits_NV = head(model, hidden_ND).float()
        banned_V = torch.arange(V) == V - 1
        nats_N = torch.nn.functional.cross_entropy(
            logits_NV.masked_fill(banned_V, -torch.inf), targets_N % (V - 1), reduction="none"
        )
        return (nats_N * weights_N).sum(), nats_N.detach()

    def ours(model: Any, hidden_ND: Tensor, targets_N: Tensor, weights_N: Tensor) -> tuple[Tensor, Tensor]:
        return linear_nats(model, hidden_ND, targets_N % (V - 1), weights_N, V - 1)

    for found, wanted in zip(answers(ours, model, 300), answers(without, model, 300), strict=True):
        assert (found - wanted).abs().max() <= 2e-6 * max(1.0, float(wanted.abs().max()))
    assert not any(
        torch.equal(*pair)
        for pair in zip(answers(ours, model, 300)[:2], answers(linear_nats, model, 300)[:2], strict=True)
    )


def test_in_bf16_they_are_as_near_as_its_steps_are() -> None:
    model = made("untied").train()
    with torch.autocast("cpu", torch.bfloat16):
        pairs = zip(answers(linear_nats, model, 400), answers(whole, model, 400), strict=True)
    for ours, theirs in pairs:
        assert (ours - theirs).abs().max() <= 2**-7 * float(theirs.abs().max())


def test_nothing_to_score_is_no_error_and_teaches_nothing() -> None:
    model, (hidden_ND, targets_N, weights_N) = made("untied").train(), asked(0)
    total, nats_N = linear_nats(model, hidden_ND.requires_grad_(), targets_N, weights_N)
    total.backward()  # type: ignore[no-untyped-call]
    assert total.item() == 0 and len(nats_N) == 0 and not model.lm_head.weight.grad.any()


def test_room_changes_no_bit() -> None:
    model, size = made("tied").train(), chunk_size(V, torch.device("cpu"))
    hidden_ND, targets_N, weights_N = asked(40)
    found = []
    for chunks in (1, 3):
        more = chunks * size - 40
        given = torch.cat([hidden_ND, hidden_ND[:1].expand(more, -1)]).requires_grad_()
        pad = torch.nn.functional.pad
        model.zero_grad()
        total, _ = linear_nats(model, given, pad(targets_N, (0, more)), pad(weights_N, (0, more)))
        total.backward()  # type: ignore[no-untyped-call]
        assert given.grad is not None and not given.grad[40:].any()
        found.append([total.detach(), given.grad[:40], model.lm_head.weight.grad.clone()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


class Largest(TorchDispatchMode):
    """Remembers how many numbers the largest tensor of all operations has."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for each in tree_leaves(found):
            if isinstance(each, Tensor):
                self.numbers = max(self.numbers, each.numel())
        return found


@pytest.mark.parametrize("kind", ["tied", "adapted"])
def test_no_tensor_is_as_large_as_all_logits(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_loss, "LOGITS", (FEWEST * V, FEWEST * V))
    model, count = made(kind).train(), 8 * FEWEST
    with Largest() as plain:
        answers(whole, model, count)
    with Largest() as chunked:
        answers(linear_nats, model, count)
    assert plain.numbers == count * V and chunked.numbers == FEWEST * V
    with torch.no_grad(), Largest() as asked_only:
        linear_nats(model, *asked(count))
    assert asked_only.numbers <= FEWEST * V


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # by dynamo itself
def test_a_compiled_loss_is_the_same_and_in_one_graph() -> None:
    model = made("untied").train()
    compiled = torch.compile(linear_nats, backend="aot_eager", fullgraph=True)
    for ours, theirs in zip(answers(compiled, model, 300), answers(linear_nats, model, 300), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
