"""URL normalisation, to compare URLs of pages and archives."""

from __future__ import annotations

import re
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

_ESCAPE = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_PORTS = {"http": 80, "https": 443, "ftp": 21}


def normal(url: str) -> str:
    """Normalise a URL by RFC 3986 (sec. 6.2.2 and 6.2.3) and WHATWG's URL standard.

    Removes angle brackets (as wget writes them), the fragment, a default port and needless escapes; lowercases scheme
    and host, escapes non-ASCII characters, and resolves `.` and `..`.

    >>> normal("<HTTP://E.org:80/a/../b%7e%c3%bc ü?x#top>")
    'http://e.org/b~%C3%BC%20%C3%BC?x'
    """
    url = re.sub(r"[\t\n\r]", "", url.strip().removeprefix("<").removesuffix(">").strip())
    try:
        parts = urlsplit(url)
        scheme, host, port = parts.scheme.lower(), (parts.hostname or "").lower(), parts.port
    except ValueError:
        return url
    if not scheme or not host:
        return _escaped(url.partition("#")[0])
    try:
        host = host.encode("ascii").decode() if host.isascii() else host.encode("idna").decode()
    except UnicodeError:
        return url
    user = f"{parts.netloc.rpartition('@')[0]}@" if "@" in parts.netloc else ""
    host = f"[{host}]" if ":" in host else host
    place = user + host + (f":{port}" if port is not None and port != _PORTS.get(scheme) else "")
    path = _escaped(parts.path.replace("\\", "/")) or "/"
    if "/." in path:
        path = urlsplit(urljoin("http://h/", path)).path
    return urlunsplit((scheme, place, path, _escaped(parts.query), ""))


def _escaped(text: str) -> str:
    def plain(found: re.Match[str]) -> str:
        char = chr(int(found[1], 16))
        return char if char in _UNRESERVED else f"%{found[1].upper()}"

    # A percent sign that is no escape is unchanged, as in browsers.
    return quote(_ESCAPE.sub(plain, text), safe="%/:?#[]@!$&'()*+,;=|~", errors="surrogatepass")
