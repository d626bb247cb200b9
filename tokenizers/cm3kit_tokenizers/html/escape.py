"""Escape text for its context, so that it can neither open a tag nor leave an attribute value.

The rules are those of the WHATWG HTML standard, sec. 13.1 (text, attribute values, character references).
"""

from __future__ import annotations

import re

TEXT_ESCAPES = {
    0x00: "\ufffd",
    ord("&"): "&amp;",
    ord("<"): "&lt;",
    ord(">"): "&gt;",
    ord("\r"): "&#13;",
    0xFEFF: "&#65279;",
}
ATTRIBUTE_ESCAPES = {**TEXT_ESCAPES, ord('"'): "&quot;", ord("'"): "&#39;"}
# Most texts have none of these, and a search is much faster than a translation.
IN_TEXT = re.compile("[\0&<>\r\ufeff]")
IN_ATTRIBUTE = re.compile("[\0&<>\r\ufeff\"']")
_C1 = range(0x80, 0xA0)
_SURROGATES = range(0xD800, 0xE000)


def escape_text(text: str) -> str:
    """Text between tags; it parses back to `text`, except NUL and lone surrogates (U+FFFD)."""
    return text.translate(TEXT_ESCAPES) if IN_TEXT.search(text) else text


def escape_attribute(text: str) -> str:
    """An attribute value, safe in single and double quotes."""
    return text.translate(ATTRIBUTE_ESCAPES) if IN_ATTRIBUTE.search(text) else text


def encode(text: str, codec: str) -> bytes:
    """Escaped text in the page's encoding; other characters become character references."""
    try:
        return text.encode(codec)
    except UnicodeEncodeError:
        return b"".join(_encode_char(char, codec) for char in text)


def _encode_char(char: str, codec: str) -> bytes:
    code = ord(char)
    if code in _SURROGATES:
        return _encode_char("\ufffd", codec)
    try:
        return char.encode(codec)
    except UnicodeEncodeError:
        # HTML decodes &#128; … &#159; as windows-1252, so C1 controls cannot be referenced.
        return b"&#65533;" if code in _C1 else b"&#%d;" % code
