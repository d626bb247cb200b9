"""Models that only read on, asked for values and elements of a page; and candidates read from left to right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toys import toy_kit

from cm3kit.evaluation.task_choices import values_of
from cm3kit.evaluation.task_files import load_task
from cm3kit.evaluation.task_run import RunHow, run_task
from cm3kit.fill.kit import GenerateOptions, Kit
from cm3kit_tokenizers import Page
from cm3kit_tokenizers.document import Gap
from cm3kit_tokenizers.errors import ConfigError, PageError

GREEDY = GenerateOptions(temperature=0, max_tokens=8, precision="fp32")
EXACT = GenerateOptions(precision="fp32")
LINK = '<p>a red <a title="<mask>">apple</a> on the table</p>'


def page_of(source: str) -> Page:
    return Page.parse(f'<meta charset="utf-8">{source}'.encode())


def parts_of(kit: Kit, page: Page) -> tuple[list[int], list[int]]:
    """Ids before and behind the only gap."""
    ids = kit.tokenizer.encode(page.nodes())
    at = next(place for place, each in enumerate(ids) if isinstance(each, Gap))
    before, after = ([each for each in part if isinstance(each, int)] for part in (ids[:at], ids[at + 1 :]))
    return [kit.vocab.eod, *before], after


@torch.no_grad()
def read_on(kit: Kit, before: Sequence[int], ids: Sequence[int]) -> list[float]:
    """log p of each id behind others, by transformers alone."""
    logits_TV = kit.parts.backbone(input_ids=torch.tensor([[*before, *ids]])).logits[0].float()
    logprobs_TV = logits_TV.log_softmax(-1)
    return [float(logprobs_TV[len(before) - 1 + place, id]) for place, id in enumerate(ids)]


@pytest.mark.parametrize(
    ("source", "end"),
    [
        (LINK, '"'),
        ("<h1>a red <mask></h1><p>on the table</p>", "</h1>"),
        ("<title><mask></title><p>a red apple</p>", "</title>"),
    ],
)
def test_a_next_token_model_writes_to_the_end_of_a_value_or_an_element(source: str, end: str) -> None:
    kit, page = toy_kit("next-token"), page_of(source)
    before, _ = parts_of(kit, page)
    found = kit.infill(page, options=GREEDY)[0]
    assert any("not what follows" in line for line in found.warnings)
    (gap,), ids = found.gaps, found.answers[0, 0]
    assert all(id in kit.vocab.text for id in ids)
    Page.parse(found.html).nodes()
    told = read_on(kit, before, [*ids, kit.vocab.markup_id(end)])
    assert gap.logprob == pytest.approx(sum(told[: len(ids) + gap.ended]), abs=1e-3)
    # What follows the gap changes nothing.
    other = page_of(source.replace("table", "pear").replace("red apple", "blue pear"))
    assert kit.infill(other, options=GREEDY)[0].answers == found.answers
    text = kit.tokenizer.text_ids(" pear")
    (score,) = kit.score(page, ["pear"], options=EXACT)
    lead = text if source.startswith("<h1>") else kit.tokenizer.text_ids("pear")
    assert score.logprob == pytest.approx(
        sum(read_on(kit, before, [*lead, kit.vocab.markup_id(end)])), abs=1e-3
    )


def test_several_gaps_are_written_one_after_the_other() -> None:
    kit = toy_kit("next-token")
    found = kit.infill(page_of('<p>a <a title="<mask>">red</a> <em><mask></em></p>'), options=GREEDY)[0]
    assert [gap.kind for gap in found.gaps] == ["attribute", "content"]
    ids = kit.tokenizer.encode(page_of('<p>a <a title="x">red</a> <em>x</em></p>').nodes())
    start, stop = ids.index(kit.vocab.markup_id(' title="')) + 1, ids.index(kit.vocab.markup_id('"'))
    opened = ids.index(kit.vocab.markup_id("<em>")) + 1
    # The second is written behind the first one's answer.
    before = [kit.vocab.eod, *ids[:start], *found.answers[0, 0], *ids[stop:opened]]
    told = read_on(kit, before, [*found.answers[1, 0], kit.vocab.markup_id("</em>")])  # type: ignore[arg-type]
    second = found.gaps[1]
    assert second.logprob == pytest.approx(sum(told[: len(found.answers[1, 0]) + second.ended]), abs=1e-3)


@pytest.mark.parametrize(
    "source", ["<p>a <mask> apple</p>", "<ul><mask></ul>", '<p><a title="a <mask> b">c</a></p>']
)
def test_gaps_that_it_cannot_lead_on_from_are_refused(source: str) -> None:
    with pytest.raises(PageError, match="next-token") as caught:
        toy_kit("next-token").infill(page_of(source), options=GREEDY)
    assert caught.value.code == "gap_place" and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["both", "next-token"])
def test_candidates_are_read_in_their_place(kind: str) -> None:
    kit, page, given = toy_kit(kind), page_of(LINK), ["pear", "a red apple", "table"]
    before, after = parts_of(kit, page)
    ids = [kit.tokenizer.text_ids(each) for each in given]
    for scored, follows in (("left", after[:1]), ("page", [*after, kit.vocab.eod])):
        spec = load_task("entity-disambiguation-page", [f"scored={scored}"]).spec
        found, method = values_of(kit, page, given, spec, EXACT)
        told = [sum(read_on(kit, before, [*each, *follows])) for each in ids]
        assert found == pytest.approx(told, abs=1e-3) and method == "exact"
    # Only a constant is between that and the score of each whole page.
    whole = [kit.score(page_of(LINK.replace("<mask>", each)), options=EXACT)[0].logprob for each in given]
    assert [each - found[0] for each in found] == pytest.approx([each - whole[0] for each in whole], abs=1e-3)


def test_a_diffusion_decoder_reads_them_too() -> None:
    kit, page, given = toy_kit(), page_of(LINK), ["pear", "table"]
    options = GenerateOptions(decoder="diffusion", precision="fp32")
    for method in ("left-to-right", "bound"):
        spec = load_task("entity-disambiguation-page", [f"method={method}", "rounds=4"]).spec
        values, named = values_of(kit, page, given, spec, options)
        assert named == method and len(values) == 2 and all(each < 0 for each in values)
        gap = load_task("entity-disambiguation", [f"method={method}", "rounds=4"]).spec
        scores = kit.score(page, given, method=gap.method, rounds=4, options=options)
        assert values_of(kit, page, given, gap, options)[0] == pytest.approx([s.logprob for s in scores])


def test_settings_over_a_file_are_another_task(tmp_path: Path) -> None:
    row = {
        "page": "p", "split": "test", "left": "a ", "mention": "red", "right": " apple", "title": "red",
        "candidates": ["red", "pear"],
    }  # fmt: skip
    (tmp_path / "rows.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(row | {'split': 'train'})}\n")
    plain, left = load_task("entity-disambiguation"), load_task("entity-disambiguation", ["scored=left"])
    assert plain.sha256 != left.sha256 and plain.spec.scored == "gap" and left.spec.scored == "left"
    told: list[str] = []
    how = RunHow(data=tmp_path, output=tmp_path / "out")
    run_task(toy_kit("next-token"), plain, how, warn=told.append)
    assert any("not what follows" in line for line in told)
    with pytest.raises(ConfigError, match="another task"):
        run_task(toy_kit("next-token"), left, how)
    for wrong, said in (("scored=right", "scored"), ("pmi=true", "without pmi"), ("colour=red", "colour")):
        with pytest.raises(ConfigError, match=said):
            load_task("entity-disambiguation", ["scored=left", wrong])


def test_runs_are_compared_on_the_same_rows(tmp_path: Path) -> None:
    rows = [
        {"page": f"p{number}", "split": split, "left": f"a {word} ", "mention": "red", "right": " apple",
         "title": title, "candidates": ["red", "pear", "a table"]}
        for number, (word, title, split) in enumerate(
            [("big", "red", "test"), ("green", "pear", "test"), ("so", "a table", "test"), ("x", "red", "train")]
        )
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    kit, task = toy_kit(), load_task("entity-disambiguation")
    how = RunHow(data=tmp_path, output=tmp_path / "out")
    first = run_task(kit, task, how)
    page = tmp_path / "out/entity-disambiguation"
    second = run_task(kit, load_task("entity-disambiguation-page"), replace(how, against=(page,)))
    alone = run_task(kit, load_task("entity-disambiguation-page"), replace(how, output=None))
    assert second["figures"][str(page)] == first["figures"]["model"]
    assert second["figures"]["model"] == alone["figures"]["model"]
    value = {
        name: found["figures"]["model"]["accuracy"]["value"] for name, found in (("a", first), ("b", second))
    }
    above = second["model_minus"][str(page)]["accuracy"]
    assert above["value"] == pytest.approx(value["b"] - value["a"]) and above["low"] <= above["value"]
    # A run against itself.
    again = run_task(kit, task, replace(how, against=(page,)))
    same = again["model_minus"][str(page)]["accuracy"]
    assert (same["value"], same["low"], same["high"]) == (0, 0, 0)
    with pytest.raises(ConfigError, match="no run"):
        run_task(kit, task, replace(how, against=(tmp_path / "out",)))
    run_task(kit, task, replace(how, output=tmp_path / "few", limit=1))
    with pytest.raises(ConfigError, match="lacks 2 of the 3 rows"):
        run_task(kit, task, replace(how, against=(tmp_path / "few/entity-disambiguation",)))
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in [*rows, rows[0]]))
    with pytest.raises(ConfigError, match="other data"):
        run_task(kit, task, replace(how, output=None, against=(page,)))
