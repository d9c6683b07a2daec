"""The control plane's only writer: takes requests in, commits decisions, retires results.

Owns the requests' lives and, through SlotMemory, slots, blocks and the prefix index. No torch, no
clock, no threads: the same calls give the same plans. A sequence waits (in the queue), runs (in a
slot) and may drain: it has ended, but a step in flight still writes its blocks, which are freed
when the newest such step retires. Blocks of known tokens are published when the plan that writes
them is committed, since the device executes plans in order; blocks of outputs when their sequence
gives up its slot: one by one, they would cost more than all the rest of a decode step.
"""

from __future__ import annotations

import secrets
from collections import deque
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from ..errors import ParamsError
from ..kv.block_pool import IdArray
from ..kv.hashing import KEY_BYTES
from ..plan import RowFault, StepPlan, StepResult
from ..request import BACKGROUND, Finished, IntArray, Request, TokenEvents
from ..spec.drafter import Drafter
from .checks import check_state
from .diff import PlanDiff
from .drafting import Drafting, settle
from .fairness import FairQueue
from .limits import SchedulerLimits
from .memory import NO_IDS, SlotMemory
from .planner import Admission, Decision, Grant, State, plan_step
from .queues import RankedQueue
from .scoring import Scoring, rows_of, tell
from .sequence import Hit, Sequence, make_sequence
from .shares import Shares
from .stats import SchedulerStats
from .stopping import StopFilter, Verdict, ended, judge

__all__ = ["Decision", "Scheduler", "SchedulerLimits", "SchedulerStats"]


@dataclass(slots=True, eq=False)
class Flight:
    """A committed plan that has not been retired."""

    plan: StepPlan
    slots: IdArray
    """[samples] whose tokens the result brings,"""
    places: IdArray
    """[samples] their positions,"""
    lengths: IdArray
    """[samples] and places + 1."""
    request_ids: list[str]
    num_cached: IntArray
    pins: list[int]
    """Copy sources, held until the copy has run."""


