"""Presets against recorded runs of the authors' code, the scheduler inside diffusers, and models of other shapes.

`data/diffusion_vectors.json` holds what the public samplers of LLaDA, Dream, EOSER-ASS, MeDiM and MaskGIT wrote at
every pass of the net below, at temperature 0 and with draws replaced by the best id. Every decision in it
is further from a tie than fp32 noise of 2e-5 on the logits could move.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from canvases import FlatSpan, flat_canvas
from diffusers import BlockRefinementScheduler, LLaDA2Pipeline
from torch import Tensor
from transformers import PreTrainedModel

from cm3kit.decoders.diffusion import axes
from cm3kit.decoders.diffusion.denoiser import Ask
from cm3kit.decoders.diffusion.drawing import drawn_from
from cm3kit.decoders.diffusion.loop import Diffusion
from cm3kit.decoders.diffusion.presets import presets
from cm3kit.decoders.diffusion.scores import Scores
from cm3kit.decoders.diffusion.settings import DiffusionConfig
from cm3kit.interop.external import ModuleDenoiser
from cm3kit.interop.scheduler import MaskedDiffusionScheduler
from cm3kit.models.backbone import BackboneConfig, build_backbone
from cm3kit.types import Canvas, Result
from cm3kit_tokenizers.errors import ConfigError

VECTORS = json.loads((Path(__file__).parent / "data" / "diffusion_vectors.json").read_text(encoding="utf-8"))
EOS = 2
MASK = 3
VOCAB = 48
GREEDY = {"temperature": 0.0}


class TinyNet(torch.nn.Module):
    """Two layers of full attention in fp64, whose numbers are those of `random.Random(seed)` on any machine."""

    def __init__(
        self, seed: int, vocab: int, width: int, places: int, mask: int, heat: float, favour: dict[str, float]
    ) -> None:
        super().__init__()
        self._dice = random.Random(seed)
        self.embed_VD, self.place_TD = self._table(vocab, width), self._table(places, width)
        self.layers = [
            [self._table(width, width) / math.sqrt(width) * 1.7 for _ in range(5)] for _ in range(2)
        ]
        self.out_DV = self._table(width, vocab) * heat / math.sqrt(width)
        self.bias_V = torch.zeros(vocab, dtype=torch.float64)
        self.bias_V[mask] = -40.0
        for id, bias in favour.items():
            self.bias_V[int(id)] += bias

    def _table(self, rows: int, columns: int) -> Tensor:
        numbers = [self._dice.random() for _ in range(rows * columns)]
        return (torch.tensor(numbers, dtype=torch.float64) * 2 - 1).view(rows, columns)

    def forward(self, input_ids: Tensor) -> Tensor:
        h_BTD = self.embed_VD[input_ids] + self.place_TD[: input_ids.shape[1]]
        for query, key, value, out, mlp in self.layers:
            n_BTD = _normed(h_BTD)
            scores_BTT = (n_BTD @ query) @ (n_BTD @ key).transpose(-1, -2) / math.sqrt(n_BTD.shape[-1])
            h_BTD = h_BTD + scores_BTT.softmax(-1) @ (n_BTD @ value) @ out
            h_BTD = h_BTD + torch.tanh(h_BTD @ mlp)
        return (_normed(h_BTD) @ self.out_DV + self.bias_V).float()


def _normed(h_BTD: Tensor) -> Tensor:
    return h_BTD / h_BTD.pow(2).mean(-1, keepdim=True).sqrt()


class Anything:
    """Every id but the mask may stand anywhere."""

    def __init__(self, vocab: int) -> None:
        self._menu_V = torch.arange(vocab) != MASK

    def allowed(self, slots: Sequence[int]) -> Tensor:
        return self._menu_V.expand(len(slots), -1)

    def commit(self, slot: int, id: int) -> None:
        assert id != MASK

    def release(self, slot: int) -> None:
        """Nothing depends on what stands elsewhere."""


def board(ids: Sequence[int], guided: bool = False, seed: int = 0) -> Canvas:
    """A board whose masked runs are stretches of one kind; the guide hides everything."""
    slots = [place for place, id in enumerate(ids) if id == MASK]
    runs = [slot for slot in slots if slot - 1 not in slots]
    stretches = tuple(
        FlatSpan("content", start, next(t for t in range(start, len(ids) + 1) if t not in slots))
        for start in runs
    )
    return flat_canvas(tuple(ids), stretches, (MASK,) * len(ids) if guided else (), seed)


def engine(denoiser: ModuleDenoiser, config: DiffusionConfig, vocab: int = VOCAB) -> Diffusion:
    return Diffusion(denoiser, lambda _: Anything(vocab), config, eoss=EOS, image=range(0))


def replay(case: dict[str, Any], **overrides: Any) -> list[Result]:
    config = presets[case["preset"]].config(**{**case["settings"], **overrides})
    denoiser = ModuleDenoiser(TinyNet(**case["net"]), MASK, shift=case.get("shift", False))
    return engine(denoiser, config, case["net"]["vocab"]).fill(
        [board(ids, config.guidance != 1) for ids in case["start"]]
    )


# --- Presets ---


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_preset_writes_what_the_authors_code_writes(case: dict[str, Any]) -> None:
    for row, found in enumerate(replay(case)):
        commits = [
            sorted(zip(commit.positions, commit.ids, strict=True)) for commit in found.trajectory.commits
        ]
        assert commits == [sorted(map(tuple, step[row])) for step in case["steps"] if step[row]]
        assert list(found.ids) == case["final"][row]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("dream entropy, 10 in 8", {"confidence": "base"}),
        ("dream entropy, 10 in 8", {"order": "probability"}),
        ("eoser 12 in 6", {"eoser": None}),
        ("eoser-ass 33", {"eoser": {"schedule": "linear"}}),
        ("ass 33", {"schedule": "ascending"}),
        ("llada guided", {"guidance": 1.0}),
        ("medim guided 24 in 8", {"guidance_schedule": "constant"}),
        ("medim joint 30 in 12", {"schedule": "uniform"}),
        ("maskgit 20 in 12, given among", {"schedule": "cosine"}),
    ],
)
def test_vectors_tell_settings_apart(name: str, change: dict[str, Any]) -> None:
    case = next(each for each in VECTORS["cases"] if each["name"] == name)
    kept, changed = replay(case), replay(case, **change)
    assert [each.trajectory.commits for each in kept] != [each.trajectory.commits for each in changed]


@pytest.mark.parametrize(
    "case", VECTORS["schedules"], ids=lambda c: f"{c['preset']}-{c['blanks']}-{c['steps']}"
)
def test_schedule_is_the_released_one(case: dict[str, Any]) -> None:
    released = [count for count, times in case["schedule"] for _ in range(times) if count]
    schedule = axes.bind(axes.schedule, presets[case["preset"]].config().schedule)
    assert schedule(case["blanks"], case["steps"]) == released


@pytest.mark.parametrize("case", VECTORS["tempered"]["cases"], ids=str)
def test_confidence_is_read_where_dream_reads_it(case: dict[str, Any]) -> None:
    logits_MV = torch.tensor(VECTORS["tempered"]["logits"])
    count = len(logits_MV)
    heat_M = torch.full((count,), case["temperature"], dtype=torch.float64)
    top_p_M = torch.full((count,), case["top_p"], dtype=torch.float64)
    logp_MV = drawn_from(logits_MV, heat_M, torch.zeros(count, dtype=torch.long), top_p_M)
    scores = Scores(torch.arange(count), logp_MV, logits_MV.argmax(-1), 0, 1, torch.Generator())
    score_M = axes.bind(axes.order, case["order"])(scores)
    if case["order"] == "entropy":
        score_M = score_M.log()
    assert score_M.tolist() == pytest.approx(case["confidence"], abs=2e-6)


def test_low_temperature_ties_what_dream_reads_but_not_the_model_itself() -> None:
    logits_MV = torch.tensor([[4.0, 0.0], [5.0, 0.0], [6.0, 0.0]])
    cold_M, whole_M = torch.full((3,), 0.1, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    tempered_MV = drawn_from(logits_MV, cold_M, torch.zeros(3, dtype=torch.long), whole_M)
    assert tempered_MV[:, 0].exp().unique().tolist() == [1.0]
    assert len(logits_MV.log_softmax(-1)[:, 0].exp().unique()) == 3
    assert presets["dream"].config().confidence == "tempered"
    assert presets["uniform"].config().confidence == "base"


PASSES = {
    "llada": 20, "eoser": 20, "maskgit": 12, "eoser-ass": 4, "uniform": 20, "ascending": 5,
    "ascending-eoser": 5, "cosine": 12,
}  # fmt: skip


@pytest.mark.parametrize("name", list(presets))
def test_every_preset_fills_a_board(name: str) -> None:
    ids = [1, 7, 9, *[MASK] * 20, 5]
    net = TinyNet(3, VOCAB, 16, 32, MASK, 4.0, {})
    config = presets[name].config()
    (found,) = engine(ModuleDenoiser(net, MASK), config).fill([board(ids, config.guidance != 1)])
    assert MASK not in found.ids
    assert found.ids[:3] == (1, 7, 9) and found.ids[-1] == 5
    assert found.cost.wasted == 0
    assert len(found.trajectory.commits) == PASSES.get(name, len(found.trajectory.commits)) <= 20


def test_presets_can_be_changed_and_explain_themselves() -> None:
    assert presets["llada"].config(steps=7).steps == 7
    with pytest.raises(ConfigError, match="Did you mean 'dream'") as wrong:
        presets["dreem"]
    assert wrong.value.code == "unknown_name"
    with pytest.raises(ConfigError) as bad:
        presets["llada"].config(steps=0)
    assert bad.value.code == "bad_config"


# --- The scheduler inside diffusers ---


@cache
def backbone(family: str = "llama", seed: int = 0) -> PreTrainedModel:
    shape = {"hidden_size": 32, "layers": 2, "heads": 2, "kv_heads": 2, "intermediate_size": 48, "std": 0.4}
    config = BackboneConfig.model_validate({"family": family, "max_positions": 128, "seed": seed, **shape})
    return build_backbone(config, VOCAB)


class Shaped(torch.nn.Module):
    """A bidirectional model that takes a mask of padding (B, T), as LLaDA does, or (B, 1, T, T), as Dream does.

    With a block size it is causal in blocks, as LLaDA 2 and SDAR are.
    """

    def __init__(self, model: PreTrainedModel, block_size: int | None = None) -> None:
        super().__init__()
        self.model, self.block_size, self.passes = model, block_size, 0
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> SimpleNamespace:
        self.passes += 1
        length = input_ids.shape[1]
        seen = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if seen.ndim == 2:
            seen = seen.bool()[:, None, None, :].expand(-1, 1, length, -1)
        if self.block_size:
            block_T = torch.arange(length) // self.block_size
            seen = seen & (block_T[:, None] >= block_T)
        logits = self.model(
            input_ids=input_ids, attention_mask=seen, position_ids=position_ids, use_cache=False
        ).logits
        # A trained model gives the mask no chance, and diffusers would write it.
        return SimpleNamespace(logits=logits.index_fill(-1, torch.tensor([MASK]), -1e4))


PROMPT = torch.randint(5, VOCAB, (2, 11), generator=torch.Generator().manual_seed(1))


def generate(scheduler: Any, prompt: Tensor = PROMPT[:, :8], model: Any = None, **options: Any) -> Any:
    """Ids (B, 24), and passes, of diffusers' pipeline in blocks of 8."""
    model = model or Shaped(backbone())
    pipeline = LLaDA2Pipeline(model, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    settings = {
        "gen_length": 24, "block_length": 8, "num_inference_steps": 4, "temperature": 0.0, "threshold": 0.7,
        "editing_threshold": None, "mask_token_id": MASK, "eos_token_id": None, "output_type": "seq",
    }  # fmt: skip
    before = model.passes
    ids = pipeline(input_ids=prompt, **{**settings, **options}).sequences
    return ids, model.passes - before


@pytest.mark.parametrize("prompt", [8, 11])
@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 0.7},
        {"threshold": 0.2},
        {"threshold": 1.5, "num_inference_steps": 5},
        {"threshold": 0.2, "editing_threshold": 0.25, "max_post_steps": 2},
    ],
    ids=str,
)
def test_scheduler_writes_what_diffusers_own_writes(prompt: int, options: dict[str, Any]) -> None:
    theirs, their_passes = generate(BlockRefinementScheduler(), PROMPT[:, :prompt], **options)
    ours, our_passes = generate(MaskedDiffusionScheduler(per_row=False), PROMPT[:, :prompt], **options)
    assert ours.tolist() == theirs.tolist()
    assert our_passes <= their_passes
    if prompt == 8:
        by_row, _ = generate(MaskedDiffusionScheduler(), PROMPT[:, :prompt], **options)
        assert by_row.tolist() == theirs.tolist()


