"""Codes of a corpus' pictures, with one or several encodings per picture, and their cache file."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file, save
from torch import Generator, Tensor

from cm3kit.data.views import ViewSettings, chosen, nearest, swapped, view
from cm3kit.publish import write_atomic
from cm3kit.rng import generator
from cm3kit_tokenizers.pictures import load_picture, resolve_src
from cm3kit_tokenizers.vq.model import ImageTokenizer

Watch = Callable[[int, int], None]
SEED = 0


@dataclass(frozen=True)
class Encodings:
    """`codes_NL` of all encodings; picture p has `counts_P[p]` rows from `starts_P[p]` on, the plain one first.

    They may be ids, of which `first` is that of code 0. `near_KN` are the codes that are nearest to each code, for
    views that replace some.
    """

    codes_NL: Tensor
    starts_P: Tensor
    counts_P: Tensor
    first: int = 0
    near_KN: Tensor | None = None

    @classmethod
    def of(cls, codes: Sequence[Tensor]) -> Encodings:
        """From one tensor (count, L) per picture."""
        counts_P = torch.tensor([len(each) for each in codes], dtype=torch.int64)
        return cls(torch.cat(list(codes)), counts_P.cumsum(0) - counts_P, counts_P)

    def draw(self, pictures: Sequence[int], settings: ViewSettings, rng: Generator) -> list[list[int]]:
        """Codes of some pictures, each in a randomly drawn encoding."""
        counts = self.counts_P[list(pictures)].tolist()
        starts = self.starts_P[list(pictures)].tolist()
        out: list[list[int]] = []
        for start, (which, share) in zip(starts, chosen(counts, settings, rng), strict=True):
            codes_L = self.codes_NL[start + which]
            if share and self.near_KN is not None:
                codes_L = self.first + swapped(codes_L.long() - self.first, share, self.near_KN, rng)
            out.append(codes_L.tolist())
        return out

    def as_ids(self, ids_NL: Tensor, first: int, image: ImageTokenizer, settings: ViewSettings) -> Encodings:
        """The same with ids for codes, and with the nearest codes if some are replaced by them."""
        near_KN = nearest(image.codebook_KD) if settings.swap else None
        return replace(self, codes_NL=ids_NL, first=first, near_KN=near_KN)

    @property
    def augmented(self) -> bool:
        """Whether any picture has more than one encoding."""
        return len(self.codes_NL) > len(self.counts_P) or self.near_KN is not None

    def plain(self, picture: int) -> list[int]:
        """Codes of a picture without augmentation."""
        return list(self.codes_NL[self.starts_P[picture]].tolist())


def encode(
    names: Sequence[str], folder: Path, image: ImageTokenizer, settings: ViewSettings, cache: Path | None = None,
    batch: int = 64, watch: Watch = lambda done, total: None,
) -> Encodings:  # fmt: skip
    """Encode pictures of a corpus; several encodings of each are stored in the folder `cache`."""
    path = (
        cache / f"codes-{_key(names, folder, image, settings)}.safetensors"
        if cache and settings.count > 1
        else None
    )
    if path is not None and path.is_file():
        found = load_file(path)
        return Encodings(found["codes"].long(), found["starts"], found["counts"])
    codes: list[Tensor] = []
    for start in range(0, len(names), batch):
        codes += _encode_batch(
            [resolve_src(name, folder) for name in names[start : start + batch]], image, settings, start
        )
        watch(min(start + batch, len(names)), len(names))
    rows, columns = image.grid
    made = Encodings.of(codes or [torch.zeros(0, rows * columns, dtype=torch.long)])
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {"codes": made.codes_NL.to(torch.int32), "starts": made.starts_P, "counts": made.counts_P}
        write_atomic(path, save(tensors), force=True)
    return made


def _encode_batch(
    data: Sequence[bytes], image: ImageTokenizer, settings: ViewSettings, first: int
) -> list[Tensor]:
    white_BCHW = image.pixels([load_picture(each) for each in data])
    opacity_B1HW = image.pixels([_opacity(each) for each in data])[:, :1] if settings.count > 1 else None
    return encode_pixels(white_BCHW, opacity_B1HW, image, settings, first)


def encode_pixels(
    white_BCHW: Tensor, opacity_B1HW: Tensor | None, image: ImageTokenizer, settings: ViewSettings, first: int
) -> list[Tensor]:
    """Codes (views, L) of each picture; the views depend on `first`, the index of the first picture.

    Args:
        white_BCHW: RGB over white, uint8, of the tokenizer's size.
        opacity_B1HW: their opacity, uint8; None encodes them once, as opaque pictures.
    """
    device = image.codebook_KD.device
    white_BCHW = white_BCHW.to(device)
    codes = [[each] for each in image.encode(white_BCHW).cpu()]
    seen = [] if opacity_B1HW is None else (opacity_B1HW.amin((1, 2, 3)) < 255).nonzero()[:, 0].tolist()
    if opacity_B1HW is not None and seen:
        alpha_B1HW = opacity_B1HW[seen].to(device)
        for number in range(1, settings.count):
            pixels_BCHW = view(white_BCHW[seen], alpha_B1HW, settings, generator(SEED, first, number))
            for place, each in zip(seen, image.encode(pixels_BCHW).cpu(), strict=True):
                codes[place].append(each)
    return [torch.stack(each) for each in codes]


def _opacity(data: bytes) -> Image.Image:
    """The alpha channel of a picture as a grey picture."""
    with Image.open(io.BytesIO(data)) as opened:
        return opened.convert("RGBA").getchannel("A").convert("RGB")


def _key(names: Sequence[str], folder: Path, image: ImageTokenizer, settings: ViewSettings) -> str:
    sizes = [len(name) if name[:5].lower() == "data:" else (folder / name).stat().st_size for name in names]
    known = [
        image.sha256,
        list(names),
        sizes,
        settings.model_dump(mode="json", exclude={"plain", "swap", "scored"}),
    ]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]
