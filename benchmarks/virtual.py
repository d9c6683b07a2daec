"""Replicas on virtual time: real schedulers, a cost model in place of the device.

Every step of every replica is planned, committed and retired by the scheduler that serves; nothing
is skipped or approximated but the time a step takes. One step is in flight at a time. Events come
in the order of their times; at equal times requests arrive before steps end, so that a step that
starts at a moment sees all that arrived by it. Answers end by their length alone.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import count

import numpy as np
from msgspec import Struct

from ..engine.kv.hashing import KEY_BYTES
from ..engine.params import SamplingParams
from ..engine.plan import StepPlan, StepResult
from ..engine.request import IntArray, Request
from ..engine.sched.scheduler import Scheduler, SchedulerLimits
from .cost_model import CostModel
from .latency import Latencies, Outcome, ReplicaFigures
from .routing import Router
from .traces import Arrival, answer_base, answer_tokens, tokens_of


class Live:
    """A request that has not ended."""

    __slots__ = ("arrival", "last_s", "started")

    def __init__(self, arrival: Arrival) -> None:
        self.arrival = arrival
        self.last_s = float("nan")
        """Time of its last token when it was preempted; NaN: none yet."""
        self.started = False
        """Whether it was in a slot: it may be preempted before its first token."""


class Replica:
    """One scheduler and the clock of its device."""

    def __init__(self, setup: Setup, latencies: Latencies, params: ParamsCache) -> None:
        limits = setup.limits
        assert limits.overlap == 1, limits
        self.scheduler = Scheduler(limits, secret=bytes(KEY_BYTES))
        self.awake = False
        """Whether an event of this replica is in the heap."""
        self._cost, self._tenants = setup.cost, setup.tenants
        self._latencies, self._params = latencies, params
        self._flight: StepPlan | None = None
        self._live: dict[int, Live] = {}
        slots = limits.max_num_seqs
        self._ids = np.full(slots, -1, np.int64)
        """[slots] the request, named by its answer's source."""
        self._bases = np.zeros(slots, np.int64)
        self._prompts = np.zeros(slots, np.int64)
        self._arrived_s = np.zeros(slots, np.float64)
        self._last_s = np.full(slots, np.nan)
        self._busy_s = 0.0
        self._num_requests = 0
        self._most_waiting = 0
        self.num_outputs = 0

    @property
    def in_flight(self) -> bool:
        """Whether a step is."""
        return self._flight is not None

    def add(self, arrival: Arrival, prompt: IntArray) -> None:
        """Queue a request; ParamsError where it could never fit."""
        source, length = arrival.answer
        request = Request(
            request_id=str(source),
            prompt_token_ids=prompt,
            params=self._params.of(length),
            seed=source,
            tenant=arrival.tenant if self._tenants else "",
        )
        self.scheduler.add(request)
        self._live[source] = Live(arrival)
        self._num_requests += 1
        self._most_waiting = max(self._most_waiting, self.scheduler.num_waiting)

    def launch(self, now_s: float) -> float | None:
        """Start a step; gives the time of its end, None where there is nothing to do."""
        assert self._flight is None
        decision = self.scheduler.plan()
        if decision is None:
            assert not self.scheduler.has_unfinished, "an idle replica has work that it cannot do"
            return None
        plan = self._flight = self.scheduler.commit(decision)
        for slot in plan.released.tolist():
            live = self._live.get(int(self._ids[slot]))
            if live is not None:
                live.last_s = float(self._last_s[slot])
        for admitted in plan.admitted:
            self._admit(admitted.slot, admitted.seed, admitted.num_prompt_tokens, now_s)
        tokens = plan.num_scheduled_tokens
        positions = int(plan.starts.sum()) + tokens
        seconds = self._cost.seconds(tokens, len(plan.slots), positions)
        assert seconds > 0, (seconds, plan)
        self._busy_s += seconds
        return now_s + seconds

    def _admit(self, slot: int, source: int, num_prompt: int, now_s: float) -> None:
        live = self._live[source]
        self._ids[slot] = source
        self._bases[slot] = answer_base(source)
        self._prompts[slot] = num_prompt
        self._arrived_s[slot] = live.arrival.arrival_s
        self._last_s[slot] = live.last_s
        if not live.started:
            live.started = True
            waited_s = now_s - live.arrival.arrival_s
            self._latencies.queueing.add(waited_s)
            self._latencies.queueing_of[live.arrival.tenant].add(waited_s)

    def land(self, now_s: float) -> list[Arrival]:
        """End the step in flight; gives the requests that it ended."""
        plan = self._flight
        assert plan is not None
        self._flight = None
        slots = plan.slots[plan.samples]
        places = (plan.starts + plan.num_tokens)[plan.samples] - self._prompts[slots]
        tokens = answer_tokens(self._bases[slots], places)
        events = self.scheduler.retire(plan, StepResult(plan.step, tokens))
        assert len(events.request_ids) == len(slots)
        self.num_outputs += len(slots)
        self._note(slots, now_s)
        ended: list[Arrival] = []
        for finished in events.finished:
            assert finished.reason == "length", finished
            live = self._live.pop(int(events.request_ids[finished.index]))
            self._latencies.whole.add(now_s - live.arrival.arrival_s)
            ended.append(live.arrival)
        return ended

    def _note(self, slots: IntArray, now_s: float) -> None:
        """Note the times of tokens, those of [slots], all now."""
        gaps = now_s - self._last_s[slots]
        self._last_s[slots] = now_s
        first = np.isnan(gaps)
        if first.any():
            self._latencies.ttft.extend(now_s - self._arrived_s[slots[first]])
            gaps = gaps[~first]
        if len(gaps):
            self._latencies.itl.extend(gaps)

    def close(self) -> ReplicaFigures:
        """Check that nothing is left, and sum up."""
        scheduler = self.scheduler
        assert not self._live and not scheduler.has_unfinished, list(self._live)
        assert scheduler.num_free_blocks == scheduler.num_blocks, scheduler.num_free_blocks
        stats = scheduler.stats
        return ReplicaFigures(
            self._num_requests,
            stats.num_steps,
            stats.num_scheduled_tokens,
            self._busy_s,
            stats.prefix_queries,
            stats.prefix_hits,
            stats.num_preemptions,
            stats.num_evictions,
            self._most_waiting,
        )


