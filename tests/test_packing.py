"""Attention document by document gives training what dense masks give it, wherever an objective allows it."""

from __future__ import annotations

import itertools
import json
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_toys import V, four_pages, packed, task  # noqa: F401
from torch import Tensor

from cm3kit.models import document_runs, packing
from cm3kit.models import documents as runs_of
from cm3kit.models.attention import block_mask
from cm3kit.models.backbone import BackboneConfig, build_backbone, forward
from cm3kit.models.documents import Documents, attend, documents_in
from cm3kit.models.flex import use_flex
from cm3kit.models.packing import LONG, Packer
from cm3kit.models.timestep import add_timestep
from cm3kit.rng import generator
from cm3kit.training.decoder import DecoderRecipe
from cm3kit.training.figures import Figures
from cm3kit.training.loop import LoopSettings, train
from cm3kit_tokenizers.errors import ConfigError

torch.set_num_threads(1)
CPU = torch.device("cpu")


def rows(kinds: str, length: int = 90) -> tuple[Tensor, Tensor, Tensor]:
    """Two rows of documents that look left (c), at all (f) or neither (b), with padding at the end."""
    documents, blocks, noisy = (torch.zeros(2, length, dtype=torch.long) for _ in range(3))
    for number, kind in enumerate(kinds):
        size = 7 + 5 * number
        row, place = number % 2, slice(start := 30 * (number // 2), start + min(size, 28))
        documents[row, place] = number + 1
        inside = torch.arange(place.stop - place.start)
        blocks[row, place] = {"c": inside, "f": inside * 0, "b": inside // 3}[kind]
        noisy[row, place] = int(kind == "f")
        documents[row, place.stop : start + 30] = 100 + number if number < 4 else 0
        blocks[row, place.stop : start + 30] = torch.arange(start + 30 - place.stop) * int(kind != "f")
        noisy[row, place.stop : start + 30] = int(kind == "f")
    return documents, blocks, noisy.bool()


def seen(runs: Documents, shape: tuple[int, int]) -> Tensor:
    """Who looks where by runs alone, as a dense mask (B, T, T)."""
    mask = torch.zeros(shape[0] * shape[1], shape[0] * shape[1], dtype=torch.bool)
    at = 0
    for size, causal in zip(runs.lengths, runs.causal, strict=True):
        inside = torch.ones(size, size, dtype=torch.bool)
        mask[at : at + size, at : at + size] = inside.tril() if causal else inside
        at += size
    assert at == shape[0] * shape[1]
    return torch.stack([mask[at : at + shape[1], at : at + shape[1]] for at in range(0, len(mask), shape[1])])


@pytest.mark.parametrize("kinds", ["cccccc", "ffffff", "cffccf", "c"])
def test_runs_say_what_the_mask_says(kinds: str) -> None:
    numbers = rows(kinds)
    runs = documents_in(*numbers)
    assert runs is not None and runs.alike == (len(set(kinds)) == 1)
    real = numbers[0] > 0
    assert torch.equal(seen(runs, real.shape)[real], block_mask(*numbers)[:, 0][real])
    ends = runs.ends_N.tolist()
    assert runs.ends_N.dtype == torch.int32 and len(ends) % 64 == 0
    count = len(runs.lengths)
    assert [b - a for a, b in itertools.pairwise(ends)][:count] == list(runs.lengths)
    assert set(ends[count:]) == {real.numel()}


def test_other_masks_are_no_runs() -> None:
    assert documents_in(*rows("ccb")) is None
    for seed in range(3):
        assert documents_in(*packed(100, seed)) is None
    documents, blocks, noisy = rows("cc")
    documents[0, 60] = documents[0, 0]  # a document in two pieces
    assert documents_in(documents, blocks, noisy) is None
    blocks = rows("cc")[1]
    blocks[0, 3] = blocks[0, 2]  # two ids that see one another
    assert documents_in(rows("cc")[0], blocks, noisy) is None


@pytest.mark.parametrize("family", ["llama", "qwen3", "timed"])
@pytest.mark.parametrize("kinds", ["cccccc", "cffccf"])
def test_logits_and_gradients_are_those_of_the_dense_mask(family: str, kinds: str) -> None:
    shape = BackboneConfig(family="qwen3" if family == "qwen3" else "llama", hidden_size=96, layers=2, heads=6,
                           kv_heads=3, intermediate_size=64, std=0.2)  # fmt: skip
    model, numbers, draw = build_backbone(shape, V).train(), rows(kinds), generator(2)
    times = torch.rand(2, 90, generator=draw) if family == "timed" else None
    if times is not None:
        add_timestep(model, 16)
    use_flex(model)
    ids, places = torch.randint(0, V, (2, 90), generator=draw), torch.arange(90).expand(2, -1)
    real, found = numbers[0] > 0, []
    for mask in (documents_in(*numbers), block_mask(*numbers)):
        assert mask is not None
        model.zero_grad()
        logits = forward(model, ids, mask, places, times)[real]
        logits.square().mean().backward()
        found.append([logits.detach(), *(each.grad.clone() for each in model.parameters())])  # type: ignore[union-attr]
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("long", [30, 1024])
def test_in_bf16_short_documents_are_computed_in_fp32_and_long_ones_are_not(
    long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_of, "LONG", long)
    runs, draw = documents_in(*rows("cc")), generator(3)
    assert runs is not None and min(runs.lengths) < 30 <= max(runs.lengths)
    whole = [torch.randn(2, 4, 90, 16, generator=draw) for _ in range(3)]
    low = [*whole[:2], whole[2].bfloat16()]  # as rotations and projections give them
    used: list[tuple[int, torch.dtype]] = []
    plain = runs_of._DENSE

    def seen(module: Any, query: Tensor, *args: Any, **options: Any) -> Any:
        assert not torch.is_autocast_enabled("cpu")
        used.append((query.shape[2], query.dtype))
        return plain(module, query, *args, **options)

    monkeypatch.setattr(runs_of, "_DENSE", seen)
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(torch.nn.Module(), *low, runs)[0]
    assert all((dtype == torch.bfloat16) == (length >= long) for length, dtype in used)
    assert [length for length, _ in used] == [*runs.lengths]
    exact = attend(torch.nn.Module(), *whole[:2], low[2].float(), runs)[0]
    assert found.dtype == torch.bfloat16 and exact.dtype == torch.float32
    if long > 90:
        assert torch.equal(found, exact.bfloat16())
    assert torch.allclose(found.float(), exact, atol=0.05)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"objective": {"name": "cm3"}}, Documents),
        ({"objective": {"name": "next-token"}}, Documents),
        ({"objective": {"name": "masked-diffusion"}}, Documents),
        ({"objective": {"name": "hybrid"}}, Documents),
        ({"objective": {"name": "masked-diffusion"}, "isolated_masks": True}, Tensor),
        ({"objective": {"name": "block-diffusion"}}, Tensor),
        ({"objective": {"name": "causal-blocks"}}, Tensor),
        ({"objective": {"name": "hybrid"}, "anneal": 1.0}, Tensor),
    ],
    ids=lambda given: str(given) if isinstance(given, dict) else "",
)
def test_what_an_objective_allows_is_taken_and_has_the_loss_of_dense_masks(
    corpus: Path, changes: dict[str, Any], expected: type
) -> None:  # fmt: skip
    found = []
    for kind in ("dense", "auto"):
        made = task(corpus, kind, **changes)
        batch = made.batch(generator(5), 2)
        if kind == "auto":
            assert isinstance(made._mask(batch, 0, generator(6)), expected)
        loss, figures = made.loss(made.model, batch, 0, generator(6))
        loss.backward()  # type: ignore[no-untyped-call]
        length = torch.stack([each.grad.norm() for each in made.model.parameters()])  # type: ignore[union-attr]
        found.append((loss.detach(), length, torch.tensor(list(Figures({}, [(1.0, figures)]).values()))))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_run_by_documents_is_that_of_dense_masks_and_goes_on_bit_by_bit(
    tmp_path: Path, corpus: Path
) -> None:  # fmt: skip
    loop = LoopSettings(
        steps=4, batch_size=4, accumulate=2, precision="fp32", save_every=2, preview_every=100, log_every=1,
        validate_every=2, ema=0.9, recompute=True,
    )  # fmt: skip
    lines = {}
    for name, kind in {"dense": "dense", "auto": "auto", "stopped": "auto"}.items():
        if name == "stopped":
            train(task(corpus, kind, loop=loop), loop, tmp_path / name, device="cpu", max_steps=2)
        final = train(task(corpus, kind, loop=loop), loop, tmp_path / name, device="cpu")
        assert "cm3kit" not in (final / "config.json").read_text()
        lines[name] = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
    for one in (line for those in lines.values() for line in those):
        one.pop("seconds")
    assert lines["auto"] == lines["stopped"] and len(lines["auto"]) == 4
    for ours, theirs in zip(lines["auto"], lines["dense"], strict=True):
        assert ours.keys() == theirs.keys() and ours == pytest.approx(theirs, rel=1e-4, abs=2e-6)


