"""Whose turn it is: a queue for each tenant, and what each tenant has been given.

Virtual token counters (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024,
arXiv:2401.00588): a tenant pays for the tokens that are computed for it, the next place goes to the
one that has paid least for its weight, and who comes to wait anew is lifted to those that wait, so
that nobody saves up. Priority goes before it, arrival decides what is equal; with one tenant this
is one RankedQueue.

What a running sequence owes is read from the slot table when somebody asks, and booked when it
gives up its slot: a step in which nobody has to choose pays nothing. Tokens computed a second time,
after a preemption, are not paid twice; those found in the cache are not paid at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from heapq import heapify, heappop, heapreplace

import numpy as np
from numpy.typing import NDArray

from ..kv.block_pool import IdArray
from .queues import RankedQueue
from .sequence import Sequence
from .table import SlotTable

PROMPT_PRICE = 1
OUTPUT_PRICE = 2
"""Of a token. A whole prompt is computed at once, each output costs a step."""
MAX_TENANTS = 1024
"""With accounts of their own. Who comes then shares the account of those without a name; so many
more are remembered after their last request."""
_PAID = 2**62
_NAMELESS = 0


@dataclass(slots=True, eq=False)
class Account:
    """A tenant with living requests."""

    name: str
    weight: float
    queue: RankedQueue = field(default_factory=RankedQueue)
    num_alive: int = 0


class FairQueue:
    """The sequences that wait, and the counters of those they belong to."""

    def __init__(self, table: SlotTable, weights: Mapping[str, float]) -> None:
        """weights: by tenant, above 0; 1 for all others."""
        num_slots = len(table.known)
        self._table = table
        self._weights = dict(weights)
        self._indices: dict[str, int] = {}
        """By tenant."""
        self._accounts: dict[int, Account] = {}
        self._waiting: dict[int, RankedQueue] = {}
        """The queues with somebody in them."""
        self._length = 0
        self._free = list(range(MAX_TENANTS))[:_NAMELESS:-1]
        self._counters = np.zeros(MAX_TENANTS, np.float64)
        """[accounts] what was paid and booked, by weight."""
        self._divisors = np.ones(MAX_TENANTS, np.float64)
        """[accounts] weights."""
        self._idle: dict[str, float] = {}
        """Counters of tenants without living requests, the longest gone first."""
        self._last = -1
        """The account that was admitted from last, or -1: it is closed,"""
        self._level = 0.0
        """and this was its counter."""
        self._payers = np.zeros(num_slots, np.intp)
        """[slots] the account,"""
        self._prompts = np.zeros(num_slots, np.intp)
        """[slots] prompt tokens,"""
        self._paid = np.full(num_slots, _PAID, np.intp)
        """[slots] tokens paid for; _PAID in free slots."""

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Sequence]:
        for queue in self._waiting.values():
            yield from queue

    def first(self, count: int) -> Iterator[Sequence]:
        """Iterate over the first `count` sequences, as if each was admitted when it is given."""
        if len(self._waiting) == 1:
            return next(iter(self._waiting.values())).first(count)
        return self._merge(min(count, self._length))

    def _merge(self, count: int) -> Iterator[Sequence]:
        counters = self.counters()
        heap: list[tuple[int, float, int, int, int]] = []
        for index, queue in self._waiting.items():
            priority, arrival, _ = queue[0].rank
            heap.append((priority, float(counters[index]), arrival, index, 0))
        heapify(heap)
        for _ in range(count):
            _, counter, _, index, place = heap[0]
            queue = self._waiting[index]
            sequence = queue[place]
            yield sequence
            place += 1
            if place == len(queue):
                heappop(heap)
                continue
            price = _price(sequence, sequence.num_paid, len(sequence.token_ids) + 1)
            counter += price / self._accounts[index].weight
            priority, arrival, _ = queue[place].rank
            heapreplace(heap, (priority, counter, arrival, index, place))

    def num_from(self, priority: int) -> int:
        """Count those of this priority and of less urgent ones."""
        return sum(queue.num_from(priority) for queue in self._waiting.values())

    def enter(self, sequence: Sequence) -> None:
        """Put a new sequence at its place, and open its tenant's account if there is none."""
        sequence.account = self._open(sequence.request.tenant)
        self._accounts[sequence.account].num_alive += 1
        self._add(sequence)

    def admit(self, sequences: list[Sequence], hits: list[int]) -> None:
        """Take out the first sequences, which have their slots now. hits: cached tokens of each."""
        if not sequences:
            return
        for sequence, hit in zip(sequences, hits, strict=True):
            slot = sequence.slot
            self._payers[slot] = sequence.account
            self._prompts[slot] = len(sequence.request.prompt_token_ids)
            self._paid[slot] = max(sequence.num_paid, hit)
        for index, count in Counter(one.account for one in sequences).items():
            self._waiting[index].remove_first(count)
            self._forget_empty(index)
        self._length -= len(sequences)
        self._last = sequences[-1].account

    def put_back(self, sequence: Sequence) -> None:
        """Let a preempted sequence, still in its slot, wait again at its old place."""
        self._pay(sequence)
        self._add(sequence)

    def end(self, sequence: Sequence) -> None:
        """Take out a sequence that ends, from the queue or (still there) from its slot."""
        index = sequence.account
        account = self._accounts[index]
        if sequence.slot < 0:
            account.queue.remove(sequence)
            self._length -= 1
            self._forget_empty(index)
        else:
            self._pay(sequence)
        account.num_alive -= 1
        if account.num_alive == 0:
            self._close(index)

    def counters(self) -> NDArray[np.float64]:
        """Give what each account has paid until now, booked or not: [accounts]; not to be kept."""
        submitted = self._table.submitted
        busy = (submitted > self._paid).nonzero()[0]
        if len(busy) == 0:
            return self._counters
        computed, paid, prompts = submitted[busy], self._paid[busy], self._prompts[busy]
        owed = (computed - paid) * PROMPT_PRICE
        outputs = np.maximum(computed - prompts, 0) - np.maximum(paid - prompts, 0)
        owed += outputs * (OUTPUT_PRICE - PROMPT_PRICE)
        by_account = np.bincount(self._payers[busy], owed, MAX_TENANTS)
        total: NDArray[np.float64] = self._counters + by_account / self._divisors
        return total

    def paid(self, slots: IdArray) -> NDArray[np.float64]:
        """Give the counters of the tenants in [slots]; zeros where there is nobody to compare."""
        if len(self._accounts) == 1:
            return np.zeros(len(slots))
        return self.counters()[self._payers[slots]]

    def check(self) -> None:
        """Assert the invariants. Slow."""
        table = self._table
        busy = (self._paid < _PAID).nonzero()[0].tolist()
        alive = Counter(one.account for one in [*self, *map(table.sequence, busy)])
        assert alive == {index: one.num_alive for index, one in self._accounts.items()}, alive
        assert self._indices == {one.name: index for index, one in self._accounts.items()}
        assert set(self._free) == set(range(1, MAX_TENANTS)) - set(self._accounts)
        queues = {index: one.queue for index, one in self._accounts.items() if len(one.queue)}
        assert queues == self._waiting, (queues, self._waiting)
        assert self._length == sum(map(len, queues.values()))
        for index, queue in queues.items():
            queue.check()
            assert all(one.account == index for one in queue), index
        assert len(self._idle) <= MAX_TENANTS
        assert (self.counters() >= self._counters).all()

    def _open(self, name: str) -> int:
        if name not in self._indices and not self._free:
            name = ""
        if name in self._indices:
            return self._indices[name]
        index = _NAMELESS if name == "" else self._free.pop()
        weight = self._weights.get(name, 1.0)
        self._indices[name], self._accounts[index] = index, Account(name, weight)
        self._counters[index], self._divisors[index] = self._idle.pop(name, 0.0), weight
        return index

    def _close(self, index: int) -> None:
        name = self._accounts.pop(index).name
        del self._indices[name]
        if index != _NAMELESS:
            self._free.append(index)
        if len(self._idle) == MAX_TENANTS:
            del self._idle[next(iter(self._idle))]
        counter = self._idle[name] = float(self._counters[index])
        if index == self._last:
            self._last, self._level = -1, counter

    def _add(self, sequence: Sequence) -> None:
        index = sequence.account
        queue = self._accounts[index].queue
        if not len(queue):
            self._lift(index)
            self._waiting[index] = queue
        queue.add(sequence)
        self._length += 1

    def _lift(self, index: int) -> None:
        """Bring a tenant that begins to wait level with those that do, or with who did last."""
        if len(self._accounts) == 1 and not self._idle:
            return
        counters = self.counters()
        if self._waiting:
            level = counters[list(self._waiting)].min()
        else:
            level = self._level if self._last < 0 else counters[self._last]
        self._counters[index] += max(0.0, float(level - counters[index]))

    def _forget_empty(self, index: int) -> None:
        if not len(self._waiting[index]):
            del self._waiting[index]

    def _pay(self, sequence: Sequence) -> None:
        """Book what a sequence owes that gives up its slot."""
        slot, index = sequence.slot, sequence.account
        paid, computed = int(self._paid[slot]), int(self._table.submitted[slot])
        if computed > paid:
            price = _price(sequence, paid, computed)
            self._counters[index] += price / self._accounts[index].weight
        sequence.num_paid = max(paid, computed)
        self._paid[slot] = _PAID


def _price(sequence: Sequence, first: int, last: int) -> int:
    """Price the tokens from `first` until before `last` of a sequence."""
    prompt = len(sequence.request.prompt_token_ids)
    outputs = max(last - prompt, 0) - max(first - prompt, 0)
    return (last - first) * PROMPT_PRICE + outputs * (OUTPUT_PRICE - PROMPT_PRICE)
