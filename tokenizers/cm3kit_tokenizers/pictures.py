"""Decode untrusted pictures, and find a page's picture files; nothing is downloaded."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import stat
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, unquote_to_bytes

import numpy as np
from PIL import Image, ImageOps

from cm3kit_tokenizers.disguise import disguise
from cm3kit_tokenizers.errors import PictureError

MAX_BYTES = 20 * 2**20
MAX_PIXELS = 64_000_000
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "AVIF", "BMP")

_MEDIA_TYPES = ("image/png", "image/jpeg", "image/jpg", "image/webp", "image/gif", "image/avif", "image/bmp")
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
# Control characters, and lone surrogates other than those that stand for undecodable bytes.
_CONTROLS = re.compile("[\x00-\x1f\x7f\ud800-\udc7f\udd00-\udfff]")
_MAX_STEPS = 64
# What Pillow's decoders raise on malformed input, by its own fuzz targets.
_BROKEN = (
    OSError, ValueError, TypeError, SyntaxError, IndexError, KeyError, AttributeError, OverflowError,
    EOFError, ZeroDivisionError, RuntimeError, MemoryError, struct.error, Warning,
    Image.DecompressionBombError,
)  # fmt: skip


def load_picture(data: bytes) -> Image.Image:
    """Decode the first frame of a picture as upright 8-bit RGB, composited on white.

    Raises:
        PictureError: bad_picture over 20 MiB or 64 megapixels, for a format other than PNG, JPEG, WEBP, GIF,
            AVIF and BMP, or where the data are truncated or malformed.
    """
    return load_checked(data)[0]


def load_checked(data: bytes) -> tuple[Image.Image, str]:
    """As `load_picture`, with a description of faults in the metadata; "" if there are none."""
    with _watched() as faults:
        image = open_picture(data)
        try:
            image.load()
            # Some metadata are only read on access.
            with suppress(*_BROKEN):
                image.getexif()
            return to_rgb8(image), "; ".join(dict.fromkeys(_line(each.message) for each in faults))[:200]
        except _BROKEN as error:
            raise _bad(f"cannot be decoded ({_line(error)})") from None


def picture_size(data: bytes) -> tuple[int, int]:
    """(width, height) in pixels of the upright picture, by its header; PictureError as `load_picture`."""
    with _watched():
        image = open_picture(data)
        try:
            turned = image.getexif().get(0x0112) in (5, 6, 7, 8)
        except _BROKEN:
            turned = False
    return (image.height, image.width) if turned else (image.width, image.height)


@contextmanager
def _watched() -> Iterator[list[warnings.WarningMessage]]:
    """Collect Pillow's warnings, which are about metadata; that of a decompression bomb is an error."""
    with warnings.catch_warnings(record=True) as faults:
        warnings.simplefilter("always")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield faults


def open_picture(data: bytes) -> Image.Image:
    """Open a picture and read only its header; PictureError as `load_picture`."""
    if len(data) > MAX_BYTES:
        raise _bad(f"has {len(data):,} bytes; the limit is {MAX_BYTES:,}")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise _bad(f"has more than {MAX_PIXELS:,} pixels; scale it down") from None
    except _BROKEN:
        what = disguise(data) or f"is not one of {', '.join(FORMATS)}, or is damaged"
        raise _bad(what) from None
    if image.width * image.height > MAX_PIXELS:
        raise _bad(f"has {image.width}x{image.height} pixels; the limit is {MAX_PIXELS:,}")
    return image


def _bad(what: str) -> PictureError:
    return PictureError(f"The picture {what}.", code="bad_picture")


def _line(error: object) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def to_rgb8(image: Image.Image) -> Image.Image:
    """Any decoded picture as upright 8-bit RGB: 16 bits scaled, not clipped; alpha composited on white."""
    image = _upright(image)
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.float64)
        image = Image.fromarray(np.rint(wide.clip(0, 65535) / 257).astype(np.uint8))
    if image.has_transparency_data:
        front = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", front.size, "white"), front)
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except _BROKEN:
        return image


