"""Detect the real type of files whose content does not match their name."""

from __future__ import annotations

import re
from pathlib import Path

_LFS = b"version https://git-lfs.github.com/spec/"
_PAGE = re.compile(
    rb"\s*(?:<\?xml[^>]*>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)[\s>]", re.I | re.S
)
_KINDS = (
    (b"\x1f\x8b", "is compressed with gzip; decompress it"),
    (b"BZh", "is compressed with bzip2; decompress it"),
    (b"\xfd7zXZ\0", "is compressed with xz; decompress it"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd; decompress it"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive; extract it"),
    (b"%PDF-", "is a PDF file"),
)


def disguise(head: bytes) -> str:
    """The real type of a file by its first bytes, as the end of a sentence; "" if unknown.

    >>> disguise(b"version https://git-lfs.github.com/spec/v1\\noid sha256:0")
    'is a git-lfs pointer, not the file itself; get it with: git lfs pull'
    """
    if head.startswith(_LFS):
        return "is a git-lfs pointer, not the file itself; get it with: git lfs pull"
    if _PAGE.match(head[:4096]):
        return "is an HTML page, such as a login or an error page; download the file again"
    if re.match(rb'\s*\{\s*"(?:error|message|detail)"', head[:200]):
        return "is an error message in JSON; download the file again"
    if head[257:262] == b"ustar":
        return "is a tar archive; extract it and give one of its members"
    if _wide(head[:512]):
        return "is text in UTF-16 without a byte-order mark; save it as UTF-8"
    return next((what for start, what in _KINDS if head.startswith(start)), "")


def _wide(head: bytes) -> bool:
    """Whether every other byte is zero, and the others are ASCII text."""
    head = head[: len(head) // 2 * 2]
    low, high = (head[::2], head[1::2]) if head[1:2] == b"\0" else (head[1::2], head[::2])
    text = sum(32 <= byte < 127 or byte in b"\t\r\n" for byte in low)
    return len(low) > 8 and high.count(0) > 0.9 * len(high) and text > 0.9 * len(low)


def disguised(path: Path) -> str:
    """`disguise` of a file; "" if it cannot be read."""
    try:
        with path.open("rb") as file:
            return disguise(file.read(4096))
    except OSError:
        return ""