def backbone(**changes: Any) -> Any:
    return build_backbone(BackboneConfig(hidden_size=64, layers=1, heads=2, kv_heads=2, **changes), V)


def test_what_is_not_there_is_told_in_a_line(corpus: Path) -> None:
    packer = Packer("documents", backbone(), False)
    with pytest.raises(
        ConfigError, match=r"packing = documents: documents of these rows look neither left only"
    ):
        packer.mask(packed(100), packed(100))
    compiled = Packer("documents", backbone(), True)
    with pytest.raises(
        ConfigError, match=r"packing = documents: the model is compiled, for a CPU; leave it out"
    ):
        compiled.mask(rows("cc"), rows("cc"))
    assert isinstance(Packer("auto", backbone(), True).mask(rows("cc"), rows("cc")), Tensor)
    assert isinstance(Packer("dense", backbone(), False).mask(rows("cc"), rows("cc")), Tensor)


def test_xformers_is_asked_for_and_where_it_cannot_run_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    packer = Packer("xformers", backbone(), False)
    runs_of.why_no_xformers.cache_clear()
    with pytest.warns(UserWarning, match=r"packing = xformers: xformers .*; attention is PyTorch's$") as said:
        found = [packer.mask(rows("cc"), rows("cc")) for _ in range(2)]
    assert len(said) == 1 and all(isinstance(each, Documents) and each.kernel == "sdpa" for each in found)


