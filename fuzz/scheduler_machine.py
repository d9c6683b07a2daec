"""A state machine over the whole scheduler: any order of add, fork, abort, launch, land, fail.

The device is FakeDevice, whose tokens are a pure function of the whole history: if anything but a
request's own history reaches a row, either the device notices or the outputs differ from those of
the request run alone. Run by tests/sched with a short, fixed budget and by `quire.fuzz.run`.
"""

from __future__ import annotations

import sys
from collections import Counter, deque
from typing import ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule
from msgspec.structs import replace

from ..engine.errors import ParamsError
from ..engine.kv.prefix_index import UPCOMING
from ..engine.params import SamplingParams
from ..engine.plan import StepPlan, StepResult
from ..engine.request import Finished, Request, TokenEvents
from ..engine.sched.planner import Decision
from ..engine.sched.scheduler import Scheduler, SchedulerLimits
from .commands import NotedMachine, noted
from .drafters import DrafterName, KnowingDrafter, make_drafter
from .oracles import FLAKY, VOCAB, Alone, FakeDevice, run_alone, told_tokens
from .states import Reached
from .strategies import TENANTS, limits, make_request, prompts, sampling_params

_SALTS = (None, None, None, "a", "b")
_ROOTS = {None: 11, "a": 12, "b": 13}


