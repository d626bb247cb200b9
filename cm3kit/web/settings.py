"""What is kept of a page and of its pictures; the defaults are CM3's (arXiv:2201.07520, sec. 3.1)."""

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
    """Which pages are kept, and what of them.

    Attributes:
        max_broken: largest share of characters that the page's encoding cannot say.
        languages: primary language tags, such as `en`; empty keeps all, and so does a page that names none.
        detect: go by the language of the text: `never`, where a page does not name one (`unsaid`), or `always`.
        drop: CSS selectors of what is removed with all that is in it, unless it holds more than
            `drop_share` of the page's text.
        elements: for a tag, `drop` it with what is in it, or `unwrap` it.
        attributes: what is kept of the attributes of minimal HTML.
        metas: names, properties (with `*`) of `<meta>` that are kept.
        links: `href` as it is; of wiki pages the page's name alone (`entity`); only `title`; or neither.
        min_text: a block is dropped unless some text in it has as many characters; `min_text_list` is for
            lists and tables. Blocks with pictures, titles and headings stay. HTLM's are 128 and 64.
        min_ratio: least share of text in the minimal HTML (HTLM's is 0.46).
        min_chars: least characters of text on a page without a picture.
        need_picture: drop pages without a picture.
        opt_out: what happens to pages that reserve text and data mining, or say `noai`.
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
    """Which pictures are kept, and how they are stored.

    Attributes:
        size: length of the shorter side in pixels (`whole`: the longest of the longer side).
        fit: the square that is cut out: the middle, or a place drawn from the picture's own hash; or all of it.
        min_side: a smaller picture is dropped, as is one more than `max_aspect` times as long as wide.
        most: pictures of one page.
        missing: a picture that is dropped leaves its `alt`, or nothing.
        alt_from: where `alt` is empty, the first of these that is there: `title`, `aria-label`, `figcaption`.
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
    """How pages become records.

    `seconds` of the processor (of the clock six times that) and `memory_mb` are what one page may take before its
    worker is ended and it is given up.
    """

    page: PageRules = PageRules()
    pictures: PictureRules = PictureRules()
    seconds: float = Field(20.0, gt=0)
    memory_mb: int = Field(4096, ge=512)


HTLM: dict[str, Any] = {
    "page": {"min_text": 128, "min_text_list": 64, "min_ratio": 0.46, "languages": ["en"]}
}
PRESETS: dict[str, dict[str, Any]] = {"cm3": {}, "htlm": HTLM}
"""Starting points by name: CM3's rules, and the thresholds of HTLM (arXiv:2107.06955, sec. 2.1)."""
