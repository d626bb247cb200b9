"""Trajectories: AR-ness, the file, and what is shown."""

from __future__ import annotations

import json
import random
import struct
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from canvases import FlatSpan, flat_canvas
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from cm3kit.evaluation.arness import arness, last_writes, stats
from cm3kit.provenance.trajectories import (
    Record,
    encode_trajectory,
    load_trajectory,
    replay,
    save_trajectory,
)
from cm3kit.types import Commit, Trajectory
from cm3kit_tokenizers.errors import DataError, OutputError
from cm3kit_tokenizers.vocab import Vocab

VOCAB = Vocab(text_size=256, image_size=16)
TEXT, CODES = VOCAB.text.start, VOCAB.image.start


def written(order: list[list[int]], stretches: tuple[FlatSpan, ...] = (), length: int = 0) -> Trajectory:
    """A row in which step s writes the slots `order[s]`, best first."""
    slots = [slot for step in order for slot in step]
    stretches = stretches or (FlatSpan("content", 0, len(slots)),)
    length = length or max(each.stop for each in stretches)
    open_slots = {slot for each in stretches for slot in range(each.start, each.stop)}
    ids = tuple(VOCAB.mask if place in open_slots else TEXT + 65 for place in range(length))
    commits = [
        Commit(
            step, tuple(each), tuple(TEXT + slot % 256 for slot in each),
            tuple(-0.1 * (i + 1) for i in range(len(each))), tuple(1 / (i + 2) for i in range(len(each))),
        )
        for step, each in enumerate(order)
    ]  # fmt: skip
    return Trajectory(flat_canvas(ids, stretches), tuple(commits))


def one_by_one(order: list[int]) -> Trajectory:
    return written([[slot] for slot in order])


def brute(order: list[int], k: int) -> tuple[float | None, float]:
    """Local and global AR-ness at k, as the definition reads."""
    n = len(order)
    local = [all(order[t - i] == order[t] - i for i in range(1, k + 1)) for t in range(k, n)]
    leftmost = [order[t] in sorted(order[t:])[:k] for t in range(n)]
    return (sum(local) / len(local) if local else None), sum(leftmost) / n


def test_arness_of_the_known_orders() -> None:
    ks = (1, 2, 3, 4)
    forward = arness(one_by_one([0, 1, 2, 3, 4, 5]), ks)["all"]
    assert set(forward.local_at.values()) == set(forward.global_at.values()) == {1.0}
    back = arness(one_by_one([5, 4, 3, 2, 1, 0]), ks)["all"]
    assert set(back.local_at.values()) == {0.0}
    assert back.global_at == pytest.approx({k: k / 6 for k in ks})
    mixed = arness(one_by_one([0, 2, 1, 3]), (1, 2))["all"]
    assert (mixed.local_at[1], mixed.global_at[1], mixed.global_at[2]) == (0, 0.75, 1)


def test_arness_of_all_orders_has_the_expectation_of_a_random_one() -> None:
    n, ks = 5, (1, 2, 3, 5)
    found = [arness(one_by_one(list(order)), ks)["all"] for order in permutations(range(n))]
    for k in ks:
        expected = sum(min(k, r) / r for r in range(1, n + 1)) / n
        assert sum(each.global_at[k] or 0 for each in found) / len(found) == pytest.approx(expected)
    assert sum(each.local_at[1] or 0 for each in found) / len(found) == pytest.approx(1 / n)
    assert all(each.local_at[5] is None for each in found)


@given(st.permutations(range(9)))
@settings(max_examples=60, deadline=None)
def test_arness_is_its_definition_and_monotone_in_k(order: list[int]) -> None:
    ks = tuple(range(1, 9))
    found = arness(one_by_one(order), ks)["all"]
    assert [(found.local_at[k], found.global_at[k]) for k in ks] == [brute(order, k) for k in ks]
    local, leftmost = [found.local_at[k] or 0 for k in ks], [found.global_at[k] or 0 for k in ks]
    assert local == sorted(local, reverse=True) and leftmost == sorted(leftmost)


