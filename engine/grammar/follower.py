"""Follower: where one output is in its grammar, and which tokens may come next.

A function of (grammar, tokens of the output): preempted or forked sequences make another one from
the tokens that they have, and nothing is ever rolled back here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .grammars import Compiled
from .thought import ThoughtLimit

ALL = np.uint32(0xFFFFFFFF)
BITS = 32


class Follower:
    """One output's place in its grammar. One thread at a time."""

    def __init__(
        self,
        compiled: Compiled,
        token_ids: Sequence[int] = (),
        thought: ThoughtLimit | None = None,
    ) -> None:
        """token_ids: what the output has already; thought: bounds what it begins with."""
        self._compiled, self._thought = compiled, thought
        self._matcher: Any = compiled.start()
        self.read(token_ids)

    @property
    def fault(self) -> str | None:
        """Why this output cannot go on; None where it can."""
        if not self._matcher.is_error():
            return None
        return f"Its grammar cannot be followed: {self._matcher.get_error()!s:.300}"

    def read(self, token_ids: Sequence[int]) -> None:
        """Take in the next tokens. Behind the end of an output nothing changes."""
        for token_id in token_ids:
            if self._matcher.is_stopped():
                return
            if token_id < 0 or not self._matcher.consume_token(token_id):
                return
            if self._thought is not None:
                self._thought.read(token_id)

    def copy(self) -> Follower:
        """Return another at the same place."""
        other = object.__new__(Follower)
        other._compiled, other._matcher = self._compiled, self._matcher.deep_copy()
        other._thought = None if self._thought is None else self._thought.copy()
        return other

    def fill(self, mask: NDArray[np.uint32]) -> None:
        """Write one bit for each token that may come next: those that end it, where it is complete.

        mask: [vocab / 32] contiguous, the lowest bit first. All bits where there is a fault.
        """
        if not self._matcher.is_error():
            self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if self._matcher.is_error():
            mask[:] = ALL
        elif self._thought is not None:
            _leave(mask, self._thought.due)


def _leave(mask: NDArray[np.uint32], token_id: int | None) -> None:
    """Take all tokens but one out of a mask, where there is one."""
    if token_id is None:
        return
    place, bit = divmod(token_id, BITS)
    assert mask[place] >> np.uint32(bit) & 1, f"a thought may end by token {token_id}"
    mask[:] = 0
    mask[place] = np.uint32(1 << bit)
