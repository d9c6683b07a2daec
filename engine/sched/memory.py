"""Who is in which slot and which blocks: places sequences, publishes blocks, takes both back.

Owns, for Scheduler, the slot table, the block pool, the block tables and the prefix index, and
keeps them in step with each other. Decides nothing.
"""

from __future__ import annotations

import numpy as np

from ..kv.block_pool import BlockPool, IdArray
from ..kv.block_table import BlockTable
from ..kv.hashing import BlockHasher
from ..kv.prefix_index import UPCOMING, PrefixIndex
from .limits import SchedulerLimits
from .sequence import Hit, Sequence
from .stopping import quiet_length
from .table import SlotTable

NO_IDS = np.zeros(0, np.intp)


class SlotMemory:
    """Slots and blocks. The parts are read by the planner and written here and by Scheduler."""

    __slots__ = (
        "_caching",
        "_size",
        "blocks",
        "free_slots",
        "hasher",
        "index",
        "num_evictions",
        "pool",
        "released",
        "table",
    )

    def __init__(self, limits: SchedulerLimits, secret: bytes) -> None:
        size = limits.block_size
        self._size = size
        self._caching = limits.enable_prefix_caching
        self.hasher = BlockHasher(size, secret)
        self.blocks = BlockTable(limits.max_num_seqs, size)
        self.table = SlotTable(limits.max_num_seqs)
        self.pool = BlockPool(limits.num_blocks)
        self.index = PrefixIndex(limits.num_blocks, size)
        self.free_slots = list(range(limits.max_num_seqs))[::-1]
        self.released: list[int] = []
        """Slots given back since the last plan."""
        self.num_evictions = 0

    def hash(self, sequence: Sequence) -> None:
        """Key the full blocks of a sequence that enters the queue."""
        if self._caching:
            self.hasher.extend(sequence.keys, sequence.root, sequence.token_ids)

    def take(self, count: int) -> IdArray:
        """Take free blocks; those that were cached lose their keys."""
        ids, num_blank = self.pool.take(count)
        if num_blank < count:
            self.index.remove(ids[num_blank:].tolist())
            self.num_evictions += count - num_blank
        return ids

    def drop(self, blocks: IdArray) -> None:
        """Take a reference from each of `blocks`, none of them twice; the first is reused first."""
        self.pool.drop(blocks, self.index.keyed)

    def open(self, slots: IdArray, counts: IdArray, ids: IdArray) -> tuple[IdArray, IdArray]:
        """Append new blocks to running sequences; see BlockTable.append."""
        places = self.blocks.append(slots, counts, ids)
        # A sampled token may stand just behind the last block.
        self.table.reserve_tokens(self.blocks.width * self._size + 1)
        return places

    def place(self, sequence: Sequence, hit: Hit, ids: IdArray) -> IdArray:
        """Put a sequence into a free slot, with the blocks hit (held already) and those taken.

        Blocks that an earlier row of this step has published meanwhile are looked up and held.
        Returns all its blocks. The caller sets `submitted` and `target`.
        """
        table, found = self.table, hit.blocks
        upcoming = (found == UPCOMING).nonzero()[0]
        if len(upcoming):
            found = found.copy()
            found[upcoming] = [self.index.block_of(sequence.keys[i]) for i in upcoming.tolist()]
            self.pool.hold(found[upcoming])
        slot = sequence.slot = self.free_slots.pop()
        ids = np.concatenate((found, ids))
        self.blocks.fill(slot, ids)
        length = len(sequence.token_ids)
        self.table.reserve_tokens(max(length, self.blocks.width * self._size) + 1)
        table.tokens[slot, :length] = sequence.token_ids
        table.known[slot] = length
        table.limit[slot] = sequence.max_len - 1
        table.quiet[slot] = quiet_length(sequence)
        table.num_published[slot] = len(found)
        table.priority[slot] = sequence.rank[0]
        table.num_cached[slot] = sequence.num_cached or 0
        table.request_ids[slot] = sequence.request_id
        table.sequences[slot] = sequence
        return ids

    def release(self, slot: int) -> None:
        """Free a slot and its blocks, the last block first: it is the least likely to be hit."""
        self.publish(slot)
        self.drop(self.blocks.row(slot)[::-1])
        self.blocks.clear(slot)
        self.table.known[slot] = 0
        self.table.sequences[slot] = None
        self.table.request_ids[slot] = None
        self.free_slots.append(slot)
        self.released.append(slot)

    def publish(self, slot: int) -> None:
        """Publish the full blocks of a slot whose tokens are known and whose write is submitted.

        A sampled token whose value is still on the device makes its block wait.
        """
        table, size = self.table, self._size
        first = int(table.num_published[slot])
        last = int(min(table.known[slot], table.submitted[slot])) // size
        if first == last or not self._caching:
            return
        sequence, tokens = table.sequence(slot), table.tokens[slot, : last * size]
        self.hasher.extend(sequence.keys, sequence.root, tokens)
        self.index.publish(
            sequence.root,
            sequence.keys[:last],
            self.blocks.ids[slot, first:last],
            tokens[first * size :].reshape(-1, size),
        )
        table.num_published[slot] = last
