"""The scheduler's invariants, asserted from scratch. Slow; for tests, fuzzers and idle moments."""

from __future__ import annotations

import numpy as np

from .limits import SchedulerLimits
from .planner import State
from .sequence import Sequence
from .stopping import quiet_length


def check_state(
    state: State,
    limits: SchedulerLimits,
    *,
    running: list[Sequence],
    draining: list[int],
    pins: list[int],
) -> None:
    """Assert that counts, tables, queues and index agree. pins: copy sources in flight."""
    state.waiting.check()
    memory = state.memory
    memory.index.check()
    memory.pool.check(memory.index.keyed)
    _check_slots(state, running, draining)
    _check_references(state, [s.slot for s in running] + draining, pins)
    for sequence in running:
        _check_sequence(state, limits, sequence)
    for sequence in state.waiting:
        assert sequence.slot == -1, sequence.request_id
        assert (sequence.held is not None) == (sequence in state.holders)
    assert all(holder.slot == -1 for holder in state.holders)


def _check_slots(state: State, running: list[Sequence], draining: list[int]) -> None:
    table = state.memory.table
    slots = [s.slot for s in running]
    assert state.rows.slots.tolist() == slots, (state.rows.slots, slots)
    assert state.rows.request_ids == [s.request_id for s in running]
    assert running == sorted(running, key=lambda s: s.rank)
    everyone = sorted([*slots, *draining, *state.memory.free_slots])
    assert everyone == list(range(len(table.known))), everyone
    assert table.draining.nonzero()[0].tolist() == sorted(draining)
    for sequence in running:
        assert table.sequences[sequence.slot] is sequence, sequence.slot
    for slot in state.memory.free_slots:
        assert table.sequences[slot] is None, slot
        assert state.memory.blocks.capacity[slot] == table.known[slot] == 0, slot
    if not state.in_flight:
        assert not draining, draining


def _check_references(state: State, slots: list[int], pins: list[int]) -> None:
    """Every reference is a table, a waiting fork's share or a pin."""
    expected = np.zeros_like(state.memory.pool.references)
    for slot in slots:
        row = state.memory.blocks.row(slot)
        assert len(set(row.tolist())) == len(row), (slot, row)
        expected[row] += 1
    for holder in state.holders:
        assert holder.held is not None, holder.request_id
        expected[holder.held.held()] += 1
    for pin in pins:
        expected[pin] += 1
    assert (expected == state.memory.pool.references).all(), (
        expected,
        state.memory.pool.references,
    )


def _check_sequence(state: State, limits: SchedulerLimits, sequence: Sequence) -> None:
    table, slot, size = state.memory.table, sequence.slot, limits.block_size
    known, target = int(table.known[slot]), int(table.target[slot])
    submitted, capacity = int(table.submitted[slot]), int(state.memory.blocks.capacity[slot])
    # Blocks that were taken for wrong guesses stay.
    most = submitted + size + limits.num_drafts
    assert 0 < submitted <= capacity < most, (slot, submitted, capacity)
    assert submitted <= table.limit[slot] == sequence.max_len - 1, (slot, submitted)
    assert table.quiet[slot] == quiet_length(sequence) <= table.limit[slot], slot
    assert known <= target <= known + max(limits.overlap, limits.num_drafts), (known, target)
    assert target <= sequence.max_len <= limits.max_model_len, (slot, target)
    idle = not any((busy == slot).any() for busy in state.in_flight)
    assert not idle or target == known > submitted, (slot, known, target, submitted)
    history = table.tokens[slot, :known]
    prompt = sequence.request.prompt_token_ids
    assert (history[: len(prompt)] == prompt).all(), slot
    if not limits.enable_prefix_caching:
        assert not state.memory.index.keyed.any()
        return
    full = int(table.num_published[slot])
    assert full * size <= min(known, submitted), (slot, full, known, submitted)
    for i, block in enumerate(state.memory.blocks.row(slot)[:full].tolist()):
        assert state.memory.index.keyed[block], (slot, i, block)
        content = state.memory.index.tokens[block]
        assert (content == history[i * size : (i + 1) * size]).all(), (slot, i, block)
