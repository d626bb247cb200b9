"""A trajectory as frames: canvas, text and intermediate pictures after each step."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from cm3kit.fill.finding import find
from cm3kit.fill.folder import fingerprints
from cm3kit.provenance.trajectories import Record, replay
from cm3kit.types import Commit
from cm3kit_tokenizers.errors import ModelError
from cm3kit_tokenizers.vocab import SPECIALS
from cm3kit_tokenizers.vq.model import ImageTokenizer, to_picture, to_uint8

State = tuple[int | None, ...]

OPEN, END = "·", "|"
WEIGHTS = "image/diffusion_pytorch_model.safetensors"
BATCH = 16


@dataclass(frozen=True, slots=True)
class Frame:
    """The canvas after a step (None: before the first): its ids, None at masked positions."""

    step: int | None
    ids: State
    commits: tuple[Commit, ...] = ()

    @property
    def fresh(self) -> frozenset[int]:
        """The positions that this step changed."""
        return frozenset(place for each in self.commits for place in each.positions)


def frames(record: Record) -> list[Frame]:
    """The canvas before the first step and after each step of the trajectory."""
    states = map(tuple, replay(record.trajectory))
    made = [Frame(None, next(states))]
    for step, group in groupby(record.trajectory.commits, key=lambda each: each.step):
        commits = tuple(group)
        made.append(Frame(step, [next(states) for _ in commits][-1], commits))
    return made


def thinned(shown: Sequence[Frame], most: int) -> list[Frame]:
    """At most `most` frames including the first and last; each has all commits since the previous one."""
    if len(shown) <= most:
        return list(shown)
    steps, last = max(1, most - 1), len(shown) - 1
    kept = [round(index * last / steps) for index in range(steps + 1)]
    return [shown[0]] + [
        Frame(
            shown[stop].step,
            shown[stop].ids,
            tuple(c for f in shown[start + 1 : stop + 1] for c in f.commits),
        )
        for start, stop in pairwise(kept)
    ]


def picture_places(record: Record, last: State) -> list[range]:
    """Positions of the complete pictures on a canvas whose final state is `last`."""
    codes, canvas = record.vocab.image, record.trajectory.canvas
    in_pictures = {
        place
        for span, where in zip(canvas.spans, canvas.flatten(-1).ranges, strict=True)
        for place in where
        if span.kind == "image"
    }
    size = record.grid[0] * record.grid[1]
    found: list[range] = []
    flags = [place in in_pictures if id is None else id in codes for place, id in enumerate(last)]
    for is_code, group in groupby(range(len(flags)), key=flags.__getitem__):
        run = list(group)
        if is_code and len(run) % size == 0:
            found += [range(start, start + size) for start in range(run[0], run[-1] + 1, size)]
    return found


def labels(record: Record, ids: State) -> list[str | None]:
    """Text of each position; None if it is masked, empty for codes.

    A character of several ids is at the position of its last byte.
    """
    vocab, out = record.vocab, list[str | None]()
    reader = codecs.getincrementaldecoder("utf-8")("replace")
    for place, id in enumerate(ids):
        if id is None:
            out.append(None)
        elif id in vocab.text:
            follows = ids[place + 1] if place + 1 < len(ids) else None
            out.append(reader.decode(record.pieces[id], final=follows is None or follows not in vocab.text))
        else:
            out.append(_sign(record, id))
    return out


def _sign(record: Record, id: int) -> str:
    vocab = record.vocab
    if id in vocab.markup:
        return vocab.piece(id)
    if id in vocab.sentinel_range:
        return f"<mask:{id - vocab.sentinel_range.start}>"
    if id in (vocab.eoss, vocab.eod):
        return END
    return "" if id in vocab.image or not vocab.pad < id < len(SPECIALS) else SPECIALS[id]


def open_image_tokenizer(record: Record, model: str | None) -> tuple[ImageTokenizer, str]:
    """The image tokenizer of a model, by default the trajectory's, and a warning if it is a different one.

    Raises:
        ModelError: the model does not exist (`unknown_model`), or its codes do not fit (`bad_checkpoint`).
    """
    folder: Path = find(model or record.model)
    tokenizer = ImageTokenizer.load(folder / "image")
    if (tokenizer.grid, tokenizer.size) != (record.grid, record.vocab.image_size):
        raise ModelError(
            f"{folder} decodes pictures of {tokenizer.grid[0]}x{tokenizer.grid[1]} codes out of {tokenizer.size}, the"
            f" trajectory has {record.grid[0]}x{record.grid[1]} out of {record.vocab.image_size}; give its --model.",
            code="bad_checkpoint",
        )
    wrote = record.sha256.get(WEIGHTS)
    if wrote is None or fingerprints(folder).get(WEIGHTS) == wrote:
        return tokenizer, ""
    return (
        tokenizer,
        f"the image tokenizer of {folder.name} differs from that of the trajectory",
    )


@dataclass(frozen=True, slots=True)
class Filmed:
    """One picture over the frames: its positions, its distinct images, and the index of the image of each frame."""

    places: range
    pictures: tuple[Image.Image, ...]
    shown: tuple[int, ...]


def film(tokenizer: ImageTokenizer, record: Record, shown: Sequence[Frame], places: range) -> Filmed:
    """Decode one picture in each frame."""
    codes = record.vocab.image
    states = [
        tuple(id if id is not None and id in codes else None for id in each.ids[places.start : places.stop])
        for each in shown
    ]
    different = list(dict.fromkeys(states))
    number = {state: index for index, state in enumerate(different)}
    drawn = tuple(_draw(tokenizer, record, different))
    return Filmed(places, drawn, tuple(number[state] for state in states))


@torch.inference_mode()
def _draw(tokenizer: ImageTokenizer, record: Record, states: Sequence[State]) -> list[Image.Image]:
    """Decode grids in which some codes are masked (ids, row by row).

    The decoder's receptive field is wider than one code, so a masked cell gets a distance-weighted mean of the written
    vectors: the picture contains nothing that is not written yet. Its content in masked cells is meaningless; cover
    them.
    """
    pixels: list[Tensor] = []
    for start in range(0, len(states), BATCH):
        vectors_BDHW = torch.stack(
            [_vectors(tokenizer, record, state) for state in states[start : start + BATCH]]
        )
        pixels += to_uint8(tokenizer.render(vectors_BDHW))
    return [to_picture(each) for each in pixels]


def _vectors(tokenizer: ImageTokenizer, record: Record, state: State) -> Tensor:
    rows, columns = record.grid
    start = record.vocab.image.start
    written = [index for index, id in enumerate(state) if id is not None]
    if not written:
        vectors_ND = tokenizer.codebook_KD.mean(0).expand(len(state), -1)
    else:
        cells_N2 = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float().view(-1, 2)
        weights_NM = torch.softmax(-torch.cdist(cells_N2, cells_N2[written]).square() / 2, 1)
        known_MD = tokenizer.codebook_KD[[(state[index] or 0) - start for index in written]]
        vectors_ND = weights_NM @ known_MD
        vectors_ND[written] = known_MD
    return vectors_ND.view(rows, columns, -1).permute(2, 0, 1)
