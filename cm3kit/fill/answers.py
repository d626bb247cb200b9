"""Answers that are given: words, pictures or nodes as the ids of a gap."""

from __future__ import annotations

from itertools import groupby

from PIL import Image as Pillow

from cm3kit.fill.fillers import LoadedModel
from cm3kit.fill.filling import PageFiller
from cm3kit_tokenizers.document import Node
from cm3kit_tokenizers.errors import ConfigError
from cm3kit_tokenizers.page import PageGap
from cm3kit_tokenizers.pictures import load_picture

Answer = str | bytes | Pillow.Image | tuple[Node, ...]
"""Words, the bytes of a picture file or a picture, or nodes of minimal HTML."""


def answer_ids(kit: LoadedModel, filler: PageFiller, gap: PageGap, answer: Answer) -> list[tuple[int, ...]]:
    """Ids of an answer, for each piece of the gap: its text behind the space that the page has there, or its codes.

    Raises:
        ConfigError: the answer is words for a picture, a picture for words, or of another size (`bad_value`).
        PictureError: the picture cannot be opened.
    """
    if gap.kind == "image":
        return _codes(kit, filler, gap, answer)
    if isinstance(answer, str):
        lead = filler.leads.get(gap.index, "") if answer else ""
        return [tuple(kit.tokenizer.text_ids(lead + answer))]
    if isinstance(answer, tuple) and gap.kind == "content":
        return [tuple(id for id in kit.tokenizer.encode(answer) if isinstance(id, int))]
    raise ConfigError(
        f"gap {gap.index} on line {gap.line} is for words, and an answer is a picture; give text.",
        code="bad_value",
    )


def _codes(kit: LoadedModel, filler: PageFiller, gap: PageGap, answer: Answer) -> list[tuple[int, ...]]:
    if isinstance(answer, str | tuple):
        raise ConfigError(
            f"gap {gap.index} on line {gap.line} is a picture, and an answer is words; give a picture file.",
            code="bad_value",
        )
    picture = answer if isinstance(answer, Pillow.Image) else load_picture(answer)
    codes = kit.tokenizer.image_ids(kit.encode_picture(picture))
    if gap.box is None:
        return [tuple(codes)]
    size, holes = filler.box_of(gap)
    if picture.size != size:
        raise ConfigError(
            f"an answer to gap {gap.index} has {picture.size[0]}x{picture.size[1]} pixels, and its picture"
            f" {size[0]}x{size[1]}; give the whole picture with the region filled.",
            code="bad_value",
        )
    runs = groupby(zip(holes, codes, strict=True), lambda each: each[0])
    return [tuple(id for _, id in run) for hole, run in runs if hole]
