"""Guesses: how many each sequence makes in a plan, and which drawn tokens count afterwards.

A row that guesses computes its known tokens and the guesses behind them, and draws a token behind
each. A drawn token counts while all guesses before it are what was drawn: then it was drawn from
what the sequence really says. So guesses decide how many tokens a step gives and no more. What was
written for wrong ones lies behind the known tokens: never published, and overwritten.

A sequence that guesses waits for its result. How many tokens it guesses follows what came of the
last ones, and what they cost; who is never right only tries now and then.
"""

from __future__ import annotations

from operator import add
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..config import SEVERAL
from ..kv.block_pool import IdArray
from ..plan import MAX_DRAFTS, Drafts, StepPlan
from ..request import IntArray, Request
from ..spec.drafter import Drafter
from .limits import SchedulerLimits
from .planner import Grant, State
from .stats import SchedulerStats
from .stopping import StopFilter, ended, judge
from .table import SlotTable

PROBED, PROBE_SHARE = 16, 0.01
"""In each so many-th step everybody may guess a token, worth it or not: all at once, since a step
that holds one more token than its tiles costs as much as one that fills them. More seldom where
that were more than this part of the time."""
PRIOR, WEIGHT = 0.6, 0.15
"""How often a guess is right, before any was made, and how much each one changes that;"""
MEMORY = 0.1
"""how much each sequence that ends changes what the next ones begin with."""


class _Prices(NamedTuple):
    """What guesses cost in a step, in tokens that it would give meanwhile."""

    tokens: NDArray[np.float64]
    """[guesses] the k-th guess of a row,"""
    first: float
    """Of which the first,"""
    passes: NDArray[np.float64]
    """[guesses] and those of all rows together, beside these."""
    probed: float
    """Steps from which on everybody may guess."""