def test_arness_counts_slots_by_rank_and_kinds_apart() -> None:
    stretches = (FlatSpan("content", 1, 3), FlatSpan("image", 5, 8))
    found = arness(written([[1], [2], [7], [6], [5]], stretches, 9), (1, 2))
    assert found["text"].local_at == {1: 1.0, 2: None} and found["text"].global_at[1] == 1
    assert found["image"].local_at[1] == 0 and found["image"].global_at == pytest.approx({1: 1 / 3, 2: 2 / 3})
    across = arness(written([[1], [2], [5], [6], [7]], stretches, 9), (1, 4))["all"]
    assert across.local_at == across.global_at == {1: 1.0, 4: 1.0}
    assert "image" not in arness(one_by_one([0, 1]))
    with pytest.raises(ValueError, match="at least 1"):
        arness(one_by_one([0, 1]), (0,))


def test_several_slots_of_a_step_go_in_the_order_of_the_commit() -> None:
    assert last_writes(written([[0, 1], [3, 2]])) == [0, 1, 3, 2]
    found = arness(written([[0, 1], [3, 2]]), (1,))["all"]
    assert (found.local_at[1], found.global_at[1]) == brute([0, 1, 3, 2], 1)
    assert found.parallelism == 2


def revised() -> Trajectory:
    """Slot 0 is written, taken back and written again; slot 1 edited; slot 3 never written."""
    a, b, c = TEXT + 97, TEXT + 98, TEXT + 99
    commits = (
        Commit(0, (0, 1), (a, b), (-1.0, -2.0), (0.9, 0.8)),
        Commit(1, (0,), (a,), (-1.0,), (0.1,), "remask"),
        Commit(1, (2,), (c,), (-4.0,), (0.5,)),
        Commit(2, (1,), (c,), (-8.0,), (0.5,), "edit"),
        Commit(2, (), (), (), ()),
        Commit(4, (0,), (b,), (-16.0,), (0.25,)),
    )
    return Trajectory(
        flat_canvas((3, 3, 3, 3, 5), (FlatSpan("attribute", 0, 4, True, 1, 2),), (3,) * 5, 7), commits
    )


def test_rewritten_slots_count_where_they_were_written_last() -> None:
    found = stats(revised(), (1, 2))
    assert last_writes(revised()) == [1, 2, 0]
    assert found["arness"]["all"]["local_at"] == {1: 0.5, 2: 0.0}
    assert found["arness"]["all"]["global_at"] == pytest.approx({1: 1 / 3, 2: 1.0})
    assert (found["slots"], found["written"], found["open"]) == (4, 3, 1)
    assert (found["writes"], found["remasked"], found["edited"]) == (4, 1, 1)
    assert found["passes"] == 4 and found["commits_per_step"] == [2, 1, 0, 1] and found["parallelism"] == 1
    assert found["logprob"] == -22 and json.loads(json.dumps(found))["written"] == 3
    nothing = stats(Trajectory(flat_canvas((3,), (FlatSpan("content", 0, 1),)), ()))
    assert nothing["parallelism"] is None and nothing["arness"]["text"]["global_at"][1] is None


def record(trajectory: Trajectory) -> Record:
    seen = {*trajectory.canvas.ids, *(id for each in trajectory.commits for id in each.ids)} & {*VOCAB.text}
    pieces = {id: bytes([id - TEXT]) for id in seen}
    return Record(
        trajectory, VOCAB, pieces, (4, 4), "tiny", {"image/x": "00"}, {"prompt": "ä <b>", "seed": 7}
    )


def a_kit(folder: Path) -> Any:
    """What a trajectory wants to know of a model."""
    (folder / "vocab.json").write_text("{}")
    text = SimpleNamespace(pieces=[bytes([each]) for each in range(256)])
    parts = SimpleNamespace(name="tiny", folder=folder)
    return SimpleNamespace(vocab=VOCAB, text=text, parts=parts, image=SimpleNamespace(grid=(4, 4)))


