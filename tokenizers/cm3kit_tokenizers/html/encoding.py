"""Which encoding a page is in: UTF-8, or an ASCII superset that its byte-order mark or `<meta>` names."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import Any

from cm3kit_tokenizers.errors import PageError

# Labels of the WHATWG Encoding standard (sec. 4.2) for ASCII supersets. Trail bytes of these never equal < > " ' = &.
_ISO = {
    2: "csisolatin2 iso-ir-101 iso_8859-2:1987 l2 latin2", 3: "csisolatin3 iso-ir-109 iso_8859-3:1988 l3 latin3",
    4: "csisolatin4 iso-ir-110 iso_8859-4:1988 l4 latin4", 5: "csisolatincyrillic cyrillic iso-ir-144 iso_8859-5:1988",
    6: "arabic asmo-708 csiso88596e csiso88596i csisolatinarabic ecma-114 iso-8859-6-e iso-8859-6-i iso-ir-127"
       " iso_8859-6:1987",
    7: "csisolatingreek ecma-118 elot_928 greek greek8 iso-ir-126 iso_8859-7:1987 sun_eu_greek",
    8: "csiso88598e csisolatinhebrew hebrew iso-8859-8-e iso-ir-138 iso_8859-8:1988 visual csiso88598i iso-8859-8-i"
       " logical",
    10: "csisolatin6 iso-ir-157 l6 latin6", 13: "", 14: "", 15: "csisolatin9 l9 latin-9", 16: "",
}  # fmt: skip
_LABELS = {
    # A page that can be read far enough to find that it says UTF-16 is not in UTF-16.
    "utf-8": "unicode-1-1-utf-8 unicode11utf8 unicode20utf8 utf-8 utf8 x-unicode20utf8 utf-16 utf-16le utf-16be",
    "cp1252": "ansi_x3.4-1968 ascii cp819 csisolatin1 ibm819 iso-8859-1 iso-ir-100 iso8859-1 iso88591 iso_8859-1"
    " iso_8859-1:1987 l1 latin1 latin-1 us-ascii",
    "cp1254": "csisolatin5 iso-8859-9 iso-ir-148 iso8859-9 iso88599 iso_8859-9 iso_8859-9:1989 l5 latin5",
    "cp874": "dos-874 iso-8859-11 iso8859-11 iso885911 tis-620 windows-874",
    "cp866": "866 cp866 csibm866 ibm866",
    "koi8_r": "cskoi8r koi koi8 koi8-r koi8_r",
    "koi8_u": "koi8-ru koi8-u",
    "mac_roman": "csmacintosh mac macintosh x-mac-roman",
    "gb18030": "chinese csgb2312 csiso58gb231280 gb2312 gb_2312 gb_2312-80 gbk iso-ir-58 x-gbk gb18030",
    "big5": "big5 big5-hkscs cn-big5 csbig5 x-x-big5",
    "euc_jp": "cseucpkdfmtjapanese euc-jp x-euc-jp",
    "cp932": "csshiftjis ms932 ms_kanji shift-jis shift_jis sjis windows-31j x-sjis",
    "cp949": "cseuckr csksc56011987 euc-kr iso-ir-149 korean ks_c_5601-1987 ks_c_5601-1989 ksc5601 ksc_5601"
    " windows-949",
}
_CODECS = {
    **{label: codec for codec, labels in _LABELS.items() for label in labels.split()},
    **{label: f"iso8859-{n}" for n, labels in _ISO.items() for label in labels.split()},
    **{
        f"{form}{n}": f"iso8859-{n}"
        for n in _ISO
        for form in ("iso-8859-", "iso8859-", "iso8859", "iso_8859-")
    },
    **{f"{form}{n}": f"cp{n}" for n in range(1250, 1259) for form in ("windows-", "cp", "x-cp")},
}
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
    """The Python codec of a page: byte-order mark, then the first `<meta>` that names one that is known, then UTF-8.

    Raises:
        PageError: not_html for an encoding whose bytes are not ASCII's.
    """
    if data.startswith(codecs.BOM_UTF8):
        return "utf-8"
    for label in _declared(tree):
        if label in _REFUSED:
            raise PageError(
                f"The page says it is in {label}; save it as UTF-8 and try again.", code="not_html"
            )
        if label in _CODECS:
            return _CODECS[label]
    return "utf-8"


def _declared(tree: Any) -> Iterator[str]:
    """What the `<meta>`s of a page call its encoding, in order."""
    for meta in tree.find_all("meta"):
        attrs = meta.attrs
        if "charset" in attrs:
            yield str(attrs["charset"] or "").strip().lower()
        elif str(attrs.get("http-equiv") or "").lower() == "content-type":
            found = _CHARSET.search(str(attrs.get("content") or ""))
            if found:
                yield found[1].lower()
