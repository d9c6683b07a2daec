"""Prompt lookup: what followed the last time that the sequence ended as it does now.

Good at answers that repeat their prompt: summaries, extraction, edits of code.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..request import IntArray


class NgramDrafter:
    """Looks for the longest of the last `most` to `least` tokens, the latest place first."""

    def __init__(self, least: int, most: int) -> None:
        assert 1 <= least <= most, (least, most)
        self._least = least
        self._most = most

    def propose(self, token_ids: IntArray, count: int) -> Sequence[int]:
        """See Drafter."""
        length = len(token_ids)
        # Ends of earlier n-grams that end as the sequence does; each round asks one token more.
        ends = np.flatnonzero(token_ids[:-1] == token_ids[-1]) + 1
        found = ends if self._least == 1 else ends[:0]
        for size in range(2, min(self._most, length - 1) + 1):
            ends = ends[ends >= size]
            ends = ends[token_ids[ends - size] == token_ids[length - size]]
            if not len(ends):
                break
            if size >= self._least:
                found = ends
        if not len(found):
            return ()
        # One with enough behind it, if there is: the newest place may be only a token away.
        whole = found[found + count <= length]
        end = int(whole[-1] if len(whole) else found[-1])
        guesses: list[int] = token_ids[end : end + count].tolist()
        return guesses
