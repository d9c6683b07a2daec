"""The scheduler's invariants, asserted from scratch. Slow; for tests, fuzzers and idle moments."""

from __future__ import annotations

import numpy as np

from .planner import SchedulerLimits, State
from .sequence import Sequence


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
    state.index.check()
    state.pool.check(state.index.keyed)
    _check_slots(state, running, draining)
    _check_references(state, [s.slot for s in running] + draining, pins)
    for sequence in running:
        _check_sequence(state, limits, sequence)
    for sequence in state.waiting:
        assert sequence.slot == -1, sequence.request.request_id
        assert (sequence.held is not None) == (sequence in state.holders)
    assert all(holder.slot == -1 for holder in state.holders)


def _check_slots(state: State, running: list[Sequence], draining: list[int]) -> None:
    table = state.table
    slots = [s.slot for s in running]
    assert state.rows.slots.tolist() == slots, (state.rows.slots, slots)
    assert state.rows.request_ids == [s.request.request_id for s in running]
    assert running == sorted(running, key=lambda s: s.rank)
    everyone = sorted([*slots, *draining, *state.free_slots])
    assert everyone == list(range(len(table.known))), everyone
    assert table.draining.nonzero()[0].tolist() == sorted(draining)
    for sequence in running:
        assert table.sequences[sequence.slot] is sequence, sequence.slot
    for slot in state.free_slots:
        assert table.sequences[slot] is None, slot
        assert state.blocks.capacity[slot] == 0, slot
    if state.num_in_flight == 0:
        assert not draining, draining


def _check_references(state: State, slots: list[int], pins: list[int]) -> None:
    """Every reference is a table, a waiting fork's share or a pin."""
    expected = np.zeros_like(state.pool.references)
    for slot in slots:
        row = state.blocks.row(slot)
        assert len(set(row.tolist())) == len(row), (slot, row)
        expected[row] += 1
    for holder in state.holders:
        assert holder.held is not None, holder.request.request_id
        expected[holder.held.blocks] += 1
        if holder.held.source >= 0:
            expected[holder.held.source] += 1
    for pin in pins:
        expected[pin] += 1
    assert (expected == state.pool.references).all(), (expected, state.pool.references)


def _check_sequence(state: State, limits: SchedulerLimits, sequence: Sequence) -> None:
    table, slot, size = state.table, sequence.slot, limits.block_size
    known, target = int(table.known[slot]), int(table.target[slot])
    submitted, capacity = int(table.submitted[slot]), int(state.blocks.capacity[slot])
    assert 0 < submitted <= capacity < submitted + size, (slot, submitted, capacity)
    assert submitted <= table.limit[slot] == sequence.max_len - 1, (slot, submitted)
    assert known <= target <= known + limits.overlap, (slot, known, target)
    assert target <= sequence.max_len <= limits.max_model_len, (slot, target)
    idle = table.last_step[slot] <= state.retired_step
    assert not idle or target == known > submitted, (slot, known, target, submitted)
    history = table.tokens[slot, :known]
    prompt = sequence.request.prompt_token_ids
    assert (history[: len(prompt)] == prompt).all(), slot
    if not limits.enable_prefix_caching:
        assert not state.index.keyed.any()
        return
    # All blocks before next_full that this sequence published hold its own tokens.
    full = int(table.next_full[slot]) // size - 1
    for i, block in enumerate(state.blocks.row(slot)[:full].tolist()):
        assert state.index.keyed[block], (slot, i, block)
        content = state.index.content(block)
        assert (content == history[i * size : (i + 1) * size]).all(), (slot, i, block)
