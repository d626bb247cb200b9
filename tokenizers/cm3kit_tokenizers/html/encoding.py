"""Which encoding a page is in: UTF-8, or an ASCII superset that its byte-order mark or `<meta>` names."""

from __future__ import annotations

import codecs
import re
from typing import Any

from cm3kit_tokenizers.errors import PageError

# WHATWG Encoding standard: labels of ASCII supersets. Trail bytes of these never equal < > " ' = &.
_CODECS = {
    "utf-8": ("utf-8", "utf8", "unicode-1-1-utf-8"),
    "cp1252": ("windows-1252", "cp1252", "iso-8859-1", "iso8859-1", "latin1", "latin-1", "us-ascii", "ascii"),
    "iso8859-15": ("iso-8859-15", "iso8859-15", "latin-9", "l9"),
    "cp1254": ("windows-1254", "iso-8859-9", "latin5"),
    "iso8859-2": ("iso-8859-2", "latin2", "l2"),
    **{f"iso8859-{n}": (f"iso-8859-{n}", f"iso8859-{n}") for n in (3, 4, 5, 6, 7, 8, 10, 13, 14, 16)},
    **{f"cp{n}": (f"windows-{n}", f"cp{n}") for n in (1250, 1251, 1253, 1255, 1256, 1257, 1258)},
    "cp874": ("windows-874", "tis-620", "iso-8859-11"),
    "cp866": ("ibm866", "cp866"),
    "koi8_r": ("koi8-r", "koi8"),
    "koi8_u": ("koi8-u",),
    "mac_roman": ("macintosh", "x-mac-roman"),
    "gb18030": ("gb18030", "gbk", "gb2312", "gb_2312-80", "x-gbk"),
    "big5": ("big5", "big5-hkscs"),
    "euc_jp": ("euc-jp", "x-euc-jp"),
    "cp932": ("shift_jis", "shift-jis", "sjis", "x-sjis", "windows-31j", "ms932"),
    "cp949": ("euc-kr", "ks_c_5601-1987", "windows-949"),
}  # fmt: skip
_REFUSED = ("iso-2022-jp", "utf-7", "hz-gb-2312", "iso-2022-kr", "iso-2022-cn")
_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
_CHARSET = re.compile(r"charset\s*=\s*[\"']?\s*([^\s\"';>]+)", re.I)


def refuse_wide(data: bytes) -> None:
    """PageError (not_html) for UTF-16 and UTF-32, marked or not: their bytes are not ASCII's."""
    bare = len(data) >= 4 and (
        (data[0:1] == b"<" and data[1] == 0 and data[3] == 0)
        or (data[0] == 0 and data[1:3] in (b"<\0", b"\0\0"))
    )
    if data.startswith(_WIDE_MARKS) or (bare and data.count(0) * 3 > len(data)):
        raise PageError("The page is in UTF-16 or UTF-32; save it as UTF-8 and try again.", code="not_html")


def codec_of(data: bytes, tree: Any) -> str:
    """The Python codec of a page: byte-order mark, then the first `<meta>` that names one, then UTF-8.

    Raises:
        PageError: not_html for an encoding whose bytes are not ASCII's.
    """
    if data.startswith(codecs.BOM_UTF8):
        return "utf-8"
    label = _declared(tree)
    if label in _REFUSED:
        raise PageError(f"The page says it is in {label}; save it as UTF-8 and try again.", code="not_html")
    return next((codec for codec, labels in _CODECS.items() if label in labels), "utf-8")


def _declared(tree: Any) -> str:
    for meta in tree.find_all("meta"):
        attrs = meta.attrs
        if "charset" in attrs:
            return str(attrs["charset"] or "").strip().lower()
        if str(attrs.get("http-equiv") or "").lower() == "content-type":
            found = _CHARSET.search(str(attrs.get("content") or ""))
            if found:
                return found[1].lower()
    return ""
