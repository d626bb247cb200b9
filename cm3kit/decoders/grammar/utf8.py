"""UTF-8 as an automaton over text tokens, so that text never ends inside a character (RFC 3629, sec. 4)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

REJECT = -1
STATES = 8
# Lead bytes by range, and the state they lead to; states 1-3 need that many continuation bytes, 4-7
# are the leads E0, ED, F0, F4 whose first continuation byte is narrowed.
_LEADS = (
    (0x09, 0x0A, 0), (0x20, 0x7E, 0), (0xC2, 0xDF, 1), (0xE0, 0xE0, 4), (0xE1, 0xEC, 2), (0xED, 0xED, 5),
    (0xEE, 0xEF, 2), (0xF0, 0xF0, 6), (0xF1, 0xF3, 3), (0xF4, 0xF4, 7),
)  # fmt: skip
_CONTINUATIONS = {
    1: (0x80, 0xBF, 0), 2: (0x80, 0xBF, 1), 3: (0x80, 0xBF, 2), 4: (0xA0, 0xBF, 1), 5: (0x80, 0x9F, 1),
    6: (0x90, 0xBF, 2), 7: (0x80, 0x8F, 2),
}  # fmt: skip


def follow(state: int, content: bytes) -> int:
    """State after some bytes, or REJECT; control characters that HTML cannot hold are rejected too."""
    for byte in content:
        ranges = _LEADS if state == 0 else (_CONTINUATIONS[state],)
        for low, high, target in ranges:
            if low <= byte <= high:
                state = target
                break
        else:
            return REJECT
    return state


class TextAutomaton:
    """Which text tokens may follow, and how many more a character needs to be whole.

    Args:
        size: number of text tokens.
        pieces: bytes of each token; None where they are not known, and then any token may follow any.
    """

    def __init__(self, size: int, pieces: Sequence[bytes] | None) -> None:
        if pieces is None:
            self._after = [[0] * size]
        else:
            self._after = [
                [follow(state, piece) if piece else REJECT for piece in pieces] for state in range(STATES)
            ]
        self.debt = self._debts()
        self.groups = [self._group(state) for state in range(len(self._after))]

    def step(self, state: int, token: int) -> int:
        """State after a token (its index in the text range); what may not follow counts as whole."""
        return max(self._after[state][token], 0)

    def _debts(self) -> list[int]:
        reachable = [set(after) - {REJECT} for after in self._after]
        never = len(self._after) + 1
        debts = [0] + [never] * (len(self._after) - 1)
        for _ in debts:
            for state in range(1, len(debts)):
                debts[state] = min(debts[state], 1 + min((debts[t] for t in reachable[state]), default=never))
        return [debt if debt < never else 1 << 40 for debt in debts]

    def _group(self, state: int) -> dict[int, list[int]]:
        groups: dict[int, list[int]] = defaultdict(list)
        for token, target in enumerate(self._after[state]):
            if target != REJECT and self.debt[target] < 1 << 40:
                groups[target].append(token)
        return dict(groups)