def to_data_uri(png_bytes: bytes) -> str:
    """A `data:` URL of a PNG."""
    return "data:image/png;base64," + base64.b64encode(png_bytes).decode("ascii")


def resolve_src(src: str, base: Path | None, outside: bool = False) -> bytes:
    """The bytes of a page's picture: a `data:` URL, or a file in the page's folder.

    Args:
        src: the value of `src`.
        base: the page's folder.
        outside: also follow absolute paths, `..`, `file:` URLs and symbolic links on this machine.

    Raises:
        PictureError: picture_outside for an address outside of the folder or on another host,
            no_file, unreadable_file, bad_picture over 20 MiB or for a `data:` URL of another type.
    """
    if src.strip(" \t\n\f\r")[:5].lower() == "data:":
        return _data_uri(src.strip(" \t\n\f\r"))
    src = tidied(src)
    if outside:
        return _read(_local(src, base), None)
    if not src or _CONTROLS.search(src) or "\\" in src or src.startswith("/") or SCHEME.match(src):
        raise left(src)
    if base is None or not _all_inside(_path(src).split("/")):
        raise left(src)
    return first_there(src, [(base, path.split("/")) for path in names(src)])


def tidied(src: str) -> str:
    """An address as browsers parse it: without surrounding white space, tabs and line breaks, `\\` replaced by `/`.

    WHATWG URL standard, sec. 4.4; backslashes in a query and in URLs such as `data:` are kept.
    """
    src = re.sub(r"[\t\n\r]", "", src.strip("".join(map(chr, range(0x21)))))
    scheme = SCHEME.match(src)
    if scheme and scheme[0].lower() not in ("http:", "https:", "ftp:", "file:"):
        return src
    path = re.match(r"[^?#]*", src)
    end = path.end() if path else 0
    return src[:end].replace("\\", "/") + src[end:]


def names(src: str) -> list[str]:
    """Candidate file names of a relative address, as programs that mirror sites save it.

    The address as written, with `@` or `%3F` for `?`, and without its query; each percent-decoded and not.
    """
    cut = re.split(r"[?#]", src, maxsplit=1)[0]
    written = (src, unquote(src, errors="surrogateescape"), unquote(cut, errors="surrogateescape"), cut)
    told = dict.fromkeys((*written, src.replace("?", "@"), src.replace("?", "%3F")))
    found = ["/".join(part for part in each.split("/") if part != ".") for each in told]
    return [each for each in dict.fromkeys(found) if each]


def first_there(src: str, places: Sequence[tuple[Path, Sequence[str]]]) -> bytes:
    """The bytes of the first existing file; each is a folder and a path below it. PictureError as `resolve_src`."""
    error: PictureError | None = None
    for folder, parts in places:
        if not _all_inside(parts):
            continue
        try:
            return _open_at(folder, list(parts), src)
        except PictureError as found:
            if found.code != "no_file":
                raise
            error = found
    raise error or left(src)


def _all_inside(parts: Sequence[str]) -> bool:
    path = "/".join(parts)
    steps = all(map(_inside, parts[:_MAX_STEPS])) and len(parts) <= _MAX_STEPS
    return steps and not _CONTROLS.search(path) and "\\" not in path


def _inside(part: str) -> bool:
    return part not in ("", "..") and len(part.encode("utf-8", "surrogateescape")) <= 255


def _path(src: str) -> str:
    """The decoded path of a relative address, without `.` components."""
    path = unquote(re.split(r"[?#]", src, maxsplit=1)[0], errors="surrogateescape")
    return "/".join(part for part in path.split("/") if part != ".")


