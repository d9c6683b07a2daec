"""Guesses: how many each sequence makes in a plan, and which drawn tokens count afterwards.

A row that guesses computes its known tokens and the guesses behind them, and draws a token behind
each. A drawn token counts while all guesses before it are what was drawn: then it was drawn from
what the sequence really says. So guesses decide how many tokens a step gives and no more. What was
written for wrong ones lies behind the known tokens: never published, and overwritten.

A sequence that guesses waits for its result. How many tokens it guesses follows what came of the
last ones; who is never right guesses ever more rarely.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..kv.block_pool import IdArray
from ..plan import Drafts, StepPlan
from ..request import IntArray, Request
from ..spec.drafter import Drafter
from .limits import SchedulerLimits
from .planner import Grant, State
from .stats import SchedulerStats
from .stopping import StopFilter, ended, judge
from .table import SlotTable

MOST_MISSES = 6
"""After so many wrong first guesses in a row the pause does not grow any more: 2^6 steps."""
PRIOR, WEIGHT = 0.6, 0.15
"""How often a guess is right, before any was made, and how much each one changes that."""


class Drafting:
    """How far each slot guesses. Written by Scheduler's calls; `guess` changes nothing.

    A guess at distance k is worth p^k tokens, p being how often guesses of its sequence were right;
    it costs limits.draft_cost of a step of one token, which everybody in the step waits for.
    """

    def __init__(self, drafter: Drafter, limits: SchedulerLimits) -> None:
        self._drafter = drafter
        self._most = np.zeros(limits.max_num_seqs, np.intp)
        """Tokens to guess at most; 0: none, ever."""
        self._rate = np.zeros(limits.max_num_seqs)
        """p"""
        self._pause = np.zeros(limits.max_num_seqs, np.intp)
        """Steps until it guesses again."""
        self._misses = np.zeros(limits.max_num_seqs, np.intp)
        self._limits = limits

    def enter(self, slot: int, request: Request) -> None:
        """Begin with a sequence that has just got its slot.

        Logits processors are not asked about guesses: what they do with them nobody has promised.
        """
        self._most[slot] = 0 if request.params.logits_processors else self._limits.num_drafts
        self._rate[slot] = PRIOR
        self._pause[slot] = self._misses[slot] = 0

    def holds(self, table: SlotTable, slots: IdArray) -> NDArray[np.bool_]:
        """Tell which of slots [n] wait for tokens in flight, to guess from them."""
        guesses = (self._most[slots] > 0) & (self._pause[slots] == 0)
        held: NDArray[np.bool_] = guesses & (table.target[slots] > table.known[slots])
        return held

    def guess(self, state: State, grant: Grant, limits: SchedulerLimits, num_free: int) -> Grant:
        """Add guesses to rows that compute all that is known, as budget and blocks allow."""
        table, slots = state.memory.table, grant.slots
        budget = limits.max_num_batched_tokens - grant.num_tokens
        room = np.minimum(self._lengths(slots), table.limit[slots] - grant.ends)
        room[(grant.ends != table.known[slots]) | (self._pause[slots] > 0)] = 0
        counts, token_ids = np.zeros(len(slots), np.intp), list[int]()
        for row in np.flatnonzero(room > 0).tolist():
            most = min(int(room[row]), budget - len(token_ids))
            if most <= 0:
                break
            slot = slots[row]
            found = self._drafter.propose(table.tokens[slot, : table.known[slot]], most)
            counts[row] = len(found)
            token_ids += found
        if not token_ids:
            return grant
        ends, capacity = grant.ends + counts, state.memory.blocks.capacity[slots]
        rows = (ends > capacity).nonzero()[0]
        num_opened = -(-(ends[rows] - capacity[rows]) // limits.block_size)
        num_blocks = int(num_opened.sum())
        if num_blocks > num_free:
            return grant
        return Grant(
            slots,
            grant.starts,
            ends,
            grant.counts + counts,
            grant.num_tokens + len(token_ids),
            slots[rows],
            num_opened,
            num_blocks,
            Drafts(counts.astype(np.int32), np.array(token_ids, np.int32)),
        )

    def pass_step(self, slots: IdArray) -> None:
        """Count a step of slots [n] that pause."""
        self._pause[slots] -= self._pause[slots] > 0

    def accept(
        self, plan: StepPlan, token_ids: IntArray, table: SlotTable, filter_: StopFilter
    ) -> IdArray:
        """Find which of the drawn token_ids [samples] count; write those of guesses into the table.

        A token that ends its sequence is the last that counts.
        """
        assert plan.drafts is not None, plan
        slots, places = (part.astype(np.intp) for part in plan.sampled())
        counts, kept = plan.drafts.counts[plan.samples], plan.right(token_ids)
        firsts = (counts + 1).cumsum() - (counts + 1)
        for row in np.flatnonzero(counts).tolist():
            first, count = int(firsts[row]), int(counts[row])
            num = int(np.count_nonzero(kept[first : first + count + 1]))
            slot = int(slots[first])
            if table.draining[slot]:
                continue
            self._learn(slot, count, num - 1, len(plan.slots))
            drawn, lengths = token_ids[first : first + num], places[first : first + num] + 1
            table.tokens[slot, places[first] : lengths[-1]] = drawn
            num = _first_end(table, filter_, slot, drawn, lengths)
            kept[first + num : first + count + 1] = False
        return kept.nonzero()[0]

    def count(self, plan: StepPlan, kept: IdArray, stats: SchedulerStats) -> None:
        """Count guesses and those that were right."""
        assert plan.drafts is not None, plan
        stats.num_drafts += int(np.count_nonzero(plan.drafts.counts))
        stats.num_draft_tokens += len(plan.drafts.token_ids)
        stats.num_accepted_tokens += len(kept) - int(np.count_nonzero(plan.samples))

    def _lengths(self, slots: IdArray) -> IdArray:
        """Give how many guesses are worth their cost: one at least, since who pauses has to try."""
        cost = self._limits.draft_cost
        # Relative to the step, and to the tokens that it gives without guesses.
        price = cost * len(slots) / (1.0 + cost * (len(slots) - 1))
        if price >= 1.0:
            return np.minimum(self._most[slots], 1)
        worth = np.log(max(price, 1e-6)) / np.log(np.clip(self._rate[slots], 1e-3, 1.0 - 1e-3))
        lengths: IdArray = np.minimum(self._most[slots], np.maximum(worth.astype(np.intp), 1))
        return lengths

    def _learn(self, slot: int, count: int, num_right: int, num_rows: int) -> None:
        """Note that num_right of count guesses were right, in a step of so many rows."""
        rate = 1.0 - (1.0 - float(self._rate[slot])) * (1.0 - WEIGHT) ** num_right
        self._rate[slot] = rate * (1.0 - WEIGHT) if num_right < count else rate
        cost = self._limits.draft_cost
        if num_right:
            self._misses[slot] = 0
        elif self._rate[slot] * (1.0 + cost * (num_rows - 1)) < cost * num_rows:
            self._misses[slot] = min(self._misses[slot] + 1, MOST_MISSES)
            self._pause[slot] = 2 ** self._misses[slot] - 1


def settle(plan: StepPlan, table: SlotTable) -> None:
    """Bring the counts of rows that guessed back to what is known, once their tokens are."""
    assert plan.drafts is not None, plan
    slots = plan.slots[plan.drafts.counts > 0].astype(np.intp)
    slots = slots[~table.draining[slots]]
    table.target[slots] = table.known[slots]
    table.submitted[slots] = table.known[slots] - 1


def _first_end(
    table: SlotTable, filter_: StopFilter, slot: int, drawn: IntArray, lengths: IdArray
) -> int:
    """Return how many of the drawn tokens come until the first that ends the sequence."""
    quiet = table.quiet[[slot] * len(drawn)]
    for row in ended(filter_, drawn, lengths, quiet):
        if judge(table.sequence(slot), table.tokens[slot, : lengths[row]]) is not None:
            return row + 1
    return len(drawn)
