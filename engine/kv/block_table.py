"""Which blocks a slot's sequence occupies: one array for all slots, as wide as the longest needs.

Owns the table alone; counting references is the pool's affair.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .block_pool import IdArray


class BlockTable:
    """Block ids by slot; block i of a slot holds its positions [i, i + 1) * block_size."""

    __slots__ = ("block_size", "capacity", "ids")

    def __init__(self, num_slots: int, block_size: int) -> None:
        self.block_size = block_size
        self.ids = np.zeros((num_slots, 8), np.int32)
        """[slots, width] read-only for others."""
        self.capacity = np.zeros(num_slots, np.intp)
        """[slots] positions that the blocks of a slot can hold. Read-only for others."""

    def append(self, slots: IdArray, counts: IdArray, ids: IdArray) -> tuple[IdArray, IdArray]:
        """Append `counts` blocks to each of `slots` (no slot twice), taken from `ids` in order.

        Returns (slots, indices), [ids] each: the places where ids now are.
        """
        indices = self.capacity[slots] // self.block_size
        if len(slots) != len(ids):
            ends = counts.cumsum()
            within = np.arange(len(ids)) - np.repeat(ends - counts, counts)
            slots, indices = np.repeat(slots, counts), np.repeat(indices, counts) + within
        self.reserve(int(indices.max()) + 1)
        self.ids[slots, indices] = ids
        # Of equal slots the last index is the highest, and the last assignment stays.
        self.capacity[slots] = (indices + 1) * self.block_size
        return slots, indices

    def fill(self, slot: int, ids: IdArray) -> None:
        """Give an empty slot its blocks."""
        assert self.capacity[slot] == 0, (slot, self.capacity[slot])
        self.reserve(len(ids))
        self.ids[slot, : len(ids)] = ids
        self.capacity[slot] = len(ids) * self.block_size

    def row(self, slot: int) -> IdArray:
        """Give a copy of a slot's block ids."""
        count = self.capacity[slot] // self.block_size
        return self.ids[slot, :count].astype(np.intp)

    def clear(self, slot: int) -> None:
        """Empty a slot."""
        self.capacity[slot] = 0

    def reserve(self, width: int) -> None:
        """Make room for `width` blocks a slot."""
        self.ids = widened(self.ids, width)


def widened(array: NDArray[np.int32], width: int) -> NDArray[np.int32]:
    """Give `array` [slots, n], or a copy of it at least doubled where n < width.

    The new part is untouched zero memory, which costs nothing until a slot uses it.
    """
    if width <= array.shape[1]:
        return array
    wider = np.zeros((array.shape[0], max(width, 2 * array.shape[1])), np.int32)
    wider[:, : array.shape[1]] = array
    return wider
