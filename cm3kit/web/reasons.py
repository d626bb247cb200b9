"""Reasons for which a page or picture is dropped; every drop has one of these codes."""

from __future__ import annotations

REASONS: dict[str, str] = {
    "empty_file": "the page is empty",
    "page_too_large": "the page is over the size limit",
    "page_too_deep": "elements are nested deeper than the limit",
    "not_html": "the page is not readable text",
    "bad_encoding": "too many characters are invalid in the declared encoding",
    "language": "the page is in another language",
    "opted_out": "the page reserves text and data mining, or declares noai",
    "low_ratio": "the share of text in the page is too low",
    "too_short": "the page has too little text",
    "no_picture": "the page has no picture",
    "duplicate": "the page is a duplicate",
    "unreadable": "this part of the source cannot be read: truncated, damaged, or not a page",
    "no_page": "the response is not a page: a redirect or an error",
    "bad_row": "the columns of the row are ambiguous or of a wrong type",
    "outside": "a path leaves the source's folder, or is a link",
    "too_slow": "the page took too long",
    "no_memory": "the page took too much memory",
    "failed": "reading the page failed because of a bug",
    "crashed": "the process that read the page died",
    "no_address": "the picture has no address",
    "remote": "the picture is on another host, and nothing is downloaded",
    "no_file": "the picture file is missing",
    "bad_picture": "the picture cannot be decoded, or is over a limit",
    "too_small": "the picture is too small",
    "too_long": "the picture is too long for its width",
    "too_many": "the page has more pictures than the limit",
}

# Notes on pictures that are kept.
NOTES: dict[str, str] = {"bad_metadata": "the metadata of the picture are damaged, its pixels are not"}


class Refused(Exception):
    """A page or picture is dropped, with a code of `REASONS`."""

    def __init__(self, reason: str, detail: str = "") -> None:
        if reason not in REASONS:
            raise KeyError(f"reason {reason!r} is not registered in REASONS")
        super().__init__(reason, detail)
        self.reason, self.detail = reason, " ".join(detail.split())[:200]