class SchedulerMachine(NotedMachine):
    """Compares everything that comes out with each request run alone."""

    totals: ClassVar[Counter[str]] = Counter()
    """What all runs together have exercised; printed by `quire.fuzz.run`."""
    states: ClassVar[set[str]] = set()
    """What states they have been in."""

    @initialize(limits=limits(), drafter=st.sampled_from(("knowing", "learning", "model")))
    @noted
    def start(self, limits: SchedulerLimits, drafter: DrafterName = "knowing") -> None:
        self.limits = limits
        self.drafter = make_drafter(drafter, self.texts, VOCAB)
        self.scheduler = Scheduler(limits, secret=b"0123456789abcdef", drafter=self.drafter)
        self.roots: dict[int, int] = {}
        self.device = FakeDevice(limits, self.roots, KnowingDrafter(self.texts, VOCAB).guess)
        self.flying: deque[tuple[StepPlan, StepResult]] = deque()
        self.requests: dict[str, Request] = {}
        self.outputs: dict[str, list[int]] = {}
        self.told: dict[str, list[tuple[int, int]]] = {}
        self.ended: dict[str, Finished] = {}
        self.expected: dict[str, Alone] = {}
        self.contents: dict[bytes, tuple[int, ...]] = {}
        self.cached: dict[str, int] = {}
        """Hit tokens of each request's first admission."""
        self.num_requests = 0
        self.reached = Reached(self.scheduler, self.states)

    def texts(self) -> list[list[int]]:
        """What all requests say alone, prompts included."""
        return [
            [*self.requests[name].prompt_token_ids.tolist(), *alone.token_ids]
            for name, alone in self.expected.items()
        ]

    @property
    def alive(self) -> list[str]:
        """Ids of the requests that have not ended, oldest first."""
        return [name for name in self.requests if name not in self.ended]

    @property
    def kept(self) -> list[str]:
        """Ids of those that have ended and were kept."""
        return list(self.scheduler._shares.kept)

    @rule(
        data=st.data(),
        params=sampling_params(),
        eos=st.sampled_from(((), (0,), (0, 1))),
        priority=st.integers(-2, 2),
        salt=st.sampled_from(_SALTS),
        keep=st.booleans(),
    )
    @noted
    def add(
        self,
        data: st.DataObject,
        params: SamplingParams,
        eos: tuple[int, ...],
        priority: int,
        salt: str | None,
        keep: bool = False,
    ) -> None:
        prompt = data.draw(prompts(self.limits.max_model_len - 1))
        request = self.make(prompt, params, eos=eos, priority=priority, salt=salt)
        request = replace(request, keep=keep)
        self.scheduler.add(request)
        self.enter(request)

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), params=sampling_params(), cut=st.sampled_from((0, 0, 1, 2, 5)))
    @noted
    def fork(self, data: st.DataObject, params: SamplingParams, cut: int = 0) -> None:
        """Fork what a request knows, or all but the last `cut` tokens."""
        parent = self.requests[data.draw(st.sampled_from(self.alive))]
        known = [*parent.prompt_token_ids.tolist(), *self.outputs[parent.request_id]]
        known = known[: max(1, len(known) - cut)]
        if len(known) + 1 > self.limits.max_model_len:
            return
        request = self.make(known, params, eos=(0,), priority=0, salt=parent.cache_salt)
        self.scheduler.fork(parent.request_id, request)
        self.totals["forks"] += 1
        self.enter(request)

    @precondition(lambda self: self.kept)
    @rule(data=st.data(), cut=st.sampled_from((0, 0, 0, 1, 3)), number=st.integers(1, 4))
    @noted
    def fork_kept(self, data: st.DataObject, cut: int, number: int) -> None:
        """Fork one that was kept, as a step of a search does: `number` with last tokens of their
        own, each of one token and kept in turn, and the parent goes."""
        parent = self.requests[data.draw(st.sampled_from(self.kept))]
        known = [*parent.prompt_token_ids.tolist(), *self.outputs[parent.request_id]]
        known = known[: max(1, len(known) - cut)]
        if len(known) + 1 > self.limits.max_model_len:
            return
        params = SamplingParams(max_tokens=1, ignore_eos=True)
        for _ in range(number):
            prompt = [*known[:-1], data.draw(st.integers(0, VOCAB - 1))]
            request = self.make(prompt, params, eos=(), priority=0, salt=parent.cache_salt)
            request = replace(request, keep=True)
            self.scheduler.fork(parent.request_id, request)
            self.totals["forks of kept ones"] += 1
            self.enter(request)
        self.scheduler.abort(parent.request_id)
        self.scheduler.check()

    @rule(data=st.data())
    @noted
    def add_impossible(self, data: st.DataObject) -> None:
        """A request that cannot fit, or whose id is alive, is refused and leaves no trace."""
        too_long = make_request("x", [1] * self.limits.max_model_len)
        twice = [self.requests[name] for name in self.alive[:1]]
        for request in (too_long, *twice):
            try:
                self.scheduler.add(request)
            except ParamsError:
                continue
            raise AssertionError(f"{request.request_id} was accepted")

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    @noted
    def abort(self, data: st.DataObject) -> None:
        # Rather those that only one of two steps in flight computes, and rather the living.
        steps = [set(self.names_of(plan)) for plan, _ in self.flying]
        single = sorted(steps[0] ^ steps[1]) if len(steps) == 2 else []
        name = data.draw(st.sampled_from(single or [*self.alive, *self.requests]))
        self.totals["aborts in one of two steps"] += bool(single)
        was_kept = name in self.kept
        events = self.scheduler.abort(name)
        if was_kept:
            assert events is not None and not events.request_ids, (name, events)
            assert name not in self.kept, name
            return
        assert (events is None) == (name in self.ended), (name, events)
        if events is not None:
            self.totals["aborts"] += 1
            assert [f.reason for f in events.finished] == ["abort"], events
            self.take(events)

    @rule()
    @noted
    def launch(self) -> None:
        """Plan and commit one step, if there is one; the device executes it at once, in order."""
        decision = self.scheduler.plan()
        again = self.scheduler.plan()
        assert summary(decision) == summary(again), (decision, again)
        if decision is None:
            self.totals["waits"] += bool(self.alive) and len(self.flying) < self.limits.overlap
            return
        self.totals["shares dropped"] += decision.drop_held
        self.totals["hits in one step"] += sum(
            UPCOMING in a.hit.blocks for a in decision.admissions
        )
        first = [s.request_id for s in self.scheduler._running][:1]
        before = self.scheduler.stats
        plan = self.scheduler.commit(decision)
        after = self.scheduler.stats
        assert after.num_steps - before.num_steps == 1
        computed = after.num_scheduled_tokens - before.num_scheduled_tokens
        assert computed == plan.num_scheduled_tokens, (computed, plan)
        assert after.num_copies - before.num_copies == len(plan.copy_sources), plan
        assert after.num_preemptions - before.num_preemptions == len(decision.victims)
        for admission in decision.admissions:
            self.cached.setdefault(admission.sequence.request_id, admission.hit.num_tokens)
        if first:
            assert first[0] in [s.request_id for s in self.scheduler._running], first
        if decision.victims:
            assert not decision.admissions, decision
        self.reached.launched(decision, plan)
        self.flying.append((plan, self.device.execute(plan)))
        self.compare_cache()

    @precondition(lambda self: self.flying)
    @rule()
    @noted
    def land(self) -> None:
        plan, result = self.flying.popleft()
        self.take(self.scheduler.retire(plan.told(result.guesses), result))

    def names_of(self, plan: StepPlan) -> list[str]:
        """Name the living requests that compute in a plan in flight."""
        slots = set(plan.slots.tolist())
        return [s.request_id for s in self.scheduler._running if s.slot in slots]

    @rule(number=st.integers(1, 6), deep=st.booleans())
    @noted
    def step(self, number: int, deep: bool = False) -> None:
        """Run some steps as the engine does: as deep as allowed, then land the oldest.

        deep: what comes next finds as many steps in flight as may be.
        """
        for _ in range(number):
            self.fill()
            if self.flying:
                self.land()
            self.scheduler.check()
        if deep:
            self.fill()

    def fill(self) -> None:
        """Launch steps as long as it is possible."""
        depth = -1
        while depth < len(self.flying) < self.limits.overlap:
            depth = len(self.flying)
            self.launch()

    @precondition(lambda self: self.flying)
    @rule(number=st.integers(0, 3))
    @noted
    def fail(self, number: int) -> None:
        """Now and then a step dies: all with a step in flight end, the others survive."""
        if number:
            return
        self.totals["failures amid copies"] += any(len(p.copy_sources) for p, _ in self.flying)
        busy = {slot for plan, _ in self.flying for slot in plan.slots.tolist()}
        doomed = [s.request_id for s in self.scheduler._running if s.slot in busy]
        self.reached.failed(self.flying[0][0], "the device died")
        self.flying.clear()
        events = self.scheduler.fail("the device died")
        assert events.request_ids == doomed, (events.request_ids, doomed)
        assert {f.message for f in events.finished} <= {"the device died"}
        assert len(events.finished) == len(doomed)
        self.totals["failures"] += 1
        for name in doomed:
            self.expected.pop(name)
        self.take(events)
        # Whatever was written cannot be trusted any more.
        self.device.memory.clear()
        assert self.scheduler.num_free_blocks == self.limits.num_blocks

    @rule()
    @noted
    def reset_cache(self) -> None:
        idle = self.scheduler.num_free_blocks == self.limits.num_blocks
        assert self.scheduler.reset_prefix_cache() == idle
        if idle:
            assert len(self.scheduler._memory.index) == 0

    def teardown(self) -> None:
        self.is_inside = True
        if not hasattr(self, "scheduler") or sys.exc_info()[0] is not None:
            return
        # The oldest is never preempted: chunks of one token, outputs and waits bound its life.
        bound = 10 + len(self.requests) * (3 * self.limits.max_model_len + 10)
        while self.scheduler.has_unfinished:
            bound -= 1
            assert bound > 0, ("no progress", self.alive)
            self.step(1)
        assert not self.flying and not self.alive, self.alive
        self.scheduler.check()
        for name in self.kept:
            self.scheduler.abort(name)
        assert self.scheduler.num_free_blocks == self.limits.num_blocks
        assert self.scheduler.plan() is None and not (self.drafter and self.drafter.known)
        for name, alone in self.expected.items():
            self.compare(name, alone)
        self.reached.aim()
        self.totals.update(self.reached.figures(len(self.requests)))

    def make(
        self,
        prompt: list[int],
        params: SamplingParams,
        *,
        eos: tuple[int, ...],
        priority: int,
        salt: str | None,
    ) -> Request:
        """Make a request with an id and a seed of its own."""
        self.num_requests += 1
        seed = self.num_requests | (FLAKY if self.num_requests % 5 == 0 else 0)
        self.roots[seed] = _ROOTS[salt]
        name = f"r{self.num_requests}"
        return make_request(
            name,
            prompt,
            params=params,
            seed=seed,
            eos=eos,
            priority=priority,
            salt=salt,
            tenant=TENANTS[self.num_requests % len(TENANTS)],
        )

    def enter(self, request: Request) -> None:
        """Note an accepted request and what it must give."""
        name = request.request_id
        self.requests[name] = request
        self.outputs[name] = []
        self.told[name] = []
        self.expected[name] = run_alone(request, _ROOTS[request.cache_salt], self.limits)
        self.scheduler.check()

    def take(self, events: TokenEvents) -> None:
        """Deliver events: each token once, none after the end."""
        self.scheduler.check()
        names = events.request_ids
        assert len(names) == len(events.token_ids) == len(events.num_cached_tokens)
        assert self.limits.num_drafts or len(names) == len(set(names)), names
        for one in events.prompts:
            assert one.request_id not in self.ended, (one, "told after the end")
            self.told[one.request_id] += told_tokens(one)
            self.totals["tokens of prompts told"] += len(one.rows.ranks)
        endings = {finished.index: finished for finished in events.finished}
        assert len(endings) == len(events.finished), events.finished
        for index, (name, token) in enumerate(zip(names, events.token_ids.tolist(), strict=True)):
            assert name not in self.ended, (name, "an event after the end")
            cached = int(events.num_cached_tokens[index])
            assert cached == self.cached.get(name, 0), (name, cached)
            assert cached < len(self.requests[name].prompt_token_ids), (name, cached)
            finished = endings.get(index)
            assert token >= 0 or (finished and finished.reason in ("abort", "error")), name
            if finished is None or token >= 0:
                self.outputs[name].append(token)
                alone = self.expected[name].token_ids
                outputs = self.outputs[name]
                assert outputs == alone[: len(outputs)], (name, outputs, alone)
                self.compare_prompt(self.requests[name])
            if finished is not None:
                keeps = self.requests[name].keep and finished.reason == "length"
                assert (name in self.kept) == keeps, (name, finished)
                self.ended[name] = finished
                if finished.reason == "abort":
                    self.expected.pop(name)

    def compare_prompt(self, request: Request) -> None:
        """Each token of a prompt is told once, in order, before an answer begins."""
        prompt = list(enumerate(request.prompt_token_ids.tolist()))
        wanted = [] if request.params.prompt_logprobs is None else prompt[1:]
        assert self.told[request.request_id] == wanted, request.request_id

    def compare(self, name: str, alone: Alone) -> None:
        """Assert that a request that was left alone gave what it gives alone."""
        ended, tokens = self.ended[name], alone.token_ids
        outputs = tokens[:-1] if alone.reason == "error" else tokens
        assert self.outputs[name] == outputs, (name, self.outputs[name], tokens)
        assert (ended.reason, ended.stop_reason) == (alone.reason, alone.stop_reason), (name, ended)
        assert (ended.message is not None) == (alone.reason == "error"), ended

    def compare_cache(self) -> None:
        """Every published block holds what its key stands for, and keys stand for one content."""
        index, size = self.scheduler._memory.index, self.limits.block_size
        for block in index.keyed.nonzero()[0].tolist():
            written = tuple(self.device.memory.get((block, i), -1) for i in range(size))
            key = index._keys[block]
            assert self.contents.setdefault(key, written) == written, (block, written)
            tokens = index.tokens[block].tolist()
            assert all(0 <= token < VOCAB for token in tokens), (block, tokens)


def summary(decision: Decision | None) -> object:
    """Bring a decision into a form that compares."""
    if decision is None:
        return None
    grant = decision.grant
    return (
        [grant.slots.tolist(), grant.starts.tolist(), grant.counts.tolist()],
        [grant.openers.tolist(), grant.num_opened.tolist()],
        [(a.sequence.request_id, a.num_tokens, a.num_blocks) for a in decision.admissions],
        [(a.hit.blocks.tolist(), a.hit.source, a.hit.num_tokens) for a in decision.admissions],
        decision.victims,
        decision.drop_held,
        decision.num_blocks,
        grant.drafts
        and [
            None if part is None else part.tolist()
            for part in (grant.drafts.counts, grant.drafts.token_ids)
        ],
    )
