"""Why a page or a picture was dropped: one code each, and nothing is dropped without one."""

from __future__ import annotations

REASONS: dict[str, str] = {
    "empty_file": "the page holds nothing",
    "page_too_large": "the page is over the size limit",
    "page_too_deep": "elements are nested deeper than the limit",
    "not_html": "the page is not text that can be read",
    "bad_encoding": "too many characters are not of the encoding that the page names",
    "language": "the page is in another language",
    "opted_out": "the page reserves text and data mining, or says noai",
    "low_ratio": "the page is more markup than text",
    "too_short": "the page has too little text",
    "no_picture": "the page has no picture",
    "duplicate": "the same page was there before",
    "unreadable": "the source cannot be read here: truncated, damaged, or no page",
    "no_page": "the address gave no page: a redirect or an error",
    "bad_row": "the columns of the row do not say what it is",
    "outside": "a name leaves the source's folder, or is a link",
    "too_slow": "the page took too long",
    "no_memory": "the page took too much memory",
    "failed": "reading the page failed in a way that is a bug",
    "crashed": "the process that read the page died",
    "no_address": "the picture has no address",
    "remote": "the picture is elsewhere, and nothing is fetched",
    "no_file": "the picture is not there",
    "bad_picture": "the picture cannot be decoded, or is over a limit",
    "too_small": "the picture is too small",
    "too_long": "the picture is too long for its width",
    "too_many": "the page has more pictures than are kept",
}

# What is said of pictures that are kept.
NOTES: dict[str, str] = {"bad_metadata": "the metadata of the picture are damaged, its pixels are not"}


class Refused(Exception):
    """A page or picture that is left out, by a code of `REASONS`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        if reason not in REASONS:
            raise KeyError(f"reason {reason!r} is not registered in REASONS")
        super().__init__(reason, detail)
        self.reason, self.detail = reason, " ".join(detail.split())[:200]
