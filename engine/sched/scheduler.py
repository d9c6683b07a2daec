"""The control plane's only writer: takes requests in, commits decisions, retires results.

Owns slots, blocks, queues and the prefix index. No torch, no clock, no threads: the same calls give
the same plans. A sequence waits (in the queue), runs (in a slot) and may drain: it has ended, but a
step in flight still writes its blocks, which are freed when the newest such step retires. Blocks
are published as soon as their tokens are known and the plan that writes them is committed, since
the device executes plans in order.
"""

from __future__ import annotations

import secrets
from collections import deque
from dataclasses import dataclass

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from ..errors import ParamsError
from ..kv.block_pool import BlockPool, IdArray
from ..kv.block_table import BlockTable
from ..kv.hashing import KEY_BYTES, BlockHasher
from ..kv.prefix_index import UPCOMING, PrefixIndex
from ..plan import StepPlan, StepResult
from ..request import Finished, IntArray, LogprobRows, Request, TokenEvents
from .checks import check_state
from .diff import PlanDiff
from .planner import Admission, Decision, Grant, SchedulerLimits, State, plan_step
from .queues import RankedQueue
from .sequence import Hit, Sequence
from .stopping import StopFilter, Verdict, ended, judge
from .table import SlotTable

__all__ = ["Decision", "Scheduler", "SchedulerLimits", "SchedulerStats"]

_NO_IDS = np.zeros(0, np.intp)


class SchedulerStats(Struct):
    """Counters since the start; tokens where the name does not say otherwise."""

    prefix_queries: int = 0
    """Prompt tokens looked up, once a request;"""
    prefix_hits: int = 0
    """of these, found."""
    resumed_queries: int = 0
    """The same for preempted requests that come back,"""
    resumed_hits: int = 0
    """which do not count above."""
    num_preemptions: int = 0
    num_evictions: int = 0
    """Published blocks that were overwritten."""
    num_copies: int = 0
    """Blocks copied."""
    num_scheduled_tokens: int = 0
    num_steps: int = 0


@dataclass(slots=True, eq=False)
class Flight:
    """A committed plan that has not been retired."""

    plan: StepPlan
    slots: IdArray
    """[samples] whose tokens the result brings,"""
    request_ids: list[str]
    num_cached: IntArray
    pins: list[int]
    """Copy sources, held until the copy has run."""


