"""Pages, pictures and archives that mean harm: each gets its record, a reason or a clean stop."""

from __future__ import annotations

import base64
import gc
import gzip
import io
import os
import random
import socket
import struct
import tarfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image as Pillow

from cm3kit.config import resolve
from cm3kit.web.reasons import REASONS, Refused
from cm3kit.web.record import Dropped, Record, html_to_record
from cm3kit.web.settings import WebSettings
from cm3kit.web.sources import SourceOptions, load_sources
from cm3kit_tokenizers.errors import DataError

SOURCES = load_sources()


def png(width: int = 40, height: int = 40, **how: object) -> bytes:
    return saved(Pillow.new("RGB", (width, height), "red"), "PNG", **how)


def saved(image: Pillow.Image, kind: str, **how: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)  # type: ignore[arg-type]
    return buffer.getvalue()


def bomb() -> bytes:
    """A few bytes of PNG that say that they are 30,000 pixels square."""
    head = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 10_000)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def rotated() -> bytes:
    image = Pillow.new("RGB", (60, 40), "red")
    exif = Pillow.Exif()
    exif[0x0112] = 6
    return saved(image, "JPEG", exif=exif)


def animated() -> bytes:
    frames = [Pillow.new("P", (40, 40), colour) for colour in range(3)]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:])


