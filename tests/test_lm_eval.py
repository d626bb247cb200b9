"""Models in lm-evaluation-harness: scores are those of scoring, texts those of decoding."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import public_folders
import pytest
from toys import toy, toy_kit

import cm3kit
from cm3kit.fill.fillers import ScoreHow
from cm3kit.fill.kit import GenerateOptions, Kit
from cm3kit.fill.scoring import score_sequence, score_words, sequence_canvases

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    from cm3kit.evaluation.lm_eval import Cm3kitLM, until

pytestmark = pytest.mark.filterwarnings("ignore")

PAIRS = [
    ("a red apple", " on the table"), ("a red apple", " and a pear"), ("", "a green pear"), ("so they", " say"),
    ("a green pear", " beside it"),
]  # fmt: skip


def asked(kind: Any, args: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, each, number) for number, each in enumerate(args)]


def silent(done: int, total: int) -> None:
    """Nobody watches."""


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return cm3kit.load(public_folders.write("dream", tmp_path_factory.mktemp("public")), device="cpu")


@pytest.mark.parametrize("decoder", ["cm3", "diffusion"])
@pytest.mark.parametrize("kind", ["both", "blocks"])
def test_loglikelihoods_are_the_scores_of_words(kind: str, decoder: Any) -> None:
    kit = toy_kit(kind)
    model = Cm3kitLM(kit, decoder=decoder, rounds=16)
    found = model.loglikelihood(asked("loglikelihood", PAIRS), disable_tqdm=True)
    right = score_words(kit, PAIRS, GenerateOptions(decoder=decoder), ScoreHow(rounds=16), silent)
    assert [logprob for logprob, _ in found] == pytest.approx([each.logprob for each in right], abs=1e-4)
    whole = model.loglikelihood_rolling(asked("loglikelihood_rolling", [("a red apple",)]), True)
    (one,) = score_words(
        kit, [("", "a red apple")], GenerateOptions(decoder=decoder), ScoreHow(rounds=16), silent
    )
    assert whole == pytest.approx([one.logprob], abs=1e-4)


def test_a_public_model_is_scored_in_its_own_tokens(public: Kit) -> None:
    found = Cm3kitLM(public, rounds=16).loglikelihood(asked("loglikelihood", PAIRS), True)
    right = score_words(public, PAIRS, GenerateOptions(), ScoreHow(rounds=16), silent)
    assert [logprob for logprob, _ in found] == pytest.approx([each.logprob for each in right], abs=1e-4)
    texts = Cm3kitLM(public, max_gen_toks=6).generate_until(asked("generate_until", [("a red", {})]), True)
    assert isinstance(texts[0], str)


@pytest.mark.parametrize("decoder,method", [("cm3", "auto"), ("diffusion", "left-to-right")])
def test_greedy_is_the_likeliest_id_at_every_place(decoder: Any, method: Any) -> None:
    model = Cm3kitLM(toy_kit(), decoder=decoder, method=method)
    kit, options, how = model.kit, GenerateOptions(decoder=decoder), ScoreHow(method, spelt=True)
    context = [kit.vocab.eod, *kit.tokenizer.text_ids("a red")]
    greedy: list[int] = []
    for place in range(3):
        # Masked positions behind matter to a model that looks both ways, so all answers have one length.
        rows = [(*greedy, id, *[kit.vocab.text.start] * (2 - place)) for id in range(len(kit.vocab))]
        canvases = [sequence_canvases(256, context, row, kit.vocab.eoss)[0] for row in rows]
        scored = kit.filler(options).score(canvases, options, how, silent)
        greedy.append(max(range(len(rows)), key=lambda id: scored[id].fills[0].logprobs[place]))
    for row, right in (
        (greedy, True),
        ([*greedy[:2], greedy[2] ^ 1], False),
        ([greedy[0] ^ 1, *greedy[1:]], False),
    ):
        canvas = sequence_canvases(256, context, row, kit.vocab.eoss)
        assert kit.filler(options).score(canvas, options, how, silent)[0].greedy == right


def test_a_bound_never_claims_to_be_greedy(caplog: pytest.LogCaptureFixture) -> None:
    model = Cm3kitLM(toy_kit(), decoder="diffusion", rounds=4)
    found = model.loglikelihood(asked("loglikelihood", PAIRS), True)
    assert not any(greedy for _, greedy in found) and "left-to-right" in caplog.text


def test_texts_end_where_they_are_asked_to(caplog: pytest.LogCaptureFixture) -> None:
    model = Cm3kitLM(toy_kit())
    plain = {"max_gen_toks": 80}
    (whole,) = model.generate_until(asked("generate_until", [("a red apple", plain)]), True)
    assert whole and whole == model.generate_until(asked("generate_until", [("a red apple", plain)]), True)[0]
    stop = whole[len(whole) // 2 :][:3]
    given = {**plain, "until": [stop], "num_beams": 2}
    (cut,) = model.generate_until(asked("generate_until", [("a red apple", given)]), True)
    assert cut == whole[: whole.index(stop)] and "num_beams" in caplog.text
    drawn = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 12}
    several = [(context, drawn) for context, _ in PAIRS]
    together = model.generate_until(asked("generate_until", several), True)
    small = Cm3kitLM(toy_kit(), batch_size=1)
    assert together == small.generate_until(asked("generate_until", several), True)


def test_contexts_that_are_too_long_lose_their_beginning(caplog: pytest.LogCaptureFixture) -> None:
    kit = toy_kit()
    model, window = Cm3kitLM(kit), kit.parts.defaults.window
    long = "a red apple on the table " * 60
    (found,) = model.loglikelihood(asked("loglikelihood", [(long, "and a green pear")]), True)
    ids, answer = kit.tokenizer.text_ids(long.rstrip()), kit.tokenizer.text_ids(" and a green pear")
    kept = kit.tokenizer.decode(ids[len(ids) + len(answer) - window :])
    assert len(ids) > window and "beginning" in caplog.text and kept
    right = score_sequence(
        kit, ids[len(ids) + len(answer) - window :], answer, GenerateOptions(), ScoreHow(), silent
    )
    assert found[0] == pytest.approx(right.logprob, abs=1e-4) and right.windows == 1


def test_a_device_that_is_not_there_is_told(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert Cm3kitLM(str(toy()), device="cuda:0").device.type == "cpu" and "cuda:0" in caplog.text


def test_until() -> None:
    assert until("one\n\ntwo.", [".", "\n\n"]) == "one" and until("one", ["x"]) == "one"


def test_a_task_runs(tmp_path: Path) -> None:
    rows = [
        {"question": "a red", "choices": [" apple", " pear", " book"], "answer": number % 3}
        for number in range(4)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "tiny.yaml").write_text(
        f"""task: cm3kit_tiny