def left(src: str) -> PictureError:
    """The error (picture_outside) for an address on another host or outside of the folder."""
    shown = src if len(src) <= 60 else src[:57] + "..."
    if re.match(r"//|(?!file:)[a-z][a-z0-9+.-]+:", src, re.I):
        what = "is not in the page's folder, and nothing is downloaded; save it there."
    else:
        what = (
            "is not a file in the page's folder; copy it there, or give --root with a folder that holds both."
        )
    return PictureError(f"The picture {shown!r} {what}", code="picture_outside")


def _data_uri(src: str) -> bytes:
    head, comma, payload = src[5:].partition(",")
    kind, *options = head.strip().lower().split(";")
    if not comma or kind.strip() not in _MEDIA_TYPES:
        raise _bad(f"in a data: address is {kind[:40]!r}; use {_MEDIA_TYPES[0]}")
    if len(payload) > MAX_BYTES * 3:
        raise _bad(f"in a data: address is over {MAX_BYTES:,} bytes")
    raw = unquote_to_bytes(payload)
    if "base64" not in (option.strip() for option in options):
        return raw
    try:
        return base64.b64decode(re.sub(rb"[ \t\n\f\r]", b"", raw), validate=True)
    except binascii.Error as error:
        raise _bad(f"in a data: address is not base64 ({error})") from None


def _local(src: str, base: Path | None) -> Path:
    scheme = SCHEME.match(src)
    if scheme and scheme[0].lower() != "file:":
        raise left(src)
    path = _path(src[5:] if scheme else src)
    if scheme and path.startswith("//"):
        host, _, path = path[2:].partition("/")
        if host not in ("", "localhost"):
            raise left(src)
        path = "/" + path
    if not path or path.startswith("//") or _CONTROLS.search(path) or "\\" in path:
        raise left(src)
    return (base or Path()) / path


def _open_at(base: Path, parts: list[str], src: str) -> bytes:
    """Open folder by folder and refuse symbolic links, so that no component can be swapped after its check."""
    handle = -1
    try:
        handle = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
        for part in parts[:-1]:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=handle)
            os.close(handle)
            handle = below
        info = os.stat(parts[-1], dir_fd=handle, follow_symlinks=False)
        if stat.S_ISLNK(info.st_mode):
            raise left(src)
        return _read(Path(parts[-1]), handle)
    except (FileNotFoundError, NotADirectoryError):
        linked = _has_link(base, parts)
        raise left(src) if linked else _missing(src) from None
    except OSError as error:
        raise left(src) if _has_link(base, parts) else _unreadable(src, error) from None
    finally:
        if handle >= 0:
            os.close(handle)


def _has_link(base: Path, parts: list[str]) -> bool:
    return any(base.joinpath(*parts[: n + 1]).is_symlink() for n in range(len(parts)))


def _missing(src: str) -> PictureError:
    return PictureError(f"The picture {src[:60]!r} does not exist.", code="no_file")


def _unreadable(src: str, error: OSError) -> PictureError:
    return PictureError(f"The picture {src[:60]!r} cannot be read: {error.strerror}.", code="unreadable_file")


def _read(path: Path, folder: int | None) -> bytes:
    """A regular file of at most 20 MiB; symbolic links are followed only without `folder`."""
    flags = os.O_RDONLY | os.O_NONBLOCK | (os.O_NOFOLLOW if folder is not None else 0)
    try:
        handle = os.open(path, flags, dir_fd=folder)
    except FileNotFoundError:
        raise _missing(str(path)) from None
    except OSError as error:
        raise _unreadable(str(path), error) from None
    with os.fdopen(handle, "rb") as file:
        info = os.fstat(handle)
        if not stat.S_ISREG(info.st_mode):
            raise PictureError(
                f"The picture {str(path)[:60]!r} is not a regular file.", code="unreadable_file"
            )
        if info.st_size > MAX_BYTES:
            raise _bad(f"{str(path)[:60]!r} has {info.st_size:,} bytes; the limit is {MAX_BYTES:,}")
        return file.read(MAX_BYTES + 1)
