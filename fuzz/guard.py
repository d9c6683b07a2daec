"""What must hold of every plan, whatever the device makes of it. Asserted when it is committed."""

from __future__ import annotations

from ..engine.plan import StepPlan
from ..engine.sched.scheduler import Scheduler


class Guard:
    """Looks at a scheduler's plans, each as soon as it is committed."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._oldest: tuple[str, int] | None = None
        """Who was first in policy order after the last plan, and its computed tokens."""

    def committed(self, plan: StepPlan) -> None:
        """Check the newest plan."""
        scheduler, state = self._scheduler, self._scheduler._state
        num_alive = len(scheduler._alive)
        assert scheduler.num_running + scheduler.num_waiting == num_alive, num_alive
        assert len(state.waiting) <= num_alive
        admitted = {one.slot for one in plan.admitted}
        rows = zip(plan.slots.tolist(), plan.starts.tolist(), plan.num_tokens.tolist(), strict=True)
        for slot, start, count in rows:
            self._check_writes(slot, start, start + count, admitted)
        self._check_progress()

    def failed(self) -> None:
        """A step died: what was computed is given up."""
        self._oldest = None

    def _check_writes(self, slot: int, start: int, end: int, admitted: set[int]) -> None:
        """No write to what others read: blocks shared, copied from, or published.

        Those admitted in the same plan read after all of its writes.
        """
        state, memory = self._scheduler._state, self._scheduler._memory
        size, table = self._scheduler._limits.block_size, memory.blocks
        readers = [
            set(table.row(other).tolist())
            for other, sequence in enumerate(memory.table.sequences)
            if sequence is not None and other != slot and other not in admitted
        ]
        row = table.row(slot).tolist()
        for index in range(start // size, (end - 1) // size + 1):
            block, first = row[index], max(start, index * size)
            assert not any(block in shared for shared in readers), (slot, block, "is shared")
            # What this plan completes is published already, what it only begins or goes on is not.
            assert not memory.index.keyed[block] or end >= (index + 1) * size, (slot, block)
            for holder in state.holders:
                assert holder.held is not None
                assert block not in holder.held.blocks, (slot, block, holder.request_id)
                assert block != holder.held.source or first >= holder.held.num_tokens, (slot, block)

    def _check_progress(self) -> None:
        """The oldest is not preempted, and its computed tokens never fall."""
        table, alive = self._scheduler._memory.table, self._scheduler._alive
        if self._oldest is not None and self._oldest[0] in alive:
            name, computed = self._oldest
            slot = alive[name].slot
            assert slot >= 0, (name, "was preempted and is the oldest")
            assert min(table.submitted[slot], table.known[slot]) >= computed, (name, computed)
        slots = self._scheduler._state.rows.slots
        self._oldest = None
        if len(slots):
            first = table.sequence(int(slots[0]))
            slot = slots[0]
            # Behind known tokens there may be guesses.
            self._oldest = first.request_id, int(min(table.submitted[slot], table.known[slot]))
