"""A folder of HTML pages as training documents: nodes of minimal HTML, pictures encoded once."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Generator, Tensor

from cm3kit.data.encodings import Encodings, Watch, encode
from cm3kit.data.prepared import is_prepared
from cm3kit.data.views import ViewSettings
from cm3kit.json_lines import numbered_objects
from cm3kit.publish import write_atomic
from cm3kit_tokenizers.document import Node, Picture
from cm3kit_tokenizers.errors import DataError, PageError, PictureError
from cm3kit_tokenizers.page import Page
from cm3kit_tokenizers.sequence import Codes, PageTokenizer
from cm3kit_tokenizers.site import Site
from cm3kit_tokenizers.vq.model import ImageTokenizer

PLAIN = ViewSettings()
SHIPPED = Path("data/emoji")  # where the corpus of the model that ships is built


@dataclass(frozen=True, slots=True)
class Listed:
    """A page of a corpus: its path, split and sampling weight."""

    path: Path
    split: str
    weight: float


def listing(folder: Path) -> list[Listed]:
    """Pages of `manifest.jsonl`, or all .html files below the folder, of which one in 20 is held out as `rest`."""
    manifest = folder / "manifest.jsonl"
    if manifest.is_file():
        listed = [_listed(manifest, *each) for each in numbered_objects(manifest.read_bytes(), manifest)]
        if not listed:
            raise DataError(f"{manifest} lists no pages.", code="bad_data")
        return listed
    paths = sorted(folder.rglob("*.html"))
    if not paths:
        raise DataError(f"{folder} {_lacking(folder)}", code="bad_data")
    return [Listed(path, "rest" if index % 20 == 10 else "train", 1.0) for index, path in enumerate(paths)]


def _lacking(folder: Path) -> str:
    """Why a folder has no pages, and what to do about it."""
    if is_prepared(folder):
        return "is prepared and not packed: make shards of it with cm3kit data pack, and name these."
    if folder == SHIPPED:
        return "is not there; name your own folder of pages (--set data=FOLDER), or build the one of emoji: make data."
    if not folder.is_dir():
        return "is no folder; name one of pages: --set data=FOLDER."
    return "holds no .html pages; cm3kit data prepare reads pages of other kinds (docs/data.md)."


def _listed(manifest: Path, number: int, row: dict[str, Any]) -> Listed:
    try:
        return Listed(manifest.parent / row["page"], str(row["split"]), float(row["weight"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"line {number} of {manifest} is not a page with split and weight.", code="bad_data"
        ) from error


def read_nodes(
    path: Path, root: Path | None = None, lost: Callable[[str], object] = lambda address: None, sees: bool = True
) -> list[Node]:  # fmt: skip
    """Minimal HTML of a page; pictures outside of its site's folder are dropped.

    Args:
        root: the folder of the site; by default the page's own.
        lost: called with the address of each dropped picture.
        sees: whether pictures are kept at all.

    Raises:
        DataError: the page is missing, empty or invalid.
    """
    try:
        opens = partial(_opens, Site(path.parent, root) if sees else None, lost)
        return Page.parse(path.read_bytes()).nodes(usable=opens)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", code="no_file") from error
    except PageError as error:
        raise DataError(f"{path}: {error.args[0]}", code="bad_data") from error


def _opens(site: Callable[[str], bytes] | None, lost: Callable[[str], object], address: str) -> bool:
    if site is None:
        lost(address)
        return False
    try:
        site(address)
    except PictureError:
        lost(address)
        return False
    return True


@dataclass(frozen=True)
class Documents:
    """Documents as ids without end-of-document ids, their sampling weights, and the paths of their pages.

    `lost` is the number of dropped pictures.

    With `encodings`, whose codes are ids too, picture k is the single number −1−k in a document, and each time the
    document is drawn it is replaced by one of its encodings.
    """

    ids: Sequence[list[int]]
    weights_B: Tensor
    names: tuple[str, ...] = ()
    encodings: Encodings | None = None
    views: ViewSettings = PLAIN
    known_as: str = ""
    lost: int = 0

    def pick(self, rng: Generator, count: int) -> list[int]:
        """Indices of `count` documents, drawn by weight."""
        picked: list[int] = torch.multinomial(self.weights_B, count, replacement=True, generator=rng).tolist()
        return picked

    def draw(self, rng: Generator, count: int) -> Iterator[list[int]]:
        """`count` documents, drawn by weight."""
        for index in self.pick(rng, count):
            yield self.seen(index, rng)

    def seen(self, index: int, rng: Generator) -> list[int]:
        """One document, each of its pictures in an encoding that is drawn where there are several."""
        parts: list[int] = self.ids[index]
        pictures = [-1 - part for part in parts if part < 0] if self.encodings else []
        if self.encodings is None or not pictures:
            return parts
        codes = iter(self.encodings.draw(pictures, self.views, rng))
        return [id for part in parts for id in (next(codes) if part < 0 else (part,))]

    def is_plain(self, index: int, ids: Sequence[int]) -> bool:
        """Whether a document that `seen` has drawn shows its pictures without augmentation."""
        if self.encodings is None or not self.encodings.augmented:
            return True
        parts, plain = self.ids[index], self.encodings.plain
        return [*ids] == [id for part in parts for id in (plain(-1 - part) if part < 0 else (part,))]

    @cached_property
    def lengths(self) -> list[int]:
        """Ids of each document."""
        longer = self.encodings.codes_NL.shape[1] - 1 if self.encodings else 0
        return [len(each) + longer * sum(id < 0 for id in each) for each in self.ids]

    @property
    def mean_length(self) -> float:
        """Mean number of ids of a document."""
        return sum(self.lengths) / len(self.lengths)

    def fingerprint(self) -> str:
        """A hash of names, lengths and weights; not of picture codes, which may depend on the machine."""
        known = [self.names, [len(each) for each in self.ids], self.weights_B.tolist()]
        return self.known_as or hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]


def load_documents(
    folder: Path, tokenizer: PageTokenizer, image: ImageTokenizer, cache: Path, split: str = "train",
    only: Collection[Path] | None = None, views: ViewSettings = PLAIN,
    watch: Watch = lambda done, total: None,
) -> Documents:  # fmt: skip
    """Encode all pages of a split, pictures according to `views`; parsed pages are stored in the folder `cache`.

    Args:
        only: restrict to these pages of the split.
        watch: called with (pictures encoded, pictures in total).
    """
    pages = [each for each in listing(folder) if each.split == split and (only is None or each.path in only)]
    if not pages:
        raise DataError(f"{folder} has no pages of the split {split!r}.", code="bad_data")
    parsed, pictures, lost = parse(pages, folder, tokenizer, cache)
    names = tuple(each.path.relative_to(folder).as_posix() for each in pages)
    weights_B = torch.tensor([each.weight for each in pages])
    found = encode(pictures, folder, image, views, cache, watch=watch)
    if views.several:
        ids_NL = torch.tensor([tokenizer.image_ids(row) for row in found.codes_NL.tolist()])
        found = found.as_ids(ids_NL, tokenizer.vocab.image.start, image, views)
        return Documents(parsed, weights_B, names, found, views, lost=lost)
    codes = [tokenizer.image_ids(row) for row in found.codes_NL.tolist()]
    documents = tuple(
        [id for part in row for id in (codes[-1 - part] if part < 0 else (part,))] for row in parsed
    )
    return Documents(documents, weights_B, names, lost=lost)


def parse_pages(
    pages: list[Listed], folder: Path, tokenizer: PageTokenizer, cache: Path
) -> tuple[list[list[int]], list[str]]:
    """Ids of pages with picture k as −1−k, and the pictures' paths relative to the corpus folder."""
    rows, pictures, _ = parse(pages, folder, tokenizer, cache)
    return rows, pictures


