"""Constraints on pages: from the page itself, flags, rows and HTTP, by both decoders."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from toys import toy, toy_kit

from cm3kit.batch.job import SampleJob
from cm3kit.batch.run import run as sample
from cm3kit.batch.store import read_lines
from cm3kit.fill.constraints import guided, pinned
from cm3kit.fill.kit import GenerateOptions
from cm3kit.serve import handlers, schemas
from cm3kit_cli.main import run
from cm3kit_tokenizers import Cm3kitError, ConfigError, Page, PageError

pytest.importorskip("outlines_core")

CM3 = GenerateOptions(decoder="cm3", max_tokens=14)
DECODERS = {
    "cm3": CM3, "diffusion": replace(CM3, decoder="diffusion", temperature=1.0),
    "random": replace(CM3, decoder="diffusion", order="random", steps=3, temperature=1.0),
    "backwards": replace(CM3, decoder="diffusion", sampler="ancestral", temperature=1.0),
}  # fmt: skip
JSON = '{"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}'
PAGE = (
    "<title><mask choices='red|gr\u00fcn &amp; &quot;blau&quot;'></title><p>in <mask regex='[0-9]{{2}}'> and <em>a"
    "<mask trie=titles.txt></em></p><img alt='<mask json-schema=\"{schema}\">' src='data:,'>"
)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    (tmp_path / "titles.txt").write_text("apple\npear < 3\n\nbig 'book'\napple\n", encoding="utf-8")
    (tmp_path / "schema.json").write_text(JSON)
    return tmp_path


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("codec", ["utf-8", "latin-1"])
def test_every_gap_keeps_to_its_constraint_and_is_escaped(name: str, codec: str, site: Path) -> None:
    head = f"<meta charset={codec}>"
    page = Page.parse((head + PAGE.format(schema="schema.json")).encode(codec), site)
    for filled in toy_kit().infill(page, variants=3, seed=1, options=DECODERS[name]):
        texts = [gap.text for gap in filled.gaps]
        assert texts[0] in ("red", 'gr\u00fcn & "blau"') and re.fullmatch("[0-9]{2}", texts[1])
        assert texts[2] in ("apple", "pear < 3", "big 'book'") and json.loads(texts[3])["a"] in (1, 2)
        assert all(gap.satisfied and gap.ended for gap in filled.gaps)
        assert sum("empty lines" in line or "more than once" in line for line in filled.warnings) == 2
        again = Page.parse(filled.html, site)
        assert (
            not again.gaps
            and f"alt='{texts[3].replace(chr(34), '&#34;')}'".encode()
            in filled.html.replace(b"&quot;", b"&#34;")
        )


def test_what_a_gap_says_is_as_likely_as_its_score(site: Path) -> None:
    kit, page = toy_kit(), Page.parse(b"<p>A <mask choices='red|green|big book'> apple</p>")
    for filled in kit.infill(page, variants=6, seed=0, options=CM3):
        (found,) = kit.score(page, [filled.gaps[0].text], options=CM3)
        assert found.logprob == pytest.approx(filled.gaps[0].logprob, abs=1e-4)


@pytest.mark.parametrize("name", DECODERS)
def test_an_answer_that_is_cut_counts_as_a_failure(name: str) -> None:
    page = Page.parse(b"<p>A <mask regex='([a-z] )*[a-z]'> apple</p>")
    found = [
        each.gaps[0]
        for each in toy_kit().infill(page, variants=8, seed=0, options=replace(DECODERS[name], max_tokens=3))
    ]
    assert all(re.fullmatch("([a-z] )*[a-z]", each.text) for each in found)
    assert all(each.satisfied == each.ended for each in found)
    cut = [each for each in found if not each.ended]
    assert all(each.tokens == 3 for each in cut)
    warned = toy_kit().infill(page, variants=8, seed=0, options=replace(DECODERS[name], max_tokens=3))
    assert sum(any("was cut" in line for line in each.warnings) for each in warned) == len(cut)


@pytest.mark.parametrize("name", ["cm3", "diffusion"])
@pytest.mark.parametrize(
    ("html", "words"),
    [
        ("<p><mask regex='[a-z]{99}'></p>", "raise --max-tokens"),
        ("<p><mask regex='a\\x02'></p>", "no answer keeps to it"),
        ("<p><mask regex='[a-z&&[0-9]]'></p>", "cannot be used"),
        ("<ul><mask choices='a|b'></ul>", "holds no words"),
        ("<p><mask choices='a||b'></p>", "empty text"),
        ("<p><mask trie='gone.txt'></p>", "is no file"),
        ("<p><mask trie='/etc/hostname'></p>", "lies outside"),
        ("<p><mask trie='../secret.txt'></p>", "lies outside"),
        ("<p><mask constraint='choice:a|b'></p>", "Did you mean 'choices'"),
        ('<p><mask json-schema=\'{"type":"integer","minimum":3}\'></p>', "minimum"),
        ("<p><mask regex='(?=a)b'></p>", "looks around"),
    ],
)
def test_gaps_that_no_answer_fits_are_reported_before_writing(
    name: str, html: str, words: str, site: Path
) -> None:
    (site / "in").mkdir()
    (site / "secret.txt").write_text("x")
    with pytest.raises(Cm3kitError, match=re.escape(words)) as error:
        toy_kit().infill(Page.parse(html.encode(), site / "in"), options=DECODERS[name])
    assert "\n" not in str(error.value)


def test_a_gap_has_one_constraint_and_pictures_have_none() -> None:
    for html in (b"<p><mask regex=a choices='a|b'></p>", b"<img src='<mask regex=a>'>"):
        with pytest.raises(PageError):
            Page.parse(html)
    page = Page.parse(b"<p><mask></p><img src='<mask>' alt=x>")
    for entry in ("1=choices:a|b", "7=choices:a", "choices:a", "x=choices:a", "0=choices"):
        with pytest.raises(ConfigError):
            toy_kit().infill(page, options=replace(CM3, constrain=(entry,)))


def test_flags_go_before_the_page_and_a_star_is_for_the_rest() -> None:
    page = Page.parse(b"<p><mask choices='red|green'> <mask choices='red|green'> <mask> <mask></p>")
    options = replace(CM3, constrain=("1=choices:blue", "*=regex:[0-9]", "3=html:"))
    filled = toy_kit().infill(page, seed=1, options=options)[0]
    assert filled.gaps[0].text in ("red", "green") and filled.gaps[1].text == "blue"
    assert filled.gaps[2].text.isdigit() and filled.gaps[3].satisfied is None


@pytest.mark.parametrize("name", ["cm3", "diffusion"])
def test_words_of_a_task_keep_to_a_constraint(name: str) -> None:
    options = replace(DECODERS[name], constrain=("*=choices:red apple|pear",))
    for result in toy_kit().generate("fruit", task="text", n=3, options=options):
        assert result.text in ("red apple", "pear")
    with pytest.raises(ConfigError, match="about words"):
        toy_kit().generate("fruit", task="image", options=replace(options, constrain=("0=choices:a",)))


def test_length_auto_tries_lengths_that_some_answer_has() -> None:
    page = Page.parse(b"<p>A <mask choices='red|big book of fruit'> apple</p>")
    for filled in toy_kit().infill(
        page, variants=2, options=replace(DECODERS["diffusion"], max_tokens=None, length="auto")
    ):
        assert filled.gaps[0].text in ("red", "big book of fruit")


def test_rows_take_vllms_names(site: Path) -> None:
    html = "<p>A <mask> apple</p>"
    rows = [
        {"html": html, "guided_choice": ["red", "a|b"]}, {"html": html, "guided_regex": "[0-9]"},
        {"html": html, "guided_json": {"enum": [1, 2]}}, {"html": html, "constrain": ["0=trie:titles.txt"]},
        {"html": html, "response_format": {"type": "json_schema", "json_schema": {"schema": {"const": 7}}}},
        {"html": html, "structured_outputs": {"choice": ["green"]}}, {"html": html, "guided_choice": "red"},
        {"html": html, "guided_choice": ["a"], "guided_regex": "b"},
    ]  # fmt: skip
    (site / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    job = SampleJob(site / "rows.jsonl", site / "out", str(toy()), "cpu", "infill", 1, 0, CM3)
    assert sample(job)["failed"] == 2
    lines = read_lines(site / "out")
    texts = [lines[row, 0]["gaps"][0]["text"] for row in range(6)]
    assert texts[0] in ("red", "a|b") and texts[1].isdigit() and texts[2] in "12" and texts[4] == "7"
    assert texts[3] in ("apple", "pear < 3", "big 'book'") and texts[5] == "green"
    assert all(lines[row, 0]["gaps"][0]["satisfied"] for row in range(6))


def test_requests_take_vllms_names_and_no_files(site: Path) -> None:
    kit, html = toy_kit(), "<p>A <mask> apple</p>"
    body = schemas.InfillBody(html=html, seed=0, guided_choice=["red", "green"], options={"max_tokens": 9})
    told = handlers.infill(body, kit, lambda done, total: None)
    assert told["variants"][0]["gaps"][0]["text"] in ("red", "green")
    words = schemas.CompletionBody(prompt="<p>A ", suffix=" apple</p>", seed=0, guided_regex="[0-9]{2}")
    (choice,) = handlers.completions(words, kit, lambda done, total: None)["choices"]
    assert re.fullmatch("[0-9]{2}", choice["text"]) and choice["finish_reason"] == "stop"
    with pytest.raises(ValueError, match="guided_grammar"):
        schemas.CompletionBody(prompt="x", guided_grammar="root ::= x")
    for wrong in ("0=trie:titles.txt", f"0=json-schema:{site / 'schema.json'}", "0=trie:/etc/hostname"):
        with pytest.raises(ConfigError, match="none may be named"):
            handlers.infill(
                schemas.InfillBody(html=html, options={"constrain": [wrong]}), kit, lambda d, t: None
            )
    with pytest.raises(ConfigError, match="none may be named"):
        handlers.infill(schemas.InfillBody(html="<p><mask trie=/etc/hostname></p>"), kit, lambda d, t: None)


@pytest.mark.parametrize("given", [{"guided_choice": []}, {"guided_json": 3}, {"response_format": {"type": "xml"}},
                                   {"structured_outputs": {"grammar": "x"}}, {"guided_json": "file.json"}])  # fmt: skip
def test_malformed_names_of_vllm_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as error:
        guided(given)
    assert "\n" not in str(error.value)
    assert guided({"response_format": {"type": "text"}, "guided_regex": None}) == ()


def test_a_recipe_makes_the_same_page_again_wherever_it_lies(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (site / "page.html").write_text("<p>A <mask trie=titles.txt> and <mask choices='a|b'></p>")
    out = site / "elsewhere" / "filled.html"
    arguments = ["infill", str(site / "page.html"), "-m", str(toy()), "--seed", "3", "-o", str(out), "-q"]
    assert run([*arguments, "--constrain", f"1=json-schema:{site / 'schema.json'}"]) == 0
    assert run(["reproduce", str(out), "-m", str(toy()), "-q"]) == 0, capsys.readouterr().err
    assert "same" in capsys.readouterr().out


def test_the_command_scores_and_refuses(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (site / "page.html").write_text("<p>A <mask choices='red|green'> apple, <mask></p>")
    model = ["-m", str(toy()), "-q"]
    assert run(["score", str(site / "page.html"), *model, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["data"]
    assert [each["answer"] for each in told["scores"]] == [{"0": "red"}, {"0": "green"}]
    assert told["best"] == max((0, 1), key=lambda place: told["scores"][place]["logprob"])
    (site / "a.jsonl").write_text('"red"\n{"0": "red", "1": "a pear"}\n')
    assert run(["score", str(site / "page.html"), *model, "--answers", str(site / "a.jsonl"), "--pmi"]) == 0
    lines = capsys.readouterr().out.splitlines()
    values = [float(line.split("\t")[0]) for line in lines]
    assert (
        len(lines) == 2 and values == sorted(values, reverse=True) and all("exact" in line for line in lines)
    )
    for wrong in (
        ["--answer", "x", "--gap", "5"],
        ["--answers", str(site / "gone.txt")],
        ["--method", "bound", "--answer", "x"],
    ):
        assert run(["score", str(site / "page.html"), *model, *wrong]) == 1
        error = capsys.readouterr()
        assert not error.out and len(error.err.strip().splitlines()) == 1
    (site / "bad.jsonl").write_text('"red"\n{"0": 3}\n')
    assert run(["score", str(site / "page.html"), *model, "--answers", str(site / "bad.jsonl")]) == 1
    assert "line 2" in capsys.readouterr().err


def test_pinned_options_mean_the_same_everywhere(site: Path) -> None:
    page = Page.parse(b"<p><mask trie=titles.txt></p>", site)
    options = pinned(replace(CM3, constrain=("*=json-schema:schema.json",)), site, page)
    assert options.constrain == (f"*=json-schema:{JSON}", f"0=trie:{site / 'titles.txt'}")
    assert pinned(CM3, None) is CM3


def test_a_page_from_words_fits_any_window_and_takes_no_constraint() -> None:
    (page,) = toy_kit().generate("fruit", task="document", options=GenerateOptions(decoder="cm3"))
    assert page.html is not None and "<title>fruit</title>" in page.html
    options = GenerateOptions(decoder="cm3", max_tokens=60, constrain=("*=choices:a",))
    with pytest.raises(ConfigError, match="about words"):
        toy_kit().generate("fruit", task="document", options=options)
