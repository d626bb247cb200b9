"""Times and sizes as people write and read them: `2h`, `24 min`, `24GB`."""

from __future__ import annotations

import re

from cm3kit_tokenizers.errors import ConfigError

_SECONDS = {"s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "mib": 2**20, "gib": 2**30}
_PART = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]+)")


def duration(seconds: float) -> str:
    """A time in at most two units.

    >>> duration(9.4), duration(1440), duration(5400), duration(200_000)
    ('9 s', '24 min', '1 h 30 min', '2 d 8 h')
    """
    if seconds < 59.5:
        return f"{max(seconds, 0):.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {rest} min" if rest else f"{hours} h"
    days, hours = divmod(round(minutes / 60), 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def read_duration(text: str) -> float:
    """Seconds of `90s`, `30min`, `2h`, `1h30m` or `1.5d`; ConfigError (`bad_value`) for anything else.

    >>> read_duration("1h30m")
    5400.0
    """
    parts = _PART.findall(text)
    known = all(unit.lower() in _SECONDS for _, unit in parts)
    if not parts or not known or _PART.sub("", text).strip():
        raise ConfigError(f"{text!r} is no time; write it as 90s, 30min, 2h or 1h30m.", code="bad_value")
    return float(sum(float(number) * _SECONDS[unit.lower()] for number, unit in parts))


def memory(size: float) -> str:
    """Bytes in MB, or in GB from ten thousand MB on.

    >>> memory(737e6), memory(24e9)
    ('737 MB', '24.0 GB')
    """
    return f"{size / 1e9:.1f} GB" if size >= 1e10 else f"{size / 1e6:,.0f} MB"


def read_memory(text: str) -> int:
    """Bytes of `24GB` or `512MiB`; ConfigError (`bad_value`) for anything else.

    >>> read_memory("24GB")
    24000000000
    """
    found = _PART.fullmatch(text.strip())
    if found is None or found[2].lower() not in _BYTES:
        raise ConfigError(f"{text!r} is no size of memory; write it as 24GB or 16GiB.", code="bad_value")
    return int(float(found[1]) * _BYTES[found[2].lower()])
