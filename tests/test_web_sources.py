"""Every kind of source gives its pages, pictures and, for what cannot be read, reasons."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from pathlib import Path

import pytest
from PIL import Image as Pillow

from cm3kit.web.reasons import REASONS
from cm3kit.web.record import Record, html_to_record
from cm3kit.web.sources import Item, SourceOptions, detect, load_sources
from cm3kit_tokenizers.errors import ConfigError, DataError


def png(width: int = 60, height: int = 40, colour: object = "red") -> bytes:
    buffer = io.BytesIO()
    Pillow.new("RGB", (width, height), colour).save(buffer, "PNG")  # type: ignore[arg-type]
    return buffer.getvalue()


FOUND = load_sources()
A, B = png(), png(colour="blue")


def write(path: Path, data: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def items(kind: str, place: Path, options: SourceOptions | None = None) -> list[Item]:
    source, options = FOUND[kind](), options or SourceOptions()
    pieces = source.pieces(str(place), options)
    assert pieces == source.pieces(str(place), options), "the same pieces every time"
    return [item for piece in pieces for item in source.items(piece, options)]


def shown(item: Item) -> str:
    """The item's minimal HTML with the original addresses, or the reason why there is none."""
    if item.data is None:
        assert item.reason in REASONS
        return item.reason
    found = html_to_record(item.data, item.find, key=item.key, about=item.about)
    if not isinstance(found, Record):
        return found.reason
    html = found.html
    for each in found.pictures:
        html = html.replace(f"cm3://sha256/{each.sha256}", f"[{each.src}]")
    return html


def test_a_folder_is_a_site_and_nothing_outside_it_is_read(tmp_path: Path) -> None:
    root = tmp_path / "site"
    write(tmp_path / "secret.png", A)
    write(root / "img/a b.png", A)
    write(root / "sub/page.html", "<p>x<img src='../img/a%20b.png'><img src='/img/c d.png'>")
    write(root / "img/c d.png", B)
    write(root / "sub/out.htm", "<p>x<img alt=1 src='../../secret.png'><img alt=2 src='../link.png'>")
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    (root / "z.html").symlink_to(tmp_path / "secret.png")
    (root / "loop").symlink_to(root)
    write(root / "caf\u00e9.xhtml", b"")
    found = {each.key: each for each in items("folder", root)}
    assert list(found) == ["caf\u00e9.xhtml", "sub/out.htm", "sub/page.html", "z.html"]
    assert shown(found["sub/page.html"]) == '<p>x<img src="[../img/a%20b.png]"><img src="[/img/c d.png]"></p>'
    assert shown(found["sub/out.htm"]) == '<p>x<img alt="1"><img alt="2"></p>'
    assert [shown(found[key]) for key in ("caf\u00e9.xhtml", "z.html")] == ["empty_file", "outside"]
    assert len(FOUND["folder"]().pieces(str(root), SourceOptions(pages=3))) == 2


@pytest.mark.parametrize("reader", ["fastwarc", "warcio"])
@pytest.mark.parametrize("packed", [False, True])
def test_warc_pages_find_the_pictures_of_the_same_file(
    reader: str, packed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip(reader)
    from cm3kit.web.sources import warc

    monkeypatch.setattr(warc, "fastwarc", getattr(warc, reader))
    page = gzip.compress(b"<p>x<img src=/a.png><img alt=gone src=b.png>")
    records = [
        response("http://e.org/a.png", "image/png", A),
        response("http://e.org/p", "text/html; charset=utf-8", page, "Content-Encoding: gzip\r\n"),
        response("http://e.org/x", "application/pdf", b"%PDF"),
        response("http://e.org/moved", "text/html", b"<p>gone", status="301 Moved"),
        response("http://e.org/q", "text/html", b"<p>y"),
    ]
    raw = b"".join(map(gzip.compress, records) if packed else records)
    place = write(tmp_path / ("a.warc.gz" if packed else "a.warc"), raw)
    first, moved, second = items("warc", place)
    assert (moved.reason, moved.detail) == ("no_page", "HTTP status 301")
    assert (
        shown(first) == '<p>x<img src="[http://e.org/a.png]"><img alt="gone"></p>'
        and shown(second) == "<p>y</p>"
    )
    assert (first.about.url, first.about.fetched_at) == ("http://e.org/p", "2026-01-02T03:04:05Z")
    assert first.about.headers["content-type"] == "text/html; charset=utf-8" and first.key != second.key
    cut = write(tmp_path / f"cut{place.suffix}", raw[:-20])
    assert [each.reason for each in items("warc", cut)][-1] == "unreadable"
    assert shown(items("warc", cut)[0]) == shown(first)


def response(url: str, kind: str, body: bytes, more: str = "", status: str = "200 OK") -> bytes:
    http = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    head = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2026-01-02T03:04:05Z\r\n"
        "WARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000000000000>\r\n"
        f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
    )
    return head.encode() + http + b"\r\n\r\n"


