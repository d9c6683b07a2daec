"""Decide what the next step does. Pure: reads the scheduler's state, changes nothing.

There is no prefill and no decode phase: the computed tokens of every sequence catch up with its
known ones under one token budget, running sequences first, then the queue in strict order. The
planner counts blocks and never picks ids. Its counts are exact, so that a commit cannot fail:
- a hit on a free block takes it from the free ones, once for all that hit it in the same step;
- a sequence is admitted only if all its known tokens fit beside what the running ones still need
  for theirs, else admitted prefills would starve each other;
- a sequence may hit full blocks that an earlier row of the same step writes (the device writes all
  keys of a layer before it reads any), but copy only from blocks of earlier steps, since copies
  run before the writes.
When blocks run out, waiting forks give up what they hold, then the running sequence that loses the
fewest computed tokens is preempted, never the first in policy order: so that one always proceeds.
Only sequences with nothing in flight can be preempted; if none is, the plan waits for a result.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Literal, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from ..kv.block_pool import BlockPool, IdArray
from ..kv.block_table import BlockTable
from ..kv.prefix_index import UPCOMING, PrefixIndex
from .queues import RankedQueue
from .sequence import NO_HIT, Hit, Sequence
from .table import Rows, SlotTable


class SchedulerLimits(Struct, frozen=True):
    """What the scheduler may use."""

    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    block_size: int
    num_blocks: int
    enable_prefix_caching: bool = True
    policy: Literal["fcfs", "priority"] = "fcfs"
    overlap: int = 1
    """Steps in flight: 1 or 2."""


@dataclass(slots=True, eq=False)
class State:
    """All that the scheduler owns, as the planner sees it."""

    table: SlotTable
    blocks: BlockTable
    pool: BlockPool
    index: PrefixIndex
    waiting: RankedQueue
    rows: Rows
    """Running, in policy order; without draining ones."""
    free_slots: list[int]
    holders: list[Sequence]
    """Waiting forks that hold blocks."""
    num_in_flight: int = 0
    retired_step: int = 0
    """All steps up to it have been retired."""


class Grant(NamedTuple):
    """What the running sequences do; all arrays [rows] but the last two."""

    slots: IdArray
    starts: IdArray
    ends: IdArray
    openers: IdArray
    """[openers] indices of rows that need new blocks,"""
    num_opened: IdArray
    """[openers] and how many."""


class Admission(NamedTuple):
    """A waiting sequence that starts to run."""

    sequence: Sequence
    hit: Hit
    num_tokens: int
    num_blocks: int
    """Blocks to take now, beside those hit."""


class Decision(NamedTuple):
    """One step, decided but not yet done."""

    grant: Grant
    admissions: list[Admission]
    """The first of the queue, in order."""
    victims: list[int]
    """Slots to preempt."""
    drop_held: bool
    """Whether waiting forks give up their blocks."""
    num_blocks: int
    """Blocks to take in all."""


class Memory(NamedTuple):
    """The pool as it will be once victims and holders have given their blocks back."""

    references: NDArray[np.int32]
    num_free: int
    drop_held: bool


def plan_step(state: State, limits: SchedulerLimits) -> Decision | None:
    """Decide the next step; None: nothing can be launched before a result or a request comes."""
    slots = state.rows.slots
    victims: list[int] = []
    memory = Memory(state.pool.references, state.pool.num_free, False)
    while True:
        grant = _grant(state, slots, limits)
        num_blocks = int(grant.num_opened.sum()) if len(grant.openers) else 0
        if num_blocks <= memory.num_free:
            break
        if state.holders and not memory.drop_held:
            memory = _memory(state, victims, True)
            continue
        victim = _victim(state, slots)
        if victim < 0:
            assert state.num_in_flight, (num_blocks, memory.num_free, slots)
            return None
        victims.append(victim)
        slots = slots[slots != victim]
        memory = _memory(state, victims, bool(state.holders))
    admissions: list[Admission] = []
    if len(state.waiting) and not victims:
        admissions = _admit(state, limits, grant, memory)
        idle = not (admissions or len(slots) or state.num_in_flight)
        if idle and state.holders and not memory.drop_held:
            memory = _memory(state, victims, True)
            admissions = _admit(state, limits, grant, memory)
        for admission in admissions:
            num_blocks += admission.num_blocks
    if not (admissions or len(grant.slots)):
        assert state.num_in_flight or not (len(slots) or len(state.waiting)), "nothing can proceed"
        return None
    return Decision(grant, admissions, victims, memory.drop_held, num_blocks)


def _grant(state: State, slots: IdArray, limits: SchedulerLimits) -> Grant:
    """Give the running sequences in `slots` their tokens of the budget."""
    table, size = state.table, limits.block_size
    starts = table.submitted[slots]
    wanted = np.minimum(table.target[slots], table.limit[slots]) - starts
    if int(wanted.sum()) > limits.max_num_batched_tokens:
        wanted = _cut(wanted, limits.max_num_batched_tokens)
    if np.count_nonzero(wanted) < len(wanted):
        computing = wanted.nonzero()[0]
        slots, starts, wanted = slots[computing], starts[computing], wanted[computing]
    ends = starts + wanted
    capacity = state.blocks.capacity[slots]
    openers = (ends > capacity).nonzero()[0]
    num_opened = openers
    if len(openers):
        num_opened = (ends[openers] - capacity[openers] + (size - 1)) // size
    return Grant(slots, starts, ends, openers, num_opened)


def _cut(wanted: IdArray, budget: int) -> IdArray:
    """Cut `wanted` to the budget: single tokens (decodes) first, then chunks, in order."""
    order = (wanted > 1).argsort(kind="stable")
    sorted_ = wanted[order]
    before = sorted_.cumsum() - sorted_
    given = np.empty_like(wanted)
    given[order] = np.clip(budget - before, 0, sorted_)
    return given


def _victim(state: State, slots: IdArray) -> int:
    """Choose whom to preempt among `slots` (policy order), never the first; -1 if nobody can be."""
    table = state.table
    others = slots[1:]
    idle = others[table.last_step[others] <= state.retired_step]
    if len(idle) == 0:
        return -1
    # The last key is the most important: least urgent, fewest tokens lost, latest.
    age = np.arange(len(idle))
    order = np.lexsort((-age, table.submitted[idle], -table.priority[idle]))
    return int(idle[order[0]])


def _memory(state: State, victims: list[int], drop_held: bool) -> Memory:
    """Count the references that remain once the victims and, maybe, the holders let go."""
    references = state.pool.references.copy()
    for victim in victims:
        references[state.blocks.row(victim)] -= 1
    if drop_held:
        for holder in state.holders:
            held = holder.held
            assert held is not None, holder.request.request_id
            references[held.blocks] -= 1
            if held.source >= 0:
                references[held.source] -= 1
    return Memory(references, int(np.count_nonzero(references == 0)), drop_held)


def _admit(state: State, limits: SchedulerLimits, grant: Grant, memory: Memory) -> list[Admission]:
    """Admit from the front of the queue what fits budget, slots and blocks."""
    admissions: list[Admission] = []
    size = limits.block_size
    budget = limits.max_num_batched_tokens - int((grant.ends - grant.starts).sum())
    if budget <= 0 or not state.free_slots:
        return admissions
    available = memory.num_free - _reserved(state, size)
    upcoming = _upcoming(state, grant) if limits.enable_prefix_caching else set()
    touched: set[int] = set()
    for sequence in state.waiting.first(len(state.free_slots)):
        # Some room for the others to grow, else the newcomer would be preempted at once.
        spare = limits.num_blocks // 100 if admissions or len(state.rows.slots) else 0
        room = available - spare
        if room < 0:
            break
        held = None if memory.drop_held else sequence.held
        hit = held or _lookup(state.index, sequence, upcoming, limits)
        total = -(-len(sequence.token_ids) // size)
        woken = _woken(hit, memory.references, touched)
        if total - len(hit.blocks) + len(woken) > room and hit.source in woken:
            # The copy's source needs one block more than computing its tokens does.
            hit = Hit(hit.blocks, -1, len(hit.blocks) * size)
            woken.discard(hit.source)
            woken = _woken(hit, memory.references, touched)
        need = total - len(hit.blocks) + len(woken)
        if need > room:
            break
        count = min(budget, len(sequence.token_ids) - hit.num_tokens)
        end = hit.num_tokens + count
        admissions.append(Admission(sequence, hit, count, -(-end // size) - len(hit.blocks)))
        available -= need
        budget -= count
        if budget == 0:
            break
        touched |= woken
        if limits.enable_prefix_caching:
            upcoming.update(sequence.keys[len(hit.blocks) : end // size])
    return admissions


def _reserved(state: State, size: int) -> int:
    """Blocks that the running sequences still need for their known tokens, this step's included."""
    table, slots = state.table, state.rows.slots
    known = np.minimum(table.target[slots], table.limit[slots])
    missing = known - state.blocks.capacity[slots]
    return int(((missing.clip(0) + (size - 1)) // size).sum())


def _upcoming(state: State, grant: Grant) -> set[bytes]:
    """Keys that the running rows will publish in this step, as far as they are hashed already."""
    table, size = state.table, state.index.block_size
    ready = np.minimum(grant.ends, table.known[grant.slots])
    next_full = table.next_full[grant.slots]
    keys: set[bytes] = set()
    for row in (ready >= next_full).nonzero()[0].tolist():
        first = int(next_full[row]) // size - 1
        sequence = table.sequence(int(grant.slots[row]))
        keys.update(islice(sequence.keys, first, int(ready[row]) // size))
    return keys


def _lookup(
    index: PrefixIndex, sequence: Sequence, upcoming: set[bytes], limits: SchedulerLimits
) -> Hit:
    """Find the longest cached prefix, leaving at least one token to compute."""
    if not limits.enable_prefix_caching:
        return NO_HIT
    size, most = limits.block_size, len(sequence.token_ids) - 1
    blocks = index.find(islice(sequence.keys, most // size), upcoming)
    start = len(blocks) * size
    parent = sequence.keys[len(blocks) - 1] if blocks else sequence.root
    source, length = index.partial(parent, sequence.token_ids[start : min(start + size, most)])
    return Hit(blocks, source, start + length)


def _woken(hit: Hit, references: NDArray[np.int32], touched: set[int]) -> set[int]:
    """Free blocks that a hit takes from the free ones, beyond those `touched` before it."""
    wanted = [block for block in hit.blocks if block != UPCOMING]
    if hit.source >= 0:
        wanted.append(hit.source)
    if not wanted:
        return set()
    ids = np.array(wanted, np.intp)
    return set(ids[references[ids] == 0].tolist()) - touched