class ParamsCache:
    """Sampling parameters by the length of the answer: few differ."""

    def __init__(self) -> None:
        self._made: dict[int, SamplingParams] = {}

    def of(self, max_tokens: int) -> SamplingParams:
        """Give parameters that end an answer after max_tokens."""
        params = self._made.get(max_tokens)
        if params is None:
            params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
            self._made[max_tokens] = params
        return params


class Setup(Struct, frozen=True):
    """What is simulated, but for the traffic and the router."""

    num_replicas: int
    limits: SchedulerLimits
    cost: CostModel
    shard: int = 0
    """Simulate only the replicas whose index modulo num_shards is this one."""
    num_shards: int = 1
    tenants: bool = True
    """Whether schedulers are told whose a request is."""


class Simulation:
    """The event loop: arrivals, turns that follow answers, ends of steps."""

    def __init__(self, setup: Setup, router: Router) -> None:
        self.now_s = 0.0
        self._setup, self._router = setup, router
        self._latencies = Latencies()
        params = ParamsCache()
        self._replicas = {
            index: Replica(setup, self._latencies, params)
            for index in range(setup.shard, setup.num_replicas, setup.num_shards)
        }
        self._loads = np.zeros(setup.num_replicas, np.int64)
        self._wakes: list[tuple[float, int]] = []
        """(time, replica): its step ends, or it starts after being idle."""
        self._turns: list[tuple[float, int, Arrival]] = []
        self._numbers = count()
        self.num_ended = 0
        self.served: Counter[str] = Counter()
        """Tokens of requests that ended, an output counted twice, by tenant."""

    def run(self, trace: Iterable[Arrival]) -> Outcome:
        """Simulate until the last answer has ended."""
        start = time.perf_counter()
        for _ in self.events(trace):
            pass
        replicas = [replica.close() for replica in self._replicas.values()]
        assert sum(one.requests for one in replicas) == self.num_ended
        return Outcome(
            self.num_ended,
            self.now_s,
            sum(replica.num_outputs for replica in self._replicas.values()),
            self._latencies,
            replicas,
            time.perf_counter() - start,
        )

    def events(self, trace: Iterable[Arrival]) -> Iterator[float]:
        """Work through the events one by one; yields the time of each."""
        never = float("inf")
        coming = iter(trace)
        following = next(coming, None)
        wakes, turns = self._wakes, self._turns
        while True:
            trace_s = following.arrival_s if following is not None else never
            turn_s = turns[0][0] if turns else never
            wake_s = wakes[0][0] if wakes else never
            now_s = min(trace_s, turn_s, wake_s)
            if now_s == never:
                return
            assert now_s >= self.now_s, (now_s, self.now_s)
            if trace_s == now_s:
                assert following is not None
                self._arrive(following, now_s)
                following = next(coming, None)
            elif turn_s == now_s:
                self._arrive(heapq.heappop(turns)[2], now_s)
            else:
                self.now_s = now_s
                self._wake(heapq.heappop(wakes)[1], now_s)
            yield now_s

    def _arrive(self, arrival: Arrival, now_s: float) -> None:
        prompt = tokens_of(arrival.prompt)
        chosen = self._router.choose(prompt, self._loads)
        replica = self._replicas.get(chosen)
        if replica is None:
            assert self._setup.num_shards > 1, chosen
            return
        self.now_s = now_s
        replica.add(arrival, prompt)
        self._loads[chosen] += 1
        if not replica.awake:
            replica.awake = True
            heapq.heappush(self._wakes, (now_s, chosen))

    def _wake(self, index: int, now_s: float) -> None:
        replica = self._replicas[index]
        if replica.in_flight:
            ended = replica.land(now_s)
            self._loads[index] -= len(ended)
            self.num_ended += len(ended)
            for arrival in ended:
                num_prompt = sum(segment.length for segment in arrival.prompt)
                self.served[arrival.tenant] += num_prompt + 2 * arrival.answer.length
                turn = arrival.following(now_s)
                if turn is not None:
                    heapq.heappush(self._turns, (turn.arrival_s, next(self._numbers), turn))
        end_s = replica.launch(now_s)
        replica.awake = end_s is not None
        if end_s is not None:
            heapq.heappush(self._wakes, (end_s, index))
