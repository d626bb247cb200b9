"""Independent random streams from seeds, without any global state."""

from __future__ import annotations

from torch import Generator

_MASK = 2**64 - 1


def stream(*parts: int) -> int:
    """A seed that depends on all parts and on their order (splitmix64 over them)."""
    state = 0
    for part in parts:
        state = (state ^ (part & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state & (2**63 - 1)


def generator(*parts: int) -> Generator:
    """A CPU generator on the stream of these parts."""
    rng = Generator()
    rng.manual_seed(stream(*parts))
    return rng
