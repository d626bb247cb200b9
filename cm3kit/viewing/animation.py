"""A trajectory as an animation (GIF, WebP) of its pictures and, beside them, its text."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image, ImageDraw, ImageFont
from PIL.ImageColor import getrgb

from cm3kit.images import SOURCE_TYPE, XMP
from cm3kit.provenance.trajectories import Record
from cm3kit.viewing.playback import END, OPEN, Filmed, Frame, labels
from cm3kit.viewing.player import title

INK, QUIET, FAINT, PAPER, LINE, ACCENT = "#1d1d1f", "#75716a", "#b9b3a6", "#faf9f6", "#e4e1da", "#c2410c"
TILES = ("#e4e1d9", "#ebe8e1")
MARKS = {"write": "#ffe9b8", "edit": "#e6e0ff", "remask": "#fde2e2"}
EDGES = {"write": ACCENT, "edit": "#6d4bd8", "remask": "#c81e1e"}
MARGIN, GAP, PANEL = 24, 28, 340
SIZE, LEADING, MOST_LINES, MOST_FIXED = 17, 26, 30, 56
MOST_WIDTH = 1600
HOLD = 2.0


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of one position, its colour, and its change in this step."""

    text: str
    colour: str
    change: str = ""


def frames_of(
    record: Record, shown: Sequence[Frame], films: Sequence[Filmed], scale: float = 6
) -> Iterator[Image.Image]:
    """The frames, all of one size: pictures at `scale` pixels per pixel, text on their right."""
    width = sum(each.pictures[0].width for each in films)
    scale = min(scale, MOST_WIDTH / width) if width else scale
    # The last frame is the result without the marks of the last step.
    shown = [*shown, replace(shown[-1], commits=())]
    films = [replace(each, shown=(*each.shown, each.shown[-1])) for each in films]
    texts = [_wrap(_pieces(record, each, films), _font(SIZE), PANEL) for each in shown]
    tallest = max((each.pictures[0].height for each in films), default=0)
    lines = min(MOST_LINES, max(map(len, texts)))
    left = MARGIN + sum(round(each.pictures[0].width * scale) + GAP for each in films)
    height = MARGIN + max(round(tallest * scale), LEADING * (lines + 2)) + MARGIN + 24
    for number, (frame, text) in enumerate(zip(shown, texts, strict=True)):
        canvas = Image.new("RGB", (left + PANEL + MARGIN, height), PAPER)
        x = MARGIN
        for each in films:
            tile = _picture(record, frame, each, number, scale)
            canvas.paste(tile, (x, MARGIN))
            x += tile.width + GAP
        pen = ImageDraw.Draw(canvas)
        pen.text((left, MARGIN), _cut(title(record), _font(SIZE + 3), PANEL), INK, _font(SIZE + 3))
        _write(pen, text[:lines], left, MARGIN + 2 * LEADING)
        _progress(pen, min(number, len(shown) - 2), len(shown) - 2, canvas.size)
        yield canvas


def encode(
    drawn: Sequence[Image.Image], kind: Literal["GIF", "WEBP"], fps: float = 8, loop: bool = True
) -> bytes:
    """Encode the file; the last frame is shown for `HOLD` seconds."""
    durations = [round(1000 / fps)] * (len(drawn) - 1) + [round(1000 * HOLD)]
    buffer = io.BytesIO()
    if kind == "GIF":
        pictures = _one_palette(drawn)
        extra = {"comment": f"DigitalSourceType: {SOURCE_TYPE}".encode(), "optimize": False, "disposal": 1}
    else:
        pictures, extra = (
            list(drawn),
            {"xmp": XMP.encode(), "quality": 90, "kmin": 3, "kmax": 9},
        )
    pictures[0].save(
        buffer,
        kind,
        save_all=True,
        append_images=pictures[1:],
        duration=durations,
        loop=0 if loop else 1,
        **extra,
    )
    return buffer.getvalue()


def _one_palette(drawn: Sequence[Image.Image]) -> list[Image.Image]:
    """Quantise all frames to the same 256 colours: separate palettes would make static parts flicker."""
    samples = [drawn[round(index * (len(drawn) - 1) / 3)] for index in range(4)]
    sheet = Image.new("RGB", (samples[0].width, sum(each.height for each in samples)))
    for index, each in enumerate(samples):
        sheet.paste(each, (0, index * each.height))
    # Reserve the colours of the marks; pictures use the remaining ones.
    fixed = [getrgb(each) for each in (PAPER, *TILES, *MARKS.values(), *EDGES.values())]
    found = sheet.quantize(256 - len(fixed), Image.Quantize.MEDIANCUT).getpalette() or []
    palette = Image.new("P", (1, 1))
    palette.putpalette(
        [*(value for colour in fixed for value in colour[:3]), *found[: 3 * (256 - len(fixed))]]
    )
    return [each.quantize(palette=palette, dither=Image.Dither.NONE) for each in drawn]