def test_the_kernel_can_be_named_where_transformers_names_it() -> None:
    recipe = DecoderRecipe.model_validate({"attention": "xformers"})
    assert recipe.packing == "xformers" and recipe.attention == "objective"
    assert DecoderRecipe().packing == "auto"


def cuda_rule(
    monkeypatch: pytest.MonkeyPatch, packing_: Any, length: int, kinds: str = "cc", **there: Any
) -> Any:
    """The mask that would be chosen on CUDA, whose kernels are not asked; the rows stay where they are."""
    given = {"varlen": None, "xformers": None, "halves": True, "flex": None, **there}
    monkeypatch.setattr(packing, "why_no_varlen", lambda device: given["varlen"])
    monkeypatch.setattr(packing, "why_no_xformers", lambda device: given["xformers"])
    monkeypatch.setattr(packing, "why_no_kernel", lambda device: given["flex"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Documents, "on", lambda self, device, kernel: kernel)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: given["halves"])
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: torch.bfloat16)
    made = Packer(packing_, backbone(**there.get("model", {})).train(), True)

    class There:
        device, shape = torch.device("cuda"), (2, length)

    masks: list[Any] = []
    monkeypatch.setattr(packing, "block_mask", lambda *given, **more: masks.append("dense") or "dense")
    monkeypatch.setattr(packing, "flex_mask", lambda *given, **more: masks.append("flex") or "flex")
    return made.mask(rows(kinds), (There(), There(), There()))  # type: ignore[arg-type]


def test_the_rule_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[Any] = []

    def rule(*given: Any, **there: Any) -> Any:
        with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            found = cuda_rule(patch, *given, **there)
            said[:] = [str(each.message) for each in heard]
            return found

    assert rule("auto", 1024) == "varlen" and rule("auto", LONG, "ff") == "varlen"
    # One kernel call has documents that look in one way.
    assert rule("auto", 1024, "cf") == "dense" and rule("auto", LONG, "cf") == "flex"
    assert rule("auto", 1024, "cb") == "dense" and rule("auto", LONG, "cb") == "flex"
    assert rule("auto", LONG, "cb", flex="no Triton") == "dense"
    for reason in ({"varlen": "too old"}, {"halves": False}, {"model": {"dropout": 0.1}}):
        assert rule("auto", 1024, **reason) == "dense"
    assert rule("xformers", 1024) == "xformers" and not said
    assert rule("xformers", 1024, xformers="it does not run") == "varlen"
    assert said == ["packing = xformers: it does not run; attention is PyTorch's"]
    assert rule("flex", 1024) == "flex"
    with pytest.raises(ConfigError, match="packing = documents: too old"):
        rule("documents", 1024, varlen="too old")
    with pytest.raises(
        ConfigError, match="packing = documents: the kernel wants bf16, and training is in fp32"
    ):
        rule("documents", 1024, halves=False)


