"""Rules for pages and pictures; the defaults are CM3's (arXiv:2201.07520, sec. 3.1)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from cm3kit.config import Settings
from cm3kit_tokenizers.vocab import ATTRIBUTES

BOILERPLATE = (
    "form", "[hidden]", "[aria-hidden=true]", "[aria-modal=true]",
    "[role=navigation]", "[role=banner]", "[role=contentinfo]", "[role=search]", "[role=dialog]",
    "[role=alertdialog]", "#footer", ".footer", "#copyright", "[class*=copyright]", ".navbar", ".breadcrumb",
    ".breadcrumbs", ".sidebar", ".sphinxsidebar", ".cookie-banner", "[class*=cookie-consent]", ".advertisement",
)  # fmt: skip
METAS = (
    "og:title", "og:description", "og:type", "og:site_name", "og:locale", "article:*", "twitter:title",
    "twitter:description", "description", "keywords", "author", "itemprop",
)  # fmt: skip


class PageRules(Settings):
    """Rules for pages.

    Attributes:
        max_broken: largest share of characters that are invalid in the page's encoding.
        languages: primary language tags, such as `en`; empty keeps all; pages that declare none are kept.
        detect: detect the language from the text: `never`, if the page declares none (`unsaid`), or `always`.
        drop: CSS selectors of elements that are removed with their content, unless they hold more than
            `drop_share` of the page's text.
        elements: per tag, `drop` it with its content, or `unwrap` it.
        attributes: attributes of minimal HTML that are kept.
        metas: names and properties (with `*`) of `<meta>` that are kept.
        links: keep `href`; for wiki pages only the page's name (`entity`); only `title`; or neither.
        min_text: a block is dropped unless one of its texts has this many characters; `min_text_list` is for
            lists and tables. Blocks with pictures, titles and headings stay. HTLM's are 128 and 64.
        min_ratio: least share of text in the minimal HTML (HTLM's is 0.46).
        min_chars: least characters of text on a page without a picture.
        need_picture: drop pages without a picture.
        opt_out: drop or keep pages that reserve text and data mining, or declare `noai`.
    """

    max_bytes: int = Field(16 * 2**20, ge=1, le=16 * 2**20)
    max_broken: float = Field(0.01, ge=0, le=1)
    languages: tuple[str, ...] = ()
    detect: Literal["never", "unsaid", "always"] = "never"
    drop: tuple[str, ...] = BOILERPLATE
    drop_share: float = Field(0.5, ge=0, le=1)
    elements: dict[str, Literal["drop", "unwrap"]] = Field(default_factory=dict)
    attributes: dict[str, tuple[str, ...]] = Field(default_factory=lambda: dict(ATTRIBUTES))
    metas: tuple[str, ...] = METAS
    links: Literal["keep", "entity", "title", "none"] = "keep"
    min_text: int = Field(0, ge=0)
    min_text_list: int = Field(0, ge=0)
    min_ratio: float = Field(0.0, ge=0, le=1)
    min_chars: int = Field(1, ge=0)
    need_picture: bool = False
    opt_out: Literal["drop", "carry"] = "drop"

    @field_validator("drop")
    @classmethod
    def _selectors(cls, drop: tuple[str, ...]) -> tuple[str, ...]:
        import turbohtml

        for selector in drop:
            try:
                turbohtml.parse("").select(selector)
            except turbohtml.SelectorSyntaxError as error:
                raise ValueError(str(error)) from None
        return drop


class PictureRules(Settings):
    """Rules for pictures.

    Attributes:
        size: length of the shorter side in pixels (`whole`: the longest of the longer side).
        fit: crop the middle square or one at a position derived from the picture's hash, or keep all of it.
        min_side: smaller pictures are dropped, and those with an aspect ratio above `max_aspect`.
        most: limit of pictures per page.
        missing: keep the `alt` of a dropped picture, or drop it too.
        alt_from: sources for an empty `alt`, in order: `title`, `aria-label`, `figcaption`.
        quality: of WebP and JPEG; WebP at 100 is lossless.
    """

    size: int = Field(256, ge=8, le=2048)
    fit: Literal["center", "random", "whole"] = "center"
    min_side: int = Field(32, ge=1)
    max_aspect: float = Field(5.0, ge=1)
    most: int = Field(256, ge=0)
    missing: Literal["alt", "drop"] = "alt"
    alt_from: tuple[Literal["title", "aria-label", "figcaption"], ...] = ()
    format: Literal["webp", "png", "jpeg"] = "webp"
    quality: int = Field(90, ge=1, le=100)


class WebSettings(Settings):
    """Settings of the conversion of pages to records.

    `seconds` of CPU time (six times that of wall time) and `memory_mb` are limits per page; beyond them its worker is
    ended and the page is dropped.
    """

    page: PageRules = PageRules()
    pictures: PictureRules = PictureRules()
    seconds: float = Field(20.0, gt=0)
    memory_mb: int = Field(4096, ge=512)


HTLM: dict[str, Any] = {
    "page": {"min_text": 128, "min_text_list": 64, "min_ratio": 0.46, "languages": ["en"]}
}
PRESETS: dict[str, dict[str, Any]] = {"cm3": {}, "htlm": HTLM}
"""Presets: CM3's rules, and the thresholds of HTLM (arXiv:2107.06955, sec. 2.1)."""