def _picture(record: Record, frame: Frame, filmed: Filmed, number: int, scale: float) -> Image.Image:
    picture = filmed.pictures[filmed.shown[number]]
    width, height = round(picture.width * scale), round(picture.height * scale)
    tile = picture.resize((width, height), Image.Resampling.BICUBIC)
    pen, changes = ImageDraw.Draw(tile), _changes(frame)
    rows, columns = record.grid
    for cell, place in enumerate(filmed.places):
        row, column = divmod(cell, columns)
        box = (
            column * width // columns, row * height // rows,
            (column + 1) * width // columns - 1, (row + 1) * height // rows - 1,
        )  # fmt: skip
        if frame.ids[place] is None:
            pen.rectangle(box, TILES[(row + column) % 2])
        if change := changes.get(place):
            pen.rectangle(box, outline=EDGES[change], width=2)
            if min(box[2] - box[0], box[3] - box[1]) > 12:  # a white edge, visible on any picture
                pen.rectangle((box[0] + 2, box[1] + 2, box[2] - 2, box[3] - 2), outline="white", width=2)
    pen.rectangle((0, 0, width - 1, height - 1), outline=LINE)
    return tile


def _changes(frame: Frame) -> Mapping[int, str]:
    return {place: each.kind for each in frame.commits for place in each.positions}


def _pieces(record: Record, frame: Frame, films: Sequence[Filmed]) -> list[Piece]:
    """The text of a frame without pictures; long fixed runs are shortened in the middle."""
    flat, changes = record.trajectory.canvas.flatten(record.vocab.mask), _changes(frame)
    slots = {place for each in flat.ranges for place in each}
    hidden = {place for each in films for place in each.places}
    starts = {each.places.start for each in films}
    pieces: list[Piece] = []
    fixed = ""
    for place, label in enumerate(labels(record, frame.ids)):
        if place in hidden:
            fixed += "…" if place in starts else ""
            continue
        if place not in slots:
            fixed += label or ""
            continue
        pieces += _fixed(fixed)
        fixed = ""
        text = OPEN if label is None else label
        pieces.append(Piece(text, FAINT if label is None or text == END else INK, changes.get(place, "")))
    return [*pieces, *_fixed(fixed)]


def _fixed(text: str) -> list[Piece]:
    half = MOST_FIXED // 2
    cut = text if len(text) <= MOST_FIXED else f"{text[:half]}…{text[-half:]}"
    return [Piece(cut, QUIET)] if cut else []


def _wrap(pieces: Sequence[Piece], font: ImageFont.FreeTypeFont, width: int) -> list[list[Piece]]:
    """Lines of at most `width` pixels, broken at spaces, and inside words that are longer."""
    lines: list[list[Piece]] = [[]]
    room = float(width)
    for word in _words(pieces):
        needed = sum(font.getlength(each.text) for each in word)
        if needed > room and lines[-1]:
            lines.append([])
            room = width
        for each in word:
            # Break a word longer than a line at any character.
            for part in (
                [each] if needed <= width else [Piece(c, each.colour, each.change) for c in each.text]
            ):
                if font.getlength(part.text) > room and lines[-1]:
                    lines.append([])
                    room = width
                shown = part if lines[-1] else replace(part, text=part.text.lstrip(" "))
                lines[-1].append(shown)
                room -= font.getlength(shown.text)
    return lines


def _words(pieces: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Pieces split before each space and after each masked position."""
    word: list[Piece] = []
    for each in pieces:
        parts = " ".join(each.text.split("\n")).split(" ")
        for index, part in enumerate(parts):
            if index and word:
                yield word
                word = []
            text = f" {part}" if index else part
            if text:
                word.append(Piece(text, each.colour, each.change))
        if each.text == OPEN:
            yield word
            word = []
    if word:
        yield word


def _write(pen: ImageDraw.ImageDraw, lines: Sequence[Sequence[Piece]], left: float, top: float) -> None:
    font = _font(SIZE)
    for number, line in enumerate(lines):
        x, y = left, top + number * LEADING
        for each in line:
            length = font.getlength(each.text)
            if each.change:
                pen.rectangle((x, y - 2, x + max(length, 3), y + SIZE + 4), MARKS[each.change])
                pen.line((x, y + SIZE + 4, x + max(length, 3), y + SIZE + 4), EDGES[each.change], 2)
            pen.text((x, y), each.text, each.colour, font)
            x += length


def _progress(pen: ImageDraw.ImageDraw, now: int, last: int, size: tuple[int, int]) -> None:
    width, height = size
    font, text = _font(13), f"{now} / {last}"
    right, y = width - MARGIN - 70, height - MARGIN + 2
    pen.rounded_rectangle((MARGIN, y - 2, right, y + 2), 2, LINE)
    if last and now:
        pen.rounded_rectangle((MARGIN, y - 2, MARGIN + (right - MARGIN) * now / last, y + 2), 2, ACCENT)
    pen.text((width - MARGIN, y), text, QUIET, font, anchor="rm")


def _cut(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    while text and font.getlength(text) > width:
        text = f"{text[:-2]}…" if len(text) > 2 else ""
    return text


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow's wheels have FreeType
    return font
