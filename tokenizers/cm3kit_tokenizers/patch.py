"""Replace a box of a picture: pixels outside of it, mode and bit depth are unchanged."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin

from cm3kit_tokenizers.errors import PictureError
from cm3kit_tokenizers.pictures import open_picture

Box = tuple[int, int, int, int]

_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_PNG = b"\x89PNG\r\n\x1a\n"
# Chunks on the display of pixel values; they precede the palette and the pixels.
_COLOURS = (b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV", b"cLLI")
_NO_ALPHA = 128


def patchable(data: bytes) -> Image.Image:
    """The only frame of a picture in its own mode, upright.

    Raises:
        PictureError: bad_picture for several frames, or a mode or bit depth that a PNG cannot keep.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = open_picture(data)
        # Further pictures in a JPEG file are never shown.
        frames = 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)
        if frames > 1:
            raise _refused(f"has {frames} frames, and only one would be kept")
        if (depth := _depth(data)) > 8 and image.mode != "I;16":
            raise _refused(f"has {depth} bits per channel, which would become 8")
        if image.mode == "L" and depth < 8:
            raise _refused(f"has {depth} bits of grey, which would become 8")
        try:
            image.load()
        except (OSError, ValueError, SyntaxError, EOFError, struct.error) as error:
            raise PictureError(f"The picture cannot be decoded ({error}).", code="bad_picture") from None
        if image.mode not in _MODES or (
            image.mode == "P" and (not image.palette or image.palette.mode != "RGB")
        ):
            raise _refused(f"is in {image.mode}, which a PNG cannot hold")
        info = dict(image.info)
        image = ImageOps.exif_transpose(image)
    image.info.update({name: info[name] for name in ("transparency", "icc_profile", "dpi") if name in info})
    return image


def patched(data: bytes, patch: Image.Image, box: Box, marks: PngImagePlugin.PngInfo) -> bytes:
    """A PNG of the picture with an RGB patch in the box (x, y, width, height), and with the chunks `marks`.

    The patch is opaque. It is converted to grey in grey pictures, and to the palette in palette pictures.
    """
    image = patchable(data)
    x, y, width, height = box
    if image.mode == "P":
        piece = Image.fromarray(_by_palette(patch, image))
    elif image.mode == "I;16":
        piece = Image.fromarray(np.asarray(patch.convert("L")).astype(np.uint16) * 257)
    elif image.mode in ("L", "RGB") and "transparency" in image.info:
        piece = _visible(patch.convert(image.mode), image.info["transparency"])
    else:
        piece = patch.convert(image.mode)
    image.paste(piece, (x, y, x + width, y + height))
    for name, content in _chunks(data):
        if name in _COLOURS:
            marks.add(name, content)
    buffer = io.BytesIO()
    kept = {name: image.info[name] for name in ("transparency", "icc_profile", "dpi") if name in image.info}
    depth = {"bits": _depth(data)} if image.mode == "P" else {}
    image.save(buffer, "PNG", pnginfo=marks, **kept, **depth)
    return buffer.getvalue()


def _refused(what: str) -> PictureError:
    return PictureError(
        f"The picture {what}; save it as a PNG of 8 bits and one frame, and use that.", code="bad_picture"
    )


def _depth(data: bytes) -> int:
    """Bits per channel or palette index: as declared in PNG and AVIF files, 8 in others."""
    if data.startswith(_PNG):
        return data[24] if len(data) > 24 else 8
    at = data[:4096].find(b"av1C")
    if data[4:12] in (b"ftypavif", b"ftypavis") and at > 0 and len(data) > at + 6:
        return (12 if data[at + 6] & 0x20 else 10) if data[at + 6] & 0x40 else 8
    return 8


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Names and contents of a PNG's chunks before its pixels."""
    at = len(_PNG)
    while data.startswith(_PNG) and at + 8 <= len(data):
        (size,), name = struct.unpack(">I", data[at : at + 4]), data[at + 4 : at + 8]
        if name == b"IDAT":
            return
        yield name, data[at + 8 : at + 8 + size]
        at += size + 12


def _by_palette(patch: Image.Image, image: Image.Image) -> NDArray[np.uint8]:
    """Per pixel of a patch, the index of the nearest opaque colour of a palette."""
    colours_NC = np.frombuffer(image.palette.getdata()[1] if image.palette else b"", np.uint8)
    colours_NC = colours_NC[: len(colours_NC) // 3 * 3].reshape(-1, 3).astype(np.int32)
    clear = image.info.get("transparency")
    alphas = list(clear) if isinstance(clear, bytes) else []
    if isinstance(clear, int):
        alphas = [255] * clear + [0]
    solid = np.array([each >= _NO_ALPHA for each in alphas[: len(colours_NC)]], bool)
    solid = np.concatenate([solid, np.ones(len(colours_NC) - len(solid), bool)])
    if not solid.any():
        raise _refused("has a palette without a visible colour")
    out = np.empty((patch.height, patch.width), np.uint8)
    for row, pixels_WC in enumerate(np.asarray(patch.convert("RGB")).astype(np.int32)):
        far_WN = ((pixels_WC[:, None] - colours_NC[None]) ** 2).sum(-1)
        far_WN[:, ~solid] = np.iinfo(np.int32).max
        out[row] = far_WN.argmin(1)
    return out


def _visible(patch: Image.Image, clear: object) -> Image.Image:
    """A patch in which no pixel has the value that means transparency."""
    pixels = np.array(patch)
    wanted = np.array(clear, ndmin=1)
    hit = (pixels.reshape(*pixels.shape[:2], -1) == wanted).all(-1)
    pixels[hit] ^= 1
    return Image.fromarray(pixels)
