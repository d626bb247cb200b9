from __future__ import annotations

import base64
import io
import os
import resource
import socket
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from cm3kit_tokenizers import Page, PageError, PictureError
from cm3kit_tokenizers.pictures import MAX_BYTES, load_picture, picture_size, resolve_src, to_data_uri


def saved(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def picture(width: int = 24, height: int = 16) -> Image.Image:
    """A smooth picture with four unlike corners."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 10, y * 15, (x + y) * 6], -1).clip(0, 255).astype(np.uint8))


def png_bomb(side: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(9)
    row = b"\x00" * (side // 8 + 1)
    body = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "AVIF", "BMP"])
def test_every_format_of_the_list_is_read(kind: str) -> None:
    image = load_picture(saved(picture(), kind))
    assert image.mode == "RGB" and image.size == (24, 16)
    assert np.abs(np.asarray(image, int) - np.asarray(picture(), int)).mean() < 12


@pytest.mark.parametrize("kind", ["TIFF", "PPM", "ICO", "TGA", "PCX", "PDF", "EPS"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(PictureError) as error:
        load_picture(saved(picture(), kind))
    assert error.value.code == "bad_picture"


@pytest.mark.parametrize("side", [9_000, 13_000, 30_000])
def test_bombs_are_refused_before_they_are_decoded(side: int) -> None:
    data = png_bomb(side)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(PictureError, match="pixels") as error:
        load_picture(data)
    assert time.process_time() - started < 0.05
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000
    assert error.value.code == "bad_picture" and "\n" not in str(error.value)


def test_large_files_are_refused() -> None:
    with pytest.raises(PictureError, match="bytes"):
        load_picture(b"\x89PNG" + b"\0" * MAX_BYTES)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
def test_no_truncated_file_is_read(kind: str) -> None:
    data = saved(picture(40, 40), kind)
    # A JPEG is whole without its end marker, a GIF without its trailer and a PNG without its checksums.
    tail = {"JPEG": 2, "GIF": 2, "PNG": 21}.get(kind, 1)
    for cut in {0, 1, 8, *np.linspace(9, len(data) - tail - 1, 40).astype(int).tolist()}:
        with pytest.raises(PictureError):
            load_picture(data[:cut])


def test_random_damage_ends_in_one_line_or_a_picture() -> None:
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "AVIF", "BMP"):
        whole = np.frombuffer(saved(picture(), kind), np.uint8)
        for _ in range(60):
            data = whole.copy()
            data[rng.integers(0, len(data), 3)] = rng.integers(0, 256, 3)
            try:
                assert load_picture(data.tobytes()).mode == "RGB"
            except PictureError as error:
                assert "\n" not in str(error)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(orientation: int) -> None:
    upright = picture()
    undo = {
        2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
        6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270",
    }  # fmt: skip
    stored = upright
    if orientation > 1:
        stored = upright.transpose(Image.Transpose[undo[orientation]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = saved(stored, "PNG", exif=exif)
    assert np.array_equal(np.asarray(load_picture(data)), np.asarray(upright))
    assert picture_size(data) == upright.size


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    ramp = np.linspace(0, 65535, 4096).round().astype(np.uint16).reshape(64, 64)
    image = np.asarray(load_picture(saved(Image.fromarray(ramp))))
    assert np.abs(image[..., 0] - ramp / 257).max() <= 0.5
    assert (image[..., 0] == image[..., 2]).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_over_white(mode: str) -> None:
    alpha = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (4, 1))
    image = Image.merge(
        "RGBA", [Image.new("L", (32, 4), value) for value in (200, 10, 30)] + [Image.fromarray(alpha)]
    )
    if mode == "P":
        image = Image.new("P", (32, 4), 1)
        image.putpalette([0, 0, 0, 9, 9, 9])
        image.info["transparency"] = 1
        assert (np.asarray(load_picture(saved(image))) == 255).all()
        return
    read = np.asarray(load_picture(saved(image.convert(mode)))).astype(float)
    colour = np.asarray(image.convert(mode).convert("RGBA"), float)
    expected = colour[..., :3] * colour[..., 3:] / 255 + 255 - colour[..., 3:]
    assert np.abs(read - expected).max() <= 1


def test_cmyk_palette_and_gray() -> None:
    cmyk = load_picture(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(np.asarray(cmyk, int) - (255, 0, 0)).max() <= 3
    assert load_picture(saved(Image.new("L", (2, 2), 7))).getpixel((0, 0)) == (7, 7, 7)
    assert load_picture(saved(Image.new("1", (2, 2), 1))).getpixel((0, 0)) == (255, 255, 255)
    assert load_picture(saved(ImageOps.posterize(picture(), 2).convert("P"))).mode == "RGB"


def test_only_the_first_frame() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "PNG", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = saved(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert load_picture(data).getpixel((0, 0)) == (255, 0, 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A page's folder with pictures in it and a secret beside it."""
    base = tmp_path / "site"
    (base / "img").mkdir(parents=True)
    good = saved(picture())
    for name in ("a.png", "img/b.png", "img/ü x.png", "..a", "a;b,c.png"):
        (base / name).write_bytes(good)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (base / "link.png").symlink_to(tmp_path / "secret.png")
    (base / "inner.png").symlink_to("a.png")
    (base / "up").symlink_to(tmp_path)
    os.mkfifo(base / "pipe.png")
    return base


@pytest.mark.parametrize(
    "src",
    [
        "a.png", " a.png\n", "./a.png", "img/b.png", "img/./b.png", "img/%C3%BC%20x.png", "a.png?v=1",
        "a.png#top", "%61.png", "..a", "img/ü x.png", "a;b,c.png", "\x01a.png", "img\\b.png", "a\n.png",
    ],
)  # fmt: skip
def test_pictures_in_the_folder_are_read(folder: Path, src: str) -> None:
    assert load_picture(resolve_src(src, folder)).size == (24, 16)


HOSTILE = [
    "", " ", "..", ".", "/", "//", "../secret.png", "img/../../secret.png", "img/../a.png",
    "./../secret.png", "/etc/passwd", "//host/a.png", "///etc/passwd", "\\\\host\\a.png", "..\\secret.png",
    "img\\..\\..\\secret.png", "%2e%2e/secret.png", "%2E%2E%2Fsecret.png", "..%2fsecret.png",
    "..%5csecret.png", "%2fetc%2fpasswd", "%5c%5chost%5ca", "file:a.png", "file:///etc/passwd",
    "FILE:///etc/passwd", "file://localhost/etc/passwd", "http://127.0.0.1/a.png", "HTTP://x/",
    "https://169.254.169.254/latest/meta-data", "ftp://x/a.png", "gopher://x", "javascript:alert(1)",
    "java\nscript:x", "blob:x", "about:blank", "C:\\a.png", "c:/a.png", "\x00", "a.png\x00.gif", "a.png%00",
    "a%0a.png", "up/secret.png", "link.png", "inner.png", "img//b.png", "a.png/", "a.png/..",
    "img/", "img", "pipe.png", "missing.png", "a.png/b", "~root/a.png", "x" * 5000, "a/" * 3000 + "a.png",
    "%ff%fe.png", "\ud800.png", "?", "#", "?a.png", "data:", "data:,", "data:text/html,<b>",
    "data:image/svg+xml;base64,PHN2Zz4=", "data:image/png;base64,@@@", "data:image/png",
    "DATA:text/plain;base64,QQ==", "data:image/png;base64", "filesystem:x", "view-source:x", "mailto:a@b",
    "http:a.png", "http:\\\\x", "\t/etc/passwd",
]  # fmt: skip


@pytest.mark.parametrize("src", HOSTILE)
def test_hostile_addresses_are_never_followed(
    folder: Path, src: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("connect was called")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    with pytest.raises(PictureError) as error:
        resolve_src(src, folder)
    assert error.value.code in ("picture_outside", "no_file", "unreadable_file", "bad_picture")
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("src", "code"),
    [
        ("../secret.png", "picture_outside"),
        ("link.png", "picture_outside"),
        ("up/secret.png", "picture_outside"),
        ("file:///etc/passwd", "picture_outside"),
        ("http://x/a.png", "picture_outside"),
        ("//x/a.png", "picture_outside"),
        ("img\\..\\..\\secret.png", "picture_outside"),
        ("missing.png", "no_file"),
        ("pipe.png", "unreadable_file"),
        ("img", "unreadable_file"),
        ("data:text/html,x", "bad_picture"),
    ],
)
def test_codes(folder: Path, src: str, code: str) -> None:
    with pytest.raises(PictureError) as error:
        resolve_src(src, folder)
    assert error.value.code == code


def test_without_a_folder_only_data_addresses_are_read() -> None:
    with pytest.raises(PictureError, match="folder"):
        resolve_src("a.png", None)
    assert resolve_src("data:image/gif,GIF89a%00", None) == b"GIF89a\0"


def test_outside_is_local_only(folder: Path) -> None:
    secret = folder.parent / "secret.png"
    for src in (
        "../secret.png",
        "link.png",
        "up/secret.png",
        str(secret),
        f"file://{secret}",
        f"file://localhost{secret}",
    ):
        assert resolve_src(src, folder, outside=True) == b"secret"
    for src in (
        "http://x/a.png",
        "//x/a.png",
        "https:x",
        "file://x/a.png",
        "\\\\x\\a.png",
        "ftp:a",
        "",
        "/dev/zero",
    ):
        with pytest.raises(PictureError):
            resolve_src(src, folder, outside=True)


def test_data_addresses_round_trip() -> None:
    png = saved(picture())
    src = to_data_uri(png)
    assert src == "data:image/png;base64," + base64.b64encode(png).decode()
    assert resolve_src(src, None) == png
    assert resolve_src(src.replace("base64,", "base64, \n").replace("=", "%3D"), None) == png


def test_a_large_file_is_not_read(folder: Path) -> None:
    with (folder / "big.png").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(PictureError, match="limit"):
        resolve_src("big.png", folder)


def test_a_region_must_lie_in_its_picture(folder: Path) -> None:
    page = Page.parse(b"<img src=img/b.png><img src=gone.png>", folder)
    assert page.region("b.png", (0, 0, 24, 16)).gaps[0].box == (0, 0, 24, 16)
    with pytest.raises(PageError, match="24x16") as error:
        page.region("b.png", (20, 0, 5, 1))
    assert error.value.code == "bad_box"
    with pytest.raises(PictureError, match="exist"):
        page.region("gone.png", (0, 0, 1, 1))


def test_reading_pages_and_pictures_needs_no_torch() -> None:
    code = "import sys, cm3kit_tokenizers, cm3kit_tokenizers.pictures; assert 'torch' not in sys.modules"
    root = Path(__file__).parents[1]
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": str(root / "tokenizers")}
    )