def test_scheduler_stops_a_block_with_its_last_mask() -> None:
    _, theirs = generate(BlockRefinementScheduler(), threshold=0.0)
    _, ours = generate(MaskedDiffusionScheduler(), threshold=0.0)
    assert (theirs, ours) == (6, 3)


@pytest.mark.parametrize("name", ["llada", "eoser-ass", "ascending", "threshold"])
def test_pipeline_and_engine_agree_on_a_model_that_is_causal_in_blocks(name: str) -> None:
    config = presets[name].config(block_size=8, early_exit=False)
    model = backbone()
    scheduler = MaskedDiffusionScheduler.of(config, [EOS])
    steps = scheduler.config.num_inference_steps
    ids, _ = generate(scheduler, model=Shaped(model, block_size=8), num_inference_steps=steps)
    denoiser = ModuleDenoiser(model, MASK, attention="blocks", block_size=8)
    boards = [board([*row, *[MASK] * 24]) for row in PROMPT[:, :8].tolist()]
    written = engine(denoiser, config).fill(boards)
    assert [list(each.ids[8:]) for each in written] == ids.tolist()


def test_scheduler_survives_saving(tmp_path: Path) -> None:
    scheduler = MaskedDiffusionScheduler(
        block_length=8, schedule={"name": "ascending", "mode": "paper"}, order="margin", accept="top",
        eoser={"least": 0.1}, eos_token_ids=[EOS], confidence="tempered", seed=5,
    )  # fmt: skip
    scheduler.save_pretrained(tmp_path)
    again = MaskedDiffusionScheduler.from_pretrained(tmp_path)
    kept = {name: value for name, value in scheduler.config.items() if not name.startswith("_")}
    assert kept == {name: again.config[name] for name in kept} and kept["eoser"] == {"least": 0.1}
    hot = {"temperature": 1.0, "sampling_method": "multinomial"}
    assert generate(again, **hot)[0].tolist() == generate(scheduler, **hot)[0].tolist()


