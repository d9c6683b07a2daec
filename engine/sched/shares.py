"""Blocks that sequences without a slot hold: what waiting forks share, and what was kept for forks.

Owns, for Scheduler, which sequences these are. They give way when a running one needs the room: a
fork then computes anew what it would have shared.
"""

from __future__ import annotations

from ..request import IntArray
from .memory import SlotMemory
from .sequence import NO_HIT, Hit, Sequence


class Shares:
    """Sequences that hold blocks and have no slot. The planner reads `holders`."""

    __slots__ = ("_memory", "_size", "holders", "kept")

    def __init__(self, memory: SlotMemory, block_size: int) -> None:
        self._memory = memory
        self._size = block_size
        self.holders: list[Sequence] = []
        """Waiting forks, and kept sequences, that hold blocks."""
        self.kept: dict[str, Sequence] = {}
        """Ended, to be forked, until `forget`; by request id."""

    def share(self, parent: Sequence, child: Sequence) -> None:
        """Let a fork in the queue hold what its parent has computed of it, its last token aside."""
        self._hold(child, self._of(parent, child.most_hit))

    def keep(self, sequence: Sequence, known: IntArray) -> None:
        """Hold what an ending sequence, still in its slot, has computed of its tokens."""
        sequence.token_ids = known
        share = self._of(sequence, len(known))
        self.kept[sequence.request_id] = sequence
        self._hold(sequence, share)

    def forget(self, request_id: str) -> bool:
        """Give back what was kept of a sequence; return whether there was such a one."""
        sequence = self.kept.pop(request_id, None)
        if sequence is not None and sequence.held is not None:
            self.drop(sequence)
        return sequence is not None

    def drop(self, sequence: Sequence) -> None:
        """Let a sequence give up what it holds."""
        assert sequence.held is not None, sequence.request_id
        self._memory.drop(sequence.held.held()[::-1])
        self.used(sequence)

    def drop_all(self) -> None:
        """Let all give up what they hold."""
        for sequence in list(self.holders):
            self.drop(sequence)

    def used(self, sequence: Sequence) -> None:
        """Note that what a sequence held is in its table now, or gone."""
        sequence.held = None
        self.holders.remove(sequence)

    def check(self) -> None:
        """Assert the invariants. Slow."""
        for sequence in self.kept.values():
            assert sequence.slot == -1, sequence.request_id
            assert (sequence.held is not None) == (sequence in self.holders), sequence.request_id

    def _of(self, sequence: Sequence, most: int) -> Hit:
        """Give what a sequence has computed of its first `most` tokens."""
        if sequence.slot >= 0:
            # What is shared is published, or who shares it could not publish what follows.
            self._memory.publish(sequence.slot)
            blocks = self._memory.blocks.row(sequence.slot)
            # Steps in flight count: the device runs them before any step of a fork.
            num_tokens = min(most, int(self._memory.table.submitted[sequence.slot]))
        elif sequence.request_id in self.kept and sequence.held is not None:
            blocks, num_tokens = sequence.held.held(), min(most, sequence.held.num_tokens)
        else:
            return NO_HIT
        full, rest = divmod(num_tokens, self._size)
        return Hit(blocks[:full], int(blocks[full]) if rest else -1, num_tokens)

    def _hold(self, sequence: Sequence, share: Hit) -> None:
        if share.num_tokens:
            sequence.held = share
            self._memory.pool.hold(share.held())
            self.holders.append(sequence)