class Scheduler:
    """Decides, step by step, which sequences compute which tokens in which blocks.

    `secret`: 16 bytes that key the prefix cache; None draws them. `drafter`: guesses up to
    limits.num_drafts tokens; None: the device does.
    """

    def __init__(
        self,
        limits: SchedulerLimits,
        *,
        secret: bytes | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        self._limits = limits
        self._memory = SlotMemory(limits, secret or secrets.token_bytes(KEY_BYTES))
        rows = self._memory.table.rows([])
        waiting = FairQueue(self._memory.table, limits.tenant_weights)
        self._shares = Shares(self._memory, limits.block_size)
        self._state = State(self._memory, waiting, rows, self._shares.holders)
        self._drafting = None
        if limits.num_drafts:
            self._drafting = self._state.drafting = Drafting(drafter, limits)
        self._running = RankedQueue()
        self._draining: list[int] = []
        self._alive: dict[str, Sequence] = {}
        self._flights: deque[Flight] = deque()
        self._filter = StopFilter()
        self._scoring = Scoring()
        self._stats = SchedulerStats()
        self._num_arrivals = 0
        self._step = 0

    @property
    def has_unfinished(self) -> bool:
        """Whether a request lives or a step is in flight."""
        return bool(self._alive or self._flights)

    @property
    def num_running(self) -> int:
        """Sequences in a slot that have not ended."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue, new or preempted."""
        return len(self._state.waiting)

    @property
    def num_background(self) -> int:
        """Those of them that wait behind everybody else."""
        return self._state.waiting.num_from(BACKGROUND)

    @property
    def num_free_blocks(self) -> int:
        """Blocks that nobody holds, cached ones included."""
        return self._memory.pool.num_free

    @property
    def num_blocks(self) -> int:
        """Blocks in all."""
        return self._limits.num_blocks

    @property
    def memory(self) -> SlotMemory:
        """Slots and blocks, to be looked at between two calls."""
        return self._memory

    @property
    def stats(self) -> SchedulerStats:
        """A copy of the counters."""
        return replace(self._stats, num_evictions=self._memory.num_evictions)

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises ParamsError if its id is alive or it could never fit.
        """
        self._enter(self._make(request))

    def fork(self, parent_id: str, request: Request) -> None:
        """Queue a request that continues a living one from known tokens: all, or the first.

        It shares the parent's blocks of these tokens; a partial last one is copied when it starts.
        The parent may also be one that was kept: then the last token may be another than it drew,
        and the child has its place in the order, for it goes on with the same request.
        Raises ParamsError as add() does, if the parent is not alive, if the prompt is not what the
        parent begins with, or if the cache salt is not the parent's.
        """
        kept = self._shares.kept.get(parent_id)
        parent = self._alive.get(parent_id) if kept is None else kept
        if parent is None:
            raise ParamsError(f"The request to fork, {parent_id!r}, is not alive.", "request_id")
        child = self._make(request)
        length = len(child.token_ids)
        given, known = child.token_ids, self._known_tokens(parent)
        same = length if kept is None else length - 1
        if length > len(known) or not np.array_equal(given[:same], known[:same]):
            raise ParamsError("A fork's prompt must be what its parent begins with.", "prompt")
        if child.root != parent.root:
            raise ParamsError("A fork must have its parent's cache salt.", "cache_salt")
        if kept is not None:
            child.rank = (child.rank[0], kept.rank[1], child.rank[2])
            child.keys = kept.keys[: (length - 1) // self._limits.block_size]
        self._enter(child)
        self._shares.share(parent, child)

    def abort(self, request_id: str) -> TokenEvents | None:
        """End a request in whatever state; None if it is not alive.

        One that was kept has ended: what it holds is given back, and nothing is told of it.
        """
        if self._shares.forget(request_id):
            return _endings([], Verdict("abort"))
        sequence = self._alive.get(request_id)
        if sequence is None:
            return None
        self._end(sequence)
        self._refresh_rows()
        return _endings([sequence], Verdict("abort"))

    def plan(self) -> Decision | None:
        """Decide the next step without changing anything; None: nothing to launch now."""
        if len(self._flights) >= self._limits.overlap:
            return None
        return plan_step(self._state, self._limits)

    def commit(self, decision: Decision) -> StepPlan:
        """Carry out what plan() has just decided and give the step to launch."""
        state, memory, grant = self._state, self._memory, decision.grant
        self._step += 1
        for slot in decision.victims:
            self._preempt(memory.table.sequence(slot))
        if decision.drop_held:
            self._shares.drop_all()
        # Every hit is held before any block is taken: taking may evict cached blocks.
        pins = self._hold_hits(decision.admissions)
        ids = memory.take(decision.num_blocks) if decision.num_blocks else NO_IDS
        used, opened = grant.num_blocks, (NO_IDS, NO_IDS)
        if used:
            opened = memory.open(grant.openers, grant.num_opened, ids[:used])
        samples, targets = self._advance(grant)
        diff = PlanDiff(grant, samples, opened, ids[:used])
        for admission in decision.admissions:
            self._start(admission, ids[used : used + admission.num_blocks], diff)
            used += admission.num_blocks
        assert used == len(ids), (used, len(ids))
        admitted, hits = decision.admissions, [one.hit.num_tokens for one in decision.admissions]
        state.waiting.admit([one.sequence for one in admitted], hits)
        plan = diff.plan(self._step, memory.released)
        memory.released = []
        if self._scoring:
            plan = self._scoring.mark(plan)
        if decision.victims or decision.admissions:
            self._refresh_rows()
        if self._drafting is not None:
            self._drafting.pass_step(len(grant.slots))
        self._launch(plan, grant, targets, pins)
        stats = self._stats
        stats.num_steps += 1
        stats.num_scheduled_tokens += grant.num_tokens
        stats.num_copies += len(pins)
        return plan

    def retire(self, plan: StepPlan, result: StepResult) -> TokenEvents:
        """Take in what the oldest step in flight gave. plan: told of the device's guesses."""
        table = self._memory.table
        flight = self._flights.popleft()
        assert flight.plan.step == plan.step == result.step, (flight.plan.step, plan, result)
        self._state.in_flight.popleft()
        self._unpin(flight.pins)
        slots, token_ids, logprobs = flight.slots, result.token_ids, result.logprobs
        vectors = result.vectors
        places, lengths = flight.places, flight.lengths
        request_ids, num_cached = flight.request_ids, flight.num_cached
        assert len(slots) == len(token_ids), (len(slots), len(token_ids))
        prompts = tell(plan, result, table) if plan.scored else ()
        kept = None
        if self._drafting is not None and plan.drafts is not None:
            kept = self._drafting.accept(plan, token_ids, table, self._filter)
            self._drafting.count(plan, kept, self._stats)
        if self._draining:
            alive = ~table.draining[slots]
            kept = alive.nonzero()[0] if kept is None else kept[alive[kept]]
        if kept is not None and len(kept) < len(slots):
            slots, token_ids, num_cached = slots[kept], token_ids[kept], num_cached[kept]
            places, lengths = places[kept], lengths[kept]
            request_ids = [request_ids[row] for row in kept.tolist()]
            logprobs = rows_of(logprobs, kept)
            vectors = None if vectors is None else vectors[kept]
        table.tokens[slots, places] = token_ids
        table.known[slots] = lengths
        if plan.drafts is not None:
            settle(plan, table)
        finished: tuple[Finished, ...] = ()
        rows = ended(self._filter, token_ids, lengths, table.quiet[slots])
        if rows:
            finished = self._finish(rows, slots, lengths, result.faults)
        if self._draining:
            self._release_drained()
        return TokenEvents(request_ids, token_ids, num_cached, finished, logprobs, prompts, vectors)

    def fail(self, message: str) -> TokenEvents:
        """Recover after a step died: end what was in flight with "error", distrust all KV."""
        doomed = [s for s in self._running if self._is_in_flight(s.slot)]
        for flight in self._flights:
            self._unpin(flight.pins)
        self._flights.clear()
        self._state.in_flight.clear()
        for sequence in doomed:
            self._end(sequence)
        self._release_drained()
        for sequence in list(self._running):
            self._preempt(sequence)
        self._shares.drop_all()
        self._refresh_rows()
        assert self.reset_prefix_cache(), (self.num_free_blocks, self.num_blocks)
        return _endings(doomed, Verdict("error", None, message))

    def set_budget(self, num_tokens: int) -> bool:
        """Bound the tokens of a step, at least 1; return whether that is a change."""
        assert num_tokens > 0, num_tokens
        if num_tokens == self._limits.max_num_batched_tokens:
            return False
        self._limits = replace(self._limits, max_num_batched_tokens=num_tokens)
        return True

    def reset_prefix_cache(self) -> bool:
        """Forget all cached prefixes; False (and nothing happens) while a block is in use."""
        memory = self._memory
        if memory.pool.num_free < self.num_blocks:
            return False
        memory.index.clear()
        memory.pool.forget_keys()
        return True

    def check(self) -> None:
        """Assert all invariants. Slow."""
        pins = [pin for flight in self._flights for pin in flight.pins]
        running = list(self._running)
        check_state(self._state, self._limits, running=running, draining=self._draining, pins=pins)
        for request_id, sequence in self._alive.items():
            assert sequence.request_id == request_id, request_id
        assert len(self._alive) == len(running) + self.num_waiting, list(self._alive)
        self._shares.check()
        assert not self._shares.kept.keys() & self._alive.keys(), list(self._shares.kept)
        assert len(self._state.in_flight) == len(self._flights) <= self._limits.overlap

    def _make(self, request: Request) -> Sequence:
        if request.request_id in self._alive or request.request_id in self._shares.kept:
            raise ParamsError(f"Request id {request.request_id!r} is in use.", "request_id")
        root = self._memory.hasher.root(request.cache_salt)
        return make_sequence(request, self._limits, root=root, arrival=self._num_arrivals)

    def _enter(self, sequence: Sequence) -> None:
        self._num_arrivals += 1
        self._alive[sequence.request_id] = sequence
        self._filter.add(sequence.stop_ids)
        self._memory.hash(sequence)
        self._state.waiting.enter(sequence)

    def _known_tokens(self, sequence: Sequence) -> IntArray:
        if sequence.slot < 0:
            return sequence.token_ids
        table = self._memory.table
        return table.tokens[sequence.slot, : table.known[sequence.slot]].copy()

    def _is_in_flight(self, slot: int) -> bool:
        return any(bool((slots == slot).any()) for slots in self._state.in_flight)

    def _hold_hits(self, admissions: list[Admission]) -> list[int]:
        """Reference the blocks that admissions found; gives the copy sources among them."""
        pins: list[int] = []
        for sequence, hit, _, _ in admissions:
            if hit.source >= 0:
                pins.append(hit.source)
            if sequence.held is None:
                self._memory.pool.hold(hit.held())
            else:
                self._shares.used(sequence)
        return pins

    def _unpin(self, pins: list[int]) -> None:
        for pin in pins:
            self._memory.drop(np.array([pin], np.intp))

    def _advance(self, grant: Grant) -> tuple[NDArray[np.bool_], IdArray]:
        """Count the step's tokens of running sequences.

        Returns, for each row, whether it samples and what can be computed from now on.
        """
        table, slots, ends = self._memory.table, grant.slots, grant.ends
        target = table.target[slots]
        samples = ends == target
        targets = target + samples
        if grant.drafts is not None:
            # Nothing can be computed behind a guess until it is known to be right.
            counts = grant.drafts.counts
            samples = ends - counts == target
            targets = np.where(counts > 0, ends, target + samples)
        table.submitted[slots] = ends
        table.target[slots] = targets
        if grant.num_tokens > len(slots):
            for slot in slots[grant.counts > 1].tolist():
                self._memory.publish(slot)
        return samples, targets

    def _start(self, admission: Admission, ids: IdArray, diff: PlanDiff) -> None:
        """Put an admitted sequence into a slot and count its tokens of this step."""
        sequence, hit, num_tokens, _ = admission
        self._count_lookup(sequence, hit)
        blocks = self._memory.place(sequence, hit, ids)
        table, slot = self._memory.table, sequence.slot
        length, end = len(sequence.token_ids), hit.num_tokens + num_tokens
        samples = end == length
        table.submitted[slot], table.target[slot] = end, length + samples
        self._stats.num_scheduled_tokens += num_tokens
        self._running.add(sequence)
        self._scoring.enter(sequence)
        if self._drafting is not None:
            self._drafting.enter(slot, sequence.request, sequence.token_ids)
        self._memory.publish(slot)
        diff.admit(sequence, blocks, hit, num_tokens=num_tokens, samples=samples)

    def _count_lookup(self, sequence: Sequence, hit: Hit) -> None:
        stats, length = self._stats, len(sequence.token_ids)
        first = sequence.num_cached is None
        if first:
            sequence.num_cached = hit.num_tokens
        if not self._limits.enable_prefix_caching:
            return
        if first:
            stats.prefix_queries += length
            stats.prefix_hits += hit.num_tokens
        else:
            stats.resumed_queries += length
            stats.resumed_hits += hit.num_tokens

    def _launch(self, plan: StepPlan, grant: Grant, targets: IdArray, pins: list[int]) -> None:
        """Record a plan as being in flight."""
        table, rows, samples = self._memory.table, self._state.rows, plan.samples
        plain = grant.slots is rows.slots and plan.drafts is None
        if plain and np.count_nonzero(samples) == len(rows.slots):
            slots, names = rows.slots, rows.request_ids
            flight = Flight(plan, slots, grant.ends, targets, names, rows.num_cached, pins)
        else:
            slots = plan.slots.astype(np.intp)
            drawn, places = (part.astype(np.intp) for part in plan.sampled())
            names = table.request_ids[drawn].tolist()
            cached = table.num_cached[drawn]
            flight = Flight(plan, drawn, places, places + 1, names, cached, pins)
        self._flights.append(flight)
        self._state.in_flight.append(slots)

    def _finish(
        self, rows: list[int], slots: IdArray, lengths: IdArray, faults: tuple[RowFault, ...]
    ) -> tuple[Finished, ...]:
        """Judge the candidates `rows`, each by what was known then, and end those that have to."""
        table = self._memory.table
        finished: list[Finished] = []
        messages = {fault.slot: fault.message for fault in faults}
        for row in rows:
            slot = int(slots[row])
            sequence = table.sequence(slot)
            verdict = judge(sequence, table.tokens[slot, : lengths[row]])
            if verdict is None:
                continue
            if verdict.reason == "error":
                table.known[slot] -= 1
                if slot in messages:
                    verdict = verdict._replace(message=messages[slot])
            self._end(sequence, keep=sequence.request.keep and verdict.reason == "length")
            finished.append(Finished(row, *verdict))
        if finished:
            self._refresh_rows()
        return tuple(finished)

    def _end(self, sequence: Sequence, *, keep: bool = False) -> None:
        """Take a living sequence out; callers refresh the rows. keep: its blocks, for forks."""
        del self._alive[sequence.request_id]
        self._state.waiting.end(sequence)
        if sequence.slot < 0:
            if sequence.held is not None:
                self._shares.drop(sequence)
            return
        self._leave(sequence.slot, ended=True)
        self._running.remove(sequence)
        if self._is_in_flight(sequence.slot):
            self._memory.table.draining[sequence.slot] = True
            self._draining.append(sequence.slot)
            return
        if keep:
            self._shares.keep(sequence, self._known_tokens(sequence))
        self._memory.release(sequence.slot)
        sequence.slot = -1

    def _leave(self, slot: int, *, ended: bool) -> None:
        self._scoring.leave(slot)
        if self._drafting is not None:
            self._drafting.leave(slot, self._memory.table, ended=ended)

    def _release_drained(self) -> None:
        """Release draining slots whose newest step has retired."""
        still = [slot for slot in self._draining if self._is_in_flight(slot)]
        for slot in self._draining:
            if slot not in still:
                self._memory.table.draining[slot] = False
                self._memory.release(slot)
        self._draining = still

    def _preempt(self, sequence: Sequence) -> None:
        """Put a running, idle sequence back into the queue; its KV is given up."""
        slot = sequence.slot
        assert not self._is_in_flight(slot), slot
        sequence.token_ids = self._known_tokens(sequence)
        self._memory.hash(sequence)
        self._running.remove(sequence)
        self._leave(slot, ended=False)
        self._state.waiting.put_back(sequence)
        self._memory.release(slot)
        sequence.slot = -1
        self._stats.num_preemptions += 1

    def _refresh_rows(self) -> None:
        self._state.rows = self._memory.table.rows([s.slot for s in self._running])


def _endings(sequences: list[Sequence], verdict: Verdict) -> TokenEvents:
    """Say that `sequences` ended without a token."""
    return TokenEvents(
        [sequence.request_id for sequence in sequences],
        np.full(len(sequences), -1, np.int32),
        np.array([sequence.num_cached or 0 for sequence in sequences], np.int32),
        tuple(Finished(i, *verdict) for i in range(len(sequences))),
    )
