"""The flat id space: specials, sentinels, markup, text, image codes, each a fixed contiguous range.

Text and picture encoders only produce ids of their own range, so user text never becomes a special, a
sentinel, a piece of markup or an image code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from cm3kit_tokenizers.errors import ModelError

SPECIALS = (
    "<pad>",
    "<eod>",
    "<eoss>",
    "<mask>",
    "<reserved:0>",
    "<reserved:1>",
    "<reserved:2>",
    "<reserved:3>",
)

# CM3's minimal HTML (arXiv:2201.07520, sec. 3.1): the elements and attributes that are kept.
PLAIN = (
    "title", "h1", "h2", "h3", "h4", "h5", "h6", "p", "div", "ul", "ol", "li", "dl", "dt", "dd",
    "table", "tr", "th", "td", "figure", "figcaption", "blockquote", "pre", "code", "em", "strong",
)  # fmt: skip
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "a": ("href", "title"),
    "img": ("alt", "src", "title"),
    "meta": ("content", "itemprop", "name", "property"),
}
VOID = ("br", "img", "meta")


def _markup() -> tuple[str, ...]:
    names = sorted({name for names in ATTRIBUTES.values() for name in names})
    return (
        *(f"<{name}>" for name in PLAIN),
        *(f"</{name}>" for name in (*PLAIN, "a")),
        "<br>",
        *(f"<{name}" for name in ATTRIBUTES),
        *(f' {name}="' for name in names),
        '"',
        ">",
    )


MARKUP = _markup()


@dataclass(frozen=True)
class Vocab:
    """Layout of the id space: `[specials | sentinels | markup | text | image]`.

    Args:
        text_size: number of ids of the text tokenizer.
        image_size: number of codes of the image tokenizer.
        sentinels: number of `<mask:i>`.
    """

    text_size: int
    image_size: int
    sentinels: int = 32
    markup_ids: dict[str, int] = field(init=False, repr=False, compare=False)

    pad = 0
    eod = 1
    eoss = 2
    mask = 3
    hint = 4  # `<reserved:0>`: ends a size hint

    def __post_init__(self) -> None:
        start = self.markup.start
        object.__setattr__(self, "markup_ids", {piece: start + i for i, piece in enumerate(MARKUP)})

    @cached_property
    def sentinel_range(self) -> range:
        """Ids of `<mask:0>`, `<mask:1>`, …"""
        return range(len(SPECIALS), len(SPECIALS) + self.sentinels)

    @cached_property
    def markup(self) -> range:
        """Ids of the pieces of minimal HTML, in the order of `MARKUP`."""
        return range(self.sentinel_range.stop, self.sentinel_range.stop + len(MARKUP))

    @cached_property
    def text(self) -> range:
        """Ids of text tokens."""
        return range(self.markup.stop, self.markup.stop + self.text_size)

    @cached_property
    def image(self) -> range:
        """Ids of image codes."""
        return range(self.text.stop, self.text.stop + self.image_size)

    def __len__(self) -> int:
        return self.image.stop

    def sentinel(self, index: int) -> int:
        """Id of `<mask:index>`; ValueError outside the reserved range."""
        if not 0 <= index < self.sentinels:
            raise ValueError(f"sentinel {index} is outside 0..{self.sentinels - 1}")
        return self.sentinel_range.start + index

    def markup_id(self, piece: str) -> int:
        """Id of a piece of markup such as `<p>` or ` src="`; KeyError for any other."""
        return self.markup_ids[piece]

    def piece(self, id: int) -> str:
        """The piece of markup of an id of the markup range."""
        return MARKUP[id - self.markup.start]

    def to_dict(self) -> dict[str, Any]:
        """JSON values that are saved with a model."""
        return {
            "text_size": self.text_size,
            "image_size": self.image_size,
            "sentinels": self.sentinels,
            "specials": list(SPECIALS),
            "markup": list(MARKUP),
            "size": len(self),
        }

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> Vocab:
        """Rebuild; ModelError for a file whose ranges differ from this version's."""
        sizes = [saved.get(key) for key in ("text_size", "image_size", "sentinels")]
        if not all(type(size) is int and size >= 0 for size in sizes):
            raise ModelError(f"vocab.json: the sizes {sizes} are not whole numbers.", code="bad_checkpoint")
        vocab = cls(int(saved["text_size"]), int(saved["image_size"]), int(saved["sentinels"]))
        mine = vocab.to_dict()
        wrong = [key for key in mine if saved.get(key) != mine[key]]
        if wrong:
            raise ModelError(
                f"vocab.json: {', '.join(wrong)} differ from this version's id ranges;"
                " retrain, or use the cm3kit version that made the model.",
                code="bad_checkpoint",
            )
        return vocab