PICTURES: dict[str, tuple[bytes, str]] = {
    "cmyk": (saved(Pillow.new("CMYK", (40, 40), (9, 99, 9, 9)), "JPEG"), ""),
    "16-bit": (saved(Pillow.new("I;16", (40, 40), 40_000), "PNG"), ""),
    "palette": (saved(Pillow.new("P", (40, 40), 3), "PNG", transparency=3), ""),
    "grey with alpha": (saved(Pillow.new("LA", (40, 40), (9, 9)), "PNG"), ""),
    "animated": (animated(), ""),
    "rotated": (rotated(), ""),
    "bomb": (bomb(), "bad_picture"),
    "truncated": (png(400, 400)[:-40], "bad_picture"),
    "empty": (b"", "bad_picture"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "bad_picture"),
    "tiff": (saved(Pillow.new("RGB", (40, 40)), "TIFF"), "bad_picture"),
    "html": (b"<!doctype html><p>404", "bad_picture"),
    "zip": (b"PK\x03\x04" + b"\0" * 99, "bad_picture"),
    "huge": (b"\x89PNG\r\n\x1a\n" + bytes(20 * 2**20), "bad_picture"),
    "one pixel": (png(1, 1), "too_small"),
    "a line": (png(2000, 40), "too_long"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_of_any_kind_is_stored_upright_or_has_a_reason(name: str) -> None:
    data, why = PICTURES[name]
    found = html_to_record(b"<p>x<img src=a>", lambda address: data)
    assert isinstance(found, Record) and [reason for _, reason in found.dropped] == ([why] if why else [])
    for each in found.pictures:
        opened = Pillow.open(io.BytesIO(each.data))
        assert (opened.mode, opened.size) == ("RGB", (40, 40)) and getattr(opened, "n_frames", 1) == 1
    if name == "rotated":
        whole = html_to_record(
            b"<p>x<img src=a>", lambda address: data, resolve(WebSettings, [], ["pictures.fit=whole"])
        )
        assert isinstance(whole, Record) and (whole.pictures[0].width, whole.pictures[0].height) == (40, 60)


@pytest.mark.parametrize(
    ("page", "expected"),
    [
        (b"<div>" * 100_000 + b"x", "page_too_deep"),
        (b"<b>" * 100_000 + b"x", "page_too_deep"),
        (b"<p>" + b"x" * (17 * 2**20), "page_too_large"),
        (b"<" * 300_000, "kept"),
        (b"<!--" * 100_000, "too_short"),
        (b"<a " + b"b=1 " * 100_000 + b">x</a>", "kept"),
        (b"<p>a\0b<img alt='\0' src='\0'>\0</p>", "kept"),
        (b"<img srcset='" + b", " * 200_000 + b"'>x", "kept"),
        (b"<img srcset='" + b"a" * 200_000 + b"'>x", "kept"),
        (b"<img srcset='" + b"a 1w," * 40_000 + b"'>x", "kept"),
        (b"<img srcset='" + b"a " * 100_000 + b"'>x", "kept"),
        (b"x<img src='" + b"../" * 50_000 + b"etc/passwd'>", "kept"),
        (b"<table>" * 400 + b"x", "kept"),
        (b"&" * 200_000, "kept"),
        (b"<p>x" + b"<img src=a>" * 5_000, "kept"),
        (b"\x1f\x8b\x08" + bytes(range(256)) * 40, "bad_encoding"),
        (b"<meta charset=nonsense><p>x", "kept"),
        (b"<p>\xed\xa0\x80x" + b"y" * 400, "kept"),
    ],
    ids=lambda value: value if isinstance(value, str) else repr(value[:12]),
)  # fmt: skip
def test_a_page_that_is_large_deep_or_odd(page: bytes, expected: str) -> None:
    found = html_to_record(page, refuse)
    if isinstance(found, Dropped):
        assert found.reason == expected in REASONS
    else:
        assert expected == "kept" and found.html and not found.pictures


def refuse(address: str) -> bytes:
    raise Refused("no_file")


def test_nothing_outside_is_read_written_or_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow", reason="the extra web is not installed")
    from cm3kit.web.runner import prepare

    monkeypatch.setattr(socket.socket, "connect", lambda *given: pytest.fail("the network was asked"))
    secret = png(50, 50)
    (tmp_path / "secret.png").write_bytes(secret)
    site = tmp_path / "site"
    (site / "sub").mkdir(parents=True)
    (site / "link").symlink_to(tmp_path)
    os.mkfifo(site / "pipe.png")
    os.mkfifo(site / "pipe.html")
    addresses = [
        "../secret.png", "%2e%2e/secret.png", "sub/../../secret.png", "/../secret.png", str(tmp_path / "secret.png"),
        f"file://{tmp_path}/secret.png", "file:secret.png", "link/secret.png", "pipe.png", "http://127.0.0.1/a.png",
        "//127.0.0.1/a.png", "https://169.254.169.254/latest", "ftp://e.org/a", "javascript:alert(1)", "..\\secret.png",
        "\\\\host\\a.png", "secret.png\0.html", "CON", "?", "#", " ", "sub", ".", "data:text/html,<p>x", "data:,",
        "data:image/png;base64,%%%", "cm3://sha256/" + "0" * 64, "cm3://0", "a" * 5000,
    ]  # fmt: skip
    images = "".join(f'<img src="{each}">' for each in addresses)
    inline = base64.b64encode(png()).decode()
    (site / "a.html").write_text(f'<p>x{images}<img src="data:image/png;base64,{inline}">')
    (site / "b.html").write_text("<base href=file:///etc/><p>x<img src=passwd><img src='../../secret.png'>")
    (site / "evil\n<b>.html").write_text("<p>fine")
    before = sorted(path for path in tmp_path.rglob("*"))
    found = prepare(str(site), tmp_path / "out")
    outside = [path for path in tmp_path.rglob("*") if tmp_path / "out" not in (path, *path.parents)]
    assert sorted(outside) == before
    assert found["pictures"].pop("kept") == 1 and set(found["pictures"]) <= set(REASONS)
    assert sum(found["pictures"].values()) == len(addresses) + 2
    assert found["pages"] == {"in": 4, "kept": 3, "unreadable": 1}


def archives() -> dict[str, tuple[str, bytes]]:
    """A small whole file of each kind of source that is an archive, and the name that it has."""
    page = b"<p>x<img src=a.png>"
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as file:
        for name, data in (("a.html", page), ("a.png", png()), ("b.txt", b"b"), ("b.png", png())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    http = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 19\r\n\r\n" + page
    warc = (
        b"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://e.org/\r\nWARC-Date: 2026-01-02T03:04:05Z\r\n"
        b"WARC-Record-ID: <urn:uuid:00000000-0000-0000-0000-000000000000>\r\nContent-Type: application/http\r\n"
        + f"Content-Length: {len(http)}\r\n\r\n".encode() + http + b"\r\n\r\n"
    )  # fmt: skip
    line = b'{"text_list": ["a", "b"], "image_info": [{"image_name": "a.png", "matched_text_index": 1}], "url": "u"}\n'
    return {
        "webdataset": ("a.tar", tar.getvalue()), "warc": ("a.warc", warc * 2), "mmc4": ("a.jsonl", line * 3),
        "pairs": ("a.tsv", b"caption\thttp://e.org/a.png\n" * 3), "folder": ("a.html", page),
    }  # fmt: skip


ARCHIVES = archives()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(ARCHIVES)), st.integers(0, 2**32), st.integers(1, 20), st.booleans())
def test_damaged_archives_give_items_or_reasons(
    tmp_path_factory: pytest.TempPathFactory, kind: str, seed: int, changes: int, packed: bool
) -> None:
    name, data = ARCHIVES[kind]
    rng, broken = random.Random(seed), bytearray(gzip.compress(data) if packed else data)
    for _ in range(changes):
        at = rng.randrange(len(broken))
        match rng.randrange(4):
            case 0:
                broken[at] ^= 1 << rng.randrange(8)
            case 1:
                del broken[at : at + rng.randrange(50)]
            case 2:
                broken[at:at] = rng.randbytes(rng.randrange(30))
            case _:
                broken[at : at + 9] = rng.choice([b"\0" * 9, b"999999999", b"-1", b"\xff" * 9, b"../../../"])
        broken = broken or bytearray(b"x")
    place = tmp_path_factory.mktemp("fuzz") / (name + ".gz" * (packed and kind != "folder"))
    place.write_bytes(broken)
    source = SOURCES[kind]()
    try:
        pieces = source.pieces(str(place), SourceOptions())
    except DataError as error:  # a table that does not tell which column is which, or is none
        assert kind == "pairs" and "\n" not in str(error)
        return
    for piece in pieces:
        for item in source.items(piece, SourceOptions()):
            if item.data is None:
                assert item.reason in REASONS
            else:
                found = html_to_record(item.data, item.find, key=item.key, about=item.about)
                assert isinstance(found, Record) or found.reason in REASONS


@pytest.mark.parametrize("picture", [None, b"no picture"])
def test_a_picture_that_cannot_be_had_does_not_hold_on_to_its_page(picture: bytes | None) -> None:
    def find(address: str) -> bytes:
        if picture is None:
            raise Refused("no_file")
        return picture + address.encode()

    def left_by(pages: int) -> int:
        gc.collect()
        before = len(gc.get_objects())
        gc.disable()
        try:
            for number in range(pages):
                html_to_record(b"<p>text" + b"<p>x<img src=a%d>" % number * 20, find)
            return len(gc.get_objects()) - before
        finally:
            gc.enable()

    left_by(2)  # what is imported on the way stays
    assert left_by(20) < 20 * 20, "garbage that only the collector finds: an error, its frames, the page"
