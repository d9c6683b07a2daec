"""Decide what the next step does. Pure: reads the scheduler's state, changes nothing.

There is no prefill and no decode phase: the computed tokens of every sequence catch up with its
known ones under one token budget, running sequences first, then the queue in strict order. The
planner counts blocks and never picks ids. Its counts are exact, so that a commit cannot fail:
- a hit on a free block takes it from the free ones, once for all that hit it in the same step;
- a sequence is admitted only if all its known tokens fit, not just their first chunk, and only if
  the running ones left some budget, else admitted prefills would starve each other;
- a sequence may hit full blocks that an earlier row of the same step writes (the device writes all
  keys of a layer before it reads any), but copy only from blocks of earlier steps, since copies
  run before the writes.
When blocks run out, waiting forks give up what they hold, then the running sequence that loses the
fewest computed tokens, of the tenant that has had most, is preempted, never the first in policy
order: so that one always proceeds.
Only sequences with nothing in flight can be preempted; if none is, the plan waits for a result.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..kv.block_pool import IdArray
from ..kv.prefix_index import UPCOMING, PrefixIndex
from ..plan import Drafts
from .fairness import FairQueue
from .limits import SchedulerLimits
from .memory import NO_IDS, SlotMemory
from .sequence import NO_HIT, Hit, Sequence
from .table import Rows

if TYPE_CHECKING:
    from .drafting import Drafting

GROWTH_BLOCKS = 2
"""Kept free by admission for each running sequence: a twentieth of all blocks at most."""


@dataclass(slots=True, eq=False)
class State:
    """All that the scheduler owns, as the planner sees it."""

    memory: SlotMemory
    waiting: FairQueue
    rows: Rows
    """Running, in policy order; without draining ones."""
    holders: list[Sequence] = field(default_factory=list)
    """Waiting forks that hold blocks."""
    in_flight: deque[IdArray] = field(default_factory=deque)
    """Slots of each step in flight, the oldest first."""
    drafting: Drafting | None = None
    """None: nobody guesses."""


class Grant(NamedTuple):
    """What the running sequences do."""

    slots: IdArray
    """[rows]"""
    starts: IdArray
    """[rows]"""
    ends: IdArray
    """[rows]"""
    counts: IdArray
    """[rows] tokens of each,"""
    num_tokens: int
    """and in all."""
    openers: IdArray
    """[openers] slots that need new blocks,"""
    num_opened: IdArray
    """[openers] how many,"""
    num_blocks: int
    """and in all."""
    drafts: Drafts | None = None
    """Guesses among the tokens."""


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


class Supply(NamedTuple):
    """The pool as it will be once victims and holders have given their blocks back."""

    references: NDArray[np.int32]
    num_free: int
    drop_held: bool


def plan_step(state: State, limits: SchedulerLimits) -> Decision | None:
    """Decide the next step; None: nothing can be launched before a result or a request comes."""
    pool, slots = state.memory.pool, state.rows.slots
    victims: list[int] = []
    supply = Supply(pool.references, pool.num_free, False)
    grant = _grant(state, slots, limits)
    while grant.num_blocks > supply.num_free:
        if not state.holders or supply.drop_held:
            victim = _victim(state, slots)
            if victim < 0:
                assert state.in_flight, (grant, supply.num_free)
                return None
            victims.append(victim)
            slots = slots[slots != victim]
            grant = _grant(state, slots, limits)
        supply = _supply(state, victims, drop_held=bool(state.holders))
    if state.drafting is not None and not victims:
        grant = state.drafting.guess(state, grant, limits, supply.num_free)
    admissions: list[Admission] = []
    if len(state.waiting) and not victims:
        admissions = _admit(state, limits, grant, supply)
        stuck = not (admissions or len(slots) or state.in_flight)
        if stuck and state.holders and not supply.drop_held:
            supply = _supply(state, victims, drop_held=True)
            admissions = _admit(state, limits, grant, supply)
    if not (admissions or len(grant.slots)):
        idle = not (len(slots) or len(state.waiting))
        assert state.in_flight or idle, "nothing can proceed"
        return None
    num_blocks = grant.num_blocks
    for admission in admissions:
        num_blocks += admission.num_blocks
    return Decision(grant, admissions, victims, supply.drop_held, num_blocks)


def _grant(state: State, slots: IdArray, limits: SchedulerLimits) -> Grant:
    """Give the running sequences in `slots` their tokens of the budget."""
    table, blocks = state.memory.table, state.memory.blocks
    budget, size = limits.max_num_batched_tokens, limits.block_size
    starts, goals = table.submitted[slots], table.target[slots]
    if state.in_flight:
        # The end is certain before its last token is known: nothing is computed beyond it.
        goals = np.minimum(goals, table.limit[slots])
        if state.drafting is not None:
            goals = np.where(state.drafting.holds(table, slots), starts, goals)
    counts = goals - starts
    num_tokens = len(slots)
    decoding = num_tokens <= budget and np.count_nonzero(counts == 1) == num_tokens
    if not decoding:
        num_tokens = int(counts.sum())
        if num_tokens > budget:
            counts, num_tokens = _cut(counts, budget), budget
        computing = counts.nonzero()[0]
        if len(computing) < len(slots):
            slots, starts, counts = slots[computing], starts[computing], counts[computing]
    ends = starts + counts
    capacity = blocks.capacity[slots]
    rows = (ends > capacity).nonzero()[0]
    if len(rows) == 0:
        return Grant(slots, starts, ends, counts, num_tokens, NO_IDS, NO_IDS, 0)
    # A single token opens a single block.
    num_opened, num_blocks = counts[rows], len(rows)
    if not decoding:
        num_opened = (ends[rows] - capacity[rows] + (size - 1)) // size
        num_blocks = int(num_opened.sum())
    return Grant(slots, starts, ends, counts, num_tokens, slots[rows], num_opened, num_blocks)


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
    table = state.memory.table
    idle = slots[1:]
    for busy in state.in_flight:
        idle = idle[~np.isin(idle, busy)]
    if len(idle) == 0:
        return -1
    # The last key is the most important: least urgent, most served, fewest tokens lost, latest.
    place, paid = np.arange(len(idle)), state.waiting.paid(idle)
    order = np.lexsort((-place, table.submitted[idle], -paid, -table.priority[idle]))
    return int(idle[order[0]])


def _supply(state: State, victims: list[int], *, drop_held: bool) -> Supply:
    """Count the references that remain once the victims and, maybe, the holders let go."""
    references = state.memory.pool.references.copy()
    for victim in victims:
        references[state.memory.blocks.row(victim)] -= 1
    if drop_held:
        for holder in state.holders:
            assert holder.held is not None, holder.request_id
            references[holder.held.held()] -= 1
    return Supply(references, int(np.count_nonzero(references == 0)), drop_held)


def _admit(state: State, limits: SchedulerLimits, grant: Grant, supply: Supply) -> list[Admission]:
    """Admit from the front of the queue what fits budget, slots and blocks."""
    admissions: list[Admission] = []
    size = limits.block_size
    budget = limits.max_num_batched_tokens - grant.num_tokens
    if budget <= 0 or not state.memory.free_slots:
        return admissions
    # Budget is left, so the running ones got all that they can compute: nobody needs more blocks.
    available = supply.num_free - grant.num_blocks
    references = supply.references.copy()
    upcoming = _upcoming(state.memory, grant, size) if limits.enable_prefix_caching else set()
    for sequence in state.waiting.first(len(state.memory.free_slots)):
        # Some room for the others to grow, else the newcomer would be preempted at once.
        num_growing = len(state.rows.slots) + len(admissions)
        room = available - min(GROWTH_BLOCKS * num_growing, limits.num_blocks // 20)
        if room < 0:
            break
        held = None if supply.drop_held else sequence.held
        hit = held or _lookup(state.memory.index, sequence, upcoming, limits)
        missing = -(-len(sequence.token_ids) // size) - len(hit.blocks)
        woken = _woken(hit, references)
        if missing + len(woken) > room and hit.source in woken:
            # The copy's source needs one block more than computing its tokens does.
            hit = Hit(hit.blocks, -1, len(hit.blocks) * size)
            woken = _woken(hit, references)
        if missing + len(woken) > room:
            break
        missing_tokens = len(sequence.token_ids) - hit.num_tokens
        if limits.whole_prompts and missing_tokens > budget:
            break
        count = min(budget, missing_tokens)
        end = hit.num_tokens + count
        admissions.append(Admission(sequence, hit, count, -(-end // size) - len(hit.blocks)))
        available -= missing + len(woken)
        budget -= count
        if budget == 0:
            break
        references[woken] = 1
        if limits.enable_prefix_caching:
            upcoming.update(sequence.keys[len(hit.blocks) : end // size])
    return admissions


def _upcoming(memory: SlotMemory, grant: Grant, size: int) -> set[bytes]:
    """Keys that the running rows will publish in this step: those of known tokens, in chunks."""
    table = memory.table
    keys: set[bytes] = set()
    if grant.num_tokens == len(grant.slots):
        return keys
    for row in (grant.counts > 1).nonzero()[0].tolist():
        slot = int(grant.slots[row])
        last = int(min(grant.ends[row], table.known[slot])) // size
        keys.update(islice(table.sequence(slot).keys, int(table.num_published[slot]), last))
    return keys


def _lookup(
    index: PrefixIndex, sequence: Sequence, upcoming: set[bytes], limits: SchedulerLimits
) -> Hit:
    """Find the longest cached prefix, leaving at least one token to compute."""
    size, most = limits.block_size, sequence.most_hit
    if not (most and limits.enable_prefix_caching):
        return NO_HIT
    found = index.find(islice(sequence.keys, most // size), upcoming)
    blocks, start = np.array(found, np.intp), len(found) * size
    if start == most or (found and found[-1] == UPCOMING):
        return Hit(blocks, -1, start)
    rest = sequence.token_ids[start : min(start + size, most)]
    source, length = index.partial(sequence.root, found[-1] if found else None, rest)
    return Hit(blocks, source, start + length)


def _woken(hit: Hit, references: NDArray[np.int32]) -> IdArray:
    """Blocks that a hit takes from the free ones."""
    held = hit.held()
    woken: IdArray = held[references[held] == 0]
    return woken
