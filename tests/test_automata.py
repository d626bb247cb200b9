"""Constraints as tables on the device: they allow what the constraints themselves do, and end where those end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from canvases import answer, behind
from torch import Tensor

from cm3kit.canvas import ConstraintSpec
from cm3kit.decoders.causal.automata import Automata
from cm3kit.decoders.causal.jobs import Job, make_jobs
from cm3kit.decoders.grammar.html import Grammar
from cm3kit.decoders.grammar.html_state import MAX_DEPTH, Mode
from cm3kit.decoders.grammar.html_table import HtmlTable
from cm3kit.decoders.grammar.languages import Languages
from cm3kit.decoders.grammar.tables import NEVER
from cm3kit.types import Canvas
from cm3kit_tokenizers.vocab import Vocab

# Whole characters, the first and second bytes of longer ones, and a text that is both.
PIECES = [b"a", b"b", b"ab", b"\xc3", b"\xa9", b"\xe2\x82", b"\xe2", b"\x82", b"\xac", b"\xf0\x9f", b"b\xc3"]
VOCAB = Vocab(text_size=len(PIECES), image_size=3, sentinels=4)
LANGUAGES = Languages(VOCAB, lambda words: [PIECES.index(each.encode()) for each in words], PIECES)
GRAMMAR = Grammar(VOCAB, 4, PIECES, b"", LANGUAGES)
PLAIN = Grammar(VOCAB, 0, None, b"", LANGUAGES)
DEVICE = torch.device("cpu")


def ids(*pieces: str) -> tuple[int, ...]:
    return tuple(
        VOCAB.markup_id(each) if each in VOCAB.markup_ids else VOCAB.text.start + PIECES.index(each.encode())
        for each in pieces
    )


def asked(kind: str, most: int, prompt: Sequence[int] = (), **more: Any) -> Canvas:
    """A gap, behind a prompt if it is one of content, and another gap behind it."""
    lead = (VOCAB.eoss, VOCAB.sentinel(0)) if most % 2 else (VOCAB.sentinel(0),)
    first = answer(kind, most, lead=lead, **more)  # type: ignore[arg-type]
    second = answer("attribute", 2, lead=(VOCAB.eoss, VOCAB.sentinel(1))[most % 3 == 0 :])
    return behind((VOCAB.eod, *prompt, VOCAB.sentinel(0)), [first, second])


def constrained(value: str, most: int, **more: Any) -> Canvas:
    kind, _, rest = value.partition(":")
    return asked("attribute", most, constraint=ConstraintSpec(kind, rest), **more)


def document(prompt: Sequence[int], most: int) -> Canvas:
    span = replace(answer("document", most), end=VOCAB.eod, ends=(VOCAB.eoss,))
    return behind((VOCAB.eod, *prompt), [span])


DEEP = ids(*["<div>"] * (MAX_DEPTH - 1))
CASES: dict[str, Canvas] = {
    "content": asked("content", 5),
    "content in a link": asked("content", 4, ids("<p>", "<a", ' href="', "a", '"', ">")),
    "content in a list": asked("content", 5, ids("<ul>")),
    "content that may be empty": asked("content", 3, may_be_empty=True),
    "content of a length": asked("content", 3, length=4),
    "attribute": asked("attribute", 4),
    "attribute of a length": asked("attribute", 3, length=3),
    "attribute with other ends": asked("attribute", 4, end=VOCAB.eod, ends=(VOCAB.eoss, VOCAB.sentinel(2))),
    "ends by a token": asked("attribute", 4, end=ids("b")[0]),
    "picture": asked("image", 4, length=4),
    "document": document((), 4),
    "document in an element": document(ids("<figure>", "<p>", "<em>"), 6),
    "document in a link": document(ids("<a", ' href="', "a", '"', ">", "<em>"), 5),
    "document in a picture": document((*ids("<img", ' src="'), VOCAB.image.start), 9),
    "document in a value": document(ids("<img", ' alt="', "ab"), 7),
    "document that is deep": document(DEEP, MAX_DEPTH + 5),
    "choices": constrained("choices:abab|abb|a|bbbb", 9),
    "choices that are cut": constrained("choices:abab|abb|a|bbbb", 3),
    "choices of a length": constrained("choices:abab|abb|a|bbbb", 4, length=4),
    "regex": constrained("regex:(ab)*b?é?", 5),
    "regex that is cut": constrained("regex:a+b{2}", 4),
    "one answer": constrained("choices:ab", 2),
}


def job_of(canvas: Canvas, grammar: Grammar) -> Job:
    (job,) = make_jobs(0, canvas, grammar, 1, False, 1000)
    return job


def check(automata: Automata, jobs: dict[int, Job]) -> Tensor:
    """What tables allow is what runs do; ids that may come, (B, V)."""
    look = automata.look()
    for place, job in jobs.items():
        assert look.live_B[place] and int(look.number_B[place]) == job.drawn
        assert torch.equal(look.allowed_BV[place], job.run.allowed(job.left)), job.written
        assert bool(look.codes_B[place]) == job.run.image
    return look.allowed_BV


def follow(automata: Automata, jobs: dict[int, Job], chosen: dict[int, int]) -> list[int]:
    """Go on by an id in each place, in tables and in runs; the places whose spans are over."""
    ids_B, going_B = (
        torch.zeros(len(automata._rows_BF), dtype=torch.int64),
        torch.zeros(len(automata._rows_BF), dtype=torch.bool),
    )
    for place, id in chosen.items():
        ids_B[place], going_B[place] = id, True
    before = automata._rows_BF.clone()
    automata.advance(ids_B, going_B)
    assert torch.equal(automata._rows_BF[~going_B], before[~going_B])
    look, over = automata.look(), []
    for place, id in chosen.items():
        job = jobs[place]
        job.drawn += 1
        job.take(id, 0.0)
        if not job.fills:
            continue
        over.append(place)
        assert not look.live_B[place]
        if job.done:
            assert int(look.forced_B[place]) == -1
            continue
        forced = [*job.forced]
        behind = forced[1:] if forced[0] == id else forced
        assert int(look.forced_B[place]) == (behind[0] if behind else -1)
    return over


@pytest.mark.parametrize(
    ("name", "grammar"),
    [
        pytest.param(name, grammar, id=f"{name}-{kind}")
        for name in CASES
        for kind, grammar in (("utf-8", GRAMMAR), ("any", PLAIN))
        # PLAIN writes no pictures.
        if (name, kind) != ("document in a picture", "any")
    ],
)
def test_tables_allow_what_constraints_do_in_every_run_of_few_ids(name: str, grammar: Grammar) -> None:
    """All beginnings of answers as long as they are some hundreds, and those that follow on some of them."""
    canvas = CASES[name]
    beginnings: list[tuple[int, ...]] = [()]
    rng = torch.Generator().manual_seed(0)
    for length in range(min(canvas.spans[0].max_tokens, 7) + 2):
        jobs = {place: job_of(canvas, grammar) for place in range(len(beginnings))}
        if not jobs:
            break
        automata = Automata(HtmlTable.of(grammar), len(jobs), DEVICE)
        assert all(automata.begin(jobs).values())
        for step in range(length):
            over = follow(automata, jobs, {place: each[step] for place, each in enumerate(beginnings)})
            jobs = {place: job for place, job in jobs.items() if place not in over}
            assert not over or step == length - 1
        allowed_BV = check(automata, jobs)
        more = [
            (*beginnings[place], id) for place in jobs for id in allowed_BV[place].nonzero()[:, 0].tolist()
        ]
        if len(more) > 250:
            keep = torch.randperm(len(more), generator=rng)[:60].tolist()
            more = [more[at] for at in keep]
        beginnings = more


def test_walks_through_pages() -> None:
    """Long random walks, which open and close elements and links, and are short of budget now and then."""
    rng = torch.Generator().manual_seed(1)
    modes, deepest = set(), 0
    canvases = [asked("content", 20 + each) for each in range(8)]
    canvases += [document((), 40 + each) for each in range(8)] + [document(DEEP, MAX_DEPTH + 30)] * 4
    jobs = {place: job_of(each, GRAMMAR) for place, each in enumerate(canvases)}
    automata = Automata(HtmlTable.of(GRAMMAR), len(jobs), DEVICE)
    assert all(automata.begin(jobs).values())
    while jobs:
        allowed_BV = check(automata, jobs)
        markup_V = torch.zeros(len(VOCAB))
        markup_V[VOCAB.markup.start : VOCAB.markup.stop] = 1
        chosen = {}
        for place, job in jobs.items():
            modes.add(job.run._state.mode)  # type: ignore[attr-defined]
            deepest = max(deepest, len(job.run._state.stack))  # type: ignore[attr-defined]
            # Ends are rare, so that walks are long.
            weight_V = allowed_BV[place] * (0.3 + 3 * markup_V)
            weight_V[[VOCAB.eoss, VOCAB.eod]] *= 0.01
            chosen[place] = int(torch.multinomial(weight_V, 1, generator=rng))
        over = follow(automata, jobs, chosen)
        jobs = {place: job for place, job in jobs.items() if place not in over}
    assert deepest == MAX_DEPTH and modes == {Mode.CONTENT, Mode.TAG, Mode.VALUE, Mode.SRC}


def test_what_has_no_table_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("token_dfa", "token_trie"):
        monkeypatch.setattr(f"cm3kit.decoders.grammar.{module}.MOST_STATES", 4)
    canvases = [constrained("choices:abab|abb", 9), constrained("regex:(ab){5}", 30), asked("attribute", 4)]
    canvases += [constrained("regex:a+", 3, length=3), document(ids(*["<div>"] * (MAX_DEPTH + 1)), 99)]
    jobs = {place: job_of(each, GRAMMAR) for place, each in enumerate(canvases)}
    automata = Automata(HtmlTable.of(GRAMMAR), len(jobs), DEVICE)
    assert [*automata.begin(jobs).values()] == [False, False, True, False, False] and automata.refused == 4


def test_tables_share_a_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cm3kit.decoders.causal.automata.MOST_STATES", 20)
    automata = Automata(HtmlTable.of(GRAMMAR), 3, DEVICE)
    jobs = [job_of(constrained(f"choices:{'a' * (each + 4)}|b", 20), GRAMMAR) for each in range(9)]
    assert automata.begin({0: jobs[0]}) == {0: True} and automata.begin({1: jobs[1]}) == {1: True}
    assert automata.begin({2: jobs[4]}) == {2: False} and automata.refused == 1
    # Those in use stay as they are; where none is, all make room.
    check(automata, {0: jobs[0], 1: jobs[1]})
    assert automata.begin({0: job_of(asked("content", 5), GRAMMAR)}) == {0: True}
    assert automata.begin({1: job_of(asked("content", 5), GRAMMAR)}) == {1: True}
    for job in (*jobs, *jobs[::-1]):
        job = replace(job)
        job.begin()
        assert automata.begin({2: job}) == {2: True}
        check(automata, {2: job})
    assert automata.refused == 1
    assert int((automata._needs_SC < NEVER).sum()) < automata._needs_SC.numel() / 2