def tar(path: Path, members: list[tuple[str, bytes | tarfile.TarInfo]]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in members:
            info = data if isinstance(data, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            info.size = len(data) if isinstance(data, bytes) else 0
            file.addfile(info, io.BytesIO(data) if isinstance(data, bytes) else None)
    return path


def test_webdataset_tars_hold_pairs_pages_and_interleaved_documents(tmp_path: Path) -> None:
    mint = {"texts": ["One", None, "Two & <three>"], "images": [None, "c.1.png", None], "url": "http://e.org"}
    place = tar(
        tmp_path / "a.tar",
        [
            ("a.png", A), ("a.txt", b'A "red" one'), ("d/b.html", b"<p>x<img src=b.0.png>"), ("d/b.0.png", B),
            ("c.json", json.dumps(mint).encode()), ("c.1.png", B), ("e.json", b"{broken"), ("f.json", b"[1]"),
            ("g.cls", b"1"),
        ],
    )  # fmt: skip
    found = items("webdataset", place)
    assert [shown(each) for each in found] == [
        '<img alt="A &quot;red&quot; one" src="[png]">', '<p>x<img src="[b.0.png]"></p>',
        '<p>One</p><p><img src="[c.1.png]"></p><p>Two &amp; &lt;three&gt;</p>',
        "unreadable", "unreadable", "bad_row",
    ]  # fmt: skip
    assert found[2].about.url == "http://e.org" and len({each.key for each in found}) == 6


def test_tar_members_that_leave_the_folder_are_named_and_truncation_is_too(tmp_path: Path) -> None:
    link = tarfile.TarInfo()
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    place = tar(
        tmp_path / "a.tar",
        [("../x.html", b"<p>x"), ("/y.html", b"<p>x"), ("z.html", link), ("k.html", b"<p>k")],
    )
    assert [shown(each) for each in items("webdataset", place)] == ["outside"] * 3 + ["<p>k</p>"]
    noise = random.Random(0).randbytes(5000)
    whole = tar(tmp_path / "b.tar", [("a.html", b"<p>a"), ("b.html", b"<p>" + noise)]).read_bytes()
    for data in (whole[:2000], gzip.compress(whole)[:3000]):
        found = items("webdataset", write(tmp_path / "cut.tar", data))
        assert [each.reason for each in found][-1] == "unreadable"
    assert not (tmp_path.parent / "x.html").exists()


def test_pairs_lines_of_json_and_folders_of_pictures(tmp_path: Path) -> None:
    pictures = tmp_path / "pictures"
    write(pictures / "a.png", A)
    options = SourceOptions(pictures=str(pictures))
    lines = write(tmp_path / "a.tsv", 'A "red" one\thttp://e.org/a.png\nfar\thttp://e.org/z.png\nalone\n')
    assert [shown(each) for each in items("pairs", lines, options)] == [
        '<img alt="A &quot;red&quot; one" src="[http://e.org/a.png]">', '<img alt="far">', "bad_row",
    ]  # fmt: skip
    table = write(tmp_path / "a.csv", "id,caption,image_path\n7,red,a.png\n")
    assert [shown(each) for each in items("pairs", table, options)] == ['<img alt="red" src="[a.png]">']
    mmc4 = {
        "url": "http://e.org", "text_list": ["One.", "Two."],
        "image_info": [{"image_name": "a.png", "raw_url": "http://e.org/a.png", "matched_text_index": 1}],
    }  # fmt: skip
    place = write(tmp_path / "a.jsonl", json.dumps(mmc4) + "\n\nnot json\n[1]\n" + "[" * 100_000 + "\n")
    assert [shown(each) for each in items("mmc4", place, options)] == [
        '<p>One.</p><p><img src="[http://e.org/a.png]"></p><p>Two.</p>', "unreadable", "unreadable", "unreadable",
    ]  # fmt: skip
    cut = write(tmp_path / "b.jsonl.gz", gzip.compress(json.dumps(mmc4).encode() * 99)[:-10])
    assert [each.reason for each in items("mmc4", cut)][-1] == "unreadable"


def test_parquet_rows_of_pages_pairs_and_obelics(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [
        {"html": "<p>x<img src=a.png>", "url": "http://e.org", "images": [{"src": "a.png", "bytes": A}]},
        {"html": None, "url": "u", "images": None},
    ]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = items("parquet", tmp_path / "a.parquet")
    assert [shown(each) for each in found] == ['<p>x<img src="[a.png]"></p>', "bad_row"]
    pairs = [{"TEXT": f"n{number}", "jpg": A} for number in range(7)]
    parquet.write_table(arrow.Table.from_pylist(pairs), tmp_path / "b.parquet", row_group_size=3)
    options = SourceOptions(pages=2)
    assert len(FOUND["parquet"]().pieces(str(tmp_path / "b.parquet"), options)) == 4
    assert [shown(each) for each in items("parquet", tmp_path / "b.parquet", options)] == [
        f'<img alt="n{number}" src="[row/0]">' for number in range(7)
    ]
    obelics = {
        "texts": ["One\n\nTwo", None], "images": [None, "http://e.org/a.png"],
        "general_metadata": json.dumps({"url": "http://e.org/p"}), "metadata": "[]",
    }  # fmt: skip
    parquet.write_table(arrow.Table.from_pylist([obelics]), tmp_path / "c.parquet")
    (page,) = items("obelics", tmp_path / "c.parquet")
    assert shown(page) == "<p>One</p><p>Two</p>" and page.about.url == "http://e.org/p"
    write(tmp_path / "d.parquet", b"PAR1")
    assert [each.reason for each in items("parquet", tmp_path / "d.parquet")] == ["unreadable"]


@pytest.mark.filterwarnings("ignore")  # those of the packages that datasets stands on
def test_hugging_face_data_sets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra huggingface is not installed")
    features = datasets.Features({"caption": datasets.Value("string"), "image": datasets.Image()})
    rows = datasets.Dataset.from_dict(
        {"caption": ["a", "b"], "image": [{"bytes": A, "path": None}] * 2}, features
    )
    rows.save_to_disk(tmp_path / "set")
    assert [shown(each) for each in items("huggingface", tmp_path / "set")] == [
        f'<img alt="{name}" src="[row/0]">' for name in "ab"
    ]


def test_the_kind_is_seen_by_the_names_of_files(tmp_path: Path) -> None:
    for name, kind in (
        ("a.html", "folder"),
        ("a.warc.gz", "warc"),
        ("a.tar", "webdataset"),
        ("a.tsv", "pairs"),
    ):
        assert detect(str(write(tmp_path / kind / name, b"x"))) == detect(str(tmp_path / kind)) == kind
    write(tmp_path / "warc/b.parquet", b"x")
    with pytest.raises(DataError, match="holds parquet, warc; choose one with --from"):
        detect(str(tmp_path / "warc"))
    with pytest.raises(DataError, match="of an unknown kind"):
        detect(str(write(tmp_path / "x/y.bin", b"")))
    with pytest.raises(DataError, match="does not exist"):
        detect(str(tmp_path / "nothing"))
    with pytest.raises(ConfigError, match=r"unknown kind of source 'war'; .* Did you mean 'warc'"):
        FOUND["war"]