class Scheduler:
    """Decides, step by step, which sequences compute which tokens in which blocks.

    `secret`: 16 bytes that key the prefix cache; None draws them.
    """

    def __init__(self, limits: SchedulerLimits, *, secret: bytes | None = None) -> None:
        self._limits = limits
        self._hasher = BlockHasher(limits.block_size, secret or secrets.token_bytes(KEY_BYTES))
        table = SlotTable(limits.max_num_seqs)
        self._state = State(
            table=table,
            blocks=BlockTable(limits.max_num_seqs, limits.block_size),
            pool=BlockPool(limits.num_blocks),
            index=PrefixIndex(limits.num_blocks, limits.block_size),
            waiting=RankedQueue(),
            rows=table.rows([]),
            free_slots=list(range(limits.max_num_seqs))[::-1],
            holders=[],
        )
        self._running = RankedQueue()
        self._draining: list[int] = []
        self._alive: dict[str, Sequence] = {}
        self._flights: deque[Flight] = deque()
        self._released: list[int] = []
        self._filter = StopFilter()
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
    def num_free_blocks(self) -> int:
        """Blocks that no sequence holds, cached ones included."""
        return self._state.pool.num_free

    @property
    def num_blocks(self) -> int:
        """Blocks in all."""
        return self._limits.num_blocks

    @property
    def stats(self) -> SchedulerStats:
        """A copy of the counters."""
        return replace(self._stats)

    def add(self, request: Request) -> None:
        """Queue a request.

        Raises ParamsError if its id is alive or it could never fit.
        """
        self._enter(self._make(request))

    def fork(self, parent_id: str, request: Request) -> None:
        """Queue a request that continues a living one from all its known tokens.

        It shares the parent's computed blocks; a partial last one is copied when it starts.
        Raises ParamsError as add() does, if the parent is not alive, or if the prompt is not the
        parent's known tokens.
        """
        parent = self._alive.get(parent_id)
        if parent is None:
            raise ParamsError(f"The request to fork, {parent_id!r}, is not alive.", "request_id")
        child = self._make(request)
        if not np.array_equal(child.token_ids, self._known_tokens(parent)):
            raise ParamsError("A fork's prompt must be its parent's known tokens.", "prompt")
        self._enter(child)
        if parent.slot < 0:
            return
        computed = min(self._confirmed(parent.slot), len(child.token_ids) - 1)
        full, rest = divmod(computed, self._limits.block_size)
        if computed:
            ids = self._state.blocks.row(parent.slot)[: full + bool(rest)]
            self._state.pool.hold(ids)
            source = int(ids[full]) if rest else -1
            child.held = Hit(ids[:full].tolist(), source, computed)
            self._state.holders.append(child)

    def abort(self, request_id: str) -> TokenEvents | None:
        """End a request in whatever state; None if it is not alive."""
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
        state, table = self._state, self._state.table
        self._step += 1
        for slot in decision.victims:
            self._preempt(table.sequence(slot))
        if decision.drop_held:
            for sequence in list(state.holders):
                self._drop_held(sequence)
        # Every hit is held before any block is taken: taking may evict cached blocks.
        pins = self._hold_hits(decision.admissions)
        ids, num_blank = state.pool.take(decision.num_blocks)
        if num_blank < len(ids):
            state.index.remove(ids[num_blank:].tolist())
            self._stats.num_evictions += len(ids) - num_blank
        grant = decision.grant
        opened = self._open(grant, ids)
        samples = self._advance(grant)
        diff = PlanDiff(grant, samples, opened, ids[: len(opened[0])])
        used = len(opened[0])
        for admission in decision.admissions:
            self._start(admission, ids[used : used + admission.num_blocks], diff)
            used += admission.num_blocks
        assert used == len(ids), (used, len(ids))
        state.waiting.remove_first(len(decision.admissions))
        plan = diff.plan(self._step, self._released)
        self._released = []
        if decision.victims or decision.admissions:
            self._refresh_rows()
        self._launch(plan, grant, pins)
        return plan

    def retire(self, plan: StepPlan, result: StepResult) -> TokenEvents:
        """Take in what the oldest step in flight gave."""
        state, table = self._state, self._state.table
        flight = self._flights.popleft()
        assert flight.plan.step == plan.step == result.step, (flight.plan.step, plan, result)
        state.num_in_flight -= 1
        state.retired_step = plan.step
        if flight.pins:
            self._unpin(flight.pins)
        slots, token_ids, logprobs = flight.slots, result.token_ids, result.logprobs
        request_ids, num_cached = flight.request_ids, flight.num_cached
        assert len(slots) == len(token_ids), (len(slots), len(token_ids))
        if self._draining:
            alive = (~table.draining[slots]).nonzero()[0]
            if len(alive) < len(slots):
                slots, token_ids, num_cached = slots[alive], token_ids[alive], num_cached[alive]
                request_ids = [request_ids[row] for row in alive.tolist()]
                logprobs = _rows_of(logprobs, alive)
        places = table.known[slots]
        lengths = places + 1
        table.tokens[slots, places] = token_ids
        table.known[slots] = lengths
        finished: tuple[Finished, ...] = ()
        rows = ended(self._filter, token_ids, lengths, table.limit[slots])
        if rows:
            finished = self._finish(rows, slots, token_ids)
        if self._draining:
            self._release_drained()
        return TokenEvents(request_ids, token_ids, num_cached, finished, logprobs)

    def fail(self, message: str) -> TokenEvents:
        """Recover after a step died: end what was in flight with "error", distrust all KV."""
        state = self._state
        running = list(self._running)
        doomed = [s for s in running if self._is_in_flight(s.slot)]
        for flight in self._flights:
            self._unpin(flight.pins)
        self._flights.clear()
        state.num_in_flight, state.retired_step = 0, self._step
        for sequence in doomed:
            self._end(sequence)
        self._release_drained()
        for sequence in list(self._running):
            self._preempt(sequence)
        for sequence in list(state.holders):
            self._drop_held(sequence)
        self._refresh_rows()
        assert self.reset_prefix_cache(), (state.pool.num_free, self.num_blocks)
        return _endings(doomed, Verdict("error", None, message))

    def reset_prefix_cache(self) -> bool:
        """Forget all cached prefixes; False (and nothing happens) while a block is in use."""
        state = self._state
        if state.pool.num_free < self.num_blocks:
            return False
        state.index.clear()
        state.pool.forget_keys()
        return True

    def check(self) -> None:
        """Assert all invariants. Slow."""
        pins = [pin for flight in self._flights for pin in flight.pins]
        running = list(self._running)
        check_state(self._state, self._limits, running=running, draining=self._draining, pins=pins)
        for request_id, sequence in self._alive.items():
            assert sequence.request.request_id == request_id, request_id
        assert len(self._alive) == len(self._running) + len(self._state.waiting)
        assert self._state.num_in_flight == len(self._flights) <= self._limits.overlap

    def _make(self, request: Request) -> Sequence:
        """Check a request against the limits and give it a place in the order."""
        limits, params = self._limits, request.params
        length = len(request.prompt_token_ids)
        if request.request_id in self._alive:
            raise ParamsError(f"Request id {request.request_id!r} is in use.", "request_id")
        if length == 0:
            raise ParamsError("The prompt is empty: it must have at least one token.", "prompt")
        if length + 1 > limits.max_model_len:
            raise ParamsError(
                f"The prompt has {length} tokens: with one more to generate it must not exceed "
                f"the model length of {limits.max_model_len}.",
                "prompt",
            )
        if not -(2**63) < request.priority < 2**63:
            raise ParamsError(f"priority is {request.priority}: it must fit 64 bits.", "priority")
        max_len = limits.max_model_len
        if params.max_tokens is not None:
            max_len = min(max_len, length + params.max_tokens)
        most = limits.num_blocks * limits.block_size + 1
        if max_len > most:
            raise ParamsError(
                f"The request may grow to {max_len} tokens and the KV memory holds {most}: "
                "it must have a shorter prompt or a smaller max_tokens.",
                "max_tokens",
            )
        eos = () if params.ignore_eos else request.eos_token_ids
        sequence = Sequence(
            request=request,
            rank=(request.priority if limits.policy == "priority" else 0, self._num_arrivals),
            root=self._hasher.root(request.cache_salt),
            max_len=max_len,
            token_ids=np.ascontiguousarray(request.prompt_token_ids, dtype=np.int32),
            stop_ids=(*eos, *(params.stop_token_ids or ())),
        )
        return sequence

    def _enter(self, sequence: Sequence) -> None:
        self._num_arrivals += 1
        self._alive[sequence.request.request_id] = sequence
        self._filter.add(sequence.stop_ids)
        self._hash(sequence)
        self._state.waiting.add(sequence)

    def _hash(self, sequence: Sequence) -> None:
        if self._limits.enable_prefix_caching:
            self._hasher.extend(sequence.keys, sequence.root, sequence.token_ids)

    def _known_tokens(self, sequence: Sequence) -> IntArray:
        if sequence.slot < 0:
            return sequence.token_ids
        table = self._state.table
        return table.tokens[sequence.slot, : table.known[sequence.slot]].copy()

    def _is_in_flight(self, slot: int) -> bool:
        return bool(self._state.table.last_step[slot] > self._state.retired_step)

    def _confirmed(self, slot: int) -> int:
        """Count the tokens of a slot whose KV is written by retired steps."""
        for flight in self._flights:
            rows = (flight.plan.slots == slot).nonzero()[0]
            if len(rows):
                return int(flight.plan.starts[rows[0]])
        return int(self._state.table.submitted[slot])

    def _hold_hits(self, admissions: list[Admission]) -> list[int]:
        """Reference the blocks that admissions found; gives the copy sources among them."""
        pins: list[int] = []
        for sequence, hit, _, _ in admissions:
            if hit.source >= 0:
                pins.append(hit.source)
            if sequence.held is not None:
                sequence.held = None
                self._state.holders.remove(sequence)
                continue
            found = [block for block in hit.blocks if block != UPCOMING]
            self._state.pool.hold(np.array(found, np.intp))
            if hit.source >= 0:
                self._state.pool.hold(np.array([hit.source], np.intp))
        return pins

    def _unpin(self, pins: list[int]) -> None:
        for pin in pins:
            self._state.pool.drop(np.array([pin], np.intp), self._state.index.keyed)

    def _open(self, grant: Grant, ids: IdArray) -> tuple[IdArray, IdArray]:
        """Give running sequences the blocks they need, the first of `ids`."""
        if not len(grant.openers):
            return _NO_IDS, _NO_IDS
        state = self._state
        count = int(grant.num_opened.sum())
        slots = grant.slots[grant.openers]
        places = state.blocks.append(slots, grant.num_opened, ids[:count])
        self._reserve_tokens()
        return places

    def _reserve_tokens(self) -> None:
        # A sampled token may stand just behind the last block.
        self._state.table.reserve_tokens(
            self._state.blocks.ids.shape[1] * self._limits.block_size + 2
        )

    def _advance(self, grant: Grant) -> NDArray[np.bool_]:
        """Count the step's tokens of running sequences; tells which rows sample."""
        table, slots, ends = self._state.table, grant.slots, grant.ends
        target = table.target[slots]
        samples = ends == target
        table.submitted[slots] = ends
        table.target[slots] = target + samples
        table.last_step[slots] = self._step
        if self._limits.enable_prefix_caching:
            ready = np.minimum(ends, table.known[slots])
            for row in (ready >= table.next_full[slots]).nonzero()[0].tolist():
                self._publish(int(slots[row]), int(ready[row]))
        return samples

    def _publish(self, slot: int, ready: int) -> None:
        """Publish the full blocks among the first `ready` tokens: known, their writes submitted."""
        table, size = self._state.table, self._limits.block_size
        sequence = table.sequence(slot)
        start, end = int(table.next_full[slot]) - size, ready // size * size
        tokens, keys = table.tokens[slot], sequence.keys
        if len(keys) * size < end:
            self._hasher.extend(keys, sequence.root, tokens[:end])
        first, last = start // size, end // size
        self._state.index.publish(
            keys[first - 1] if first else sequence.root,
            keys[first:last],
            self._state.blocks.ids[slot, first:last].tolist(),
            tokens[start:end].tobytes(),
        )
        table.next_full[slot] = end + size

    def _publish_rest(self, slot: int) -> None:
        """Publish what became known since the slot's last step, before it is given up."""
        table = self._state.table
        ready = int(min(table.known[slot], table.submitted[slot]))
        if self._limits.enable_prefix_caching and ready >= table.next_full[slot]:
            self._publish(slot, ready)

    def _start(self, admission: Admission, ids: IdArray, diff: PlanDiff) -> None:
        """Put an admitted sequence into a slot and count its tokens of this step."""
        state, table, sequence, hit = self._state, self._state.table, *admission[:2]
        slot = sequence.slot = state.free_slots.pop()
        found = hit.blocks
        if UPCOMING in found:
            # Published meanwhile by an earlier row of this step.
            found = list(found)
            for i, block in enumerate(found):
                if block == UPCOMING:
                    found[i] = state.index.block_of(sequence.keys[i])
                    state.pool.hold(np.array(found[i : i + 1], np.intp))
        blocks = np.concatenate((np.array(found, np.intp), ids))
        state.blocks.fill(slot, blocks)
        self._reserve_tokens()
        length, end = len(sequence.token_ids), hit.num_tokens + admission.num_tokens
        samples = end == length
        table.tokens[slot, :length] = sequence.token_ids
        table.known[slot], table.target[slot] = length, length + samples
        table.submitted[slot], table.limit[slot] = end, sequence.max_len - 1
        table.next_full[slot] = (len(found) + 1) * self._limits.block_size
        table.last_step[slot], table.priority[slot] = self._step, sequence.rank[0]
        self._count_lookup(sequence, hit)
        table.num_cached[slot] = sequence.num_cached
        table.request_ids[slot] = sequence.request.request_id
        table.sequences[slot] = sequence
        self._running.add(sequence)
        self._publish_rest(slot)
        diff.admit(sequence, blocks, hit, num_tokens=admission.num_tokens, samples=samples)

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

    def _launch(self, plan: StepPlan, grant: Grant, pins: list[int]) -> None:
        """Record a plan as being in flight."""
        state, rows = self._state, self._state.rows
        samples = plan.samples
        if grant.slots is rows.slots and np.count_nonzero(samples) == len(rows.slots):
            flight = Flight(plan, rows.slots, rows.request_ids, rows.num_cached, pins)
        else:
            slots = plan.slots[samples].astype(np.intp)
            table = state.table
            request_ids = table.request_ids[slots].tolist()
            flight = Flight(plan, slots, request_ids, table.num_cached[slots], pins)
        self._flights.append(flight)
        state.num_in_flight += 1
        self._stats.num_steps += 1
        self._stats.num_scheduled_tokens += plan.num_scheduled_tokens
        self._stats.num_copies += len(pins)

    def _finish(self, rows: list[int], slots: IdArray, token_ids: IntArray) -> tuple[Finished, ...]:
        """Judge the candidates `rows` and end those that have to."""
        table = self._state.table
        finished: list[Finished] = []
        for row in rows:
            slot, token_id = int(slots[row]), int(token_ids[row])
            sequence = table.sequence(slot)
            verdict = judge(sequence, token_id, int(table.known[slot]))
            if verdict is None:
                continue
            if verdict.reason == "error":
                table.known[slot] -= 1
            self._end(sequence)
            finished.append(Finished(row, *verdict))
        if finished:
            self._refresh_rows()
        return tuple(finished)

    def _end(self, sequence: Sequence) -> None:
        """Take a living sequence out; callers refresh the rows."""
        del self._alive[sequence.request.request_id]
        if sequence.slot < 0:
            self._state.waiting.remove(sequence)
            if sequence.held is not None:
                self._drop_held(sequence)
            return
        self._running.remove(sequence)
        if self._is_in_flight(sequence.slot):
            self._state.table.draining[sequence.slot] = True
            self._draining.append(sequence.slot)
        else:
            self._release(sequence.slot)

    def _release_drained(self) -> None:
        """Release draining slots whose newest step has retired."""
        still = [slot for slot in self._draining if self._is_in_flight(slot)]
        for slot in self._draining:
            if not self._is_in_flight(slot):
                self._state.table.draining[slot] = False
                self._release(slot)
        self._draining = still

    def _release(self, slot: int) -> None:
        """Free a slot and its blocks, the last block first: it is the least likely to be hit."""
        state = self._state
        self._publish_rest(slot)
        state.pool.drop(state.blocks.row(slot)[::-1], state.index.keyed)
        state.blocks.clear(slot)
        state.table.sequences[slot] = None
        state.table.request_ids[slot] = None
        state.free_slots.append(slot)
        self._released.append(slot)

    def _preempt(self, sequence: Sequence) -> None:
        """Put a running, idle sequence back into the queue; its KV is given up."""
        slot = sequence.slot
        assert not self._is_in_flight(slot), slot
        sequence.token_ids = self._known_tokens(sequence)
        self._hash(sequence)
        self._running.remove(sequence)
        self._release(slot)
        sequence.slot = -1
        self._state.waiting.add(sequence)
        self._stats.num_preemptions += 1

    def _drop_held(self, sequence: Sequence) -> None:
        """Let a waiting fork give up its share of the parent: it will compute it anew."""
        held = sequence.held
        assert held is not None, sequence.request.request_id
        if held.source >= 0:
            self._unpin([held.source])
        blocks = np.array(held.blocks[::-1], np.intp)
        self._state.pool.drop(blocks, self._state.index.keyed)
        sequence.held = None
        self._state.holders.remove(sequence)

    def _refresh_rows(self) -> None:
        self._state.rows = self._state.table.rows([s.slot for s in self._running])


def _endings(sequences: list[Sequence], verdict: Verdict) -> TokenEvents:
    """Say that `sequences` ended without a token."""
    return TokenEvents(
        [sequence.request.request_id for sequence in sequences],
        np.full(len(sequences), -1, np.int32),
        np.array([sequence.num_cached or 0 for sequence in sequences], np.int32),
        tuple(Finished(i, *verdict) for i in range(len(sequences))),
    )


def _rows_of(logprobs: LogprobRows | None, rows: IdArray) -> LogprobRows | None:
    """Select rows of the log probabilities."""
    if logprobs is None:
        return None
    return LogprobRows(
        logprobs.sampled[rows], logprobs.ranks[rows], logprobs.top_ids[rows], logprobs.top[rows]
    )
