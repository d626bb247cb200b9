"""PNG files with the AI mark, and contact sheets.

PNG text chunks: W3C PNG (third edition) sec. 11.3.3; the AI mark: IPTC digital source type.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from cm3kit.json_lines import Record, dump_json
from cm3kit_tokenizers.errors import ConfigError

MAX_SHEET_SIDE = 16_384
CAPTION, NEAREST = 10, Image.Resampling.NEAREST  # pixels of a caption's letters
MARGIN = 4
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""'
    ' xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
    f' Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
)
LINE_KEYS = (
    ("Sampler", "sampler"), ("CFG scale", "guidance"), ("Seed", "seed"), ("Sample", "index"),
    ("Temperature", "temperature"), ("Top p", "top_p"), ("Top k", "top_k"), ("Size", "size"),
    ("Model", "model"), ("Model hash", "model_hash"),
)  # fmt: skip


def encode_png(picture: Image.Image, metadata: Record | None = None) -> bytes:
    """A PNG with the AI mark and, unless `metadata` is None, with how it was made.

    `metadata` becomes the iTXt chunk `cm3kit` (JSON) and a `parameters` line as A1111's viewers read.
    """
    info = png_marks()
    if metadata is not None:
        info.add_itxt("cm3kit", dump_json(metadata))
        info.add_itxt(
            "parameters", parameters_line({"size": f"{picture.width}x{picture.height}", **metadata})
        )
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=info, optimize=True)
    return buffer.getvalue()


def png_marks() -> PngImagePlugin.PngInfo:
    """The AI mark, as chunks of a PNG."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", XMP)
    return info


def parameters_line(metadata: Record) -> str:
    """The prompt, then `Name: value` pairs on one line, as A1111's web UI writes them."""
    flat = {**(metadata.get("options") or {}), **metadata}
    values = [(label, flat.get(key)) for label, key in LINE_KEYS]
    pairs = [f"{label}: {value}" for label, value in values if value is not None]
    pairs.append(f"Version: cm3kit {flat.get('version', '')}".rstrip())
    return f"{flat.get('prompt') or ''}\n{', '.join(pairs)}".lstrip("\n")


def grid(
    pictures: Sequence[Image.Image], columns: int | None = None, captions: Sequence[str] = (), least: int = 0
) -> Image.Image:
    """A contact sheet: pictures in reading order on white, each with its caption below.

    Tiles are as large as the largest picture, made smaller where a side would pass `MAX_SHEET_SIDE`, and drawn larger
    where they are not `least` pixels wide, with captions of that size.

    Raises:
        ConfigError: no picture, fewer than one column, or captions that do not match (`bad_value`).
    """
    if not pictures or (columns is not None and columns < 1) or (captions and len(captions) != len(pictures)):
        raise ConfigError(
            f"no sheet has {len(pictures)} pictures, {columns} columns and {len(captions)} captions",
            code="bad_value",
        )
    if (scale := math.ceil(least / max(each.width for each in pictures))) > 1:
        pictures = [each.resize((each.width * scale, each.height * scale), NEAREST) for each in pictures]
    size = max(CAPTION, least // 12)
    columns = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    rows = math.ceil(len(pictures) / columns)
    below = size + 4 if captions else 0
    width = min(max(p.width for p in pictures), (MAX_SHEET_SIDE - MARGIN) // columns - MARGIN)
    height = min(max(p.height for p in pictures), (MAX_SHEET_SIDE - MARGIN) // rows - MARGIN - below)
    step_x, step_y = width + MARGIN, height + below + MARGIN
    sheet = Image.new("RGB", (columns * step_x + MARGIN, rows * step_y + MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for place, picture in enumerate(pictures):
        x, y = MARGIN + place % columns * step_x, MARGIN + place // columns * step_y
        tile = picture.convert("RGB")
        tile.thumbnail((width, height))
        sheet.paste(tile, (x + (width - tile.width) // 2, y + (height - tile.height) // 2))
        if captions:
            _caption(draw, captions[place], (x, y + height + 1), width, size)
    return sheet


def _caption(draw: ImageDraw.ImageDraw, text: str, corner: tuple[int, int], width: int, size: int) -> None:
    font = ImageFont.load_default(size)
    line = " ".join(text.split())
    while line and draw.textlength(line, font) > width:
        line = line[:-2] + "…" if len(line) > 2 else ""
    draw.text(corner, line, fill="black", font=font)
