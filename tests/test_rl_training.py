"""Reinforcement learning in the loop: it learns, whatever the batch is cut into, and goes on where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rl_toys import WORDS, in_two_processes, recipe
from safetensors.torch import load_file
from torch import nn
from toys import toy

from cm3kit.fill.finding import local
from cm3kit.fill.kit import GenerateOptions, load
from cm3kit.models.lora import LoraSettings
from cm3kit.publish import newest
from cm3kit.rng import generator
from cm3kit.training.loop import train
from cm3kit.training.rl.losses import LossSettings
from cm3kit.training.rl.recipe import RLRecipe
from cm3kit.training.rl.rewards import RewardSettings, Sample, reward
from cm3kit.training.rl.task import RLTask
from cm3kit.training.run import keep
from cm3kit_tokenizers.errors import ConfigError, DataError

torch.set_num_threads(1)
forks = pytest.mark.skipif(torch.cuda.is_available(), reason="processes with a GPU cannot be forked")
Figures = list[dict[str, float]]


def trained(made: RLRecipe, run: Path, **how: Any) -> Figures:
    found: Figures = []
    train(
        RLTask(made), made.loop, run, device="cpu", report=lambda step, total, each: found.append(each), **how
    )
    return found


def weights(run: Path) -> dict[str, torch.Tensor]:
    last = newest(run, warn=pytest.fail)
    assert last is not None
    return load_file(last / "state.safetensors")


def alike(one: Path, other: Path, exactly: bool = False) -> bool:
    first, second = weights(one), weights(other)
    names = [name for name in first if not name.startswith("task/")]
    near = {"rtol": 0.0, "atol": 0.0} if exactly else {"rtol": 1e-3, "atol": 1e-4}
    return bool(names) and all(
        torch.allclose(first[name].float(), second[name].float(), **near) for name in names
    )


def moved(run: Path) -> float:
    """How far training has gone, so that weights are not alike by standing still."""
    plain = load_file(toy() / "decoder/model.safetensors")
    state = weights(run)
    return max(
        float((state[f"model/backbone.{name}"] - each.float()).abs().max()) for name, each in plain.items()
    )


ESTIMATORS = ("one-pass", "coupled", "trajectory", "causal")


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_mean_reward_rises(tmp_path: Path, estimator: str) -> None:
    check_rising(tmp_path, estimator, 0)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_the_mean_reward_rises_whatever_the_seed(tmp_path: Path, estimator: str, seed: int) -> None:
    check_rising(tmp_path, estimator, seed)


def check_rising(folder: Path, estimator: str, seed: int) -> None:
    found = trained(recipe(folder, estimator, {"steps": 8, "batch_size": 32, "seed": seed}), folder / "run")
    assert found[-1]["reward"] > found[0]["reward"] + 0.1
    if estimator != "causal":
        assert found[0]["passes"] == 5  # 1, 2, 4, 8 and 1 of 16
    first = found[0]
    assert first["ratio"] == pytest.approx(1) and first["kl"] == pytest.approx(0, abs=1e-5)
    assert found[1]["ratio"] != pytest.approx(1, abs=1e-4) and found[-1]["kl"] > 0


@pytest.mark.parametrize("estimator", ["coupled", "trajectory"])
def test_results_do_not_depend_on_micro_batches(tmp_path: Path, estimator: str) -> None:
    settings = {"ratio": "sequence" if estimator == "trajectory" else "token", "weight": "step", "beta": 0.05}
    whole = trained(recipe(tmp_path, estimator, loss=settings), tmp_path / "whole")
    cut = trained(recipe(tmp_path, estimator, {"accumulate": 2}, rows=3, loss=settings), tmp_path / "cut")
    assert moved(tmp_path / "whole") > 0.01 and alike(tmp_path / "whole", tmp_path / "cut")
    for one, other in zip(whole, cut, strict=True):
        assert all(
            one[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4) for name in one if name != "seconds"
        )


@pytest.mark.parametrize(
    ("estimator", "ratio"), [("coupled", "token"), ("trajectory", "sequence"), ("causal", "token")]
)
def test_rows_have_the_gradient_of_the_loss(tmp_path: Path, estimator: str, ratio: str) -> None:
    task = RLTask(
        recipe(tmp_path, estimator, loss={"beta": 0.2, "ratio": ratio, "clip": 0.1, "weight": "step"})
    )
    task.seek(0, 16, 0, 1)
    task.batch(generator(0), 16)
    with torch.no_grad():
        for number, each in enumerate(task.model.parameters()):
            each += 0.02 * torch.randn(each.shape, generator=generator(number))
    task.seek(1, 16, 0, 1)
    batch = task.batch(generator(0), 16)
    parts = [task.share(batch, slice(start, start + 5)) for start in range(0, len(batch.rows), 5)]
    values = [task.loss(task.model, part, 1, generator(0))[0] for part in parts]
    sum(values[1:], values[0]).backward()
    found = [each.grad.clone() for each in task.model.parameters() if each.grad is not None]
    task.model.zero_grad()
    assert task._round is not None and sum(map(float, map(torch.Tensor.detach, values))) == pytest.approx(
        batch.loss
    )
    # The same at once: scores with gradients, and the loss of them.
    asked = task._asked(task._round, 1)
    logp_N, _ = task.model.score(asked.rows)
    order = torch.tensor([answer for row in asked.rows for answer in row.answers])
    answers_N = torch.zeros(asked.count, dtype=torch.float64).index_put((order,), logp_N.double())
    loss, figures = task._estimator.loss(task._scores(task._round, 1, asked, answers_N), task.recipe.loss)
    loss.backward()
    wanted = [each.grad for each in task.model.parameters() if each.grad is not None]
    assert float(loss.detach()) == pytest.approx(batch.loss, rel=1e-5) and figures["ratio"] != pytest.approx(
        1, abs=1e-3
    )
    assert len(found) == len(wanted) > 5 and any(float(each.abs().max()) > 1e-3 for each in wanted)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("decoder", ["diffusion", "cm3"])
def test_pages_are_written_again_where_something_is_held_out(tmp_path: Path, decoder: str) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    for number, words in enumerate(WORDS):
        page = f'<title>{words}</title><p class="x">{words} so</p><p>In the <mask> of fruit</p>'
        (pages / f"{number}.html").write_text(page)
    estimator: Any = "causal" if decoder == "cm3" else {"name": "trajectory", "shrink": 2}
    made = recipe(
        tmp_path, estimator, {"steps": 2, "preview_every": 2}, prompts=pages, task="infill", hold_out=["p.x", "title"],
        sampling={"decoder": decoder, "temperature": 1.0, "max_tokens": 8, "batch_size": 16}, previews=1,
        rewards=["edit", {"name": "valid-page", "weight": 0.5}],
    )  # fmt: skip
    found = trained(made, tmp_path / "run")
    assert 0 < found[0]["reward edit"] < 1 and 0 < found[0]["reward valid-page"] <= 1
    assert found[0]["kl"] == pytest.approx(0, abs=1e-5) and moved(tmp_path / "run") > 0
    assert "<table>" in (tmp_path / "run/previews/step-000002.html").read_text()


def test_captions_of_pictures_are_written(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Image.new("RGB", (16, 16), "red").save(tmp_path / f"{name}.png")
    rows = [{"prompt": f"{name}.png", "answer": "a red apple"} for name in ("one", "two")]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    made = recipe(
        tmp_path, "causal", {"steps": 1}, prompts=tmp_path / "rows.jsonl", task="caption", rewards=["edit"],
        sampling={"decoder": "cm3", "temperature": 1.0, "max_tokens": 6},
    )  # fmt: skip
    assert 0 < trained(made, tmp_path / "run")[0]["reward"] < 1


def test_masks_are_drawn_anew_for_every_update_and_answer(tmp_path: Path) -> None:
    task = RLTask(recipe(tmp_path, "coupled", updates=3))
    task.seek(0, 16, 0, 1)
    task.batch(generator(0), 16)
    assert task._round is not None and len(task._round.old) == len(task._round.ref) == 3
    asked = [task._asked(task._round, update) for update in (0, 1, 2, 0)]
    views = [[view.row for plan in each.plans for view in plan.views] for each in asked]
    assert views[0] == views[3] and views[0] != views[1] != views[2] != views[0]
    shares = [plan.views[0].shares[0] for plan in asked[0].plans if plan.views[0].shares]
    assert len(set(shares)) == len(shares) > 10  # a time of its own for every answer
    for plan in asked[1].plans:
        masked = [
            {at for at, id in enumerate(view.row) if id == task._made.start.vocab.mask} for view in plan.views
        ]
        assert masked[0] | masked[1] == masked[-1] and not (len(masked) == 3 and masked[0] & masked[1])


@forks
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    made = recipe(tmp_path, "coupled", rewards=["toy-even", {"name": "variety", "weight": 0.1}])
    found = trained(made, tmp_path / "one")
    in_two_processes(tmp_path / "told", lambda rank: trained(made, tmp_path / "two"))
    assert moved(tmp_path / "one") > 0.01 and alike(tmp_path / "one", tmp_path / "two")
    log = [json.loads(line) for line in (tmp_path / "two/log.jsonl").read_text().splitlines()]
    assert [line["reward"] for line in log] == pytest.approx([each["reward"] for each in found], abs=1e-6)


@forks
def test_weights_may_be_spread_over_processes(tmp_path: Path) -> None:
    made = recipe(tmp_path, "trajectory", {"shard": True, "steps": 2})
    trained(recipe(tmp_path, "trajectory", {"steps": 2}), tmp_path / "one")
    in_two_processes(tmp_path / "told", lambda rank: trained(made, tmp_path / "two"))
    assert moved(tmp_path / "one") > 0.01 and alike(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_resumed_run_is_the_same_to_the_bit(tmp_path: Path, at: int) -> None:
    """At every place: between rounds, and between the updates of one, whose answers are kept."""
    more = {"loss": LossSettings(beta=0.05, sync_every=2)}
    trained(recipe(tmp_path, "coupled", **more), tmp_path / "once")
    trained(recipe(tmp_path, "coupled", **more), tmp_path / "again", max_steps=at)
    trained(recipe(tmp_path, "coupled", **more), tmp_path / "again")
    assert moved(tmp_path / "once") > 0.01 and alike(tmp_path / "once", tmp_path / "again", exactly=True)


@pytest.mark.parametrize("estimator", ["trajectory", "causal"])
def test_products_may_be_in_bf16(tmp_path: Path, estimator: str) -> None:
    found = trained(recipe(tmp_path, estimator, {"steps": 2, "precision": "bf16"}), tmp_path / "run")
    assert found[0]["ratio"] == pytest.approx(1) and found[1]["ratio"] != pytest.approx(1, abs=1e-4)
    assert moved(tmp_path / "run") > 0.01


def test_what_comes_out_is_a_model_folder(tmp_path: Path) -> None:
    made = recipe(tmp_path, "trajectory", {"steps": 2, "preview_every": 2}, previews=2)
    trained(made, tmp_path / "run")
    keep(made, tmp_path / "run")  # as the command does
    kit = load(tmp_path / "run")  # which is the model in final/
    assert kit.parts.folder == tmp_path / "run/final" and kit.parts.name == "run"
    assert [each.line for each in local(tmp_path) if each.path == "run"] == [
        "run (run of a model by rewards, finished)"
    ]
    before = load(toy())
    assert kit.parts.defaults == before.parts.defaults and kit.text.sha256 == before.text.sha256
    drawn = kit.generate(WORDS[0], options=GenerateOptions(decoder="diffusion", temperature=1.0))
    assert drawn[0].image is not None and (tmp_path / "run/previews/step-000002.png").is_file()
    one, other = (each.backbone.state_dict() for each in (kit, before))
    assert one.keys() == other.keys() and any(not torch.equal(one[name], other[name]) for name in one)


def test_adapters_learn_and_rollouts_are_theirs(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    made = recipe(
        tmp_path, "trajectory", {"steps": 4, "learning_rate": 5e-2}, lora=LoraSettings(rank=4),
        loss=LossSettings(beta=0.01),
    )  # fmt: skip
    task = RLTask(made)
    frozen = {
        name: each.detach().clone() for name, each in task.model.named_parameters() if not each.requires_grad
    }
    found: Figures = []
    train(task, made.loop, tmp_path / "run", report=lambda step, total, each: found.append(each))
    # A score that is not that of the rollout's weights would be found out by its first ratio.
    assert found[0]["kl"] == pytest.approx(0, abs=1e-5) and found[2]["ratio"] == pytest.approx(1)
    assert found[-1]["kl"] > 0 and frozen
    now = dict(task.model.named_parameters())
    assert all(torch.equal(each, now[name]) for name, each in frozen.items())
    assert load(tmp_path / "run/final").generate("a red apple")[0].image is not None


class Same:
    """Every answer is worth the same."""

    Settings = RewardSettings
    told: float | None = 0.5

    def __init__(self, settings: Any, context: Any) -> None:
        pass

    def __call__(self, samples: Any, prompts: Any) -> list[float | None]:
        return [self.told for _ in samples]


class Nothing(Same):
    """No answer is worth anything that is known."""

    told = None


reward("toy-same")(Same)
reward("toy-nothing")(Nothing)


@pytest.mark.parametrize("name", ["toy-same", "toy-nothing"])
def test_groups_without_spread_are_drawn_again_and_teach_nothing(tmp_path: Path, name: str) -> None:
    made = recipe(tmp_path, "trajectory", {"steps": 2}, rewards=[name], tries=2)
    found = trained(made, tmp_path / "run")
    assert found[0]["no spread"] == 1 and found[0]["groups"] == 6 and found[0]["loss"] == 0
    assert found[0]["no reward"] == float(name == "toy-nothing") and moved(tmp_path / "run") == 0


def test_too_little_variety_ends_training(tmp_path: Path) -> None:
    sampling = {"decoder": "diffusion", "temperature": 0.0, "schedule": "ascending", "order": "probability"}
    made = recipe(tmp_path, "trajectory", {"steps": 8}, sampling=sampling, min_distinct=0.5, tries=0)
    with pytest.raises(DataError, match="12% of a group are distinct"):
        trained(made, tmp_path / "run")
    assert len((tmp_path / "run/log.jsonl").read_text().splitlines()) == 4


def test_scores_that_are_not_the_same_twice_are_refused(tmp_path: Path) -> None:
    task = RLTask(recipe(tmp_path, "trajectory"))
    noisy = nn.Dropout(0.5).train()
    task.model.backbone.get_input_embeddings().register_forward_hook(
        lambda module, given, out: out if not torch.is_grad_enabled() else nn.functional.dropout(out, noisy.p)
    )
    with pytest.raises(DataError, match="differs from itself"):
        train(task, task.recipe.loop, tmp_path / "run")


def test_dropout_of_the_model_is_off(tmp_path: Path) -> None:
    task = RLTask(recipe(tmp_path, "trajectory", {"steps": 1}))
    task.model.backbone.get_input_embeddings().register_forward_hook(
        lambda module, given, out: nn.functional.dropout(out, 0.5, module.training)
    )
    train(task, task.recipe.loop, tmp_path / "run")
    assert moved(tmp_path / "run") > 0


def test_held_out_prompts_are_tried_at_temperature_0(tmp_path: Path) -> None:
    made = recipe(
        tmp_path, "trajectory", {"steps": 2, "validate_every": 1}, held_share=0.5,
        evaluate={"few": {}, "many": {"schedule": "uniform", "steps": 16}},
    )  # fmt: skip
    found = trained(made, tmp_path / "run")
    line = [json.loads(each) for each in (tmp_path / "run/log.jsonl").read_text().splitlines()][-1]
    assert line["held few passes"] == 5 and line["held many passes"] == 16
    assert 0 <= line["held few reward"] <= 1 and len(found) == 2
    task = RLTask(made)
    assert task.validate(task.model, 64) == task.validate(task.model, 64)


def test_what_does_not_fit_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'causal' is for the decoder 'cm3'"):
        RLTask(recipe(tmp_path, {"name": "causal"}, sampling={"decoder": "diffusion"}))
    for wrong, told in (
        ({"group": 3}, "no multiple of group"), ({"rewards": []}, "at least 1"),
        ({"sampling": {"temperatur": 1}}, "did you mean temperature"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=told):
            recipe(tmp_path, **wrong)
    with pytest.raises(ValueError, match="leave shard or lora out"):
        recipe(tmp_path, loop={"shard": True}, lora=LoraSettings(rank=4))
    with pytest.raises(ValueError, match="workers"):
        recipe(tmp_path, loop={"workers": 2})
    made = recipe(tmp_path)
    (tmp_path / "prompts.txt").write_text("a red apple\n" + "the big book " * 200)
    task = RLTask(made)
    assert len(task.notes) == 1 and "1 of 2 prompts" in task.notes[0]


def test_samples_know_their_prompts(tmp_path: Path) -> None:
    seen: list[Sample] = []

    class Watching(Same):
        def __call__(self, samples: Any, prompts: Any) -> list[float | None]:
            seen.extend(samples)
            assert sorted(prompts) == sorted({each.prompt for each in samples})
            return [float(number) for number, _ in enumerate(samples)]

    name = f"toy-watching-{tmp_path.name}"
    reward(name)(Watching)
    rows = [{"prompt": "a red apple", "name": "apple"}, {"prompt": "the table", "name": "table"}]
    made = recipe(tmp_path, "trajectory", {"steps": 1}, rewards=[name], prompts=tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    trained(made, tmp_path / "run")
    assert len(seen) == 16 and {each.meta["name"] for each in seen} == {"apple", "table"}
    assert all(len(each.codes) == 16 and each.image is not None and each.tokens == 16 for each in seen)