def block(scheduler: Any, logits_BLV: Tensor, sample_BL: Tensor, step: int = 0, **options: Any) -> Any:
    return scheduler.step(logits_BLV, step, sample_BL, mask_token_id=MASK, **options)


def test_scheduler_counts_each_rows_masks() -> None:
    logits_BLV = torch.randn(2, 8, VOCAB, generator=torch.Generator().manual_seed(2))
    sample_BL = torch.full((2, 8), MASK)
    sample_BL[1, :6] = 9
    scheduler = MaskedDiffusionScheduler(accept="top")
    scheduler.set_timesteps(2, block_length=8)
    assert block(scheduler, logits_BLV, sample_BL).transfer_index.sum(-1).tolist() == [4, 1]
    assert block(scheduler, logits_BLV, sample_BL, minimal_topk=6).transfer_index.sum(-1).tolist() == [6, 2]
    shared = MaskedDiffusionScheduler(accept="top", per_row=False)
    shared.set_timesteps(2, block_length=8)
    assert block(shared, logits_BLV, sample_BL).transfer_index.sum(-1).tolist() == [4, 2]


def test_scheduler_draws_a_row_by_its_own_dice() -> None:
    logits_BLV = torch.randn(2, 8, VOCAB, generator=torch.Generator().manual_seed(2))
    sample_BL, hot = torch.full((2, 8), MASK), {"temperature": 1.5, "top_p": 0.95, "top_k": 20}
    state = torch.random.get_rng_state()
    scheduler = MaskedDiffusionScheduler(order="random")

    def drawn(rows: Tensor, *seeds: int) -> list[list[int]]:
        dice = [torch.Generator().manual_seed(seed) for seed in seeds]
        ids: list[list[int]] = block(
            scheduler, rows, sample_BL[: len(rows)], generator=dice, **hot
        ).prev_sample.tolist()
        return ids

    both = drawn(logits_BLV, 3, 4)
    assert both == [drawn(logits_BLV[:1], 3)[0], drawn(logits_BLV[1:], 4)[0]]
    assert both != drawn(logits_BLV, 5, 6)
    assert torch.equal(torch.random.get_rng_state(), state)
    with pytest.raises(ConfigError, match="1 generators for 2 rows"):
        drawn(logits_BLV, 3)


