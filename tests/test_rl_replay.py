"""Episodes replayed: scores of the training pass are those that the decoders saw, whatever they looked at."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from toys import toy

from cm3kit.decoders.diffusion.settings import DiffusionConfig
from cm3kit.decoders.settings import Sampling
from cm3kit.fill.defaults import Defaults, DiffusionDefaults
from cm3kit.fill.folder import load_parts
from cm3kit.fill.kit import GenerateOptions, Kit
from cm3kit.fill.parts import Parts
from cm3kit.models.lora import LoraSettings
from cm3kit.models.timestep import add_timestep, plain_state
from cm3kit.rng import generator
from cm3kit.training.rl.episode import Episode, causal_episode, diffusion_episode
from cm3kit.training.rl.estimators import known, read_settings
from cm3kit.training.rl.model import PolicyModel, score
from cm3kit.training.rl.prompts import Item
from cm3kit.training.rl.rollouts import Rollout, check_options, order_of, roll_out
from cm3kit.types import Canvas, Commit, Fill, MaskSpan, Result
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.page import Page

torch.set_num_threads(1)
PAGE = Page.parse(
    b'<title><mask></title><h1>a red apple</h1><p>In the <mask> book <img alt="<mask>" src="<mask>"> so</p>'
)
ITEMS = [
    Item("a red apple", "image", "a red apple"),
    Item("the big book of fruit", "text", "the big book of fruit"),
    Item("page", page=PAGE, answers=(None,) * 4),
]
CONFIGS: dict[str, dict[str, Any]] = {
    "full": {"schedule": "ascending"},
    "shifted": {"schedule": "uniform", "steps": 6},
    "isolated": {"schedule": "uniform", "steps": 6},
    "remasked": {"sampler": "confidence", "steps": 6, "modifiers": ["remdm-cap"]},
    "blocks": {"block_size": 4, "cache": "exact", "accept": {"name": "threshold", "tau": 0.05}},
    "causal blocks": {"block_size": 4, "cache": "causal", "accept": {"name": "threshold", "tau": 0.05}},
    "timed": {"schedule": "uniform", "steps": 5},
    "timed blocks": {"block_size": 4, "cache": "exact", "schedule": "uniform", "steps": 2},
    "left to right": {},
}


def parts_of(kind: str) -> Parts:
    parts = load_parts(toy())
    hot = Sampling(temperature=1.0)
    config = DiffusionConfig(text=hot, image=hot, batch_size=4, **CONFIGS[kind])
    own = DiffusionDefaults(
        image=config, text=config, mixed=config, shift=kind in ("shifted", "causal blocks"),
        isolated_masks=kind == "isolated",
        trained_block=4 if "blocks" in kind else None,
        trained_cache=CONFIGS[kind].get("cache", "none"),
        layout="behind" if kind == "causal blocks" else "in-place",
    )  # fmt: skip
    defaults: Defaults = parts.defaults.model_copy(update={"diffusion": own, "window": 512})
    if kind.startswith("timed"):
        add_timestep(parts.backbone, 8)
        with torch.no_grad():
            for name, each in parts.backbone.named_parameters():
                if name not in plain_state(parts.backbone):
                    each.normal_(0, 0.3, generator=generator(1))
    return replace(parts, defaults=defaults)


def options_for(kind: str) -> GenerateOptions:
    decoder: Any = "cm3" if kind == "left to right" else "diffusion"
    return GenerateOptions(decoder=decoder, temperature=1.0, max_tokens=16, precision="fp32")


class Recording:
    """A kit that remembers what its decoders gave."""

    def __init__(self, kit: Kit) -> None:
        self.kit, self.results = kit, list[Result]()

    def roll_out(self, options: GenerateOptions) -> list[Rollout]:
        filler = self.kit.filler(options)
        fill = filler.fill

        def recorded(*given: Any) -> list[Result]:
            found = fill(*given)
            self.results += found
            return found

        filler.fill = recorded  # type: ignore[method-assign]
        asked = [(item, order_of(item, options, 3, number), number) for number, item in enumerate(ITEMS)]
        return roll_out(self.kit, asked)


def made(kind: str) -> tuple[PolicyModel, list[Rollout], list[Result]]:
    options = options_for(kind)
    model = PolicyModel(parts_of(kind), options, LoraSettings(), 0)
    recording = Recording(model.kit(model.policy))
    return model, recording.roll_out(options), recording.results


def scores_by(model: PolicyModel, episode: Episode, name: str) -> torch.Tensor:
    chosen = read_settings(name)
    estimator = known()[name](chosen)
    plan = estimator.plan(episode, generator(0))
    rows = model.reading.rows([plan], [episode.prefix])
    count = sum(len(view.ids) for view in plan.views)
    logp_N, _ = score(model.policy, rows, 3, count)
    return estimator.combine([plan], logp_N)


@pytest.mark.parametrize("kind", CONFIGS)
def test_scores_computed_again_are_those_of_the_rollout(kind: str) -> None:
    model, rollouts, results = made(kind)
    episodes = [episode for rollout in rollouts for episode in rollout.episodes]
    assert len(episodes) == len(results) == 3
    rest = {tuple(each.final): each for each in episodes}
    for result in results:
        if kind == "left to right":
            told = [value for fill in result.fills for value in fill.logprobs]
            drawn = [id for commit in result.trajectory.commits for id in commit.ids]
            episode = next(each for each in episodes if list(each.writes[0].ids) == drawn)
            found = scores_by(model, episode, "causal")
        else:
            episode = rest[result.ids]
            told = [
                value
                for commit, write in zip(result.commits or (), episode.writes, strict=True)
                for value, scored in zip(commit.logprobs, write.scored, strict=True)
                if scored and commit.kind == "write"
            ]
            found = scores_by(model, episode, "trajectory")
        assert len(told) > 10 and torch.allclose(found, torch.tensor(told, dtype=torch.float64), atol=2e-4)


@pytest.mark.parametrize("kind", [kind for kind in CONFIGS if kind not in ("remasked", "left to right")])
def test_passes_partition_what_was_open_and_change_nothing_else(kind: str) -> None:
    for rollout in made(kind)[1]:
        for episode in rollout.episodes:
            row, seen = list(episode.start), list[int]()
            for write in episode.writes:
                before = list(row)
                episode.apply(row, write)
                changed = [place for place in range(len(row)) if row[place] != before[place]]
                assert changed == sorted(write.positions) and all(
                    before[place] == episode.mask for place in changed
                )
                seen += changed
            assert sorted(seen) == list(episode.open) and episode.mask not in row
            assert Episode.from_dict(episode.as_dict()) == episode


def test_what_stands_behind_an_end_is_not_scored() -> None:
    span = MaskSpan("content", 1, 5, slots=5, end=9)
    canvas = Canvas((7,), (span,))
    commits = (
        Commit(0, (3,), (9,), (-1.0,), (0.0,)),  # an end, and nothing before it yet
        Commit(1, (4, 1), (9, 5), (-0.5, -1.0), (0.0, 0.0)),  # behind it nothing else may stand
        Commit(2, (2, 5), (9, 9), (-1.0, 0.0), (0.0, 0.0)),  # an earlier end, and early exit closes the rest
    )
    episode = diffusion_episode(Result(canvas, (), commits=commits), 99, 9, DiffusionConfig())
    assert [write.scored for write in episode.writes] == [(True,), (False, True), (True, False)]
    assert episode.answer() == [(1, 5, None), (2, 9, None), (3, 9, None)]
    assert episode.final == (7, 5, 9, 9, 9, 9)


def test_ends_that_nobody_chose_stand_in_a_causal_row_and_are_not_scored() -> None:
    eoss, first, second = 9, 20, 21
    spans = (
        MaskSpan("image", 2, 2, exact=True, lead=(first,), end=eoss),
        MaskSpan("content", 2, 4, lead=(second,), end=eoss),
    )
    fills = (Fill((5, 6), (-1.0, -2.0), True), Fill((3,), (-1.0, -0.5), True))
    episode = causal_episode(Result(Canvas((7, 8), spans, prompt_attention="full"), fills), 99)
    assert episode.final == (7, 8, first, 5, 6, eoss, second, 3, eoss)
    assert episode.start == (7, 8, first, 99, 99, eoss, second, 99, 99) and episode.prefix == 2
    # An end that the next lead begins with is written once, chosen or not.
    joined = (replace(spans[0], end=second), spans[1])
    episode = causal_episode(Result(Canvas((7, 8), joined), fills), 99)
    assert episode.final == (7, 8, first, 5, 6, second, 3, eoss)
    chosen = (Fill((5,), (-1.0, -2.0), True), fills[1])
    episode = causal_episode(Result(Canvas((7, 8), joined), chosen), 99)
    assert episode.final == (7, 8, first, 5, second, 3, eoss) and episode.start[4] == 99


def test_estimators_ask_in_the_states_that_they_are_named_for() -> None:
    _, rollouts, _ = made("causal blocks")
    for episode in (each for rollout in rollouts for each in rollout.episodes):
        rng = generator(1)
        windows = sorted({write.window for write in episode.writes if write.window})
        plan = known()["one-pass"](read_settings("one-pass")).plan(episode, rng)
        assert [view.window for view in plan.views] == windows
        for view in plan.views:
            start, stop = view.window or (0, 0)
            assert view.row[:start] == episode.final[:start]
            assert all(view.row[place] == episode.mask for place in episode.open if start <= place < stop)
            assert view.time == 1.0


def test_one_row_holds_all_states_of_a_trajectory() -> None:
    model, rollouts, _ = made("causal blocks")
    episode = rollouts[0].episodes[0]
    plan = known()["trajectory"](read_settings("trajectory")).plan(episode, generator(0))
    together = model.reading.rows([plan], [0])
    apart = replace(model.reading, most=1).rows([plan], [0])
    assert len(together) == 1 and len(apart) == len(plan.views) > 3
    count = sum(len(view.ids) for view in plan.views)
    one, other = (score(model.policy, rows, 2, count)[0] for rows in (together, apart))
    assert torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"guidance": 3.0}, "guidance"), ({"length": "auto"}, "length"),
        ({"cache": "dual", "block_size": 4}, "cache"), ({"decoder": "cm3", "parallel": True}, "parallel"),
    ],
)  # fmt: skip
def test_options_of_which_no_replay_is_exact_are_refused(wrong: dict[str, Any], told: str) -> None:
    options = replace(options_for("full"), **wrong)
    model = PolicyModel(parts_of("full"), options, LoraSettings(), 0)
    with pytest.raises(ConfigError, match=told):
        check_options(model.kit(model.policy).filler(options), options)
