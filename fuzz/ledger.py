"""What a core owes its requests, and whether it pays: an observer that knows each answer alone.

Every token is compared with that of the request run alone, as it comes; each comes once and none
after the end. Order, progress and counts are compared with what arrivals, admissions and failures
say they must be. Costs a few operations a token, so that it runs beside millions of steps.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from ..engine.core import EngineCore
from ..engine.kv.prefix_index import UPCOMING
from ..engine.plan import StepPlan
from ..engine.request import Finished, FinishReason, Request, TokenEvents
from ..engine.sched.limits import SchedulerLimits
from ..engine.sched.scheduler import Decision
from .fast_device import FastDevice
from .oracles import Alone, run_alone
from .states import Reached, abstract_state
from .traffic import NUM_TENANTS

LOOK_EVERY = 31
"""Steps from one look at the scheduler's state to the next."""
LONGEST_WAIT = "% of the longest wait allowed"
Rank = tuple[int, int]


@dataclass(slots=True, eq=False)
class Account:
    """A living request and how much of its answer has come."""

    request: Request
    alone: Alone
    rank: Rank
    num_outputs: int = 0
    num_cached: int | None = None
    """Hit tokens of the first admission."""

    @property
    def known(self) -> list[int]:
        """The prompt and the outputs so far."""
        return [*self.request.prompt_token_ids.tolist(), *self.alone.token_ids[: self.num_outputs]]


class Ending(NamedTuple):
    """What ends requests from outside, and whom."""

    reason: FinishReason
    names: list[str]
    message: str | None


