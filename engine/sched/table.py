"""Running sequences as arrays: a field is one array over slots, so that a step is a few vector ops.

Owns what changes in every step. Written by Scheduler and its SlotMemory; the planner reads it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..kv.block_pool import IdArray
from ..kv.block_table import widened
from ..request import IntArray
from .sequence import Sequence


class Rows(NamedTuple):
    """The running sequences in policy order. Made anew when one comes or goes, else shared."""

    slots: IdArray
    request_ids: list[str]
    num_cached: IntArray


class SlotTable:
    """All arrays are [slots] (tokens: [slots, width]); rows of free slots have no meaning."""

    __slots__ = (
        "draining",
        "known",
        "limit",
        "num_cached",
        "num_published",
        "priority",
        "quiet",
        "request_ids",
        "sequences",
        "submitted",
        "target",
        "tokens",
    )

    def __init__(self, num_slots: int) -> None:
        def counts() -> IdArray:
            return np.zeros(num_slots, np.intp)

        self.tokens = np.zeros((num_slots, 64), np.int32)
        """Known tokens; the width grows."""
        self.known = counts()
        """Prompt and outputs that have arrived here; 0 in free slots."""
        self.target = counts()
        """known + samples in flight, whose values only the device knows: what can be computed."""
        self.submitted = counts()
        """Tokens whose KV is written by the plans submitted so far."""
        self.limit = counts()
        """submitted never goes beyond: one less than the longest length (the last is not fed)."""
        self.quiet = counts()
        """A longer sequence may end by another rule than its stop tokens."""
        self.num_published = counts()
        """Blocks, from the first, that have a key of this sequence (hits included)."""
        self.priority = counts()
        self.num_cached = np.zeros(num_slots, np.int32)
        self.draining = np.zeros(num_slots, np.bool_)
        """Ended, but a step in flight still writes its blocks."""
        self.request_ids = np.empty(num_slots, np.object_)
        self.sequences: list[Sequence | None] = [None] * num_slots

    def sequence(self, slot: int) -> Sequence:
        """Give the sequence in an occupied slot."""
        sequence = self.sequences[slot]
        assert sequence is not None, slot
        return sequence

    def reserve_tokens(self, width: int) -> None:
        """Make room for `width` tokens a slot."""
        self.tokens = widened(self.tokens, width, self.known)

    def rows(self, slots: list[int]) -> Rows:
        """Gather what results say of the sequences in `slots`."""
        ids = np.array(slots, np.intp)
        return Rows(ids, self.request_ids[ids].tolist(), self.num_cached[ids])
