"""Causal masking: invertible, never truncated, never through a picture or a character, and by its laws."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
from canvases import at_most, lay_out
from torch import Generator

from cm3kit.fill.layouts import LayoutParts, layout, put_back
from cm3kit.objectives import PRESETS, CausalMask, NextToken, Preset
from cm3kit.objectives.causal_mask import halves
from cm3kit.objectives.spans import clamped_poisson, count_law, truncated_poisson
from cm3kit.objectives.units import cuts, policy, units, window
from cm3kit.registry import objective, span_law
from cm3kit.types import Example, Fill, Span
from cm3kit_tokenizers.document import Gap
from cm3kit_tokenizers.errors import ConfigError, DataError, PageError
from cm3kit_tokenizers.vocab import Vocab

VOCAB = Vocab(400, 64)
GRID = (4, 5)
CONTINUES = [id % 5 == 0 for id in range(400)]
TEXT, IMAGE, SENTINELS = VOCAB.text.start, VOCAB.image.start, VOCAB.sentinel_range
UNIT_POLICIES = (
    "attribute_value",
    "image_full",
    "element",
    "image_box",
    "full_segment",
    "text_only",
    "image_partial",
)


def rotate(ids: Sequence[int], spans: Sequence[Span], vocab: Vocab, base: int = 0) -> list[int]:
    """Spans moved to the end: x0 M0 x1 M0 s0 E …"""
    document, moved = halves(ids, spans, vocab, base)
    return document + moved


def generator(seed: int) -> Generator:
    rng = Generator()
    rng.manual_seed(seed)
    return rng


def text(chance: random.Random, most: int) -> list[int]:
    """Ids of which the first starts a character."""
    ids = [chance.randrange(400) for _ in range(chance.randint(0, most))]
    return [TEXT + id + (k == 0 and CONTINUES[id]) for k, id in enumerate(ids)]


def document(chance: random.Random) -> list[int]:
    """A random page: nested elements, links, pictures."""
    m, out = VOCAB.markup_id, []
    for _ in range(chance.randint(0, 6)):
        kind = chance.randrange(4)
        if kind == 0:
            out += [m("<p>"), *text(chance, 20), m("</p>")]
        elif kind == 1:
            out += [
                m("<div>"),
                m("<h1>"),
                *text(chance, 5),
                m("</h1>"),
                m("<br>"),
                *text(chance, 9),
                m("</div>"),
            ]
        elif kind == 2:
            out += [m("<a"), m(' href="'), *text(chance, 4), m('"'), m(">"), *text(chance, 4), m("</a>")]
        else:
            codes = [IMAGE + chance.randrange(64) for _ in range(GRID[0] * GRID[1])]
            out += [m("<img"), m(' alt="'), *text(chance, 8), m('"'), m(' src="'), *codes, m('"'), m(">")]
    return out + text(chance, 10)


def cm3(preset: Preset | str) -> CausalMask:
    return CausalMask(VOCAB, preset, CONTINUES, grid=GRID)


def only(name: str, **changes: object) -> Preset:
    return replace(Preset(policies=((name, 1.0),)), **changes)  # type: ignore[arg-type]


def hidden(ids: list[int], example: Example) -> list[list[int]]:
    return [ids[span.start : span.stop] for span in example.spans]


# ---------------------------------------------------------------- layout


def test_worked_example() -> None:
    a, b, c, d, e, f, g, h = range(TEXT, TEXT + 8)
    m0, m1, end, eod = VOCAB.sentinel(0), VOCAB.sentinel(1), VOCAB.eoss, VOCAB.eod
    ids, spans = [a, b, c, d, e, f, g, h], [Span(1, 3), Span(5, 8)]
    out = rotate(ids, spans, VOCAB)
    assert out == [a, m0, d, e, m1, m0, b, c, end, m1, f, g, h, end] and len(out) == 8 + 3 * 2
    assert rotate(ids, [], VOCAB) == ids
    assert rotate(ids, [Span(0, 5)], VOCAB, base=3) == [
        VOCAB.sentinel(3),
        f,
        g,
        h,
        VOCAB.sentinel(3),
        a,
        b,
        c,
        d,
        e,
        end,
    ]
    assert rotate(ids, [Span(1, 3), Span(3, 4)], VOCAB)[:3] == [a, m0, m1], "neighbours are legal"
    objective_ = CausalMask(VOCAB, "cm3-paper")
    assert objective_.unmask([eod, a, m0, d, e, m1, m0, b, c, m1, f, g, h, eod]) == ids
    laid = CausalMask(VOCAB, "incoder")._lay_out(ids, tuple(spans), 0, Span(0, 8), 8)
    assert laid.ids == [eod, a, m0, d, e, m1, eod, m0, b, c, end, m1, f, g, h, end]
    assert laid.weights == [0, 1, 0, 1, 1, 0, 1, 0, 1, 1, 1, 0, 1, 1, 1, 1]
    with pytest.raises(ValueError, match="sentinel 32"):
        halves(ids, [Span(1, 2)], VOCAB, base=32)


@pytest.mark.parametrize("name", [*PRESETS, *UNIT_POLICIES, "based", "split"])
def test_invariants(name: str) -> None:
    made = {"based": Preset(max_base=31), "split": Preset(split_images=True)}
    preset = PRESETS[name] if name in PRESETS else made[name] if name in made else only(name)
    masking, chance, rng = cm3(preset), random.Random(name), generator(1)
    masked = 0
    for _ in range(800):
        ids = document(chance)
        out = masking.make_example(ids, rng, 1000)
        n = len(out.spans)
        masked += n > 0
        assert masking.unmask(out.ids) == ids
        per_span = preset.end == "eoss"
        assert len(out.ids) == len(out.weights) == len(ids) + 2 + (3 if per_span else 2) * n
        assert out.ids.count(VOCAB.eoss) == n * per_span and out.ids.count(VOCAB.eod) == 2
        assert out.ids[0] == VOCAB.eod and out.ids[-1] == (VOCAB.eoss if n and per_span else VOCAB.eod)
        used = [id for id in out.ids if id in SENTINELS]
        assert used == 2 * sorted(set(used)) and len(used) == 2 * n
        expected = [preset.sentinel_weight if id in SENTINELS else 1.0 for id in out.ids]
        assert out.weights == [0.0, *expected[1:]]
        assert all(x.stop <= y.start for x, y in pairwise(out.spans))
        assert all(x.start < x.stop for x in out.spans)
        for place in {end for span in out.spans for end in (span.start, span.stop)} - {0, len(ids)}:
            assert ids[place] < TEXT or ids[place] >= IMAGE or not CONTINUES[ids[place] - TEXT]
            if name not in {"image_partial", "image_box", "recommended", "split"}:
                assert ids[place - 1] < IMAGE or ids[place] < IMAGE, "a picture is split"
    assert masked > (300 if preset.least else 200)


@pytest.mark.parametrize("name", [*PRESETS, "image_box", "element"])
def test_any_budget_is_kept_and_nothing_is_truncated(name: str) -> None:
    masking, chance, rng = (
        cm3(PRESETS[name] if name in PRESETS else only(name)),
        random.Random(3),
        generator(2),
    )
    spans, slices, refused = 0, 0, 0
    for _ in range(1500):
        ids, budget = document(chance), chance.randint(3, 60)
        try:
            out = masking.make_example(ids, rng, budget)
        except ConfigError as error:
            assert error.code == "too_long" and budget - 2 < GRID[0] * GRID[1]
            first = next((place for place in cuts(ids, VOCAB, CONTINUES) if place), 0)
            assert first > budget - 2, "there is no slice that short"
            refused += 1
            continue
        assert 1 <= len(out.ids) <= budget
        back = masking.unmask(out.ids)
        starts = [at for at in range(len(ids) - len(back) + 1) if ids[at : at + len(back)] == back]
        assert starts, "a slice is contiguous"
        slices += len(back) < len(ids)
        spans += len(out.spans)
        if out.spans:
            moved = out.ids[[i for i, id in enumerate(out.ids) if id == VOCAB.sentinel(0)][1] :]
            ending = VOCAB.eoss if masking.chosen.end == "eoss" else VOCAB.eod
            bodies = [VOCAB.sentinel(k) for k in range(len(out.spans))]
            assert [id for id in moved if id in SENTINELS] == bodies and moved[-1] == ending
            assert sum(len(each) for each in hidden(ids, out)) == len(moved) - len(bodies) - moved.count(
                ending
            )
        for at in (starts[0], starts[0] + len(back)):
            if len(starts) == 1 and 0 < at < len(ids):
                assert ids[at - 1] < IMAGE or ids[at] < IMAGE
    assert slices > 300 and spans > 50 and refused < 200


@pytest.mark.parametrize("masking", [cm3("recommended"), NextToken(VOCAB, CONTINUES)])
def test_a_slice_ends_a_page_only_where_the_page_ends(masking: CausalMask | NextToken) -> None:
    ids, rng = [TEXT + 1] * 30 + [TEXT + 2] * 30, generator(0)
    seen = set()
    for _ in range(300):
        out = masking.make_example(ids, rng, 40).ids
        seen.add((out[0] == VOCAB.eod, VOCAB.eod in out[1:]))
    assert seen == {(True, False), (False, True), (False, False)}


def test_what_does_not_fit_is_refused() -> None:
    picture = [IMAGE + k for k in range(20)]
    for masking in (cm3("incoder"), NextToken(VOCAB)):
        assert masking.make_example(picture, generator(0), 22).ids == [VOCAB.eod, *picture, VOCAB.eod]
        for budget in (-1, 0, 2, 21):
            with pytest.raises(ConfigError, match=f"window of {budget} ids"):
                masking.make_example(picture, generator(0), budget)
        assert masking.make_example([], generator(0), 3).ids == [VOCAB.eod, VOCAB.eod]


def test_the_same_seed_gives_the_same_examples() -> None:
    masking, ids = cm3("recommended"), document(random.Random(5))
    first, second = (
        [masking.make_example(ids, rng, 300) for _ in range(20)] for rng in (generator(9), generator(9))
    )
    assert first == second and len({tuple(each.ids) for each in first}) > 5


# ---------------------------------------------------------------- laws


def poisson(k: int) -> float:
    return math.exp(-1) / math.factorial(k)


LAWS: list[tuple[Callable[[float, int, int], int], int, int, dict[int, float]]] = [
    (clamped_poisson, 1, 16, {1: 2 * poisson(1), 2: poisson(2), 3: poisson(3)}),
    (clamped_poisson, 0, 511, {0: poisson(0), 1: poisson(1), 2: poisson(2)}),
    (truncated_poisson, 1, 256, {k: poisson(k) / (1 - poisson(0)) for k in (1, 2, 3)}),
    (truncated_poisson, 2, 3, {2: 0.75, 3: 0.25}),
    (count_law["one"], 1, 16, {1: 1.0}),
]


@pytest.mark.parametrize(("law", "least", "most", "expected"), LAWS)
def test_numbers_of_spans(
    law: Callable[[float, int, int], int], least: int, most: int, expected: dict[int, float]
) -> None:
    grid = 20_000
    counts = Counter(law((k + 0.5) / grid, least, most) for k in range(grid))
    assert all(abs(counts[k] / grid - p) < 2 / grid for k, p in expected.items())
    assert least <= min(counts) and max(counts) <= most
    assert law(1 - 2**-53, least, most) <= most and law(0.0, least, most) >= least


def test_known_shares_of_the_poisson_laws() -> None:
    expected = {1: 0.7358, 2: 0.184, 3: 0.061}
    counts = Counter(clamped_poisson((k + 0.5) / 10_000, 1, 16) for k in range(10_000))
    assert all(abs(counts[k] / 10_000 - p) < 5e-4 for k, p in expected.items())
    assert abs(sum(k * c for k, c in counts.items()) / 10_000 - 1.368) < 1e-3


def chi_square(counts: Counter[int], expected: dict[int, float], total: int) -> float:
    return sum((counts[k] - total * p) ** 2 / (total * p) for k, p in expected.items())


def brute_force(law: str, n: int, size: int) -> dict[tuple[tuple[int, int], ...], float]:
    """The exact law over sets of spans, enumerated."""
    pairs: defaultdict[tuple[int, int], float] = defaultdict(float)
    if law == "ordered_uniform":
        for a in range(size + 1):
            for b in range(size + 1):
                pairs[min(a, b), max(a, b)] += 1 / (size + 1) ** 2
    elif law == "uniform_length":
        for length in range(1, size + 1):
            for start in range(size - length + 1):
                pairs[start, start + length] += 1 / size / (size - length + 1)
    sets: defaultdict[tuple[tuple[int, int], ...], float] = defaultdict(float)
    if law == "distinct_cuts":
        points = [set(p) for p in _subsets(size + 1, 2 * n)]
        for chosen in points:
            ordered = sorted(chosen)
            sets[tuple(zip(ordered[::2], ordered[1::2], strict=True))] += 1
    elif n == 1:
        sets |= {((a, b),): p for (a, b), p in pairs.items() if a < b}
    else:
        for (a, b), p in pairs.items():
            for (c, d), q in pairs.items():
                if a < b <= c < d:
                    sets[(a, b), (c, d)] += 2 * p * q
    total = sum(sets.values())
    return {key: value / total for key, value in sets.items()}


def _subsets(size: int, count: int) -> list[tuple[int, ...]]:
    if count == 0:
        return [()]
    return [(*rest, k) for k in range(size) for rest in _subsets(k, count - 1)]


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("law", ["ordered_uniform", "uniform_length", "distinct_cuts"])
def test_places_of_spans_follow_the_enumerated_law(law: str, n: int) -> None:
    size, total, rng = 6, 6000, generator(4)
    expected = brute_force(law, n, size)
    drawn: Counter[tuple[tuple[int, int], ...]] = Counter()
    for _ in range(total):
        spans = span_law[law](n, size, rng)
        assert spans is not None
        drawn[tuple((span.start, span.stop) for span in spans)] += 1
    assert set(drawn) <= set(expected)
    statistic = sum((drawn[key] - total * p) ** 2 / (total * p) for key, p in expected.items())
    freedom = len(expected) - 1
    assert statistic < freedom + 4 * math.sqrt(2 * freedom)


def test_the_greedy_law_is_metaseqs() -> None:
    size, rng = 16, generator(5)
    found = [span_law["greedy"](1, size, rng) for _ in range(8000)]
    # floor(u·16) and floor(v·16 + ½) coincide where v is within half a cell of the cell's start: 31/32 · 1/16.
    empty = sum(each is None for each in found) / len(found)
    assert abs(empty - (1 - 1 / (2 * size)) / size) < 0.01
    # Rounded before they are ordered: |floor(16u) − floor(16v + ½)| = k, enumerated; the other order has 5.83.
    cells = Counter(
        abs(a - b) for a in range(size) for b in [0, *(k for k in range(1, size) for _ in "xx"), size]
    )
    mean = sum(length * count for length, count in cells.items()) / cells.total()
    lengths = [each[0].stop - each[0].start if each else 0 for each in found]
    assert abs(sum(lengths) / len(lengths) - mean) < 0.15 and mean < 5.4
    big = [span_law["greedy"](2, 10_000, rng) for _ in range(4000)]
    assert abs(sum(each is not None and len(each) == 2 for each in big) / 4000 - 0.61) < 0.04
    assert all(each is None or len(each) <= 2 for each in big)


@pytest.mark.parametrize("law", list(span_law))
def test_every_law_holds_its_promise(law: str) -> None:
    rng = generator(6)
    for size in (1, 2, 3, 5, 40):
        for n in (1, 2, 5, 16):
            for _ in range(20):
                spans = span_law[law](n, size, rng) or ()
                assert len(spans) <= n and all(0 <= s.start < s.stop <= size for s in spans)
                assert all(x.stop <= y.start for x, y in pairwise(spans))


def test_the_papers_spans_cover_37_percent() -> None:
    size, total, rng = 300, 6000, generator(7)
    masking, ids = CausalMask(VOCAB, "cm3-paper"), [TEXT + k for k in range(300)]
    examples = [masking.make_example(ids, rng, 1000) for _ in range(total)]
    assert all(each.spans for each in examples), "the paper leaves no document as it is"
    covered = sum(s.stop - s.start for each in examples for s in each.spans) / size / total
    assert abs(covered - 0.37) < 0.015
    single = [s.stop - s.start for each in examples if len(each.spans) == 1 for s in each.spans]
    # Ordered uniform ends: the length has density 2(1 − x), so P(length < x) = 1 − (1 − x)².
    for x in (0.1, 0.25, 0.5, 0.75):
        share = sum(length < x * size for length in single) / len(single)
        assert abs(share - (1 - (1 - x) ** 2)) < 0.025
    counts = Counter(len(each.spans) for each in examples)
    assert chi_square(counts, {1: 0.7358, 2: 0.1839}, total) < 40


@pytest.mark.parametrize(
    ("name", "share"), [("metaseq", math.exp(-1)), ("cm3leon", math.exp(-1)), ("fim", 0.5)]
)
def test_shares_left_unmasked(name: str, share: float) -> None:
    masking, rng = CausalMask(VOCAB, name), generator(8)
    ids = [TEXT + k % 400 for k in range(500)]
    plain = sum(not masking.make_example(ids, rng, 2000).spans for _ in range(4000)) / 4000
    assert abs(plain - share) < 0.025


def test_fim_reads_the_suffix_first_in_half_the_masked_documents() -> None:
    masking, rng, ids = CausalMask(VOCAB, "fim"), generator(9), [TEXT + k for k in range(200)]
    masked = [e for e in (masking.make_example(ids, rng, 1000) for _ in range(4000)) if e.spans]
    suffix_first = [e for e in masked if e.spans[0].start == 0]
    assert abs(len(suffix_first) / len(masked) - 0.5) < 0.05
    out = suffix_first[0].ids
    assert out[1] == VOCAB.sentinel(0), "<mask:0> suffix <mask:0> prefix and middle <eoss>"


def test_the_base_of_sentinels_is_drawn() -> None:
    masking, rng = CausalMask(VOCAB, Preset(max_base=7)), generator(10)
    bases = Counter[int]()
    for _ in range(2000):
        out = masking.make_example([TEXT + k for k in range(50)], rng, 99)
        bases[min(id for id in out.ids if id in SENTINELS) - SENTINELS.start] += 1
    assert set(bases) == set(range(8)) and chi_square(bases, dict.fromkeys(range(8), 0.125), 2000) < 30


# ---------------------------------------------------------------- units


def test_units_of_a_page() -> None:
    m = VOCAB.markup_id
    picture = [IMAGE + k for k in range(20)]
    ids = [
        m("<div>"), m("<img"), m(' alt="'), TEXT + 1, TEXT + 2, m('"'), m(' src="'), *picture, m('"'), m(">"),
        m("<a"), m(' href="'), m('"'), m(' title="'), TEXT + 5, m('"'), m(">"), TEXT + 3,
        m("</a>"), m("</p>"), m("</div>"),
    ]  # fmt: skip
    found = units(ids, VOCAB, CONTINUES)
    assert found.images == (Span(7, 27),)
    assert found.values == (Span(3, 5), Span(33, 34)), "neither the picture nor the empty value"
    assert found.elements == (Span(36, 37), Span(1, 39))
    assert found.texts == (Span(3, 5), Span(33, 34), Span(36, 37))
    assert found.segments == (Span(0, 7), Span(7, 27), Span(27, 40))
    assert found.cuts == [k for k in range(41) if not 7 < k < 27 and k != 33]
    assert cuts(ids, VOCAB, None, split_images=True) == list(range(41))
    assert cuts([], VOCAB) == [0]


@pytest.mark.parametrize("name", ["attribute_value", "image_full", "element", "full_segment"])
def test_whole_units_are_hidden_whole(name: str) -> None:
    chance, rng, masking, seen = random.Random(11), generator(11), cm3(only(name)), 0
    for _ in range(300):
        ids = document(chance)
        pool = policy[name].pool(units(ids, VOCAB, CONTINUES), GRID)
        spans = masking.make_example(ids, rng, 1000).spans
        assert set(spans) <= set(pool) and bool(spans) == (bool(pool) and len(ids) > 1)
        seen += len(spans) > 1
    assert seen > 10, "several units of one page"


def test_boxes_are_boxes() -> None:
    picture, rng, shapes = [IMAGE + k for k in range(20)], generator(12), Counter[tuple[int, int]]()
    masking = cm3(only("image_box", count="one"))
    for _ in range(600):
        out = masking.make_example([TEXT + 1, *picture, TEXT + 2], rng, 1000)
        places = sorted(place - 1 for span in out.spans for place in range(span.start, span.stop))
        rows, columns = {place // 5 for place in places}, {place % 5 for place in places}
        assert places == [row * 5 + column for row in sorted(rows) for column in sorted(columns)]
        assert max(rows) - min(rows) + 1 == len(rows) and max(columns) - min(columns) + 1 == len(columns)
        assert len(out.spans) == (1 if len(columns) == 5 else len(rows))
        shapes[len(rows), len(columns)] += 1
    assert len(shapes) == 20, "every size"
    assert not CausalMask(VOCAB, only("image_box")).make_example(picture, rng, 1000).spans, "no grid, no box"


def test_policies_share_what_a_document_has() -> None:
    m, rng = VOCAB.markup_id, generator(13)
    weights = dict(PRESETS["recommended"].policies)
    assert abs(sum(weights.values()) - 1) < 1e-9
    preset = replace(PRESETS["recommended"], count="one", p_ar=0.0)
    value = [m("<img"), m(' alt="'), TEXT + 1, TEXT + 2, TEXT + 3, m('"'), m(">")]
    spans = [cm3(preset).make_example(value, rng, 1000).spans for _ in range(3000)]
    # Free spans fall on the value too, 1 of the 28 pairs of cuts, and runs of text, 1 of the 6 inside it.
    possible = weights["attribute_value"] + weights["free"] + weights["text_only"]
    expected = (weights["attribute_value"] + weights["free"] / 28 + weights["text_only"] / 6) / possible
    assert abs(sum(each == (Span(2, 5),) for each in spans) / 3000 - expected) < 0.03


def test_cm3leon_keeps_to_one_side_of_a_picture() -> None:
    ids = [TEXT + 1] * 9 + [IMAGE + k for k in range(20)] + [TEXT + 2] * 9
    rng = generator(14)
    spans = [s for _ in range(500) for s in cm3("cm3leon").make_example(ids, rng, 1000).spans]
    assert len(spans) > 200 and Span(9, 29) in spans
    assert all(s.stop <= 9 or (s.start, s.stop) == (9, 29) or s.start >= 29 for s in spans)


def test_windows_start_anywhere() -> None:
    places = list(range(0, 101))
    starts = Counter(span.start for k in range(1000) if (span := window(places, 20, k / 1000)) is not None)
    assert set(starts) == set(range(81)) and all(window(places, 20, k / 9) is not None for k in range(9))
    assert window([0, 50, 100], 20, 0.5) is None and window([0, 50, 60], 20, 0.0) == Span(50, 60)


# ---------------------------------------------------------------- unmask


def test_damage_is_told() -> None:
    a, b = TEXT, TEXT + 1
    m0, m1, end, eod = VOCAB.sentinel(0), VOCAB.sentinel(1), VOCAB.eoss, VOCAB.eod
    masking, lines = CausalMask(VOCAB, "incoder"), list[str]()
    cases = {
        "the last span has no end": [eod, a, m0, eod, m0, b],
        "a span has no end": [a, m0, m1, m0, b, m1, b, end],
        "sentinel 1 has no span": [a, m0, m1, m0, b, end],
        "sentinel 0 has no span": [a, m0, b, eod],
        "span 1 has no sentinel": [a, m0, m0, b, end, m1, b, end],
        "span 0 occurs twice": [a, m0, m0, b, end, m0, b, end],
        "follows the end": [a, m0, m0, b, end, b],
    }
    for message, ids in cases.items():
        with pytest.raises(DataError, match=message):
            masking.unmask(ids)
    assert masking.unmask([a, m0, m1, m1, b, end, m0, a, end], lines.append) == [a, a, b]
    assert lines == ["spans are out of order"]
    with pytest.raises(DataError, match="no end"):
        CausalMask(VOCAB, "cm3-paper").unmask([eod, a, m0, m0, b])


# ---------------------------------------------------------------- layouts


@pytest.mark.parametrize("name", ["recommended", "cm3-paper"])
def test_an_example_is_a_posed_page_with_its_answers(name: str) -> None:
    masking = cm3(replace(PRESETS[name], p_ar=0.0))
    chance, rng = random.Random(15), generator(15)
    compared = 0
    for _ in range(400):
        ids = document(chance)
        out = masking.make_example(ids, rng, 1000)
        if not out.spans:
            continue
        gapped: list[int | Gap] = list(ids)
        for index in range(len(out.spans) - 1, -1, -1):
            span = out.spans[index]
            gapped[span.start : span.stop] = [
                Gap(index, "content", chance.choice([None, span.stop - span.start]))
            ]
        posed = lay_out("behind", VOCAB, gapped, at_most(50), span_end=masking.chosen.end)
        fills = [Fill(tuple(answer), (), True) for answer in hidden(ids, out)]
        assert put_back(gapped, posed, fills) == ids
        ending = [VOCAB.eoss] if masking.chosen.end == "eoss" else []
        written = [
            id
            for span, fill in zip(posed.spans, fills, strict=True)
            for id in (*span.lead, *fill.ids, *ending)
        ]
        assert [*posed.ids, *written, *([] if ending else [VOCAB.eod])] == out.ids
        compared += 1
    assert compared > 250


def test_spans_know_what_belongs_where() -> None:
    gaps = [
        Gap(0, "attribute"),
        Gap(1, "image"),
        Gap(2, "image", 3, 0),
        Gap(2, "image", 3, 1),
        Gap(3, "content"),
    ]
    page = [TEXT, gaps[0], TEXT + 1, *gaps[1:]]
    posed = lay_out("behind", VOCAB, page, at_most(64, 20), seed=7)
    lengths = [(span.exact, span.max_tokens) for span in posed.spans]
    assert lengths == [(False, 64), (True, 20), (True, 3), (True, 3), (False, 64)] and posed.seed == 7
    assert [span.lead for span in posed.spans] == [(VOCAB.sentinel(k),) for k in range(5)]
    assert [(span.kind, span.gap, span.part) for span in posed.spans] == [
        (g.kind, g.index, g.part) for g in gaps
    ]
    assert posed.ids[0] == posed.ids[-1] == VOCAB.eod and {span.at for span in posed.spans} == {
        len(posed.ids)
    }
    assert [posed.ids[span.context] for span in posed.spans] == [VOCAB.sentinel(k) for k in range(5)]
    part = lay_out("behind", VOCAB, page, at_most(9), reaches=(False, False))
    assert part.ids == posed.ids[1:-1]


def test_pages_that_cannot_be_laid_out() -> None:
    with pytest.raises(PageError, match="no_mask"):
        lay_out("behind", VOCAB, [TEXT], at_most(10))
    with pytest.raises(PageError, match="33 gaps"):
        lay_out("behind", VOCAB, [Gap(k, "content") for k in range(33)], at_most(10))
    posed = lay_out("behind", VOCAB, [Gap(0, "content")], at_most(10))
    with pytest.raises(ValueError, match="argument 2"):
        put_back([Gap(0, "content")], posed, [])
    with pytest.raises(ValueError, match="not the gap"):
        put_back([Gap(1, "content")], posed, [Fill((), (), True)])


def test_settings_are_checked() -> None:
    assert {"cm3", "next-token"} <= set(objective) and objective["cm3"] is CausalMask
    wrong: list[tuple[Callable[[], object], str]] = [
        (partial(CausalMask, VOCAB, "metasec"), "Did you mean 'metaseq'"),
        (partial(CausalMask, VOCAB, Preset(law="gredy")), "Did you mean 'greedy'"),
        (partial(CausalMask, VOCAB, Preset(count="two")), "unknown count law"),
        (partial(CausalMask, VOCAB, only("image_ful")), "Did you mean 'image_full'"),
        (partial(CausalMask, VOCAB, "fim", None, 21, GRID), "has 20 codes"),
    ]
    for make, message in wrong:
        with pytest.raises(ConfigError, match=message):
            make()
    assert CausalMask(VOCAB, grid=GRID).image_length == 20 and not NextToken(VOCAB).masks


def test_next_token_continues_a_page() -> None:
    plain = NextToken(VOCAB)
    assert plain.make_example([TEXT, TEXT + 1], generator(0), 9) == Example(
        [VOCAB.eod, TEXT, TEXT + 1, VOCAB.eod], [0.0, 1.0, 1.0, 1.0]
    )
    page: list[int | Gap] = [TEXT, Gap(0, "image")]
    continued = lay_out("continue", VOCAB, page, at_most(5, 20))
    (span,) = continued.spans
    assert continued.ids == (VOCAB.eod, TEXT)
    assert (span.max_tokens, span.exact, span.kind, span.lead) == (20, True, "image", ())
    made = layout["continue"](LayoutParts(VOCAB, None))  # type: ignore[arg-type]
    assert made.read(page, continued, [Fill((IMAGE,), (), True)]) == [TEXT, IMAGE]
    for ids in ([TEXT, Gap(0, "content")], [TEXT]):
        assert lay_out("continue", VOCAB, ids, at_most(5)).spans[0].kind == "document"
    assert made.read([TEXT], continued, [Fill((IMAGE,), (), True)]) == [TEXT, IMAGE]
    pages: list[list[int | Gap]] = [
        [Gap(0, "content"), TEXT],
        [Gap(0, "content"), Gap(1, "content")],
        [TEXT, Gap(0, "attribute")],
    ]
    for ids in pages:
        with pytest.raises(PageError, match="gap_place"):
            lay_out("continue", VOCAB, ids, at_most(5))


def test_no_global_random_numbers_are_used() -> None:
    before = torch.random.get_rng_state()
    cm3("recommended").make_example(document(random.Random(1)), generator(0), 50)
    assert torch.equal(before, torch.random.get_rng_state())