class Drafting:
    """How far each slot guesses. Written by Scheduler's calls; `guess` changes nothing.

    A guess at distance k is worth p^k tokens, p being how often guesses of its sequence were right.
    It costs time (limits.guess_costs), in which the step without guesses would have given tokens
    too: it is made where it gives more than that.
    """

    def __init__(self, drafter: Drafter | None, limits: SchedulerLimits) -> None:
        """drafter: None where the device guesses, in the step that verifies."""
        self._drafter = drafter
        self._most = np.zeros(limits.max_num_seqs, np.intp)
        """Tokens to guess at most; 0: none, ever."""
        self._rate = np.full(limits.max_num_seqs, PRIOR)
        """p"""
        self._prior = PRIOR
        self._powers = np.arange(1, max(1, limits.num_drafts) + 1)
        self._worth = np.zeros((limits.max_num_seqs, len(self._powers)))
        """[slots, guesses] p^k"""
        self._has_guessed = np.zeros(limits.max_num_seqs, np.bool_)
        self._known_prices: dict[int, _Prices] = {}
        """By the rows of a step."""
        self._entered = np.zeros(limits.max_num_seqs, np.intp)
        """Tokens that were known when the slot was taken."""
        self._limits = limits
        self._since = 0
        """Steps since everybody might guess."""

    def enter(self, slot: int, request: Request, token_ids: IntArray) -> None:
        """Begin with a sequence that has just got its slot; token_ids: all it knows.

        Logits processors are not asked about guesses: what they do with them nobody has promised.
        A sequence of one token has no use for any.
        """
        guesses = not request.params.logits_processors and request.params.max_tokens != 1
        self._most[slot] = self._limits.num_drafts if guesses else 0
        self._rate[slot] = self._prior
        self._worth[slot] = self._prior**self._powers
        self._has_guessed[slot] = False
        self._entered[slot] = len(token_ids)
        if guesses and self._drafter is not None:
            self._drafter.enter(slot, request, token_ids)

    def leave(self, slot: int, table: SlotTable, *, ended: bool) -> None:
        """End with a sequence that gives up its slot: it has ended, or is preempted."""
        if self._has_guessed[slot] and ended:
            self._prior += MEMORY * (float(self._rate[slot]) - self._prior)
        if self._most[slot] and self._drafter is not None:
            self._drafter.leave(slot, table.tokens[slot, : table.known[slot]], ended=ended)

    def holds(self, table: SlotTable, slots: IdArray) -> NDArray[np.bool_]:
        """Tell which of slots [n] wait for tokens in flight, to guess from them."""
        in_flight = table.target[slots] > table.known[slots]
        held: NDArray[np.bool_] = in_flight & (self._lengths(slots) > 0)
        return held

    def guess(self, state: State, grant: Grant, limits: SchedulerLimits, num_free: int) -> Grant:
        """Add guesses to rows that compute all that is known, as budget and blocks allow."""
        table, slots = state.memory.table, grant.slots
        lengths = self._lengths(slots)
        if not lengths.any():
            return grant
        budget = limits.max_num_batched_tokens - grant.num_tokens
        room = np.minimum(lengths, table.limit[slots] - grant.ends)
        room[grant.ends != table.known[slots]] = 0
        if self._drafter is None:
            # The device goes on from what it has drawn from.
            room[table.known[slots] == self._entered[slots]] = 0
        counts, token_ids = np.zeros(len(slots), np.intp), list[int]()
        for row in np.flatnonzero(room > 0).tolist():
            most = min(int(room[row]), budget)
            if most <= 0:
                break
            counts[row] = most
            if self._drafter is not None:
                slot = int(slots[row])
                found = self._drafter.propose(slot, table.tokens[slot, : table.known[slot]], most)
                counts[row] = len(found)
                token_ids += found
            budget -= int(counts[row])
        num_guesses = int(counts.sum())
        if not num_guesses:
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
            grant.num_tokens + num_guesses,
            slots[rows],
            num_opened,
            num_blocks,
            Drafts(
                counts.astype(np.int32),
                None if self._drafter is None else np.array(token_ids, np.int32),
            ),
        )

    def pass_step(self, num_rows: int) -> None:
        """Count a step of so many rows that was committed."""
        probes = num_rows and self._since + 1 >= self._prices_of(num_rows).probed
        self._since = 0 if probes else self._since + 1
        if self._drafter is not None:
            self._drafter.pass_step()

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
            self._learn(slot, count, num - 1)
            drawn, lengths = token_ids[first : first + num], places[first : first + num] + 1
            table.tokens[slot, places[first] : lengths[-1]] = drawn
            num = _first_end(table, filter_, slot, drawn, lengths)
            kept[first + num : first + count + 1] = False
        return kept.nonzero()[0]

    def count(self, plan: StepPlan, kept: IdArray, stats: SchedulerStats) -> None:
        """Count guesses, those that were right, and the time that they have saved."""
        assert plan.drafts is not None, plan
        counts, num_rows = plan.drafts.counts, int(np.count_nonzero(plan.samples))
        sizes = counts[plan.samples] + 1
        behind = np.arange(int(sizes.sum())) - (sizes.cumsum() - sizes).repeat(sizes)
        at = np.bincount(behind[kept], minlength=MAX_DRAFTS + 1)[1:].tolist()
        num_guesses, num_right = int(counts.sum()), sum(at)
        stats.num_drafts += int(np.count_nonzero(counts))
        stats.num_draft_tokens += num_guesses
        stats.num_accepted_tokens += num_right
        stats.accepted_at = tuple(map(add, stats.accepted_at, at))
        costs = self._limits.guess_costs
        num_rows = max(1, num_rows)
        plain = costs.of(num_rows)
        spent = costs.step + costs.of(num_rows + num_guesses) - plain
        spent += costs.next * (int(counts.max()) - 1)
        saved = num_right * plain / num_rows - spent
        stats.saved_s += costs.unit_s * saved

    def _lengths(self, slots: IdArray) -> IdArray:
        """Give how many guesses are worth their cost, for each of the slots [n] of a step."""
        num_rows, most = len(slots), self._most[slots]
        if not most.any():
            return most
        prices = self._prices_of(num_rows)
        probes = self._since + 1 >= prices.probed
        if not probes:
            # Mostly nobody guesses, and this is all that it takes to know.
            gain = sum(max(0.0, rate - prices.first) for rate in self._rate[slots].tolist())
            if gain <= prices.passes[0]:
                return np.zeros(num_rows, np.intp)
        gains = np.maximum(self._worth[slots] - prices.tokens, 0.0)
        gains *= most[:, None] >= self._powers
        pays = gains.sum(axis=0) > prices.passes
        depth = len(pays) if pays.all() else int(pays.argmin())
        lengths: IdArray = np.count_nonzero(gains[:, :depth], axis=1)
        if probes:
            lengths = np.maximum(lengths, np.minimum(most, 1))
        return lengths

    def _prices_of(self, num_rows: int) -> _Prices:
        """Return what guesses cost in a step of so many rows."""
        found = self._known_prices.get(num_rows)
        if found is None:
            costs = self._limits.guess_costs
            plain = costs.of(num_rows)
            # Tokens that a step without guesses gives in a unit of time: what guesses compete with.
            pace = num_rows / plain
            each = np.where(num_rows * self._powers < SEVERAL, costs.token, costs.crowd)
            passes = np.full(len(self._powers), costs.next)
            passes[0] = costs.step
            probe = (costs.step + costs.of(2 * num_rows) - plain) / plain
            probed = max(PROBED, probe / PROBE_SHARE)
            found = self._known_prices[num_rows] = _Prices(
                pace * each, pace * float(each[0]), pace * passes, probed
            )
        return found

    def _learn(self, slot: int, count: int, num_right: int) -> None:
        """Note that num_right of count guesses were right."""
        rate = 1.0 - (1.0 - float(self._rate[slot])) * (1.0 - WEIGHT) ** num_right
        rate = min(0.99, max(0.01, rate * (1.0 - WEIGHT * (num_right < count))))
        self._rate[slot], self._worth[slot] = rate, rate**self._powers
        self._has_guessed[slot] = True


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
