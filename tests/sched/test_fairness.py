"""Tenants wait in turn: by what each has been given, not by how much it asks for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from quire.engine.params import SamplingParams
from quire.engine.plan import StepPlan
from quire.engine.sched import fairness
from quire.fuzz.oracles import Rig
from quire.fuzz.strategies import make_limits, make_request

WEIGHTS = {"a": 1.0, "b": 2.0, "c": 4.0}


@dataclass
class Asked:
    """A living request, as SlowCounters knows it."""

    name: str
    tenant: str
    arrival: int
    num_prompt: int
    num_known: int
    slot: int = -1
    num_paid: int = 0

    def price(self, last: int) -> int:
        """1 a prompt token, 2 an output, each once."""
        positions = range(self.num_paid, last)
        return sum(1 if position < self.num_prompt else 2 for position in positions)


@dataclass
class SlowCounters:
    """Virtual token counters, spelled out: every token is booked in its step."""

    weights: dict[str, float]
    counters: dict[str, float] = field(default_factory=dict)
    alive: dict[str, Asked] = field(default_factory=dict)
    last: str = ""

    @property
    def waiting(self) -> list[Asked]:
        """Who has no slot, the oldest first."""
        return sorted((r for r in self.alive.values() if r.slot < 0), key=lambda r: r.arrival)

    def add(self, asked: Asked) -> None:
        """Queue a request."""
        self.lift(asked.tenant)
        self.alive[asked.name] = asked

    def lift(self, tenant: str) -> None:
        """Raise a tenant that comes to wait to the least that waits, or to who came in last."""
        waiting = {asked.tenant for asked in self.waiting}
        if tenant not in waiting:
            others = waiting or {self.last}
            level = min(self.counters.get(other, 0.0) for other in others)
            self.counters[tenant] = max(self.counters.get(tenant, 0.0), level)

    def order(self) -> Iterable[str]:
        """Name those who wait as they come, each paying as it is named."""
        counters, waiting = dict(self.counters), self.waiting
        while waiting:
            following = min(waiting, key=lambda r: (counters[r.tenant], r.arrival))
            waiting.remove(following)
            yield following.name
            price = following.price(following.num_known + 1)
            counters[following.tenant] += price / self.weights[following.tenant]

    def put_back(self, plan: StepPlan) -> None:
        """Let the preempted wait again."""
        for slot in plan.released.tolist():
            for asked in [r for r in self.alive.values() if r.slot == slot]:
                self.lift(asked.tenant)
                asked.slot = -1

    def pay(self, plan: StepPlan, names: list[str]) -> None:
        """Book a step. names: of the admitted."""
        for admitted, name in zip(plan.admitted, names, strict=True):
            self.alive[name].slot = admitted.slot
            self.last = self.alive[name].tenant
        rows = zip(plan.slots.tolist(), plan.starts.tolist(), plan.num_tokens.tolist(), strict=True)
        by_slot = {asked.slot: asked for asked in self.alive.values()}
        for slot, start, count in rows:
            asked = by_slot[slot]
            asked.num_paid = max(asked.num_paid, start)
            self.counters[asked.tenant] += asked.price(start + count) / self.weights[asked.tenant]
            asked.num_paid = max(asked.num_paid, start + count)


def launch(rig: Rig, slow: SlowCounters) -> StepPlan | None:
    """Run a step in both; the scheduler must admit as the counters say."""
    decision = rig.scheduler.plan()
    if decision is None:
        return None
    names = [admission.sequence.request_id for admission in decision.admissions]
    assert names == list(slow.order())[: len(names)]
    plan = rig.scheduler.commit(decision)
    rig.flying.append((plan, rig.device.execute(plan)))
    rig.scheduler.check()
    slow.put_back(plan)
    slow.pay(plan, names)
    return plan


def land(rig: Rig, slow: SlowCounters) -> None:
    events = rig.land()
    ended = {finished.index for finished in events.finished}
    for index, name in enumerate(events.request_ids):
        slow.alive[name].num_known += 1
        if index in ended:
            del slow.alive[name]


def counters_of(rig: Rig) -> dict[str, float]:
    """What the scheduler holds of tenants with living requests."""
    queue = rig.scheduler._state.waiting
    counters = queue.counters()
    return {name: float(counters[index]) for name, index in queue._indices.items()}


moves = st.tuples(st.sampled_from("abc"), st.integers(1, 20), st.integers(1, 20), st.integers(0, 3))


@settings(max_examples=150, deadline=None)
@given(
    moves=st.lists(moves, min_size=1, max_size=40),
    slots=st.integers(1, 4),
    budget=st.sampled_from((2, 8, 64)),
    spare=st.sampled_from((0, 1, 4, 100)),
    caching=st.booleans(),
)
def test_admissions_and_counters_are_those_of_the_definition(
    moves: list[tuple[str, int, int, int]], slots: int, budget: int, spare: int, caching: bool
) -> None:
    """Preemption, prefix hits and chunks included: nothing is paid twice, or not at all."""
    limits = make_limits(
        max_num_seqs=slots,
        budget=budget,
        num_blocks=10 + spare,
        caching=caching,
        max_model_len=41,
    )
    limits = replace(limits, tenant_weights=WEIGHTS)
    rig, slow = Rig(limits), SlowCounters(WEIGHTS)
    for number, (tenant, length, max_tokens, num_steps) in enumerate(moves, 1):
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        name = f"r{number}"
        prompt = [number % 3, *([1] * (length - 1))]
        rig.add(make_request(name, prompt, params=params, seed=number, tenant=tenant))
        slow.add(Asked(name, tenant, number, length, length))
        for _ in range(num_steps):
            if launch(rig, slow):
                land(rig, slow)
        found = counters_of(rig)
        assert found == pytest.approx({t: slow.counters[t] for t in found}, rel=1e-12)
    while slow.alive:
        assert launch(rig, slow)
        land(rig, slow)
    assert rig.scheduler.num_free_blocks == limits.num_blocks


def flood(rig: Rig, tenant: str, count: int, *, length: int = 8, seed: int = 0) -> list[str]:
    """Add many requests of a tenant."""
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    return [
        rig.add(
            make_request(
                f"{tenant}{seed + i}",
                [seed + i] * length,
                params=params,
                seed=1000 * (1 + sum(map(ord, tenant))) + seed + i,
                tenant=tenant,
            )
        )
        for i in range(count)
    ]


def served(rig: Rig) -> list[str]:
    """Run all; name the tenants in the order of their admissions."""
    order: list[str] = []
    while rig.scheduler.has_unfinished:
        decision = rig.scheduler.plan()
        assert decision is not None
        order += [admission.sequence.request.tenant for admission in decision.admissions]
        plan = rig.scheduler.commit(decision)
        rig.flying.append((plan, rig.device.execute(plan)))
        rig.land()
    return order


def test_equal_tenants_take_turns_however_many_requests_each_has() -> None:
    rig = Rig(make_limits(max_num_seqs=2, caching=False))
    flood(rig, "noisy", 20)
    flood(rig, "quiet", 3)
    assert served(rig)[:7] == ["noisy", "quiet"] * 3 + ["noisy"]


def test_many_free_places_are_shared_too() -> None:
    """Admitted in one step: each pays as it is admitted."""
    rig = Rig(make_limits(max_num_seqs=8, budget=512, caching=False))
    flood(rig, "noisy", 20)
    flood(rig, "quiet", 20)
    assert sorted(served(rig)[:8]) == ["noisy"] * 4 + ["quiet"] * 4


def test_weights_are_shares() -> None:
    rig = Rig(replace(make_limits(max_num_seqs=1, caching=False), tenant_weights={"gold": 3.0}))
    flood(rig, "gold", 24)
    flood(rig, "plain", 24)
    assert served(rig)[:24].count("gold") == 18


def test_nobody_saves_up_while_away() -> None:
    rig = Rig(make_limits(max_num_seqs=1, caching=False))
    flood(rig, "early", 1)
    flood(rig, "steady", 12)
    for _ in range(60):
        rig.step()
    flood(rig, "early", 6, seed=100)
    order = served(rig)
    assert order[:6].count("early") == 3, order


def test_a_debt_is_remembered_when_a_tenant_has_gone_for_a_moment() -> None:
    """A new connection is not a new counter."""
    rig = Rig(make_limits(max_num_seqs=3, caching=False))
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    for seed in (1, 2):
        rig.add(make_request(f"long{seed}", [1], params=params, seed=seed, tenant="greedy"))
    flood(rig, "steady", 20, length=1)
    while "long2" not in rig.ended:
        rig.step()
    flood(rig, "greedy", 4, length=1)
    # Two of 79 against five of 15.
    order = served(rig)
    assert order[:5] == ["steady"] * 5 and "greedy" in order[5:8], order


def test_who_has_had_most_gives_way_when_the_blocks_run_out() -> None:
    """The quiet one would lose fewer tokens, and is the latest."""
    rig = Rig(make_limits(num_blocks=9, max_model_len=33, block_size=4, max_num_seqs=3))
    flood(rig, "noisy", 2, length=9)
    flood(rig, "quiet", 1, length=4)
    while rig.scheduler.stats.num_preemptions == 0:
        rig.step()
    assert [one.request_id for one in rig.scheduler._state.waiting] == ["noisy1"]
    rig.drain()


def test_tenants_beyond_the_limit_share_an_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fairness, "MAX_TENANTS", 4)
    rig = Rig(make_limits(max_num_seqs=1, caching=False))
    for number in range(40):
        flood(rig, f"tenant-{number}", 2)
        rig.scheduler.check()
    queue = rig.scheduler._state.waiting
    assert sorted(queue._indices) == ["", "tenant-0", "tenant-1", "tenant-2"]
    rig.drain()
    assert len(queue._idle) == 4 and not queue._accounts


def test_priority_goes_before_shares() -> None:
    rig = Rig(make_limits(max_num_seqs=1, policy="priority"))
    flood(rig, "noisy", 3)
    params = SamplingParams(max_tokens=2)
    for seed, (tenant, priority) in enumerate((("noisy", -1), ("noisy", -1), ("quiet", 0)), 7):
        request = make_request(
            f"p{seed}", [1, 2], params=params, seed=seed, priority=priority, tenant=tenant
        )
        rig.add(request)
    assert served(rig) == ["noisy", "noisy", "quiet", "noisy", "noisy", "noisy"]


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    outputs=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    slots=st.integers(1, 4),
)
def test_the_service_of_two_that_always_wait_stays_within_the_bound(
    lengths: tuple[int, int], outputs: tuple[int, int], slots: int
) -> None:
    """Sheng et al., theorem 4.4: at most 2 max(prompt price, output price x tokens in memory)."""
    limits = make_limits(max_num_seqs=slots, budget=32, num_blocks=60, max_model_len=64)
    rig = Rig(limits)
    for number in range(12):
        for tenant, length, count in zip("ab", lengths, outputs, strict=True):
            params = SamplingParams(max_tokens=count, ignore_eos=True)
            seed = 2 * number + (tenant == "b")
            rig.add(
                make_request(
                    f"{tenant}{number}", [number] * length, params=params, seed=seed, tenant=tenant
                )
            )
    most = slots * max(n + 2 * m for n, m in zip(lengths, outputs, strict=True))
    queue = rig.scheduler._state.waiting
    while {sequence.request.tenant for sequence in queue} == {"a", "b"}:
        counters = counters_of(rig)
        assert abs(counters["a"] - counters["b"]) <= 2 * most, counters
        rig.step()
