"""Corpora that are damaged or odd: every input is a row or a reject, and what follows a damaged one is read."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import random
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cm3kit.web.parts import part_folders, read_rejects
from cm3kit.web.report import report
from cm3kit.web.runner import prepare
from cm3kit.web.sources import SourceOptions, load_sources
from cm3kit.web.sources.tables import look, read
from cm3kit.web.urls import normal
from cm3kit_cli.main import run
from cm3kit_tokenizers.disguise import disguise
from cm3kit_tokenizers.errors import Cm3kitError, DataError, PictureError
from cm3kit_tokenizers.pictures import load_checked, load_picture
from tests.test_web_sources import A, B, items, response, shown, tar, write

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
LOGIN = b"<!DOCTYPE html>\n<html><title>Sign in</title>"


def page(number: int, body: bytes = b"", more: str = "") -> bytes:
    return response(f"http://e.org/{number}", "text/html", body or f"<p>page {number}</p>".encode(), more)


def damaged(kind: str) -> list[bytes]:
    """Nine records, the fifth of which is damaged."""
    records = [page(number) for number in range(9)]
    bad = {
        "labelled gzip": page(4, b"plain", "Content-Encoding: gzip\r\n"),
        "cut gzip": page(4, gzip.compress(b"<p>long" * 99)[:-9], "Content-Encoding: gzip\r\n"),
        "deflate": page(4, b"\0\1\2", "Content-Encoding: deflate\r\n"),
        "unknown coding": page(4, b"x", "Content-Encoding: lzma\r\n"),
        "chunks": page(4, b"5\r\nabcde\r\nZZ\r\nx", "Transfer-Encoding: chunked\r\n"),
        "length short": page(4).replace(b"Content-Length: ", b"Content-Length: 1", 1)[:-2] + b"more\r\n\r\n",
        "length long": page(4).replace(
            b"msgtype=response\r\nContent-Length: ", b"msgtype=response\r\nContent-Length: 99"
        ),
        "length odd": page(4).replace(
            b"msgtype=response\r\nContent-Length: ", b"msgtype=response\r\nContent-Length: x"
        ),
        "no header": b"\0\1\2garbage" * 40,
        "no http": page(4).replace(b"HTTP/1.1 200 OK", b"\xff\xfe"),
    }
    records[4] = bad[kind]
    return records


DAMAGE = (
    "labelled gzip", "cut gzip", "deflate", "unknown coding", "chunks", "length short", "length long", "length odd",
    "no header", "no http",
)  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_record_of_an_archive_costs_itself(tmp_path: Path, kind: str, packed: bool) -> None:
    records = damaged(kind)
    place = tmp_path / ("a.warc.gz" if packed else "a.warc")
    found = items("warc", write(place, b"".join(map(gzip.compress, records) if packed else records)))
    assert [shown(each) for each in found if each.data is not None] == [
        f"<p>page {n}</p>" for n in range(9) if n != 4
    ]
    rejects = [each for each in found if each.data is None]
    assert len(rejects) == 1 and rejects[0].reason == "unreadable" and rejects[0].detail


@pytest.mark.parametrize("flip", range(6))
def test_damage_to_the_packed_bytes_costs_one_record(tmp_path: Path, flip: int) -> None:
    rng = random.Random(flip)
    records = [gzip.compress(page(number, b"<p>" + rng.randbytes(300).hex().encode())) for number in range(9)]
    spot = rng.randrange(20, len(records[4]) - 4)
    broken = bytearray(records[4])
    broken[spot] ^= 0x55
    records[4] = bytes(broken)
    found = items("warc", write(tmp_path / "a.warc.gz", b"".join(records)))
    assert sum(each.data is not None for each in found) == 8
    assert [each.reason for each in found if each.data is None] == ["unreadable"]


def test_archives_packed_as_a_whole_or_cut_off(tmp_path: Path) -> None:
    whole = b"".join(page(number) for number in range(9))
    found = items("warc", write(tmp_path / "a.warc.gz", gzip.compress(whole)))
    assert len(found) == 9 and all(each.data for each in found) and len({each.key for each in found}) == 9
    found = items("warc", write(tmp_path / "b.warc.gz", gzip.compress(whole)[:-30]))
    assert found[-1].reason == "unreadable" and all(each.data for each in found[:-1]) and len(found) > 5
    found = items("warc", write(tmp_path / "c.warc", whole[:-40]))
    assert [each.reason for each in found] == [""] * 8 + ["unreadable"]


def test_addresses_are_compared_in_one_spelling_and_moves_are_followed(tmp_path: Path) -> None:
    moved = "HTTP status"
    html = (
        b"<p>x<img src='/a%7eb.png#top'><img src='/c d.png'><img src=//E.org:80/x/../e.png><img src=old.png>"
        b"<img src=loop.png alt=l><img src='/\xc3\xbc.png'>"
    )
    records = [
        response("<http://e.org/p>", "text/html; charset=utf-8", html),
        response("<http://E.org/a~b.png>", "image/png", A),
        response("http://e.org:80/c%20d.png", "image/png", A),
        response("HTTP://e.org/e.png", "application/octet-stream", A),
        response("http://e.org/old.png", "text/html", b"<p>moved", "Location: ../new.png\r\n", "301 Moved"),
        response(
            "http://e.org/new.png", "text/plain", b"", "Location: http://e.org/newer.png\r\n", "302 Found"
        ),
        response("http://e.org/newer.png", "image/png", A),
        response("http://e.org/loop.png", "text/html", b"", "Location: /loop.png\r\n", "302 Found"),
        response("http://e.org/%c3%bc.png", "image/png", A),
    ]
    first, *rest = items("warc", write(tmp_path / "a.warc", b"".join(records)))
    assert first.about.url == "http://e.org/p"
    assert shown(first).count('src="[') == 5 and '<img alt="l">' in shown(first)
    assert [each.reason for each in rest] == ["no_page"] * 2 and all(moved in each.detail for each in rest)


@pytest.mark.parametrize(
    ("url", "meant"),
    [
        ("<http://E.org>", "http://e.org/"),
        ("http://e.org:443/", "http://e.org:443/"),
        ("https://e.org:443/a", "https://e.org/a"),
        ("http://e.org/%7Ea%2fb%zz", "http://e.org/~a%2Fb%zz"),
        ("http://e.org/a/./b/../c?q=a b#f", "http://e.org/a/c?q=a%20b"),
        ("http://bücher.de/", "http://xn--bcher-kva.de/"),
        ("http://u:p@E.org/", "http://u:p@e.org/"),
        ("http://[::1]:80/x", "http://[::1]/x"),
        ("a b.png", "a%20b.png"),
        ("http://e.org:x/", "http://e.org:x/"),
        ("urn:uuid:1", "urn:uuid:1"),
    ],
)
def test_one_spelling(url: str, meant: str) -> None:
    assert normal(url) == meant == normal(meant)


ROWS: list[tuple[dict[str, Any], str]] = [
    ({"text": "An article.\n\nMore.", "url": "http://e.org/p"}, "<p>An article.</p><p>More.</p>"),
    ({"text": "red", "url": "http://e.org/a.png?x=1"}, '<img alt="red">'),
    ({"TEXT": "red", "URL": "http://e.org/a"}, '<img alt="red">'),
    ({"caption": "red", "url": "http://e.org/a"}, '<img alt="red">'),
    ({"text": "code", "path": "src/main.c"}, "<p>code</p>"),
    ({"title": "red", "filepath": "a.png"}, '<img alt="red">'),
    ({"caption": b"caf\xc3\xa9", "jpg": A}, '<img alt="café" src="[row/0]">'),
    ({"text": "t", "image": None}, "<p>t</p>"),
    ({"html": b"<p>x", "text": ["a"]}, "<p>x</p>"),
    ({"caption": ["a", "b"], "jpg": A}, "bad_row"),
    ({"caption": {"en": "a"}, "jpg": A}, "bad_row"),
    ({"caption": 7, "jpg": A}, "bad_row"),
    ({"caption": b"\xff", "jpg": A}, "bad_row"),
    ({"caption": "a", "image": [A]}, "bad_row"),
    ({"caption": "a", "image": 7}, "bad_row"),
    ({"html": ["<p>x"]}, "bad_row"),
    ({"texts": "abc", "images": [None]}, "bad_row"),
    ({"texts": ["a", {"b": 1}], "images": []}, "bad_row"),
    ({"texts": ["a"], "images": [["x"]]}, "bad_row"),
    ({"texts": ["a"], "images": "x.png"}, "bad_row"),
    ({"text_list": "abc"}, "bad_row"),
    ({"text_list": ["a"], "image_info": [{"image_name": "x", "matched_text_index": 9}]}, "bad_row"),
    ({"text_list": ["a"], "image_info": ["x"]}, "bad_row"),
    ({"text_list": ["a", 3]}, "bad_row"),
    ({"jpg": A}, "bad_row"),
    ({"text": ["a"]}, "bad_row"),
    ({"n": 1}, "bad_row"),
    ({}, "bad_row"),
]


@pytest.mark.parametrize(("row", "meant"), ROWS)
def test_names_and_types_of_columns_decide(row: dict[str, Any], meant: str) -> None:
    from cm3kit.web.sources.rows import item

    found = item("k", {**row, "license": ["x"], "tags": [1]}, "parquet", SourceOptions())
    assert shown(found) == meant and found.about.license == ""
    assert found.data is None or not any(
        word in found.data for word in (b"[&#39;", b"{&#39;", b"b&#39;", b"['")
    )


TABLES: list[tuple[str, bytes, list[str]]] = [
    ("a.tsv", b"a red square\thttp://e.org/a.jpg\n", ["a red square|http://e.org/a.jpg"]),
    ("a.tsv", b"http://e.org/a.jpg\ta red square\nhttp://e.org/b\tb\n", ["a red square|http://e.org/a.jpg", "b|http://e.org/b"]),
    ("a.csv", b"filepath,title\na.png,red\n", ["red|a.png"]),
    ("a.csv", b"filepath\ttitle\na.png\tred, and more\n", ["red, and more|a.png"]),
    ("a.csv", b"\xef\xbb\xbfCaption,Image_URL\r\nred,http://e.org/a\r\n", ["red|http://e.org/a"]),
    ("a.csv", b"url;caption\nhttp://e.org/a;red\n", ["red|http://e.org/a"]),
    ("a.csv", "caption,url\nré,http://e.org/a\n".encode("utf-16"), ["ré|http://e.org/a"]),
    ("a.csv", b'url,caption\nu1,"a ""b""\nc"\nu2,d\n', ['a "b"\nc|u1', "d|u2"]),
    ("a.csv", b'url,caption\nu1,a\nu2,"open\nu3,c\nu4,"d"\n', ["a|u1", "!", "c|u3", "d|u4"]),
    ("a.csv", b'url,caption\nu1,"open\nu2,c\n', ["!", "c|u2"]),
    ("a.csv", b"url,caption\nu1,a,b\nu2\nu3,c\n", ["!", "!", "c|u3"]),
    ("a.csv", b"url,caption\nu1,caf\xe9\nu2,c\n", ["!", "c|u2"]),
    ("a.csv", b"url,caption\nu1," + b"x" * 200_000 + b"\nu2,c\n", ["x" * 200_000 + "|u1", "c|u2"]),
    ("a.tsv", b'say "hi\thttp://e.org/a\n"quoted"\thttp://e.org/b\n', ['say "hi|http://e.org/a', '"quoted"|http://e.org/b']),
    ("a.tsv", b"TEXT\tURL\nred\thttp://e.org/a\n\n\r\n", ["red|http://e.org/a"]),
    ("a.csv", b"sep=;\nurl;caption\nhttp://e.org/a;red\n", ["red|http://e.org/a"]),
    ("a.csv", b"# made by hand\n\nurl,caption\nhttp://e.org/a,red\n", ["red|http://e.org/a"]),
    ("a.csv", b"#,url,caption\n1,http://e.org/a,red\n", ["red|http://e.org/a"]),
    ("a.csv", b"url|caption\nhttp://e.org/a|red, blue\n", ["red, blue|http://e.org/a"]),
    ("a.csv", b"Image URL,Alt-Text,caption\nhttp://e.org/a,x,red\n", ["red|http://e.org/a"]),
    ("a.csv", b"url,caption\ru1,red\ru2,\xff\ru3,blue\r", ["red|u1", "!", "blue|u3"]),
    ("a.csv", b'url,caption\nu1,5" nail\nu2,d\n', ['5" nail|u1', "d|u2"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "data", "meant"), TABLES)
def test_tables_are_read_as_they_are_meant(tmp_path: Path, name: str, data: bytes, meant: list[str]) -> None:
    place = write(tmp_path / name, data)

    def line(row: dict[str, str] | str) -> str:
        if isinstance(row, str):
            return "!"
        words = next(row[each] for each in ("caption", "TEXT", "title") if each in row)
        return f"{words}|{next(row[each] for each in ('url', 'URL', 'filepath', 'image_url') if each in row)}"

    assert [line(row) for row in read(str(place), look(str(place)))] == meant
    found = items("pairs", place)
    assert len(found) == len(meant) and [each.reason == "bad_row" for each in found] == [
        each == "!" for each in meant
    ]


@pytest.mark.parametrize(
    "data",
    [b"a,b,c\n1,2,3\n", b"one,two\nthree,four\n", b"alone\n", b"id,width,url\n1,2,http://e.org/a.png\n"],
)
def test_a_table_that_does_not_say_is_refused_with_the_setting_that_does(
    tmp_path: Path, data: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    place = write(tmp_path / "a.csv", data)
    assert run(["data", "prepare", str(place), "-o", str(tmp_path / "o"), "--workers", "0"]) == 1
    assert "--column" in capsys.readouterr().err and not (tmp_path / "o").exists()
    names = data.split(b"\n")[0].decode().split(",")
    if len(names) > 1:
        column = [f"--column=caption={names[0]}", f"--column=image={names[1]}"]
        assert run(["data", "prepare", str(place), "-o", str(tmp_path / "o"), "--workers", "0", *column]) == 0
        numbered = SourceOptions(columns={"caption": "1", "image": "2"})
        assert [each.reason for each in items("pairs", place, numbered)] == [""] * data.count(b"\n")
    assert run(["data", "prepare", str(place), "-o", str(tmp_path / "p"), "--column", "x=1"]) == 1


def test_text_in_two_bytes_a_character_is_read_or_named(tmp_path: Path) -> None:
    lines = '{"text": "café"}\r\n{"text": "b"}\r\n'
    found = items("mmc4", write(tmp_path / "a.jsonl", lines.encode("utf-16")))
    assert [shown(each) for each in found] == ["<p>café</p>", "<p>b</p>"]
    (item,) = items("mmc4", write(tmp_path / "b.jsonl", lines.encode("utf-16-le")))
    assert item.reason == "unreadable" and "UTF-16" in item.detail
    for codec in ("utf-16-le", "utf-16-be"):
        with pytest.raises(DataError, match="UTF-16"):
            look(str(write(tmp_path / "b.csv", "url,caption\nhttp://e.org/a,red\n".encode(codec))))
    with pytest.raises(DataError, match="2 columns named caption"):
        look(str(write(tmp_path / "c.csv", b"url,caption,caption\nhttp://e.org/a,red,blue\n")))


def test_names_that_are_no_unicode_end_no_run(tmp_path: Path) -> None:
    write(tmp_path / "a/a.jsonl", '{"\\ud800": 1}\n{"text": "b\\ud800", "title": "\\udfff"}\n')
    assert prepare(str(tmp_path / "a"), tmp_path / "o")["pages"] == {"bad_row": 1, "in": 2, "kept": 1}
    members: list[tuple[str, bytes | tarfile.TarInfo]] = [
        ("a\udcff.txt", b"alone"),
        ("b\udcff.html", b"<p>x"),
    ]
    tar(tmp_path / "a.tar", members)
    assert prepare(str(tmp_path / "a.tar"), tmp_path / "p")["pages"] == {"bad_row": 1, "in": 2, "kept": 1}


def test_a_row_that_python_cannot_hold_costs_itself(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    offsets = b"".join(number.to_bytes(4, "little") for number in (0, 1, 3, 4))
    texts = arrow.Array.from_buffers(
        arrow.string(), 3, [None, arrow.py_buffer(offsets), arrow.py_buffer(b"a\xff\xfec")]
    )
    when = arrow.array([1, 2, 2**62], arrow.timestamp("ms"))
    parquet.write_table(arrow.table({"text": texts, "when": when}), tmp_path / "a.parquet")
    found = items("parquet", tmp_path / "a.parquet")
    assert [shown(each) for each in found] == ["<p>a</p>", "unreadable", "<p>c</p>"]
    assert found[1].detail.startswith("text: ")


def test_an_unforeseen_error_of_a_source_is_a_reject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cm3kit.web.sources import mmc4

    rows = "".join(f'{{"text": "{name}"}}\n' for name in "abc")
    place = write(tmp_path / "a.jsonl", rows)
    real = mmc4._line

    def line(key: str, *rest: Any) -> Any:
        if key.endswith("#1"):
            raise BufferError("of no class that is foreseen")
        return real(key, *rest)

    monkeypatch.setattr(mmc4, "_line", line)
    assert prepare(str(place), tmp_path / "o")["pages"] == {"in": 2, "kept": 1, "unreadable": 1}
    (reject,) = read_rejects(part_folders(tmp_path / "o")[0])
    assert "first 1" in reject["detail"] and "foreseen" in reject["detail"]


def test_a_damaged_member_of_a_tar_costs_itself(tmp_path: Path) -> None:
    members = [(f"{name}.html", f"<p>{name}".encode()) for name in "abcde"]
    whole = bytearray(tar(tmp_path / "a.tar", members).read_bytes())
    assert whole[2048 : 2048 + 6] == b"c.html"
    whole[2048 + 100] ^= 1
    found = items("webdataset", write(tmp_path / "b.tar", bytes(whole)))
    assert [shown(each) for each in found if each.data] == [f"<p>{name}</p>" for name in "abde"]
    (bad,) = [each for each in found if each.data is None]
    assert bad.reason == "unreadable" and "2 blocks" in bad.detail
    (odd,) = items("webdataset", tar(tmp_path / "c.tar", [("a.mp4", b"x"), ("a.cls", b"1")]))
    assert odd.reason == "bad_row" and "mp4, cls" in odd.detail


def test_every_row_of_a_damaged_row_group_is_named(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rng = random.Random(1)
    rows = [{"html": f"<p>{number} {rng.randbytes(200).hex()}"} for number in range(30)]
    place = tmp_path / "a.parquet"
    parquet.write_table(arrow.Table.from_pylist(rows), place, row_group_size=10, use_dictionary=False)
    group = parquet.read_metadata(place).row_group(1).column(0)
    data = bytearray(place.read_bytes())
    data[group.data_page_offset : group.data_page_offset + 40] = b"\xff" * 40
    place.write_bytes(data)
    found = items("parquet", place, SourceOptions(pages=7))
    assert [each.key.rpartition("#")[2] for each in found] == [str(number) for number in range(30)]
    assert [each.reason for each in found] == [""] * 10 + ["unreadable"] * 10 + [""] * 10


def with_exif(exif: bytes) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (64, 48), "red").save(out, "JPEG", exif=exif)
    return out.getvalue()


EXIFS = [
    b"Exif\0\0garbage", b"Exif\0\0II*\0\x08\0\0\0\xff\xff", b"Exif\0\0MM\0*\xff\xff\xff\xff",
    b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\x0f\x01\x02\0\xff\xff\0\0\xff\xff\0\0\0\0\0\0",
]  # fmt: skip


def test_only_a_decompression_bomb_is_an_error_among_warnings(tmp_path: Path) -> None:
    faults = [load_checked(with_exif(exif))[1] for exif in EXIFS]
    assert any(faults) and all(load_picture(with_exif(exif)).mode == "RGB" for exif in EXIFS)
    bomb = io.BytesIO()
    Image.new("1", (9400, 9400)).save(bomb, "PNG")
    with pytest.raises(PictureError, match="pixels"):
        load_picture(bomb.getvalue())
    site = tmp_path / "site"
    for number, exif in enumerate(EXIFS):
        write(site / f"{number}.jpg", with_exif(exif))
    write(site / "p.html", "<p>x" + "".join(f"<img src={number}.jpg>" for number in range(len(EXIFS))))
    counts = prepare(str(site), tmp_path / "o")
    assert counts["pictures"] == {"kept": len(EXIFS), "bad_metadata": sum(map(bool, faults))}
    assert "bad_metadata: the metadata" in report(tmp_path / "o", counts)


def test_a_query_may_be_escaped_in_a_file_s_name(tmp_path: Path) -> None:
    write(tmp_path / "p.html", "<p>x<img src='a.png?w=300'>")
    write(tmp_path / "a.png%3Fw=300", A)
    (found,) = items("folder", tmp_path)
    assert shown(found) == '<p>x<img src="[a.png?w=300]"></p>'


def test_the_literal_name_comes_before_the_cut_one(tmp_path: Path) -> None:
    write(tmp_path / "a.png?resize=300", A)
    write(tmp_path / "a.png", B)
    write(tmp_path / "p.html", "<p>x<img src='a.png?resize=300'><img src='a.png?v=2'>")
    (found,) = items("folder", tmp_path)
    assert found.find("a.png?resize=300") == A and found.find("a.png?v=2") == B


ARCHIVES = ("warc", "tar", "jsonl.gz", "parquet", "csv")


def archive(kind: str, tmp_path: Path) -> tuple[Path, int]:
    """A damaged archive and how many records there are to read in it."""
    if kind == "warc":
        return write(tmp_path / "a.warc", b"".join(damaged("length long"))), 9
    if kind == "tar":
        whole = bytearray(
            tar(tmp_path / "a.tar", [(f"{n}.html", f"<p>{n}".encode()) for n in range(9)]).read_bytes()
        )
        whole[4 * 1024 + 100] ^= 1
        return write(tmp_path / "a.tar", bytes(whole)), 9
    if kind == "jsonl.gz":
        lines = [json.dumps({"html": f"<p>{n}"}) if n != 4 else "{broken" for n in range(9)]
        return write(tmp_path / "a.jsonl.gz", gzip.compress("\n".join(lines).encode())), 9
    if kind == "parquet":
        arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        place = tmp_path / "a.parquet"
        rows = [{"html": f"<p>{n} {'x' * 50}"} for n in range(9)]
        parquet.write_table(arrow.Table.from_pylist(rows), place, row_group_size=3, use_dictionary=False)
        data, at = (
            bytearray(place.read_bytes()),
            parquet.read_metadata(place).row_group(1).column(0).data_page_offset,
        )
        data[at : at + 30] = b"\xff" * 30
        place.write_bytes(data)
        return place, 9
    lines = [f"http://e.org/{n}.png,c{n}" for n in range(9)]
    lines[4] = 'http://e.org/4.png,"open'
    return write(tmp_path / "a.csv", "\n".join(["url,caption", *lines])), 9


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("kind", ARCHIVES)
def test_records_are_rows_and_rejects(tmp_path: Path, kind: str, workers: int) -> None:
    place, records = archive(kind, tmp_path)
    pages = prepare(str(place), tmp_path / "o", workers=workers)["pages"]
    rejects = sum(count for reason, count in pages.items() if reason not in ("in", "kept"))
    assert pages["in"] == records == pages["kept"] + rejects and pages["kept"] >= 6 and rejects in (1, 3)


def test_an_error_of_a_worker_is_the_error_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    errors = [DataError("What happened.", code="no_file"), PictureError("x", code="bad_picture")]
    for error in errors:
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.code) == (type(error), str(error), error.code)
    source = load_sources()["folder"]
    write(tmp_path / "in/p.html", "<p>x")
    (tmp_path / "out/parts").mkdir(parents=True)
    (tmp_path / "out/pictures").write_text("a file where a folder must be")
    write(tmp_path / "in/q.html", "<p>x<img src=a.png>")
    write(tmp_path / "in/a.png", A)
    told = []
    for workers in (0, 1):
        with pytest.raises(Cm3kitError) as caught:
            prepare(str(tmp_path / "in"), tmp_path / "out", workers=workers)
        told.append((type(caught.value), str(caught.value)))
    assert told[0] == told[1] and source


@pytest.mark.parametrize(
    ("data", "words"), [(LFS, "git lfs pull"), (LOGIN, "HTML page"), (b'{"error": "no"}', "JSON")]
)
def test_the_message_names_the_real_cause(tmp_path: Path, data: bytes, words: str, capsys: Any) -> None:
    assert words in disguise(data)
    with pytest.raises(PictureError, match=words):
        load_picture(data)
    for kind, name in (
        ("parquet", "a.parquet"),
        ("webdataset", "a.tar"),
        ("warc", "a.warc"),
        ("mmc4", "a.jsonl"),
    ):
        if name == "a.jsonl" and data.startswith(b"{"):
            continue
        (found,) = items(kind, write(tmp_path / name, data))
        assert found.reason == "unreadable" and words in found.detail, name
    with pytest.raises(DataError, match=words):
        look(str(write(tmp_path / "a.csv", data)))
    for name in ("m.ckpt", "m.safetensors", "m.pth"):
        path = write(tmp_path / name, data)
        assert run(["model", "convert", str(path), "-o", str(tmp_path / "out")]) == 1
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1, name


def test_a_tar_is_no_table(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "m.csv", "w") as file:
        file.addfile(tarfile.TarInfo("a"), io.BytesIO())
    with pytest.raises(DataError, match="tar archive"):
        look(str(tmp_path / "m.csv"))
