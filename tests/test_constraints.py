"""Constraints: what may be written is exactly what some whole answer has there, in whatever order it is written."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from itertools import permutations, product

import numpy as np
import pytest

from cm3kit.canvas import ConstraintSpec
from cm3kit.decoders.grammar.byte_dfa import compile_regex, unanchored
from cm3kit.decoders.grammar.kinds.choices import join, split
from cm3kit.decoders.grammar.language import Language, Slots
from cm3kit.decoders.grammar.languages import Languages
from cm3kit.decoders.grammar.rules import ByteDfa, constraint
from cm3kit.decoders.grammar.token_trie import TokenTrie
from cm3kit_tokenizers import ConfigError, Vocab

pytest.importorskip("outlines_core")

PIECES = [b"a", b"b", b"ab", b" ", b"1", b"\x01", b'"']
VOCAB = Vocab(len(PIECES), 0)
START, END = VOCAB.text.start, VOCAB.eoss
CHOICES = ("a", "ab", "aab", "abab", "b1", "1", "a1b")
PATTERNS = ("a*b", "(ab|b)+1?", "[ab]{2,3}", "a", "(a|1)*", 'b?"?1')


def longest_first(text: str) -> list[int]:
    """The one way in which texts are cut into tokens here."""
    ids, data = [], text.encode()
    while data:
        token = max((t for t, p in enumerate(PIECES) if data.startswith(p)), key=lambda t: len(PIECES[t]))
        ids.append(token)
        data = data[len(PIECES[token]) :]
    return ids


LANGUAGES = Languages(VOCAB, longest_first, PIECES)


def language(kind: str, value: str, lead: str = "") -> Language:
    return LANGUAGES.of(ConstraintSpec(kind, value, lead), END)


def spelt(ids: Sequence[int]) -> str:
    return b"".join(PIECES[id - START] for id in ids).decode()


def answers(kind: str, value: str, length: int, exact: bool) -> set[tuple[int, ...]]:
    """Every filling of so many slots, by trying all runs of tokens."""
    found = set()
    for size in range(length, length + 1) if exact else range(length + 1):
        for tokens in product(range(len(PIECES)), repeat=size):
            ids = [START + token for token in tokens]
            text = spelt(ids)
            if kind == "choices":
                good = text in CHOICES and list(tokens) == longest_first(text)
            else:
                good = re.fullmatch(value, text) is not None and "\x01" not in text
            if good:
                found.add((*ids, *[END] * (length - size)))
    return found


CASES = [("choices", join(CHOICES)), *(("regex", each) for each in PATTERNS)]


@pytest.mark.parametrize(("kind", "value"), CASES)
@pytest.mark.parametrize("exact", [False, True])
def test_slots_allow_what_some_answer_has_there_in_every_order(kind: str, value: str, exact: bool) -> None:
    for length in range(1, 4):
        wanted = answers(kind, value, length, exact)
        made = language(kind, value).slots(length, exact)
        assert made.possible == bool(wanted) == language(kind, value).fits(length, exact)
        for order in permutations(range(length)):
            assert set(written(kind, value, length, exact, order, wanted)) == wanted


def written(
    kind: str, value: str, length: int, exact: bool, order: Sequence[int], wanted: set[tuple[int, ...]]
) -> Iterator[tuple[int, ...]]:
    """Every filling that can be reached by an order of commits, each step checked against all that are possible."""

    def go(slots: Slots, done: dict[int, int], left: set[tuple[int, ...]]) -> Iterator[tuple[int, ...]]:
        if len(done) == length:
            yield tuple(done[slot] for slot in range(length))
            return
        for slot in range(length):
            rest = [each for each in wanted if all(each[at] == id for at, id in done.items() if at != slot)]
            assert set(np.flatnonzero(slots.allowed(slot).numpy()).tolist()) == {each[slot] for each in rest}
        slot = order[len(done)]
        for id in {each[slot] for each in left}:
            slots.commit(slot, id)
            yield from go(slots, {**done, slot: id}, {each for each in left if each[slot] == id})
            slots.release(slot)

    if wanted:
        yield from go(language(kind, value).slots(length, exact), {}, wanted)


@pytest.mark.parametrize(("kind", "value"), CASES)
def test_runs_allow_what_some_answer_goes_on_with(kind: str, value: str) -> None:
    for most in range(5):
        whole = {tuple(id for id in each if id != END) for each in answers(kind, value, most, False)}
        known = language(kind, value)

        def go(
            ids: tuple[int, ...],
            most: int = most,
            whole: set[tuple[int, ...]] = whole,
            known: Language = known,
        ) -> None:
            run = known.run(most, False)
            for id in ids:
                run.take(id)
            follows = {each[len(ids)] for each in whole if each[: len(ids)] == ids and len(each) > len(ids)}
            ended = {END} if ids in whole else set()
            assert set(np.flatnonzero(run.allowed(most - len(ids)).numpy()).tolist()) == follows | ended
            assert known.holds(ids) == (ids in whole)
            assert run.more == known.goes_on(ids) and (run.more or not follows)
            for id in follows:
                go((*ids, id))

        if whole:
            go(())
        assert known.fits(most, False) == bool(whole)


@pytest.mark.parametrize(("kind", "value"), CASES)
def test_the_shortest_answer_is_told(kind: str, value: str) -> None:
    sizes = [
        sum(id != END for id in each) for length in range(4) for each in answers(kind, value, length, False)
    ]
    assert language(kind, value).shortest() == min(sizes)


@pytest.mark.parametrize(("kind", "value"), CASES)
def test_random_commits_releases_and_changes_agree_with_a_fresh_start(kind: str, value: str) -> None:
    rng, length = random.Random(0), 5
    slots, done = language(kind, value).slots(length, False), dict[int, int]()
    for _ in range(150):
        slot = rng.randrange(length)
        if slot in done and rng.random() < 0.5:
            slots.release(slot)
            del done[slot]
        else:
            id = rng.choice(np.flatnonzero(slots.allowed(slot).numpy()).tolist())
            slots.commit(slot, id)
            done[slot] = id
        fresh = language(kind, value).slots(length, False)
        for at, id in done.items():
            fresh.commit(at, id)
        for at in range(length):
            assert slots.allowed(at).equal(fresh.allowed(at))
    with pytest.raises(ValueError, match="not allowed in slot"):
        language(kind, value).slots(length, False).commit(0, START + PIECES.index(b"\x01"))


def test_a_lead_is_written_before_every_answer() -> None:
    for kind, value in CASES:
        run = language(kind, value, " ").run(6, False)
        assert np.flatnonzero(run.allowed(6).numpy()).tolist() == [START + PIECES.index(b" ")]
        run.take(START + PIECES.index(b" "))
        bare = language(kind, value).run(5, False)
        assert run.allowed(5).equal(bare.allowed(5))


def test_tokens_that_end_an_answer_stand_in_none() -> None:
    quote = START + PIECES.index(b'"')
    known = LANGUAGES.of(ConstraintSpec("regex", 'b?"?1'), quote)
    assert not known.holds([quote, START + 4]) and known.holds([START + 4])
    with pytest.raises(ConfigError, match="cannot be written"):
        LANGUAGES.of(ConstraintSpec("choices", 'a|"1'), quote)


def test_choices_are_split_and_joined() -> None:
    for texts in (["red", "green"], ["a|b", "c\\"], ["\\|"], ["one"], ["tail\\", "x"]):
        assert split(join(texts)) == texts
    assert split("a||b") == ["a", "", "b"] and split("a|") == ["a", ""] and split("") == [""]
    for value in ("a||b", "a|", "", "|"):
        with pytest.raises(ConfigError, match="empty"):
            language("choices", value)


@pytest.mark.parametrize(
    "pattern", ["é+|日本", "[^a]{1,3}", ".*", r"\d{2}", "(?i)abc", "a*?b", "x(y|z){0,2}"]
)
def test_automata_over_bytes_accept_what_python_matches(pattern: str) -> None:
    dfa, rng = compile_regex(pattern), random.Random(1)
    for _ in range(400):
        text = "".join(rng.choice("aAbBcC12éx日本yz ") for _ in range(rng.randrange(5)))
        assert accepts(dfa, text) == (re.fullmatch(pattern, text) is not None), text


def accepts(dfa: ByteDfa, text: str) -> bool:
    state = 0
    for byte in text.encode():
        state = int(dfa.next_SB[state, byte])
        if state < 0:
            return False
    return bool(dfa.final_S[state])


@pytest.mark.parametrize("pattern", ["(", r"(a)\1", "(?=a)a", r"\bfoo\b", "[a-", "a{2,1}"])
def test_patterns_that_cannot_be_used_are_refused_in_one_line(pattern: str) -> None:
    with pytest.raises(ConfigError) as error:
        language("regex", pattern)
    assert error.value.code == "bad_value" and "\n" not in str(error.value)


def test_anchors_around_a_pattern_change_nothing() -> None:
    assert unanchored("^ab$") == "ab" and unanchored(r"a\$") == r"a\$" and unanchored(r"a\\$") == r"a\\"
    assert language("regex", "^ab$").holds(longest_ids("ab"))


def longest_ids(text: str) -> list[int]:
    return [START + token for token in longest_first(text)]


def test_many_answers_are_kept_in_few_bytes_and_every_one_can_be_written() -> None:
    rng = random.Random(2)
    texts = sorted({"".join(rng.choice("ab1 ") for _ in range(rng.randrange(1, 12))) for _ in range(20_000)})
    known = language("choices", join(texts))
    assert isinstance(known, TokenTrie) and len(known.arrays) == len(texts)
    assert known.arrays.nbytes < len(texts) * (4 + 2 * 12)
    for text in rng.sample(texts, 200):
        assert known.holds(longest_ids(text))
    for _ in range(200):
        run, ids = known.run(8, False), list[int]()
        while True:
            ids.append(rng.choice(np.flatnonzero(run.allowed(8 - len(ids)).numpy()).tolist()))
            if ids[-1] == END:
                break
            run.take(ids[-1])
        assert len(ids) <= 9 and spelt(ids[:-1]) in texts
    for _ in range(50):
        slots, done = known.slots(8, False), dict[int, int]()
        for slot in rng.sample(range(8), 8):
            done[slot] = rng.choice(np.flatnonzero(slots.allowed(slot).numpy()).tolist())
            slots.commit(slot, done[slot])
        row = [done[slot] for slot in range(8)]
        assert spelt([id for id in row if id != END]) in texts


def test_unknown_kinds_and_impossible_answers_are_refused() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'choices'"):
        language("choice", "a|b")
    assert language("regex", "zz").shortest() is None and not language("regex", "zz").fits(9, False)
    assert {"choices", "html", "json-schema", "regex", "trie"} <= {*constraint}


SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"enum": ["x", "y"]}, "c": {"type": "string", "maxLength": 3}},
    "required": ["a", "b"],
}  # fmt: skip


def test_a_schema_is_kept_to() -> None:
    kind = constraint["json-schema"]()
    dfa = compile_regex(kind.rule(kind.resolve(json.dumps(SCHEMA), None)).pattern)  # type: ignore[union-attr]
    for good in ('{"a":1,"b":"x"}', '{"a": -3, "b": "y", "c": "é"}'):
        assert accepts(dfa, good)
    for bad in (
        '{"a":1}',
        '{"a":"1","b":"x"}',
        '{"a":1,"b":"z"}',
        '{"a":1,"b":"x","c":"long!"}',
        '{"a":1,"b":"x"',
    ):
        assert not accepts(dfa, bad)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "minimum": 3}, {"allOf": [{"type": "string"}]}, {"oneOf": [{"type": "string"}]},
        {"type": "object", "properties": {"a": {"type": "number", "multipleOf": 2}}}, {"not": {"type": "null"}},
        {"type": "string", "pattern": ".*"}, {"type": "string", "pattern": "a+", "maxLength": 3},
        {"type": "array", "items": {"uniqueItems": True}}, {"type": "object", "minProperties": 2}, {"enum": []},
        {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a", "q"]},
        {"type": "integer", "enum": ["x"]},
        {"type": "string", "format": "email"}, {"type": "object", "properties": {'a"b': {"type": "null"}}},
        {"type": "string", "anyOf": [{"type": "integer"}]}, {"type": "boolean", "const": 1},
        {"type": ["string", "null"], "maxLength": 2},
        {"$ref": "#/$defs/a", "type": "null", "$defs": {"a": {"type": "null"}}},
    ],
)  # fmt: skip
def test_what_a_schema_says_in_vain_is_refused(schema: object) -> None:
    kind = constraint["json-schema"]()
    with pytest.raises(ConfigError, match="json-schema #"):
        kind.rule(kind.resolve(json.dumps(schema), None))
