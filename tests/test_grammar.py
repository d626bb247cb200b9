"""Random walks over allowed ids end in time, parse to the tree that was written, and never get stuck."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

import pytest
import torch
from canvases import answer, start
from justhtml import JustHTML
from torch import Tensor

from cm3kit.decoders.grammar.html import Grammar
from cm3kit.decoders.grammar.html_state import State
from cm3kit.decoders.grammar.utf8 import REJECT, follow
from cm3kit.types import MaskSpan
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.vocab import VOID, Vocab

PIECES = [
    *(bytes([65 + i]) for i in range(26)),
    *(bytes([97 + i]) for i in range(26)),
    b'<b>"',
    b"&lt",
    b"ab c",
]
PIECES += [b"\xc3", b"\xa9", b"\xe2\x82", b"\xac", b"\xf0\x9f", b"\x8d\x8e", b"x\xe0", b"\xed", b"\x00", b""]
LENGTH = 6
VOCAB = Vocab(text_size=len(PIECES), image_size=12, sentinels=4)
GRAMMAR = Grammar(VOCAB, LENGTH, PIECES)
NEVER = {VOCAB.pad, VOCAB.mask, 4, 5, 6, 7, *VOCAB.sentinel_range}


def markup(*pieces: str) -> list[int]:
    return [VOCAB.markup_id(piece) for piece in pieces]


def text(content: str) -> list[int]:
    return [VOCAB.text.start + PIECES.index(char.encode()) for char in content]


def codes(count: int) -> list[int]:
    return [VOCAB.image.start + i % 12 for i in range(count)]


def walk(
    rng: random.Random, blank: MaskSpan, prompt: Sequence[int], seen: dict[int, Tensor], greed: float
) -> tuple[list[int], bool]:
    """A random run; `greed` is how often it takes markup over text."""
    state, run = start(GRAMMAR, blank, prompt), []
    budget = blank.max_tokens
    while budget:
        mask = GRAMMAR.allowed(state, budget)
        options = choices(mask, seen)
        assert options, (state, budget)
        tags = [id for id in options if id in VOCAB.markup]
        id = rng.choice(tags if tags and rng.random() < greed else options)
        id = state.end if state.end in options and rng.random() < 0.2 else id
        if id == state.end:
            return run, True
        run.append(id)
        state = GRAMMAR.advance(state, id)
        budget -= 1
    assert state.cost == 0
    return run, False


def choices(mask: Tensor, seen: dict[int, Tensor], cache: dict[int, list[int]] = {}) -> list[int]:  # noqa: B006
    key = id(mask)
    if key not in seen:
        seen[key] = mask
        cache[key] = mask.nonzero().flatten().tolist()
        assert not NEVER & set(cache[key])
    return cache[key]


def render(ids: Sequence[int]) -> str:
    out = bytearray()
    for id in ids:
        if id in VOCAB.text:
            out += escape(PIECES[id - VOCAB.text.start].decode("latin-1")).encode("latin-1")
        elif id in VOCAB.image:
            out += f"I{id - VOCAB.image.start} ".encode()
        elif id in VOCAB.markup:
            out += VOCAB.piece(id).encode()
    return out.decode("utf-8")


def written(ids: Sequence[int]) -> Any:
    """The tree that the ids spell, built without a parser."""
    root: list[Any] = ["", {}]
    stack, name, attribute, raw = [root], "", "", bytearray()

    def flush() -> None:
        if raw and not attribute:
            stack[-1].append(raw.decode("utf-8"))
            raw.clear()

    for id in ids:
        if id in VOCAB.text:
            raw += PIECES[id - VOCAB.text.start]
            continue
        if id in VOCAB.image:
            raw += f"I{id - VOCAB.image.start} ".encode()
            continue
        piece = VOCAB.piece(id)
        flush()
        name = piece.strip('</> ="')
        if piece.startswith("</"):
            assert stack.pop()[0] == name
        elif piece.startswith("<"):
            node: list[Any] = [name, {}]
            stack[-1].append(node)
            stack += [node] if name not in VOID else []
            last = node
        elif piece.startswith(" "):
            assert list(last[1]) == sorted(last[1]) and name not in last[1]
            assert not last[1] or max(last[1]) < name
            attribute = name
        elif piece == '"':
            last[1][attribute] = raw.decode("utf-8")
            attribute = ""
            raw.clear()
    flush()
    assert stack == [root]
    return root


def parsed(html: str) -> Any:
    flat = {"html", "head", "body", "tbody"}

    def children(node: Any) -> Iterator[Any]:
        for child in node.children or ():
            if child.name == "!doctype":
                continue
            if child.name in flat:
                yield from children(child)
            elif child.name == "#text":
                yield child.data
            else:
                yield [child.name, dict(child.attrs or {}), *children(child)]

    return ["", {}, *children(JustHTML("<!DOCTYPE html>" + html, sanitize=False).root)]


def check_pictures(ids: Sequence[int]) -> None:
    run = 0
    for id in [*ids, VOCAB.pad]:
        if id in VOCAB.image:
            run += 1
        else:
            assert run in (0, LENGTH)
            run = 0


def test_documents_are_well_formed() -> None:
    rng, seen, ends = random.Random(0), {}, []
    for number in range(1500):
        budget = rng.randrange(0, 120)
        ids, ended = walk(rng, answer("document", budget), (), seen, rng.choice([0.1, 0.5, 0.9]))
        assert len(ids) <= budget
        check_pictures(ids)
        tree = written(ids)
        if number % 3 == 0:
            assert parsed(render(ids)) == tree
        ends.append(ended)
    assert 150 < sum(ends) < 1350


@pytest.mark.parametrize(
    "around", [(), ("<p>",), ("<ul>",), ("<table>", "<tr>"), ("<h1>", "<em>"), ("<div>",)]
)
def test_gaps_are_balanced_and_fit_their_place(around: tuple[str, ...]) -> None:
    rng, seen = random.Random(1), {}
    lead = VOCAB.sentinel(0)
    closers = [piece.replace("<", "</") for piece in reversed(around)]
    prompt = [*markup(*around), lead, *markup(*closers), *text("tail")]
    for _ in range(250):
        blank = answer("content", rng.randrange(1, 50), lead=(lead,))
        ids, _ = walk(rng, blank, prompt, seen, rng.choice([0.1, 0.6]))
        check_pictures(ids)
        page = [*markup(*around), *ids, *markup(*closers)]
        assert parsed(render(page)) == written(page)
        assert not {"<title>", "<meta"} & {VOCAB.piece(id) for id in ids if id in VOCAB.markup}
        assert ids or "<ul>" in around or "<tr>" in around


def test_no_link_inside_a_link() -> None:
    lead = VOCAB.sentinel(2)
    prompt = [*markup("<p>", "<a", ">"), lead, *markup("</a>", "</p>")]
    mask = GRAMMAR.allowed(start(GRAMMAR, answer("content", 50, lead=(lead,)), prompt), 50)
    assert not mask[VOCAB.markup_id("<a")] and mask[VOCAB.markup_id("<em>")]
    assert not mask[VOCAB.markup_id("<p>")]
    # A sentinel stands twice in a sequential prompt; the first is the hole.
    again = start(GRAMMAR, answer("content", 50, lead=(lead,)), [*prompt, lead, *markup("<div>")])
    assert again.outer == ("p", "a")


def test_attribute_gaps_are_text() -> None:
    rng, seen = random.Random(2), {}
    for _ in range(200):
        ids, _ = walk(rng, answer("attribute", rng.randrange(1, 9)), (), seen, 0.5)
        assert ids and all(id in VOCAB.text for id in ids)
        render(ids)


def test_image_gaps_are_exact() -> None:
    rng, seen = random.Random(3), {}
    for length in (1, 4, None):
        ids, ended = walk(rng, answer("image", LENGTH, length=length), (), seen, 0.5)
        assert len(ids) == (length or LENGTH) and all(id in VOCAB.image for id in ids)
        assert not ended


def test_a_document_goes_on_where_the_prompt_stops() -> None:
    prompt = [*markup("<p>", "<img", ' alt="'), *text("cat"), *markup('"', ' src="'), *codes(2)]
    state = start(GRAMMAR, answer("document", 20), prompt)
    assert state.left == LENGTH - 2 and state.image and state.cost == (LENGTH - 2) + 2 + 1
    rng, seen = random.Random(4), {}
    for _ in range(50):
        ids, _ = walk(rng, answer("document", 20), prompt, seen, 0.5)
        assert parsed(render([*prompt, *ids])) == written([*prompt, *ids])
    with pytest.raises(ConfigError, match="at least 7"):
        start(GRAMMAR, answer("document", 6), prompt)


def allowed(state: State, budget: int) -> set[int]:
    return set(GRAMMAR.allowed(state, budget).nonzero().flatten().tolist())


def test_pictures_open_only_if_they_can_be_finished() -> None:
    state = start(GRAMMAR, answer("document", 50), markup("<p>", "<img"))
    src, alt = markup(' src="', ' alt="')
    need = 1 + LENGTH + 2 + 1
    assert src in allowed(state, need) and src not in allowed(state, need - 1)
    assert alt in allowed(state, need - 1)
    opened = start(GRAMMAR, answer("document", 50), markup("<p>"))
    assert markup("<img")[0] in allowed(opened, 5) and markup("<img")[0] not in allowed(opened, 4)
    assert allowed(opened, 1) == set(markup("</p>"))


def test_tags_need_what_makes_them_useful() -> None:
    fresh = start(GRAMMAR, answer("document", 50), markup("<img"))
    assert allowed(fresh, 50) == set(markup(' alt="', ' src="'))
    after = start(GRAMMAR, answer("document", 50), [*markup("<img", ' src="'), *codes(LENGTH), *markup('"')])
    assert allowed(after, 50) == set(markup(' title="', ">"))
    assert set(markup(">")) < allowed(start(GRAMMAR, answer("document", 50), markup("<a")), 50)


def test_text_stays_whole_characters() -> None:
    state = start(GRAMMAR, answer("attribute", 9), ())
    lead = VOCAB.text.start + PIECES.index(b"\xe2\x82")
    tail = VOCAB.text.start + PIECES.index(b"\xac")
    assert tail not in allowed(state, 9)
    assert lead in allowed(state, 2) and lead not in allowed(state, 1)
    inside = GRAMMAR.advance(state, lead)
    assert VOCAB.eoss not in allowed(inside, 5)
    assert {tail, VOCAB.text.start + PIECES.index(b"\xa9")} == allowed(inside, 5)
    assert VOCAB.eoss in allowed(GRAMMAR.advance(inside, tail), 5)
    assert VOCAB.text.start + PIECES.index(b"\x00") not in allowed(state, 9)


def test_the_automaton_agrees_with_pythons_decoder() -> None:
    rng = random.Random(5)
    pool = [
        0x41,
        0x80,
        0x8F,
        0x90,
        0x9F,
        0xA0,
        0xBF,
        0xC1,
        0xC2,
        0xDF,
        0xE0,
        0xE1,
        0xED,
        0xEF,
        0xF0,
        0xF1,
        0xF4,
        0xF5,
    ]
    whole = 0
    for _ in range(20_000):
        raw = bytes(rng.choices(pool, k=rng.randrange(1, 5)))
        state = follow(0, raw)
        try:
            raw.decode("utf-8")
            assert state == 0
            whole += 1
        except UnicodeDecodeError as error:
            assert state != 0
            cut = error.reason == "unexpected end of data"
            assert (state != REJECT) == cut
    assert whole > 500


def test_without_bytes_any_text_follows() -> None:
    grammar = Grammar(VOCAB, LENGTH)
    mask = grammar.allowed(start(grammar, answer("attribute", 3), ()), 1)
    assert int(mask.sum()) == VOCAB.text_size
    assert torch.equal(mask.nonzero().flatten(), torch.tensor(list(VOCAB.text)))
