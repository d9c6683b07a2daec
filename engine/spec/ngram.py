"""Prompt lookup: what followed the last time that the sequence ended as it does now.

Good at answers that repeat their prompt: summaries, extraction, edits of code.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..request import IntArray, Request

WORD = 4
"""Bytes of a token id."""


class NgramDrafter:
    """Looks for the longest of the last `most` to `least` tokens, the latest place first."""

    def __init__(self, least: int, most: int) -> None:
        assert 1 <= least <= most, (least, most)
        self._least = least
        self._most = most

    def enter(self, slot: int, request: Request, token_ids: IntArray) -> None:
        """See Drafter. Nothing is remembered."""

    def leave(self, slot: int, token_ids: IntArray, *, ended: bool) -> None:
        """See Drafter."""

    def pass_step(self) -> None:
        """See Drafter."""

    def propose(self, slot: int, token_ids: IntArray, count: int) -> Sequence[int]:
        """See Drafter."""
        data, length = token_ids.tobytes(), len(token_ids)
        end = 0
        for size in range(self._least, min(self._most, length - 1) + 1):
            # One with enough behind it, if there is: the newest may be only a token away.
            ends = _last(data, size, length - count) or _last(data, size, length - 1)
            if not ends:
                break
            end = ends
        guesses: list[int] = token_ids[end : end + count].tolist() if end else []
        return guesses


def _last(data: bytes, size: int, end: int) -> int:
    """Find where the last `size` words stand before: the end of the latest place up to `end`.

    0: nowhere. In bytes, since that is one call for most sequences, whatever their length.
    """
    pattern, limit = data[-WORD * size :], WORD * end
    while limit >= WORD * size:
        start = data.rfind(pattern, 0, limit)
        if start < 0:
            return 0
        if start % WORD == 0:
            return start // WORD + size
        limit = start + len(pattern) - 1
    return 0
