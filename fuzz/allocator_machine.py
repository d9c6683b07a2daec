"""A state machine over blocks alone: pool, tables and index against lists and dicts.

Sequences of random tokens take, share, copy, publish and give back blocks in any order. The order
of reuse, every count and every hit must be those of OracleCache.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
)

from ..engine.kv.block_pool import BlockPool
from ..engine.kv.block_table import BlockTable
from ..engine.kv.hashing import BlockHasher
from ..engine.kv.prefix_index import PrefixIndex
from .commands import NotedMachine, noted
from .oracles import VOCAB, OracleCache
from .strategies import prompts

_NUM_SLOTS = 5


@dataclass
class Holder:
    """A sequence that holds blocks."""

    salt: str | None
    tokens: list[int]
    blocks: list[int]
    keys: list[bytes]
    num_published: int


class AllocatorMachine(NotedMachine):
    """Drives the parts as SlotMemory does, but in any order."""

    totals: ClassVar[Counter[str]] = Counter()
    """What all runs together have exercised; printed by `quire.fuzz.run`."""

    @initialize(
        size=st.sampled_from((1, 2, 3, 4, 8)), number=st.sampled_from((1, 3, 6, 9, 12, 16, 24))
    )
    @noted
    def start(self, size: int, number: int) -> None:
        self.size, self.number = size, number
        self.pool = BlockPool(number)
        self.index = PrefixIndex(number, size)
        self.table = BlockTable(_NUM_SLOTS, size)
        self.hasher = BlockHasher(size, b"0123456789abcdef")
        self.model = OracleCache(number, size)
        self.holders: dict[int, Holder] = {}
        self.totals["runs"] += 1

    @precondition(lambda self: len(self.holders) < _NUM_SLOTS)
    @rule(data=st.data(), tokens=prompts(24), salt=st.sampled_from((None, None, "a")))
    @noted
    def begin(self, data: st.DataObject, tokens: list[int], salt: str | None) -> None:
        """Look a sequence up, hold what it hits, take the rest; or refuse it, changing nothing."""
        known = sorted({longer for other, longer in self.model.prefixes.values() if other == salt})
        known += [tuple(h.tokens) for h in self.holders.values() if h.salt == salt]
        if data.draw(st.integers(0, 2)) and known:
            prefix = data.draw(st.sampled_from(known), label="prefix")
            cut = data.draw(st.sampled_from((len(prefix), len(prefix), len(prefix) // 2, 1)))
            tokens = [*prefix[:cut], *tokens[:3]]
        if data.draw(st.integers(0, 4)):
            # Mostly what fits, else most sequences would be refused.
            tokens = tokens[: max(1, self.pool.num_free * self.size)]
        ids = np.array(tokens, np.int32)
        root, keys = self.hasher.root(salt), list[bytes]()
        self.hasher.extend(keys, root, ids)
        most = len(tokens) - 1
        found = self.index.find(keys[: most // self.size])
        source, extra = self.lookup_rest(root, found, ids)
        full, best, safe = self.model.find(salt, tuple(tokens))
        assert (len(found), safe <= extra <= best) == (full, True), (found, extra, best, safe)
        for i, block in enumerate(found):
            assert self.model.prefixes[block] == (salt, tuple(tokens[: (i + 1) * self.size]))
        if extra:
            content = self.index.tokens[source][:extra].tolist()
            assert content == tokens[len(found) * self.size :][:extra], (source, content)
            other, longer = self.model.prefixes[source]
            head = len(found) * self.size
            assert (other, longer[: head + extra]) == (salt, tuple(tokens[: head + extra]))
        total = -(-len(tokens) // self.size)
        held = [*found, source] if extra else found
        idle = sum(self.pool.references[block] == 0 for block in held)
        if total - len(found) + idle > self.pool.num_free:
            self.totals["refused"] += 1
            return
        self.totals["hits"] += len(found)
        self.totals["partial hits"] += extra > 0
        self.hold(held)
        ids_taken = self.take(total - len(found))
        slot = next(i for i in range(_NUM_SLOTS) if i not in self.holders)
        self.table.fill(slot, np.array([*found, *ids_taken], np.intp))
        self.holders[slot] = Holder(salt, tokens, [*found, *ids_taken], keys, len(found))
        if extra:
            self.drop([source])

    def lookup_rest(
        self, root: bytes, found: list[int], ids: np.ndarray[tuple[int], np.dtype[np.int32]]
    ) -> tuple[int, int]:
        """Match the tokens after the full blocks."""
        rest = ids[len(found) * self.size : -1][: self.size]
        if len(rest) == 0:
            return -1, 0
        return self.index.partial(root, found[-1] if found else None, rest)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    @noted
    def publish(self, data: st.DataObject) -> None:
        """Publish some more of a sequence's full blocks."""
        slot = data.draw(st.sampled_from(sorted(self.holders)))
        holder = self.holders[slot]
        full, first = len(holder.tokens) // self.size, holder.num_published
        last = data.draw(st.sampled_from((full, full, first + (full - first) // 2)))
        self.publish_until(slot, last)

    def publish_until(self, slot: int, last: int) -> None:
        """Publish a sequence's blocks up to `last`."""
        holder = self.holders[slot]
        first = holder.num_published
        if first == last:
            return
        ids = np.array(holder.tokens[: last * self.size], np.int32)
        self.hasher.extend(holder.keys, self.hasher.root(holder.salt), ids)
        blocks = self.table.row(slot)[first:last].astype(np.int32)
        pieces = ids[first * self.size :].reshape(-1, self.size)
        self.index.publish(self.hasher.root(holder.salt), holder.keys[:last], blocks, pieces)
        holder.num_published = last
        for i in range(first, last):
            prefix = (holder.salt, tuple(holder.tokens[: (i + 1) * self.size]))
            self.totals["twins"] += prefix in self.model.prefixes.values()
            self.model.publish(holder.blocks[i], prefix)

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9))
    @noted
    def grow(self, data: st.DataObject, tokens: list[int]) -> None:
        """Append tokens to a sequence, and blocks where they need them."""
        slot = data.draw(st.sampled_from(sorted(self.holders)))
        holder = self.holders[slot]
        need = -(-(len(holder.tokens) + len(tokens)) // self.size) - len(holder.blocks)
        if need > self.pool.num_free:
            return
        holder.tokens = [*holder.tokens, *tokens]
        if need:
            taken = self.take(need)
            slots, count = np.array([slot]), np.array([need])
            self.table.append(slots, count, np.array(taken, np.intp))
            holder.blocks += taken

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    @noted
    def end(self, data: st.DataObject) -> None:
        """Give a sequence's blocks back, its tail first or, to make holes and orphans, last."""
        slot = data.draw(st.sampled_from(sorted(self.holders)))
        if data.draw(st.integers(0, 3)):
            self.publish_until(slot, len(self.holders[slot].tokens) // self.size)
        holder = self.holders.pop(slot)
        assert self.table.row(slot).tolist() == holder.blocks, slot
        self.table.clear(slot)
        self.drop(holder.blocks[:: data.draw(st.sampled_from((-1, -1, 1)))])

    @precondition(lambda self: not self.holders)
    @rule()
    @noted
    def reset(self) -> None:
        """Forget all prefixes."""
        self.index.clear()
        self.pool.forget_keys()
        self.model.clear()

    def take(self, count: int) -> list[int]:
        """Take blocks from both."""
        ids, num_blank = self.pool.take(count)
        self.index.remove(ids[num_blank:].tolist())
        self.totals["evictions"] += count - num_blank
        taken: list[int] = ids.tolist()
        assert self.model.take(count) == taken, taken
        return taken

    def hold(self, blocks: list[int]) -> None:
        """Reference blocks in both."""
        self.pool.hold(np.array(blocks, np.intp))
        self.model.hold(blocks)

    def drop(self, blocks: list[int]) -> None:
        """Let go of blocks in both."""
        self.pool.drop(np.array(blocks, np.intp), self.index.keyed)
        self.model.drop(blocks)

    @invariant()
    def agree(self) -> None:
        """Counts, order of reuse and published blocks are the model's; no block is lost."""
        if not hasattr(self, "pool"):
            return
        self.totals["steps"] += 1
        self.totals["steps with orphans"] += bool(self.model.orphans)
        self.pool.check(self.index.keyed)
        self.index.check()
        assert self.pool.references.tolist() == self.model.references
        assert self.pool.free_order() == self.model.free_order
        assert self.index.keyed.nonzero()[0].tolist() == sorted(self.model.prefixes)
        for block, (_, tokens) in self.model.prefixes.items():
            assert self.index.tokens[block].tolist() == list(tokens[-self.size :]), block
        tables = [block for holder in self.holders.values() for block in holder.blocks]
        assert sum(self.model.references) == len(tables)
        assert len(set(tables)) + self.pool.num_free == self.number
