"""Pictures of a page for the store: decoded, filtered, cropped, named by their content."""

from __future__ import annotations

import hashlib
import io
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from PIL import Image

from cm3kit.web.reasons import Refused
from cm3kit.web.settings import PictureRules
from cm3kit_tokenizers.errors import PictureError
from cm3kit_tokenizers.pictures import load_checked, picture_size

# Logos and icons repeat on every page of a site, so the last few hundred results are cached.
# Errors are cached as constructors, since the traceback of a raised error keeps its page alive.
_recent: OrderedDict[tuple[str, PictureRules], Stored | Callable[[], Exception]] = OrderedDict()
_RECENT = 256


@dataclass(frozen=True, slots=True)
class Stored:
    """A picture in the store: the SHA-256 of `data`, its size in pixels, and the address it had on the page.

    `fault` describes damaged metadata of the source file.
    """

    sha256: str
    mime: str
    width: int
    height: int
    src: str
    data: bytes = field(repr=False)
    fault: str = ""


def store(data: bytes, src: str, rules: PictureRules) -> Stored:
    """Decode, filter and resize a picture by the rules.

    Raises:
        PictureError: bad_picture.
        Refused: too_small, too_long.
    """
    digest = hashlib.sha256(data).hexdigest()
    if (digest, rules) not in _recent:
        try:
            _recent[digest, rules] = _made(data, digest, rules)
        except Refused as refused:
            _recent[digest, rules] = partial(Refused, refused.reason, refused.detail)
        except PictureError as error:
            _recent[digest, rules] = partial(PictureError, *error.args, code=error.code)
        if len(_recent) > _RECENT:
            _recent.popitem(last=False)
    _recent.move_to_end((digest, rules))
    found = _recent[digest, rules]
    if not isinstance(found, Stored):
        raise found()
    return replace(found, src=src[:500] if src[:5].lower() != "data:" else "data:")


def _made(data: bytes, digest: str, rules: PictureRules) -> Stored:
    width, height = picture_size(data)
    if min(width, height) < rules.min_side:
        raise Refused("too_small", f"{width}x{height}")
    if max(width, height) > rules.max_aspect * min(width, height):
        raise Refused("too_long", f"{width}x{height}")
    whole, fault = load_checked(data)
    image = fitted(whole, rules, int(digest[:8], 16) / 2**32)
    buffer = io.BytesIO()
    lossless = {"lossless": True} if rules.format == "webp" and rules.quality == 100 else {}
    image.save(buffer, rules.format, quality=rules.quality, **lossless)
    out = buffer.getvalue()
    name = hashlib.sha256(out).hexdigest()
    return Stored(name, f"image/{rules.format}", image.width, image.height, "", out, fault)


def fitted(image: Image.Image, rules: PictureRules, u: float) -> Image.Image:
    """The resized picture: a square (in the middle, or at `u` along the longer side), or all of it."""
    width, height = image.size
    if rules.fit == "whole":
        longest = max(width, height)
        if longest > rules.size:
            scale = rules.size / longest
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            image = image.resize(size, Image.Resampling.LANCZOS)
        return image
    side = min(width, height)
    u = 0.5 if rules.fit == "center" else u
    left, top = int((width - side) * u), int((height - side) * u)
    box = (left, top, left + side, top + side)
    if side <= rules.size:
        return image.crop(box)
    return image.resize((rules.size, rules.size), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