def test_scheduler_never_writes_the_mask_and_ranks_ends_lower() -> None:
    logits_BLV = torch.zeros(1, 4, VOCAB)
    logits_BLV[..., MASK] = 50.0
    logits_BLV[0, 0, EOS], logits_BLV[0, 1:, 7] = 9.0, 8.0
    sample_BL = torch.full((1, 4), MASK)
    for eoser, first in ((None, [EOS, MASK, MASK, MASK]), ({"least": 0.4}, [MASK, 7, MASK, MASK])):
        scheduler = MaskedDiffusionScheduler(accept="top", eoser=eoser, eos_token_ids=[EOS])
        scheduler.set_timesteps(4, block_length=4)
        assert block(scheduler, logits_BLV, sample_BL).prev_sample.tolist() == [first]


def test_scheduler_edits_what_is_neither_prompt_nor_masked() -> None:
    logits_BLV = torch.zeros(1, 4, VOCAB)
    logits_BLV[..., 7] = 9.0
    sample_BL = torch.tensor([[5, 6, 7, MASK]])
    given_L = torch.tensor([True, False, False, False])
    scheduler = MaskedDiffusionScheduler(block_length=4)
    edited = block(scheduler, logits_BLV, sample_BL, editing_threshold=0.5, prompt_mask=given_L)
    assert edited.prev_sample.tolist() == [[5, 7, 7, 7]]
    assert edited.editing_transfer_index.tolist() == [[False, True, False, False]]
    plain = block(scheduler, logits_BLV, sample_BL, editing_threshold=-1.0, return_dict=False)
    assert plain[0].tolist() == [[5, 6, 7, 7]] and plain[3].tolist() == [[5, 6, 7, 7]]
    assert len(plain) == 6


