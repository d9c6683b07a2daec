"""Who holds which block: reference counts and the order in which free blocks are reused.

Owns the counts and the free lists; knows nothing of tokens, keys or sequences. A block's count is
the number of tables that hold it, plus one for each copy that still has to read it. Free blocks
without a key are a stack (reused first, the hottest memory), those with a key a queue (least
recently freed first). A hit takes a block out of the middle of the queue by forgetting its place:
the stale entry is skipped later, so that every operation is one slice whatever its size.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

IdArray = NDArray[np.intp]
_NOWHERE = -1


class BlockPool:
    """Counts references to `num_blocks` blocks and hands out free ones."""

    __slots__ = (
        "_blank",
        "_head",
        "_num_blank",
        "_num_queued",
        "_place",
        "_queue",
        "_tail",
        "num_blocks",
        "references",
    )

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.references = np.zeros(num_blocks, np.int32)
        """[blocks] read-only for others."""
        self._blank = np.arange(num_blocks, dtype=np.intp)[::-1].copy()
        self._num_blank = num_blocks
        self._queue = np.zeros(2 * num_blocks, np.intp)
        self._head = self._tail = self._num_queued = 0
        self._place = np.full(num_blocks, _NOWHERE, np.intp)

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds, with or without a key."""
        return self._num_blank + self._num_queued

    def take(self, count: int) -> tuple[IdArray, int]:
        """Take `count` free blocks, each with one reference from now on.

        Returns (ids, n): ids[n:] still have keys, which the caller must remove from the index.
        """
        assert 0 <= count <= self.num_free, (count, self.num_free)
        blank = min(count, self._num_blank)
        left = self._num_blank - blank
        ids = self._blank[left : self._num_blank][::-1].copy()
        self._num_blank = left
        if blank < count:
            ids = np.concatenate((ids, self._unqueue(count - blank)))
        self.references[ids] = 1
        return ids, blank

    def hold(self, ids: IdArray) -> None:
        """Add a reference to each of `ids` (no block twice); free ones leave the queue."""
        before = self.references[ids]
        if not before.all():
            idle = ids[before == 0]
            assert (self._place[idle] >= 0).all(), f"hold of blank blocks {idle}"
            self._place[idle] = _NOWHERE
            self._num_queued -= len(idle)
        self.references[ids] = before + 1

    def drop(self, ids: IdArray, keyed: NDArray[np.bool_]) -> None:
        """Take a reference from each of `ids` (no block twice), freeing those without another.

        ids in the order in which they shall be reused: the tail of a sequence first.
        keyed: [blocks] which blocks have a key.
        """
        after = self.references[ids] - 1
        assert not np.count_nonzero(after < 0), f"double free among {ids}"
        self.references[ids] = after
        freed = ids[after == 0]
        has_key = keyed[freed]
        self._enqueue(freed[has_key])
        blank = freed[~has_key]
        if len(blank):
            # The stack hands out its top first: put the tail of the sequence there.
            self._blank[self._num_blank : self._num_blank + len(blank)] = blank[::-1]
            self._num_blank += len(blank)

    def forget_keys(self) -> None:
        """Treat all free blocks as blank: the index was cleared."""
        free = (self.references == 0).nonzero()[0]
        self._blank[: len(free)] = free[::-1]
        self._num_blank = len(free)
        self._head = self._tail = self._num_queued = 0
        self._place[:] = _NOWHERE

    def _enqueue(self, ids: IdArray) -> None:
        if self._tail + len(ids) > len(self._queue):
            live = self._live(self._head, self._tail)
            self._queue[: len(live)] = live
            self._place[live] = np.arange(len(live))
            self._head, self._tail = 0, len(live)
        end = self._tail + len(ids)
        self._queue[self._tail : end] = ids
        self._place[ids] = np.arange(self._tail, end)
        self._tail = end
        self._num_queued += len(ids)

    def _unqueue(self, count: int) -> IdArray:
        parts: list[IdArray] = []
        missing = count
        while missing:
            # At most `missing` entries are looked at, so none is passed over.
            end = min(self._head + missing, self._tail)
            assert self._head < end, (count, missing, self._head, self._tail)
            parts.append(self._live(self._head, end))
            missing -= len(parts[-1])
            self._head = end
        ids = parts[0] if len(parts) == 1 else np.concatenate(parts)
        self._place[ids] = _NOWHERE
        self._num_queued -= count
        return ids

    def _live(self, start: int, end: int) -> IdArray:
        """Entries [start, end) of the queue that are not stale."""
        ids = self._queue[start:end]
        live: IdArray = ids[self._place[ids] == np.arange(start, end)]
        return live

    def free_order(self) -> list[int]:
        """List the free blocks in the order in which take() gives them (slow: checks, tests)."""
        blank = self._blank[: self._num_blank][::-1]
        return [*blank.tolist(), *self._live(self._head, self._tail).tolist()]

    def check(self, keyed: NDArray[np.bool_]) -> None:
        """Assert the invariants. Slow."""
        order = self.free_order()
        assert len(order) == len(set(order)) == self.num_free, (order, self.num_free)
        assert sorted(order) == (self.references == 0).nonzero()[0].tolist(), order
        assert not keyed[order[: self._num_blank]].any(), "a blank block has a key"
        assert keyed[order[self._num_blank :]].all(), "a queued block has no key"
        assert self.references.min(initial=0) >= 0