def test_a_saved_trajectory_comes_back_exactly(tmp_path: Path) -> None:
    odd = Commit(5, (3,), (TEXT + 0xC3,), (float("-inf"),), (1 / 3,))
    trajectory = Trajectory(revised().canvas, (*revised().commits, odd))
    path = save_trajectory(tmp_path / "a.traj.safetensors", trajectory, a_kit(tmp_path), {"prompt": "ä <b>"})
    back = load_trajectory(path)
    assert back.trajectory == trajectory and back.vocab == VOCAB
    assert back.pieces == {TEXT + 97: b"a", TEXT + 98: b"b", TEXT + 99: b"c", TEXT + 0xC3: b"\xc3"}
    assert (back.model, back.grid, back.how) == ("tiny", (4, 4), {"prompt": "ä <b>"})
    assert list(back.sha256) == ["vocab.json"]
    with pytest.raises(OutputError) as refused:
        save_trajectory(path, trajectory, a_kit(tmp_path))
    assert refused.value.code == "exists"
    save_trajectory(path, one_by_one([1, 0]), a_kit(tmp_path), force=True)
    assert load_trajectory(path).trajectory == one_by_one([1, 0])


@given(st.integers(0, 2**32))
@settings(max_examples=25, deadline=None)
def test_any_trajectory_comes_back_and_replays(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    rng = random.Random(seed)
    slots = list(range(rng.randrange(12)))
    rng.shuffle(slots)
    steps, rest = [], slots
    while rest:
        size = rng.randrange(1, 4)
        steps.append(rest[:size])
        rest = rest[size:]
    trajectory = written(steps, (FlatSpan("image", 0, len(slots)),), 14)
    path = tmp_path_factory.mktemp("any") / "a.traj.safetensors"
    path.write_bytes(encode_trajectory(record(trajectory)))
    assert load_trajectory(path).trajectory == trajectory
    states = [list(state) for state in replay(trajectory)]
    for before, after, commit in zip(states, states[1:], trajectory.commits, strict=False):
        assert {p for p in range(14) if before[p] != after[p]} == set(commit.positions)
    assert None not in states[-1] and len(states) == len(trajectory.commits) + 1


@pytest.mark.parametrize(
    "commits",
    [
        [Commit(0, (9,), (TEXT,), (0.0,), (0.0,))],
        [Commit(0, (0, 0), (TEXT, TEXT), (0.0, 0.0), (0.0, 0.0))],
        [Commit(0, (0, 1), (TEXT,), (0.0,), (0.0,))],
        [Commit(0, (0,), (TEXT,), (0.0,), (0.0,), "remask")],
        [Commit(0, (0,), (TEXT,), (0.0,), (0.0,)), Commit(1, (0,), (TEXT,), (0.0,), (0.0,))],
        [Commit(0, (0,), (TEXT,), (0.0,), (0.0,)), Commit(1, (0,), (TEXT + 1,), (0.0,), (0.0,), "remask")],
    ],
)
def test_commits_that_contradict_are_refused(commits: list[Commit]) -> None:
    board = flat_canvas((3, 3, TEXT), (FlatSpan("content", 0, 2),))
    with pytest.raises(ValueError, match="commit"):
        encode_trajectory(record(Trajectory(board, tuple(commits))))


def test_damaged_and_foreign_files_get_one_line(tmp_path: Path) -> None:
    whole = encode_trajectory(record(revised()))
    size = 8 + struct.unpack("<Q", whole[:8])[0]
    flipped = bytearray(whole)
    flipped[size + 3] ^= 1
    save_file({"ids": np.zeros(3)}, tmp_path / "foreign")
    other = whole.replace(b'\\"version\\": 1', b'\\"version\\": 2')
    files = {
        "empty": b"", "short": whole[:-9], "words": b"<p>no</p>" * 9, "flipped": bytes(flipped),
        "renamed": other, "zip": b"PK\x03\x04" + bytes(200),
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    for name in (*files, "foreign"):
        with pytest.raises(DataError) as error:
            load_trajectory(tmp_path / name)
        assert error.value.code == "bad_data" and "\n" not in str(error.value) and name in str(error.value)
        assert ("version 2" in str(error.value)) == (name == "renamed")
    for name, code in (("absent", "no_file"), (".", "unreadable_file")):
        with pytest.raises(DataError) as error:
            load_trajectory(tmp_path / name)
        assert error.value.code == code
