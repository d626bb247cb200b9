"""What a trellis allows is what the grammar accepts: by enumeration, and by writing in random orders."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain, combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from canvases import FlatSpan, answer, flat_canvas, start
from justhtml import JustHTML

from cm3kit.decoders.diffusion.denoiser import Constraint
from cm3kit.decoders.grammar.canvas_constraint import _SUBSETS, KEPT, CanvasConstraint, Trellis
from cm3kit.decoders.grammar.html import Grammar
from cm3kit.decoders.grammar.html_state import Mode, State
from cm3kit.decoders.grammar.lazy_dfa import Subsets
from cm3kit.decoders.grammar.nfa import build
from cm3kit.types import SpanKind
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.html.minimal import render
from cm3kit_tokenizers.sequence import PageTokenizer
from cm3kit_tokenizers.text import TextTokenizer
from cm3kit_tokenizers.vocab import Vocab

PIECES = [b"A", b'<b>"', b"\xc3", b"\xa9", b"\xe2\x82", b"\xac", b"x\xe0", b"\xf0\x9f", b"\xed", b"\x00", b""]
VOCAB = Vocab(text_size=len(PIECES), image_size=3, sentinels=2)
FULL = Grammar(VOCAB, 3, PIECES)
TAGS = VOCAB.markup
TINY_VOCAB = Vocab(text_size=3, image_size=2, sentinels=1)
TINY = Grammar(TINY_VOCAB, 2, [b"A", b"\xc3", b"\xa9"])
Case = tuple[Grammar, SpanKind, tuple[str, ...], int, bool, int]
SMALL: list[Case] = [
    (FULL, "attribute", (), 3, True, 1),
    (FULL, "attribute", (), 3, False, 1),
    (FULL, "image", (), 2, False, 1),
    (TINY, "content", ("p", "a"), 3, True, 1),
    (TINY, "content", ("ul",), 4, False, 2),
    (TINY, "content", ("ul",), 4, True, 1),
    (TINY, "content", ("table", "tr"), 4, True, 1),
    (TINY, "content", ("dl",), 4, False, 2),
]
LARGE: list[Case] = [
    (FULL, "attribute", (), 4, True, 1),
    (TINY, "content", ("em",), 5, True, 2),
    (TINY, "content", ("p",), 5, False, 1),
    (TINY, "content", (), 3, True, 3),
    (TINY, "content", ("table",), 5, True, 3),
    (TINY, "content", ("ul",), 6, True, 2),
    (TINY, "document", (), 3, True, 1),
    (TINY, "document", ("p", "em"), 4, True, 2),
    (TINY, "document", ("p",), 3, False, 1),
]


def markup(*pieces: str) -> list[int]:
    return [VOCAB.markup_id(piece) for piece in pieces]


def opening(grammar: Grammar, names: Sequence[str]) -> list[int]:
    pieces = [piece for name in names for piece in (("<a", ">") if name == "a" else (f"<{name}>",))]
    return [grammar.vocab.markup_id(piece) for piece in pieces]


def constrain(case: Case) -> Constraint:
    """The constraint of one stretch, whose slots are counted from its start on."""
    grammar, kind, around, length, padded, depth = case
    lead = opening(grammar, around)
    stretch = FlatSpan(kind, len(lead), len(lead) + length, padded)
    board = flat_canvas((*lead, *[grammar.vocab.mask] * length), (stretch,))
    return Shifted(CanvasConstraint(board, grammar, depth), len(lead))


class Shifted:
    """A constraint whose slots are counted from another place on."""

    def __init__(self, constraint: CanvasConstraint, by: int) -> None:
        self._constraint, self._by = constraint, by

    def allowed(self, slots: Sequence[int]) -> torch.Tensor:
        return self._constraint.allowed([self._by + slot for slot in slots])

    def commit(self, slot: int, id: int) -> None:
        self._constraint.commit(self._by + slot, id)

    def release(self, slot: int) -> None:
        self._constraint.release(self._by + slot)


@cache
def accepted(case: Case) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """Every filling that the left-to-right grammar ends well on, (N, L): it asks with its budget where
    an end id may come, and without one where the run has to have exactly L ids.
    """
    grammar, kind, around, length, padded, depth = case
    lead = opening(grammar, around)
    exact = None if padded or kind == "document" else 1 << 20
    sentinel = grammar.vocab.sentinel(0)
    begun = start(grammar, answer(kind, 1 << 20, (sentinel,), exact), [*lead, sentinel])
    runs: list[list[int]] = []

    def go_on(state: State, run: list[int]) -> None:
        left = length - len(run)
        if not left:
            if state.cost == 0 and state.mode in (Mode.CONTENT, Mode.TEXT, Mode.CODES):
                runs.append(run)
            return
        for id in grammar.allowed(state, left if padded else 1 << 20).nonzero().flatten().tolist():
            after = grammar.advance(state, id)
            if id == state.end:
                # An empty answer, which the grammar gives where nothing fits, is none here.
                runs.extend([[*run, *[id] * left]] if padded and state.written else [])
            elif len(after.stack) - shared(after.stack, begun.stack) <= depth and after.tag != "img":
                go_on(after, [*run, id])

    go_on(begun, [])
    return np.array(runs)


def shared(one: Sequence[str], other: Sequence[str]) -> int:
    """Elements that two stacks share from the outside in."""
    differ = [at for at, (mine, theirs) in enumerate(zip(one, other, strict=False)) if mine != theirs]
    return min([len(one), len(other), *differ])


def expected(runs: np.ndarray, size: int, partial: dict[int, int], slot: int) -> torch.Tensor:  # type: ignore[type-arg]
    """Ids of one slot among the fillings that hold what is written in the others."""
    fits = np.ones(len(runs), dtype=bool)
    for place, id in partial.items():
        fits &= (runs[:, place] == id) | (place == slot)
    mask_V = torch.zeros(size, dtype=torch.bool)
    mask_V[torch.from_numpy(np.unique(runs[fits, slot]))] = True
    return mask_V


def subsets(length: int) -> Iterator[tuple[int, ...]]:
    return chain.from_iterable(combinations(range(length), count) for count in range(length + 1))


@pytest.mark.parametrize("case", SMALL, ids=lambda case: f"{case[1]}{case[2]}{case[3:]}")
def test_every_partial_writing_allows_exactly_what_can_be_finished(case: Case) -> None:
    grammar, length = case[0], case[3]
    runs, constraint, seen = accepted(case), constrain(case), 0
    for slots in subsets(length):
        for ids in np.unique(runs[:, slots], axis=0).tolist() if slots else [[]]:
            partial = dict(zip(slots, ids, strict=True))
            for slot, id in partial.items():
                constraint.commit(slot, id)
            allowed_LV = constraint.allowed(range(length))
            for slot in range(length):
                assert torch.equal(allowed_LV[slot], expected(runs, len(grammar), partial, slot)), partial
            for slot in partial:
                constraint.release(slot)
            seen += 1
    assert seen > 10


@pytest.mark.parametrize("case", LARGE, ids=lambda case: f"{case[1]}{case[2]}{case[3:]}")
def test_random_partial_writings_of_longer_stretches(case: Case) -> None:
    grammar, length = case[0], case[3]
    runs, constraint, rng = accepted(case), constrain(case), random.Random(0)
    partial: dict[int, int] = {}
    for _ in range(60):
        for slot in [slot for slot in partial if rng.random() < 0.6]:
            constraint.release(slot)
            del partial[slot]
        fits = [run for run in runs if all(run[slot] == id for slot, id in partial.items())]
        run = rng.choice(fits)
        for slot in rng.sample(range(length), rng.randrange(length + 1)):
            constraint.commit(slot, int(run[slot]))
            partial[slot] = int(run[slot])
        for slot in range(length):
            mask_V = constraint.allowed([slot])[0]
            assert torch.equal(mask_V, expected(runs, len(grammar), partial, slot)), partial
    assert len(runs) > 3


def write_at_random(rng: random.Random, constraint: CanvasConstraint, slots: Sequence[int]) -> dict[int, int]:
    """Write some slots a step, chosen by what was allowed before the step; take some back now and then."""
    written: dict[int, int] = {}
    while len(written) < len(slots):
        free = [slot for slot in slots if slot not in written]
        chosen = rng.sample(free, min(len(free), rng.randrange(1, 5)))
        picks = {slot: pick(rng, mask) for slot, mask in zip(chosen, constraint.allowed(chosen), strict=True)}
        for slot, id in picks.items():
            mask_V = constraint.allowed([slot])[0]
            id = id if mask_V[id] else pick(rng, mask_V)
            constraint.commit(slot, id)
            written[slot] = id
        if rng.random() < 0.3:
            for slot in rng.sample(sorted(written), rng.randrange(1, 1 + min(3, len(written)))):
                constraint.release(slot)
                del written[slot]
    return written


def pick(rng: random.Random, mask_V: torch.Tensor) -> int:
    ids = mask_V.nonzero().flatten().tolist()
    assert ids, "a dead end"
    tags = [id for id in ids if id in TAGS]
    return int(rng.choice(tags if tags and rng.random() < 0.4 else ids))


class Words:
    """The text tokenizer of `PIECES`, as far as decoding goes."""

    def decode(self, ids: Sequence[int]) -> str:
        return b"".join(PIECES[id] for id in ids).decode("utf-8")


def page(ids: Sequence[int], vocab: Vocab = VOCAB, text: object = None) -> str:
    nodes = PageTokenizer(text or Words(), vocab).decode(ids)  # type: ignore[arg-type]
    return render(nodes, lambda image: "c" * len(image.codes))


def check_well_formed(ids: Sequence[int], vocab: Vocab = VOCAB, text: object = None) -> None:
    """The page parses without errors to as many elements and links as were opened."""
    pieces = [vocab.piece(id) for id in ids if id in vocab.markup]
    html = page(ids, vocab, text)
    parsed = JustHTML("<!DOCTYPE html>" + html, collect_errors=True, sanitize=False)
    assert not parsed.errors, html
    for name in {piece.strip("<>/") for piece in pieces if piece.startswith("<")}:
        opened = sum(piece in (f"<{name}>", f"<{name}") for piece in pieces)
        assert len(parsed.query(name)) == opened, (name, html)


def test_boards_written_in_any_order_are_well_formed_pages() -> None:
    rng, used = random.Random(1), set()
    for _ in range(200):
        ids: list[int] = []
        stretches: list[FlatSpan] = []

        def gap(kind: SpanKind, length: int, padded: bool) -> None:
            stretches.append(FlatSpan(kind, len(ids), len(ids) + length, padded))  # noqa: B023
            ids.extend([VOCAB.mask] * length)  # noqa: B023

        ids += markup("<title>")
        gap("content", rng.randrange(1, 5), rng.random() < 0.5)
        ids += markup("</title>", "<div>")
        gap("content", rng.randrange(1, 25), rng.random() < 0.8)
        around = rng.choice(["<p>", "<ul>", "<h2>", "<td>"])
        outer = {"<td>": ["<table>", "<tr>", "<td>"]}.get(around, [around])
        ids += markup(*outer)
        gap("content", rng.randrange(2, 20), True)
        ids += markup(*(piece.replace("<", "</") for piece in reversed(outer)), "<p>", "<img", ' alt="')
        gap("attribute", rng.randrange(1, 6), rng.random() < 0.5)
        ids += [*markup('"', ' src="'), VOCAB.image.start]
        gap("image", 2, False)
        ids += markup('"', ">", "</p>", "</div>")
        constraint = CanvasConstraint(flat_canvas(tuple(ids), tuple(stretches)), FULL, depth=2)
        slots = [slot for stretch in stretches for slot in range(stretch.start, stretch.stop)]
        for slot, id in write_at_random(rng, constraint, slots).items():
            ids[slot] = id
        used |= {VOCAB.piece(id) for id in ids if id in VOCAB.markup}
        check_answers(ids, stretches)
        check_well_formed([id for id in ids if id != VOCAB.eoss])
    assert {"<dl>", "<figcaption>", ' href="', ' title="', "</a>", "<br>"} <= used


def check_answers(ids: Sequence[int], stretches: Sequence[FlatSpan]) -> None:
    """The left-to-right grammar accepts each written, and only its end is padded."""
    for stretch in stretches:
        run = list(ids[stretch.start : stretch.stop])
        written = [id for id in run if id != VOCAB.eoss]
        assert written and run == written + [VOCAB.eoss] * (len(run) - len(written))
        assert stretch.padded or len(written) == len(run)
        prompt = [*ids[: stretch.start], VOCAB.sentinel(0)]
        length = None if stretch.padded else len(run)
        span = answer(stretch.kind, len(run), (VOCAB.sentinel(0),), length)
        state = start(FULL, span, prompt)
        for at, id in enumerate(written):
            assert FULL.allowed(state, len(run) - at)[id]
            state = FULL.advance(state, id)
        assert state.cost == 0
        assert len(run) == len(written) or FULL.allowed(state, len(run) - len(written))[VOCAB.eoss]


def test_pages_of_the_shipped_text_tokenizer() -> None:
    text = TextTokenizer.load(Path(__file__).parent.parent / "checkpoints/pictures/text")
    vocab = Vocab(text.size, 16, 2)
    grammar = Grammar(vocab, 4, text.pieces)
    lead, tail = [vocab.markup_id("<div>")], [vocab.markup_id("</div>")]
    rng = random.Random(2)
    for length in (1, 2, 9, 64):
        for _ in range(3):
            board = flat_canvas(
                (*lead, *[vocab.mask] * length, *tail), (FlatSpan("content", 1, 1 + length, True),)
            )
            written = write_at_random(rng, CanvasConstraint(board, grammar), range(1, 1 + length))
            ids = [*lead, *(written[slot] for slot in sorted(written)), *tail]
            check_well_formed([id for id in ids if id != vocab.eoss], vocab, text)


def test_a_gap_knows_the_elements_around_it_whatever_fills_the_gaps_before() -> None:
    ids = [*markup("<p>", "<a", ">"), MASK := VOCAB.mask, *markup("</a>"), MASK, MASK, *markup("</p>"), MASK]
    stretches = (FlatSpan("content", 3, 4), FlatSpan("content", 5, 7, True), FlatSpan("content", 8, 9, True))
    constraint = CanvasConstraint(flat_canvas(tuple(ids), stretches), FULL)
    link, paragraph, emphasis = (VOCAB.markup_id(piece) for piece in ("<a", "<p>", "<em>"))
    assert constraint.allowed([5])[0, emphasis] and not constraint.allowed([5])[0, paragraph]
    assert not constraint.allowed([3])[0, [link, emphasis]].any()
    written = list(ids)
    written[5:7] = markup("<em>", "</em>")
    again = CanvasConstraint(flat_canvas(tuple(ids), stretches), FULL)
    for slot in (5, 6):
        again.commit(slot, written[slot])
    assert torch.equal(again.allowed([3, 8]), constraint.allowed([3, 8]))
    assert again.allowed([6])[0].nonzero().flatten().tolist() == markup("</em>")
    again.release(5)
    assert not again.allowed([5])[0, markup("<strong>")].any()
    again.release(6)
    assert torch.equal(again.allowed(range(5, 7)), constraint.allowed(range(5, 7)))


def test_a_link_and_its_attributes() -> None:
    constraint = constrain((FULL, "content", ("p",), 9, False, 1))
    for slot, piece in ((8, "</a>"), (3, ' title="'), (0, "<a")):
        constraint.commit(slot, VOCAB.markup_id(piece))
    assert constraint.allowed([1])[0].nonzero().flatten().tolist() == markup(' href="')
    assert constraint.allowed([2])[0].nonzero().flatten().tolist() == markup('"')
    assert VOCAB.markup_id('"') in constraint.allowed([4])[0].nonzero()
    for slot, id in ((4, VOCAB.text.start), (6, VOCAB.markup_id('"'))):
        constraint.commit(slot, id)
    assert constraint.allowed([5])[0].nonzero().flatten().tolist() == [*VOCAB.text][:2]
    assert constraint.allowed([7])[0].nonzero().flatten().tolist() == markup(">")


@pytest.mark.parametrize(
    ("kind", "around", "length", "padded", "hint"),
    [
        ("content", ("ul",), 1, True, "takes 2"),
        ("content", ("ul",), 1, False, "inside <ul> cannot be filled with 1 ids"),
        ("content", ("table",), 3, False, "takes 2"),
        ("attribute", (), 0, True, "takes 1"),
        ("image", (), 0, False, "takes 1"),
        ("document", ("div", "p"), 1, True, "takes 2"),
    ],
)
def test_a_stretch_that_can_hold_no_answer(
    kind: SpanKind, around: tuple[str, ...], length: int, padded: bool, hint: str
) -> None:
    with pytest.raises(ConfigError, match=hint) as error:
        constrain((FULL, kind, around, length, padded, 2))
    assert error.value.code == "bad_value" and "\n" not in str(error.value)


def test_text_that_can_never_be_whole() -> None:
    grammar = Grammar(VOCAB, 3, [b"\xe2"] * len(PIECES))
    with pytest.raises(ConfigError, match="nor with any other number"):
        constrain((grammar, "attribute", (), 4, True, 1))


def test_ids_that_do_not_fit_are_refused() -> None:
    stretch = FlatSpan("attribute", 0, 2)
    constraint = CanvasConstraint(flat_canvas((VOCAB.mask, VOCAB.mask), (stretch,)), FULL)
    with pytest.raises(ValueError, match="not allowed in slot"):
        constraint.commit(0, VOCAB.mask)
    assert constraint.allowed([]).shape == (0, len(VOCAB))


def test_automata_are_shared_and_few_are_kept() -> None:
    grammar = Grammar(TINY_VOCAB, 2)
    for around in (("p",), ("div", "p"), ("p", "em"), ("p",)):
        constrain((grammar, "content", around, 5, True, 1))
    assert len(_SUBSETS[grammar]) == 2
    for depth in range(KEPT + 5):
        constrain((grammar, "attribute", (), 2, True, depth))
    assert len(_SUBSETS[grammar]) == KEPT


def test_forgetting_changes_nothing() -> None:
    start = TINY.begin("content", False, TINY.after(()))
    automaton = build(TINY, start, True, 2)
    steady, forgetful = (Trellis(Subsets(automaton, held), 12) for held in (1 << 26, 20_000))
    rng = random.Random(3)
    for _ in range(150):
        slot = rng.randrange(12)
        id = pick(rng, steady.allowed(slot))
        for trellis in (steady, forgetful):
            trellis.commit(slot, id)
        for place in range(12):
            assert torch.equal(steady.allowed(place), forgetful.allowed(place))
        if rng.random() < 0.5:
            slot = rng.randrange(12)
            steady.release(slot)
            forgetful.release(slot)