dataset_path: json
dataset_kwargs:
  data_files: {{test: {tmp_path}/rows.jsonl}}
  cache_dir: {tmp_path}/cache
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
"""
    )
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = simple_evaluate(
        model="cm3kit", model_args={"pretrained": toy_kit(), "decoder": "cm3"}, tasks=["cm3kit_tiny"],
        task_manager=manager, bootstrap_iters=0, log_samples=True,
    )  # fmt: skip
    samples = found["samples"]["cm3kit_tiny"]
    right = score_words(
        toy_kit(), [("a red", each) for each in rows[0]["choices"]], GenerateOptions(), ScoreHow(), silent
    )
    for sample in samples:
        given = [float(each[0][0]) for each in sample["resps"]]
        assert given == pytest.approx([each.logprob for each in right], abs=1e-3)
    best = max(range(3), key=lambda number: right[number].logprob)
    share = sum(row["answer"] == best for row in rows) / len(rows)
    assert found["results"]["cm3kit_tiny"]["acc,none"] == pytest.approx(share)


def test_the_tasks_that_ship_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cm3kit.evaluation.lm_eval_tasks as ours

    links = [
        {"left": "a red ", "title": title, "candidates": ["apple", "pear"], "split": split}
        for title, split in (("apple", "test"), ("pear", "test"), ("apple", "train"), ("book", "test"))
    ]
    texts = [{"text": "a red apple", "summary": "apple", "split": split} for split in ("test", "train")]
    for name, rows in (("entity-pages", links), ("summaries", texts)):
        (tmp_path / "data" / name).mkdir(parents=True)
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        (tmp_path / "data" / name / "rows.jsonl").write_text(lines)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    manager = TaskManager(include_path=str(Path(ours.__path__[0])), include_defaults=False)
    found = simple_evaluate(
        model=Cm3kitLM(toy_kit(), max_gen_toks=8), tasks=["cm3kit_disambiguation", "cm3kit_summaries"],
        task_manager=manager, bootstrap_iters=0,
    )  # fmt: skip
    assert found["results"]["cm3kit_disambiguation"]["acc,none"] == 0.5  # one of two, whichever it likes
    assert found["n-samples"]["cm3kit_disambiguation"]["effective"] == 2
    assert found["n-samples"]["cm3kit_summaries"]["effective"] == 1
