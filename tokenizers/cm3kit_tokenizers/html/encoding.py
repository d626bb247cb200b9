"""The encoding of a page, by the same rules for filling and training."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator, Mapping

import turbohtml

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
    # A page whose declaration of UTF-16 can be read as ASCII is not in UTF-16.
    "utf-8": "unicode-1-1-utf-8 unicode11utf8 unicode20utf8 utf-8 utf8 x-unicode20utf8 utf-16 utf-16le utf-16be",
    "cp1252": "ansi_x3.4-1968 ascii cp819 csisolatin1 ibm819 iso-8859-1 iso-ir-100 iso8859-1 iso88591 iso_8859-1"
    " iso_8859-1:1987 l1 latin1 latin-1 us-ascii",
    "cp1254": "csisolatin5 iso-8859-9 iso-ir-148 iso8859-9 iso88599 iso_8859-9 iso_8859-9:1989 l5 latin5",
    "cp874": "dos-874 iso-8859-11 iso8859-11 iso885911 tis-620 windows-874",
    "cp866": "866 cp866 csibm866 ibm866",
    "koi8_r": "cskoi8r koi koi8 koi8-r koi8_r",
    "koi8_u": "koi8-ru koi8-u",
    "mac_cyrillic": "x-mac-cyrillic x-mac-ukrainian",
    "mac_roman": "csmacintosh mac macintosh x-mac-roman",
    "gb18030": "chinese csgb2312 csiso58gb231280 gb2312 gb_2312 gb_2312-80 gbk iso-ir-58 x-gbk gb18030",
    "big5hkscs": "big5 big5-hkscs cn-big5 csbig5 x-x-big5",
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
# Not an ASCII superset: a page in it can be read, but not filled.
_SHIFTING = {"iso2022_jp": "csiso2022jp iso-2022-jp"}
_CODECS |= {label: codec for codec, labels in _SHIFTING.items() for label in labels.split()}
# Encodings that browsers do not decode.
_REPLACED = ("csiso2022kr", "hz-gb-2312", "iso-2022-cn", "iso-2022-cn-ext", "iso-2022-kr", "replacement")
_WIDE_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)
_PRESCAN = 1024
_SPACE = b"\t\n\f\r "
_DECLARES = re.compile(rb"<meta[\t\n\f\r /][^>]{0,400}charset", re.I)
_META = re.compile(rb"<meta[\t\n\f\r /]", re.I)
_CHARSET = re.compile(
    rb"charset[\t\n\f\r ]*=[\t\n\f\r ]*(?:\"([^\"]*)\"|'([^']*)'|([^\t\n\f\r ;\"']+))", re.I
)
_ATTRIBUTE = re.compile(
    rb"[\t\n\f\r /]*([^\t\n\f\r />][^\t\n\f\r />=]*)"
    rb"(?:[\t\n\f\r ]*=[\t\n\f\r ]*(?:\"([^\"]*)\"|'([^']*)'|([^\t\n\f\r >\"'][^\t\n\f\r >]*)?))?"
)


def _control(error: UnicodeError) -> tuple[str, int]:
    """Decode bytes that are undefined in Python's windows code pages as browsers do: C1 controls, else U+FFFD."""
    assert isinstance(error, UnicodeDecodeError)
    byte = error.object[error.start]
    single = error.encoding == "charmap" and 0x80 <= byte < 0xA0
    return (chr(byte) if single else "\ufffd"), error.start + 1 if single else error.end


codecs.register_error("cm3kit-web", _control)
ERRORS = "cm3kit-web"
"""The error handler for decoding pages."""


def refuse_wide(data: bytes) -> None:
    """PageError (not_html) for UTF-16 and UTF-32, with or without byte-order mark: they are not ASCII supersets."""
    bare = len(data) >= 4 and (
        (data[0:1] == b"<" and data[1] == 0 and data[3] == 0)
        or (data[0] == 0 and data[1:3] in (b"<\0", b"\0\0"))
    )
    if data.startswith(_WIDE_MARKS) or (bare and data.count(0) * 3 > len(data)):
        raise PageError("The page is in UTF-16 or UTF-32; save it as UTF-8 and try again.", code="not_html")