def parse(
    pages: list[Listed], folder: Path, tokenizer: PageTokenizer, cache: Path
) -> tuple[list[list[int]], list[str], int]:
    """As `parse_pages`, with the number of dropped pictures."""
    stamp = [_stamp(each.path) for each in pages]
    known = json.dumps(
        [
            "sites and losses",
            stamp,
            tokenizer.vocab.to_dict(),
            [piece.hex() for piece in tokenizer.text.pieces],
        ]
    )
    path = cache / f"pages-{hashlib.sha256(known.encode()).hexdigest()[:16]}.safetensors"
    if not path.is_file():
        numbers: dict[str, int] = {}
        lost: list[str] = []
        rows = [_parse(each.path, folder, tokenizer, numbers, lost) for each in pages]
        tensors = {
            "ids": torch.tensor([id for row in rows for id in row], dtype=torch.int32),
            "sizes": torch.tensor([len(row) for row in rows], dtype=torch.int32),
        }
        cache.mkdir(parents=True, exist_ok=True)
        write_atomic(
            path, save(tensors, {"pictures": json.dumps(list(numbers)), "lost": str(len(lost))}), force=True
        )
    with safe_open(path, "pt") as opened:
        ids, sizes = opened.get_tensor("ids").tolist(), opened.get_tensor("sizes").tolist()
        told = opened.metadata()
    pictures: list[str] = json.loads(told["pictures"])
    ends = list(itertools.accumulate(sizes))
    return [ids[end - size : end] for end, size in zip(ends, sizes, strict=True)], pictures, int(told["lost"])


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        found = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.", code="no_file") from error
    return str(path), found.st_size, found.st_mtime_ns


def _parse(
    path: Path, folder: Path, tokenizer: PageTokenizer, numbers: dict[str, int], lost: list[str]
) -> list[int]:
    site = Site(path.parent, folder)

    def number(picture: Picture) -> Codes:
        name = _name(site, picture.src.strip())
        return [-1 - numbers.setdefault(name, len(numbers)) - tokenizer.vocab.image.start], None

    nodes = read_nodes(path, folder, lost.append, sees=bool(tokenizer.vocab.image_size))
    return [id for id in tokenizer.encode(nodes, number) if isinstance(id, int)]


def _name(site: Site, src: str) -> str:
    """Path of a picture relative to the corpus folder."""
    if src[:5].lower() == "data:":
        return src
    found = next((steps for steps in site.paths(src) if site.root.joinpath(*steps).is_file()), [src])
    return quote("/".join(found), errors="surrogateescape")