@pytest.mark.parametrize("kernel", ["varlen", "xformers"])
@pytest.mark.parametrize("kinds", ["cccccc", "ffffff"])
def test_kernels_on_cuda_are_called_with_what_makes_them_the_dense_mask(
    monkeypatch: pytest.MonkeyPatch, kernel: str, kinds: str
) -> None:
    """Kernels of the same arguments, from their definitions; in one graph, which other documents do not break."""

    def inside(query: Tensor, key: Tensor, value: Tensor, ends: Tensor, causal: bool, scale: float) -> Tensor:
        # Which run each position is in; ends that stand more than once are no runs.
        at = torch.arange(len(query))
        run = (at[:, None] >= ends[None, 1:]).sum(1)
        mask = (run[:, None] == run) & ((at[:, None] >= at) | (not causal))
        scores = torch.einsum("qhe,khe->hqk", query, key) * scale
        return torch.einsum("hqk,khe->qhe", scores.masked_fill(~mask, float("-inf")).softmax(-1), value)

    def varlen_attn(
        query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, max_q: int, max_k: int, *,
        scale: float, window_size: tuple[int, int],
    ) -> Tensor:  # fmt: skip
        assert cu_seq_q is cu_seq_k and cu_seq_q.dtype == torch.int32 and max_q == max_k >= 28
        return inside(query, key, value, cu_seq_q, window_size == (-1, 0), scale)

    def memory_efficient_attention(
        query: Tensor, key: Tensor, value: Tensor, attn_bias: Any, p: float, scale: float
    ) -> Tensor:
        assert query.ndim == 4 and len(query) == 1 and p == 0
        return inside(query[0], key[0], value[0], attn_bias[0], attn_bias[1], scale)[None]

    fakes = types.ModuleType("xformers"), types.ModuleType("xformers.ops")
    fakes[1].memory_efficient_attention = memory_efficient_attention  # type: ignore[attr-defined]
    for fake in fakes:
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    monkeypatch.setattr(runs_of, "_looks", lambda causal: {"window_size": (-1, 0 if causal else -1)})
    monkeypatch.setattr(document_runs, "block_diagonal", lambda runs, device: (runs.ends_N, runs.left))
    torch._dynamo.reset()
    model, draw = backbone(std=0.2), generator(3)
    use_flex(model)
    ids, places = torch.randint(0, V, (2, 90), generator=draw), torch.arange(90).expand(2, -1)
    ask: Any = lambda mask: forward(model, ids, mask, places)  # noqa: E731
    compiled = torch.compile(ask, backend="eager", fullgraph=True) if kernel == "varlen" else ask
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for given in (kinds, kinds[:4], kinds[:3]):
            numbers = rows(given)
            runs = documents_in(*numbers)
            assert runs is not None and runs.alike
            real = numbers[0] > 0
            ours, theirs = compiled(runs.on(CPU, kernel))[real], ask(block_mask(*numbers))[real]
            assert torch.allclose(ours, theirs, atol=1e-5)


def test_how_the_kernel_is_told_to_look_left_is_read_off_this_torch() -> None:
    runs_of._looks.cache_clear()
    assert [*runs_of._looks(True).values()] in ([(-1, 0)], [True])


@pytest.mark.parametrize("kinds", ["cccccc", "ffffff"])
def test_biases_of_xformers_are_the_dense_mask(kinds: str) -> None:
    pytest.importorskip("xformers.ops", reason="xformers is not installed")
    numbers = rows(kinds)
    runs = documents_in(*numbers)
    assert runs is not None
    bias = runs.on(CPU, "xformers").bias
    size = numbers[0].numel()
    materialised = bias.materialize((size, size)) == 0
    real, length = numbers[0] > 0, numbers[0].shape[1]
    for row in range(2):
        part = slice(row * length, (row + 1) * length)
        assert torch.equal(materialised[part, part][real[row]], block_mask(*numbers)[row, 0][real[row]])
        assert not materialised[part].clone().index_fill_(1, torch.arange(part.start, part.stop), False).any()