def refuse_shifting(codec: str) -> None:
    """PageError (not_html) for an encoding that is not an ASCII superset, in which no byte range can be replaced."""
    if codec in _SHIFTING:
        raise PageError(
            f"The page is in {_SHIFTING[codec].split()[-1]}; save it as UTF-8 and try again.", code="not_html"
        )


def codec_of(data: bytes, header: str = "") -> str:
    """The Python codec of a page, by the rules of browsers (WHATWG HTML standard, sec. 13.2.3.2 and 13.2.3.5).

    A byte-order mark; the `charset` of the HTTP header; the first `<meta>` with a known encoding, in the first 1,024
    bytes or else in the head; UTF-8 if the bytes are valid UTF-8; windows-1252.

    Args:
        header: the value of `Content-Type`.

    Raises:
        PageError: not_html for an encoding that browsers do not decode.
    """
    if data.startswith(codecs.BOM_UTF8):
        return "utf-8"
    found = _CHARSET.search(header.encode("latin-1", "replace"))
    labels = [_label(found)] if found else []
    codec = _known(labels) or _known(_declared(data[:_PRESCAN])) or _known(_late(data))
    if codec is not None:
        return codec
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return "cp1252"
    return "utf-8"


def _late(data: bytes) -> Iterator[str]:
    """Encodings in `<meta>`s of a head that is longer than the prescan: browsers read to its end."""
    if _DECLARES.search(data, _PRESCAN) is None:
        return
    tree = turbohtml.parse(data.decode("latin-1"))
    for meta in tree.select("head meta"):
        attributes = {
            name.encode("latin-1", "replace"): str(value or "").encode("latin-1", "replace")
            for name, value in meta.attrs.items()
        }
        if label := _label_of(attributes):
            yield label


def _known(labels: Iterable[str]) -> str | None:
    for label in labels:
        if label in _REPLACED:
            raise PageError(
                f"The page declares the encoding {label}; save it as UTF-8 and try again.", code="not_html"
            )
        if label in _CODECS:
            return _CODECS[label]
    return None


def _label(found: re.Match[bytes]) -> str:
    value = next((group for group in found.groups() if group is not None), b"")
    return value.strip(_SPACE).decode("latin-1").lower()


def _declared(head: bytes) -> Iterator[str]:
    """Encodings declared in `<meta>`s, in order: the standard's prescan."""
    at = 0
    while (at := head.find(b"<", at)) >= 0:
        if head.startswith(b"<!--", at):
            end = head.find(b"-->", at + 2)
            if end < 0:
                return
            at = end + 3
        elif _META.match(head, at):
            attributes, at = _attributes(head, at + 5)
            if label := _label_of(attributes):
                yield label
        elif head[at + 1 : at + 2].isalpha() or (
            head[at + 1 : at + 2] == b"/" and head[at + 2 : at + 3].isalpha()
        ):
            name = re.compile(rb"[^\t\n\f\r />]*").match(head, at + 1)
            _, at = _attributes(head, name.end() if name else at + 1)
        elif head[at + 1 : at + 2] in (b"!", b"/", b"?"):
            end = head.find(b">", at)
            if end < 0:
                return
            at = end + 1
        else:
            at += 1


def _attributes(head: bytes, at: int) -> tuple[dict[bytes, bytes], int]:
    """Attributes of a tag from `at`, the first of each name, and the end of the tag."""
    found: dict[bytes, bytes] = {}
    while at < len(head):
        while at < len(head) and head[at] in b"\t\n\f\r /":
            at += 1
        if head[at : at + 1] == b">":
            return found, at + 1
        each = _ATTRIBUTE.match(head, at)
        if each is None or each.end() == at:
            break
        value = next((group for group in each.groups()[1:] if group is not None), b"")
        found.setdefault(each[1].lower(), value)
        at = each.end()
    return found, len(head)


def _label_of(attributes: Mapping[bytes, bytes]) -> str:
    if b"charset" in attributes:
        return attributes[b"charset"].strip(_SPACE).decode("latin-1").lower()
    if attributes.get(b"http-equiv", b"").lower() == b"content-type":
        found = _CHARSET.search(attributes.get(b"content", b""))
        return _label(found) if found else ""
    return ""
