"""What a run writes: names, PNG metadata, contact sheets and records, as pure functions.

PNG text chunks: W3C PNG (third edition) sec. 11.3.3; the AI mark: IPTC digital source type.
"""

from __future__ import annotations

import html
import io
import json
import math
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from cm3kit_tokenizers.errors import ConfigError, OutputError

Record = Mapping[str, Any]

STDOUT = "-"
MAX_SHEET_SIDE = 16_384
CAPTION_HEIGHT = 14
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


@dataclass(frozen=True, slots=True)
class Plan:
    """Where the results of a run go.

    `paths` has one entry for each result and is empty where they go to standard output. `folder` is
    None where single files were asked for; records are written into a folder only. `bare` results get no
    recipe beside them.
    """

    run_id: str
    paths: tuple[Path, ...] = ()
    sheet: Path | None = None
    report: Path | None = None
    folder: Path | None = None
    bare: bool = False
    overview: Path | None = None

    @property
    def to_stdout(self) -> bool:
        """Whether the results are printed and not written."""
        return not self.paths

    @property
    def all_paths(self) -> tuple[Path, ...]:
        """Every file that the run will write."""
        records = (self.folder / "run.json", self.folder / "manifest.jsonl") if self.folder else ()
        return (*self.paths, *(path for path in (self.sheet, self.report, self.overview) if path), *records)


def run_id(command: str, now: datetime | None = None) -> str:
    """`<command>-<YYYYMMDDTHHMMSS>-<6 hex digits>`, in local time."""
    return f"{command.replace(' ', '-')}-{now or datetime.now():%Y%m%dT%H%M%S}-{secrets.token_hex(3)}"


def plan(
    name: str,
    output: str | None,
    suffix: str,
    seeds: Sequence[int],
    *,
    sheet: bool = False,
    report: bool = False,
) -> Plan:
    """Name the files of a run with one result for each of `seeds`.

    `output` is None (a new folder under `outputs/`), `-` (standard output), a folder (ends with `/`,
    exists as one, or has no suffix) or a file name, numbered where there are several results.

    Raises:
        ConfigError: several pictures or pages were sent to standard output, or a picture's name does
            not end in `.png` (`bad_value`).
        OutputError: a path cannot be a path (`cannot_write`).
    """
    if output == STDOUT:
        if suffix != ".txt" and len(seeds) > 1:
            raise ConfigError(
                f"-o - writes one result, and {len(seeds)} were asked for; ask for one or give a folder",
                code="bad_value",
            )
        return Plan(name)
    if output is not None and (not output.strip() or "\0" in output):
        raise OutputError(f"-o {output!r} is not a path; give a file, a folder or -", code="cannot_write")
    target = Path("outputs", name) if output is None else Path(output)
    # os.path answers False where pathlib raises: names that are too long, folders without permission.
    bare = target.suffix == "" and not os.path.isfile(target)
    if output is None or output.endswith("/") or bare or os.path.isdir(target):
        return _folder_plan(name, target, suffix, seeds, sheet, report)
    if suffix == ".png" and target.suffix.lower() != suffix:
        raise ConfigError(
            f"-o {output}: pictures are PNG files; end the name in .png, or a folder's in /", code="bad_value"
        )
    if len(seeds) == 1:
        paths: tuple[Path, ...] = (target,)
    else:
        paths = tuple(target.with_stem(f"{target.stem}-{index:04d}") for index in range(len(seeds)))
    return Plan(
        name,
        paths,
        target.with_name(f"{target.stem}-grid.png") if sheet else None,
        target.with_name(f"{target.stem}-diff.html") if report else None,
    )


def _folder_plan(
    name: str, folder: Path, suffix: str, seeds: Sequence[int], sheet: bool, report: bool
) -> Plan:
    marks = [f"-s{seed}" if suffix == ".png" else "" for seed in seeds]
    return Plan(
        name,
        tuple(folder / f"{index:06d}{mark}{suffix}" for index, mark in enumerate(marks)),
        folder / "grid.png" if sheet else None,
        folder / "diff.html" if report else None,
        folder,
    )


def check_free(planned: Plan, force: bool) -> None:
    """Refuse a plan before any work is done for it.

    Raises:
        OutputError: a file exists and `force` is off (`exists`), or a folder stands in the way of a
            file or the reverse (`cannot_write`).
    """
    for path in planned.all_paths:
        try:
            parent = next(p for p in path.parents if p.exists())
            if not parent.is_dir():
                raise OutputError(
                    f"{parent} is a file, so {path} cannot be written; change -o", code="cannot_write"
                )
            if path.is_dir():
                raise OutputError(f"{path} is a folder; give a file name to -o", code="cannot_write")
            taken = path.exists()
        except (OSError, ValueError) as error:
            raise OutputError(f"{path} cannot be written: {error}; change -o", code="cannot_write") from None
        if taken and not force:
            raise OutputError(f"{path} exists; give another -o or add --force", code="exists")


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


def mark_html(page: str, metadata: Record | None = None) -> str:
    """A generated page with the AI mark and, unless `metadata` is None, with how it was made.

    Both go right after `<head>`, else after `<html>` or the doctype, else to the front.
    """
    mark = f'<meta name="generator" content="cm3kit {html.escape(str((metadata or {}).get("version", "")))}">'
    mark += f'<meta name="Iptc4xmpExt:DigitalSourceType" content="{SOURCE_TYPE}">'
    if metadata is not None:
        data = dump_json(metadata).replace("<", "\\u003c")
        mark += f'<script type="application/json" id="cm3kit">{data}</script>'
    for tag in ("head", "html", "!doctype"):
        if found := re.search(rf"<{tag}(\s[^>]*)?>", page[:2000], re.IGNORECASE):
            return page[: found.end()] + mark + page[found.end() :]
    return mark + page


def grid(
    pictures: Sequence[Image.Image], columns: int | None = None, captions: Sequence[str] = ()
) -> Image.Image:
    """A contact sheet: pictures in reading order on white, each with its caption below.

    Tiles are as large as the largest picture, made smaller where a side would pass `MAX_SHEET_SIDE`.

    Raises:
        ConfigError: no picture, fewer than one column, or captions that do not match (`bad_value`).
    """
    if not pictures or (columns is not None and columns < 1) or (captions and len(captions) != len(pictures)):
        raise ConfigError(
            f"no sheet has {len(pictures)} pictures, {columns} columns and {len(captions)} captions",
            code="bad_value",
        )
    columns = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    rows = math.ceil(len(pictures) / columns)
    below = CAPTION_HEIGHT if captions else 0
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
            _caption(draw, captions[place], (x, y + height + 1), width)
    return sheet


def _caption(draw: ImageDraw.ImageDraw, text: str, corner: tuple[int, int], width: int) -> None:
    font = ImageFont.load_default(10)
    line = " ".join(text.split())
    while line and draw.textlength(line, font) > width:
        line = line[:-2] + "…" if len(line) > 2 else ""
    draw.text(corner, line, fill="black", font=font)


def dump_json(record: Record, indent: int | None = None) -> str:
    """JSON in UTF-8, with paths as strings and without NaN."""
    return json.dumps(_finite(record), ensure_ascii=False, indent=indent, default=str, allow_nan=False)


def dump_jsonl(records: Sequence[Record]) -> str:
    """One JSON object a line."""
    return "".join(f"{dump_json(record)}\n" for record in records)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