class Ledger(Reached):
    """Watches one core. What the core's calls return is given to `take`."""

    def __init__(
        self,
        core: EngineCore,
        limits: SchedulerLimits,
        roots: dict[int, int],
        states: set[str],
    ) -> None:
        """roots: history of the empty prefix by request seed. states: see Reached."""
        super().__init__(core.scheduler, states)
        core.watch(self)
        self.totals: Counter[str] = Counter()
        self.accounts: dict[str, Account] = {}
        """Of the living, by id, in the order of arrival."""
        self._limits, self._roots = limits, roots
        self._budget = limits.max_num_batched_tokens
        self._ranks: list[tuple[Rank, str]] = []
        """Heap of the living and of some that have ended."""
        self._eldest, self._num_waits = "", 0
        """First of the living in policy order, and for how many steps."""
        # The first waits at most for all that run to end, and each step computes a token of them:
        # of prompts, of answers, and of both again after a preemption. Then other tenants have
        # their turn, until each has had as much.
        self._patience = (limits.max_num_seqs + NUM_TENANTS) * (3 * limits.max_model_len + 10)
        self._first, self._computed = "", 0
        """First of the running, and its tokens computed."""
        self._ending: Ending | None = None
        """What is taken next."""
        self._contents: dict[bytes, int] = {}
        """By key of a published block: its last history."""

    def added(self, request: Request, parent_id: str | None) -> None:
        """See Observer."""
        name = request.request_id
        alone = run_alone(request, self._roots[request.seed], self._limits)
        self.totals["requests"] += 1
        self.totals["forks"] += parent_id is not None
        priority = request.priority if self._limits.policy == "priority" else 0
        rank = (priority, self.totals["requests"])
        self.accounts[name] = Account(request, alone, rank)
        heapq.heappush(self._ranks, (rank, name))
        self.peak_queue = max(self.peak_queue, self._scheduler.num_waiting)

    def launched(self, decision: Decision, plan: StepPlan) -> None:
        """See Observer."""
        self._guard.committed(plan)
        totals, num_tokens = self.totals, plan.num_scheduled_tokens
        totals["steps"] += 1
        totals["scheduled tokens"] += num_tokens
        totals["shares dropped"] += decision.drop_held
        assert num_tokens <= self._budget, (num_tokens, self._budget)
        assert not (decision.victims and decision.admissions), decision
        if decision.admissions:
            self._check_admissions(decision)
        self._check_first()
        self._check_patience()
        if totals["steps"] % LOOK_EVERY == 0:
            self._states.add(abstract_state(self._scheduler))

    def aborted(self, request_id: str) -> None:
        """See Observer."""
        self.totals["aborts"] += 1
        self._ending = Ending("abort", [request_id], None)

    def failed(self, plan: StepPlan, message: str) -> None:
        """See Observer."""
        scheduler = self._scheduler
        busy = {slot for flight in scheduler._flights for slot in flight.plan.slots.tolist()}
        doomed = [one.request_id for one in scheduler._running if one.slot in busy]
        self._ending = Ending("error", doomed, message)
        self._guard.failed()
        self._first, self._num_waits = "", 0
        self._contents.clear()
        self.totals["failures"] += 1
        self.totals["requests that failed"] += len(doomed)

    def budgeted(self, num_tokens: int) -> None:
        """See Observer."""
        self._budget = num_tokens
        self.totals["budgets"] += 1

    def cleared(self) -> None:
        """See Observer."""
        assert len(self._scheduler._memory.index) == 0
        self._contents.clear()
        self.totals["resets"] += 1

    def take(self, events: TokenEvents) -> list[Account]:
        """Take what a step, a failure or an abort gave; returns those that it ended."""
        names, ending = events.request_ids, self._ending
        assert len(set(names)) == len(names) == len(events.token_ids), names
        endings = {finished.index: finished for finished in events.finished}
        assert len(endings) == len(events.finished), events.finished
        assert ending is None or names == ending.names, (names, ending)
        columns = (names, events.token_ids.tolist(), events.num_cached_tokens.tolist())
        ended: list[Account] = []
        for index, (name, token, num_cached) in enumerate(zip(*columns, strict=True)):
            account, finished = self.accounts.get(name), endings.get(index)
            assert account is not None, (name, "an event after the end")
            assert num_cached == (account.num_cached or 0), (name, num_cached, account.num_cached)
            if ending is None:
                self._credit(account, token, finished)
            else:
                assert token == -1 and finished is not None, (name, token, finished)
                assert (finished.reason, finished.message) == (ending.reason, ending.message)
            if finished is not None:
                ended.append(account)
                del self.accounts[name]
        self._ending = None
        scheduler = self._scheduler
        counts = (scheduler.num_waiting, scheduler.num_running)
        assert sum(counts) == len(self.accounts), (counts, len(self.accounts))
        return ended

    def check(self, device: FastDevice) -> None:
        """Assert what is slow: the scheduler's invariants, and what published blocks hold.

        device: has executed all plans.
        """
        self._scheduler.check()
        index = self._scheduler._memory.index
        blocks = index.keyed.nonzero()[0]
        columns = (blocks.tolist(), device.memory[blocks, -1].tolist())
        for block, content in zip(*columns, strict=True):
            known = self._contents.setdefault(index._keys[block], content)
            assert known == content, (block, "does not hold what its key stands for")

    def close(self) -> None:
        """Assert that nothing is left, and count what the scheduler counted."""
        scheduler, totals = self._scheduler, self.totals
        assert not self.accounts and not scheduler.has_unfinished, list(self.accounts)
        assert scheduler.plan() is None
        scheduler.check()
        assert scheduler.num_free_blocks == scheduler.num_blocks, scheduler.num_free_blocks
        stats = scheduler.stats
        assert stats.num_steps == totals["steps"], (stats, totals)
        assert stats.num_scheduled_tokens == totals["scheduled tokens"], (stats, totals)
        totals["preemptions"] += stats.num_preemptions
        totals["evictions"] += stats.num_evictions
        totals["copies"] += stats.num_copies
        totals["hit tokens"] += stats.prefix_hits + stats.resumed_hits

    def _credit(self, account: Account, token: int, finished: Finished | None) -> None:
        """Compare a token, and whether and why it is the last."""
        alone, place, name = account.alone, account.num_outputs, account.request.request_id
        assert token == alone.token_ids[place], (name, place, token, alone)
        account.num_outputs = place + 1
        is_last = place + 1 == len(alone.token_ids)
        assert (finished is not None) == is_last, (name, place, finished, alone)
        self.totals["tokens"] += 1
        if finished is not None:
            assert (finished.reason, finished.stop_reason) == (alone.reason, alone.stop_reason)
            assert (finished.message is not None) == (alone.reason == "error"), finished

    def _check_admissions(self, decision: Decision) -> None:
        """Nobody overtakes another of the same tenant in the queue."""
        latest: dict[str, Rank] = {}
        for sequence, hit, _, _ in decision.admissions:
            account = self.accounts[sequence.request_id]
            tenant = account.request.tenant
            assert latest.get(tenant, account.rank) <= account.rank, (latest, account.rank)
            latest[tenant] = account.rank
            if account.num_cached is None:
                account.num_cached = hit.num_tokens
            self.totals["partial hits"] += hit.source >= 0
            self.totals["hits in one step"] += UPCOMING in hit.blocks
        for waiting in self._scheduler._state.waiting:
            account = self.accounts[waiting.request_id]
            last = latest.get(account.request.tenant, account.rank)
            assert last <= account.rank, (last, account.rank, waiting.request_id, "was overtaken")

    def _check_first(self) -> None:
        """The first of the running loses nothing and gives way only to one that goes before it."""
        scheduler, last = self._scheduler, self.accounts.get(self._first)
        first = next(iter(scheduler._running))
        name, computed = first.request_id, int(scheduler._memory.table.submitted[first.slot])
        if name == self._first:
            assert computed >= self._computed, (name, computed, self._computed)
        elif last is not None:
            assert self.accounts[name].rank < last.rank, (name, self._first, "was preempted")
        self._first, self._computed = name, computed

    def _check_patience(self) -> None:
        """The first of the living ends in time, and so does each that then is the first."""
        ranks = self._ranks
        while ranks[0][1] not in self.accounts:
            heapq.heappop(ranks)
        name = ranks[0][1]
        self._num_waits = self._num_waits + 1 if name == self._eldest else 0
        self._eldest = name
        assert self._num_waits <= self._patience, (name, self._num_waits, "starves")
        share = 100 * self._num_waits // self._patience
        self.totals[LONGEST_WAIT] = max(share, self.totals[LONGEST_WAIT])
