"""Which blocks a slot's sequence occupies: one array for all slots, as wide as the longest needs.

Owns the table alone; counting references is the pool's affair.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .block_pool import IdArray


class BlockTable:
    """Block ids by slot; block i of a slot holds its positions [i, i + 1) * block_size."""

    __slots__ = ("block_size", "capacity", "ids", "lengths")

    def __init__(self, num_slots: int, block_size: int) -> None:
        self.block_size = block_size
        self.ids = np.zeros((num_slots, 8), np.int32)
        """[slots, width] read-only for others."""
        self.lengths = np.zeros(num_slots, np.intp)
        """[slots] blocks of each. Read-only for others."""
        self.capacity = np.zeros(num_slots, np.intp)
        """[slots] positions that the blocks of a slot can hold. Read-only for others."""

    @property
    def width(self) -> int:
        """Blocks that a slot can have at present."""
        return self.ids.shape[1]

    def append(self, slots: IdArray, counts: IdArray, ids: IdArray) -> tuple[IdArray, IdArray]:
        """Append `counts` blocks to each of `slots` (no slot twice), taken from `ids` in order.

        Returns (slots, indices), [ids] each: the places where ids now are.
        """
        lengths = self.lengths[slots]
        places = spread(slots, lengths, counts, len(ids))
        self.reserve(max(places[1].tolist()) + 1)
        self.ids[places] = ids
        lengths = lengths + counts
        self.lengths[slots] = lengths
        self.capacity[slots] = lengths * self.block_size
        return places

    def fill(self, slot: int, ids: IdArray) -> None:
        """Give an empty slot its blocks."""
        assert self.lengths[slot] == 0, (slot, self.lengths[slot])
        self.reserve(len(ids))
        self.ids[slot, : len(ids)] = ids
        self.lengths[slot] = len(ids)
        self.capacity[slot] = len(ids) * self.block_size

    def row(self, slot: int) -> IdArray:
        """Give a copy of a slot's block ids."""
        return self.ids[slot, : self.lengths[slot]].astype(np.intp)

    def clear(self, slot: int) -> None:
        """Empty a slot."""
        self.lengths[slot] = self.capacity[slot] = 0

    def reserve(self, width: int) -> None:
        """Make room for `width` blocks a slot."""
        self.ids = widened(self.ids, width, self.lengths)


def spread(slots: IdArray, firsts: IdArray, counts: IdArray, total: int) -> tuple[IdArray, IdArray]:
    """Write out, for each slot, `counts` consecutive indices from `firsts`: [total] each."""
    if total == len(slots):
        return slots, firsts
    within = np.arange(total) - np.repeat(counts.cumsum() - counts, counts)
    return np.repeat(slots, counts), np.repeat(firsts, counts) + within


def widened(array: NDArray[np.int32], width: int, lengths: NDArray[np.intp]) -> NDArray[np.int32]:
    """Give `array` [slots, n], or a copy of it at least doubled where n < width.

    lengths: [slots] how much of each row is in use. The rest of the copy is untouched zero memory,
    which costs nothing until a slot uses it: one long sequence does not make all slots long.
    """
    if width <= array.shape[1]:
        return array
    wider = np.zeros((array.shape[0], max(width, 2 * array.shape[1])), np.int32)
    for slot in lengths.nonzero()[0].tolist():
        wider[slot, : lengths[slot]] = array[slot, : lengths[slot]]
    return wider