def test_rows_are_finished_by_an_end_with_nothing_masked_before_it() -> None:
    cur_x = torch.tensor([
        [EOS, 5, EOS, MASK], [EOS, MASK, EOS, 8], [EOS, 5, 6, MASK], [EOS, 5, 6, 7], [EOS, EOS, MASK, MASK]
    ])  # fmt: skip
    none = torch.zeros(5, 1, dtype=torch.bool)
    finished = MaskedDiffusionScheduler().check_eos_finished(
        cur_x, torch.zeros(5, 1), none, torch.tensor([False, False, False, True, False]), EOS, MASK, 1
    )
    assert finished.tolist() == [True, False, False, True, True]


def test_pipeline_stops_at_the_end_id() -> None:
    ends = generate(MaskedDiffusionScheduler())[0][0].tolist()
    ids, passes = generate(MaskedDiffusionScheduler(), PROMPT[:1, :8], eos_token_id=ends[3])
    assert ids[0, :8].tolist() == ends[:8] and ids[0, 8:].tolist() == [MASK] * 16
    assert passes <= 4


@pytest.mark.parametrize(
    ("make", "call", "code"),
    [
        ({"schedule": "unform"}, {}, "unknown_name"),
        ({"accept": {"name": "threshold", "taw": 1}}, {}, "bad_config"),
        ({"eoser": {"least": 2}}, {}, "bad_config"),
        ({"confidence": "raw"}, {}, "bad_config"),
        ({"block_length": 0}, {}, "bad_config"),
        ({"num_inference_steps": 0}, {}, "bad_config"),
        ({}, {"temperature": -1.0}, "bad_value"),
        ({}, {"top_p": -0.1}, "bad_value"),
        ({}, {"sampling_method": "best"}, "bad_value"),
        ({}, {"mask_token_id": None}, "bad_value"),
    ],
    ids=str,
)
def test_scheduler_refuses_what_it_cannot_do(make: dict[str, Any], call: dict[str, Any], code: str) -> None:
    with pytest.raises(ConfigError) as wrong:
        scheduler = MaskedDiffusionScheduler(**make)
        options = {"mask_token_id": MASK, **call}
        scheduler.step(torch.zeros(1, 2, VOCAB), 0, torch.full((1, 2), MASK), **options)
    assert wrong.value.code == code
    assert "\n" not in str(wrong.value)


def test_scheduler_has_no_other_samplers() -> None:
    with pytest.raises(ConfigError, match="first-hitting"):
        MaskedDiffusionScheduler.of(DiffusionConfig(sampler="first-hitting"))


# --- Models of other shapes ---


def ask(rows: Sequence[Sequence[int]], slots: Sequence[Sequence[int]]) -> Ask:
    """Rows padded to 24 places with an id that would show."""
    ids_BT = torch.full((len(rows), 24), 9)
    for row, ids in enumerate(rows):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
    return Ask(
        ids_BT,
        tuple(map(len, rows)),
        tuple(torch.tensor(each, dtype=torch.long) for each in slots),
        (1.0,) * len(rows),
    )


