"""JSON lines are read in one way: by CR and LF alone, with numbers, and with a word on lines that hold no value."""

from __future__ import annotations

from pathlib import Path

import pytest

from cm3kit.fill.prompts import read_prompts
from cm3kit.json_lines import Malformed, dump_jsonl, numbered_objects, objects, parse
from cm3kit.provenance.recipes import rows
from cm3kit_tokenizers.errors import DataError

SEPARATORS = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"


def test_what_is_written_is_read_whatever_separators_its_words_hold(tmp_path: Path) -> None:
    written = [{"prompt": SEPARATORS}, {"prompt": "b"}]
    data = dump_jsonl(written).encode()
    assert [*parse(data)] == [*enumerate(written, 1)]
    assert [each["prompt"] for each in objects(data.splitlines(keepends=True))] == [SEPARATORS, "b"]
    (tmp_path / "p.jsonl").write_bytes(data)
    assert [each.content for each in read_prompts(tmp_path / "p.jsonl")] == [SEPARATORS, "b"]
    (tmp_path / "manifest.jsonl").write_bytes(data)
    assert [each["prompt"] for each in rows(tmp_path)] == [SEPARATORS, "b"]


def test_lines_without_a_value_are_told_by_number_and_blank_ones_counted() -> None:
    data = b'\xef\xbb\xbf{"a": 1}\r\n\n[2]\n"\xff"\n{"a":\r' + b"[" * 100_000
    assert [*parse(data)] == [
        (1, {"a": 1}),
        (3, [2]),
        (4, Malformed.UTF8),
        (5, Malformed.JSON),
        (6, Malformed.JSON),
    ]
    assert [*objects(data)] == [{"a": 1}]
    with pytest.raises(DataError, match=r"line 3 of x\.jsonl is no JSON object"):
        list(numbered_objects(data, Path("x.jsonl")))