LONG, SHORT = list(range(5, 21)), [6, MASK, 8, 10, MASK]


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize(("family", "together"), [("llama", True), ("qwen3", True), ("llama", False)])
def test_padding_and_neighbours_change_nothing(family: str, together: bool, shift: bool) -> None:
    model = backbone(family)
    options: dict[str, Any] = {"shift": shift, "together": together}
    llada = ModuleDenoiser(Shaped(model), MASK, **options)
    dream = ModuleDenoiser(Shaped(model), MASK, **options, attention="full")
    plain = ModuleDenoiser(model, MASK, **options, attention="full")
    slots = [[0, 3, 15], [1, 4], [], []]
    found = [each.logits(ask([LONG, SHORT, LONG, []], slots)) for each in (llada, dream, plain)]
    for row, ids in enumerate((LONG, SHORT)):
        alone = torch.tensor([ids])
        whole_TV = Shaped(model)(alone).logits[0]
        places = [max(slot - shift, 0) for slot in slots[row]]
        others = torch.arange(VOCAB) != MASK
        for each in found:
            assert torch.allclose(each[row][:, others], whole_TV[places][:, others], atol=1e-5)
    assert [len(each[2]) + len(each[3]) for each in found] == [0, 0, 0]


def test_a_shifted_model_needs_the_shift() -> None:
    target = [5, 9, 11, 6, 7, 12]

    def ahead(input_ids: Tensor) -> Tensor:
        logits_BTV = torch.zeros(*input_ids.shape, VOCAB)
        for place, id in enumerate(target[1:]):
            logits_BTV[:, place, id] = 9.0
        return logits_BTV

    config = presets["llada"].config()
    given = board([5, *[MASK] * 5])
    for shift, right in ((True, True), (False, False)):
        (found,) = engine(ModuleDenoiser(ahead, MASK, shift=shift), config).fill([given])
        assert (list(found.ids) == target) == right


def test_blocks_do_not_see_what_comes_after() -> None:
    model = backbone("qwen3")
    sdar = ModuleDenoiser(model, MASK, attention="blocks", block_size=4)
    slots = [[1, 6, 7, 9]]
    before = sdar.logits(ask([LONG], slots))[0]
    later, within = [*LONG[:8], *LONG[:8]], [*LONG[:7], 40, *LONG[8:]]
    assert torch.equal(sdar.logits(ask([later], slots))[0][:3], before[:3])
    changed = (sdar.logits(ask([within], slots))[0] - before).abs().amax(-1) > 1e-6
    assert changed.tolist() == [False, True, True, True]
    own = ModuleDenoiser(Shaped(model, block_size=4), MASK).logits(ask([LONG], slots))[0]
    others = torch.arange(VOCAB) != MASK
    assert torch.allclose(before[:, others], own[:, others], atol=1e-5)


@pytest.mark.parametrize(("together", "places"), [(True, [3]), (False, [2, 2])])
def test_the_head_runs_where_it_is_asked(together: bool, places: list[int]) -> None:
    model = backbone()
    rows: list[int] = []
    model.get_output_embeddings().register_forward_hook(
        lambda _m, inputs, _o: rows.append(inputs[0].shape[1])
    )
    denoiser = ModuleDenoiser(model, MASK, attention="full", together=together)
    found = denoiser.logits(ask([LONG, SHORT], [[3, 15], [1, 3]]))
    assert rows == places
    whole = Shaped(model)(torch.tensor([LONG])).logits[0]
    others = torch.arange(VOCAB) != MASK
    assert torch.allclose(found[0][:, others], whole[[3, 15]][:, others], atol=1e-5)


def test_external_models_refuse_what_they_cannot_do() -> None:
    def bare(input_ids: Tensor) -> Tensor:
        return torch.zeros(*input_ids.shape, VOCAB)

    for wrong in ({"attention": "blocks"}, {"block_size": 4}, {"attention": "blocks", "block_size": 0}):
        with pytest.raises(ConfigError, match="block size") as error:
            ModuleDenoiser(bare, MASK, **wrong)
        assert error.value.code == "bad_value"
    with pytest.raises(ConfigError, match="attention_mask"):
        ModuleDenoiser(bare, MASK, attention="full")
    with pytest.raises(ConfigError, match="rows alone"):
        ModuleDenoiser(bare, MASK, together=True)
    assert [each.shape for each in ModuleDenoiser(bare, MASK).logits(ask([LONG, SHORT], [[0], [1, 2]]))] == [
        (1, VOCAB), (2, VOCAB)
    ]  # fmt: skip
