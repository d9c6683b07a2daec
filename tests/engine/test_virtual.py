"""Episodes on virtual time: short ones are right, and faults planted in the engine are seen."""

from __future__ import annotations

import copy
from itertools import count
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from quire.engine.kv.block_pool import BlockPool
from quire.engine.kv.hashing import BlockHasher
from quire.engine.plan import StepPlan, StepResult
from quire.engine.request import IntArray, TokenEvents
from quire.engine.sched import planner, stopping
from quire.engine.sched.fairness import FairQueue
from quire.engine.sched.limits import SchedulerLimits
from quire.engine.sched.memory import SlotMemory
from quire.engine.sched.scheduler import Scheduler
from quire.engine.sched.sequence import Hit, Sequence
from quire.fuzz.fast_device import FastDevice
from quire.fuzz.oracles import FakeDevice
from quire.fuzz.strategies import make_limits
from quire.fuzz.traffic import Setup
from quire.fuzz.virtual import Episode, live

SEEDS = range(1, 5)


def make_setup(**changes: Any) -> Setup:
    """Make an episode in which everything happens, in little memory."""
    limits = make_limits(
        max_num_seqs=6, budget=16, max_model_len=40, block_size=4, num_blocks=20, overlap=2
    )
    setup = Setup(
        limits=limits, num_steps=500, abort=0.1, fork=0.2, death=0.005, slow=0.02, gesture=0.05
    )
    return replace(setup, **changes)


def test_everything_happens_and_nothing_is_wrong() -> None:
    totals = Episode(1, setup=make_setup(num_steps=3_000)).run()
    for name in ("preemptions", "evictions", "copies", "forks", "aborts", "budgets", "failures"):
        assert totals[name] > 0, (name, totals)
    for fate in ("before", "after", "stall"):
        assert totals[f"steps that end: {fate}"] > 0, totals
    assert totals["requests that outlive a failure"] > 0, totals


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize("overlap", [1, 2])
def test_an_episode_is_a_function_of_its_seed(policy: str, overlap: int) -> None:
    limits = replace(make_setup().limits, policy=policy, overlap=overlap)
    setup = make_setup(limits=limits)
    assert Episode(2, setup=setup).run() == Episode(2, setup=setup).run()


def test_a_failure_names_the_command_that_repeats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: object) -> StepResult:
        raise AssertionError("planted")

    monkeypatch.setattr(FastDevice, "execute", die)
    (failure,) = live(7).failures
    assert failure.endswith("episode 7 failed at step 1: python -m quire.fuzz.virtual --episode 7")


class BothDevices(FastDevice):
    """The fast device beside the slow one, on plans as they come and on plans with one fault."""

    def __init__(
        self, limits: SchedulerLimits, roots: dict[int, int], is_new: bool = False
    ) -> None:
        super().__init__(limits, roots, is_new)
        self._names = list(self.__dict__)
        self._slow = FakeDevice(limits, roots)
        self._random = np.random.default_rng(5)
        self.num_refused = self.num_accepted = 0

    def execute(self, plan: StepPlan) -> StepResult:
        """Run both; what they give and what they remember must be the same."""
        self._compare_wrong(plan)
        slow, fast = self._slow.execute(plan), super().execute(plan)
        assert slow.token_ids.tolist() == fast.token_ids.tolist()
        for (block, offset), content in self._slow.memory.items():
            assert self.memory[block, offset] == content, (block, offset)
        return fast

    def _compare_wrong(self, plan: StepPlan) -> None:
        """One number of the plan is changed: both refuse it, or both give the same."""
        names = ("released", "block_slots", "block_indices", "block_ids", "starts", "num_tokens")
        name = names[self._random.integers(len(names))]
        array = getattr(plan, name).copy()
        if not len(array):
            return
        array[self._random.integers(len(array))] += self._random.choice((-1, 1))
        wrong = replace(plan, **{name: array})
        outcomes: list[object] = []
        fast = FastDevice.__new__(FastDevice)
        fast.__dict__ |= {key: self.__dict__[key] for key in self._names}
        for device in (copy.deepcopy(self._slow), copy.deepcopy(fast)):
            try:
                outcomes.append(device.execute(wrong).token_ids.tolist())
            except (AssertionError, LookupError):
                outcomes.append("refused")
        assert outcomes[0] == outcomes[1], (name, array, outcomes)
        self.num_refused += outcomes[0] == "refused"
        self.num_accepted += outcomes[0] != "refused"


@pytest.mark.parametrize("overlap", [1, 2])
@pytest.mark.parametrize("block_size", [1, 4])
def test_the_fast_device_is_the_fake_device(block_size: int, overlap: int) -> None:
    devices: list[BothDevices] = []

    def make_both(limits: SchedulerLimits, roots: dict[int, int], is_new: bool) -> FastDevice:
        devices.append(BothDevices(limits, roots, is_new))
        return devices[-1]

    limits = replace(
        make_setup().limits, block_size=block_size, num_blocks=60 // block_size, overlap=overlap
    )
    setup = make_setup(limits=limits, num_steps=150, death=0.0)
    totals = Episode(3, setup=setup, make_device=make_both).run()
    assert totals["copies"] or block_size == 1, totals
    assert devices[0].num_refused > 50, devices[0].num_refused


def faults(**changes: Any) -> str:
    """Tell what the first episode that fails says; "" where none does."""
    for seed in SEEDS:
        try:
            Episode(seed, setup=make_setup(death=0.0, **changes)).run()
        except (AssertionError, LookupError) as error:
            return f"{type(error).__name__}: {error}"
    return ""


def test_nothing_is_seen_where_nothing_is_planted() -> None:
    assert not faults()


def test_a_shared_block_that_is_freed_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def drop(pool: BlockPool, ids: Any, keyed: Any) -> None:
        pool.references[ids] = np.minimum(pool.references[ids], 1)
        right(pool, ids, keyed)

    right = BlockPool.drop
    monkeypatch.setattr(BlockPool, "drop", drop)
    assert faults()


def test_a_draining_slot_that_is_released_at_once_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Scheduler, "_is_in_flight", lambda *_: False)
    assert faults()


def test_a_hit_of_one_token_too_many_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def lookup(*arguments: Any) -> Hit:
        hit = right(*arguments)
        return hit._replace(num_tokens=hit.num_tokens + (hit.source >= 0))

    right = planner._lookup
    monkeypatch.setattr(planner, "_lookup", lookup)
    assert faults()


def test_a_preempted_one_that_loses_its_place_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def put_back(self: FairQueue, sequence: Sequence) -> None:
        sequence.rank = (sequence.rank[0], next(later), 0)
        right(self, sequence)

    right, later = FairQueue.put_back, count(10**6)
    monkeypatch.setattr(FairQueue, "put_back", put_back)
    assert faults()


def test_a_preempted_one_that_loses_a_token_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def preempt(self: Scheduler, sequence: Sequence) -> None:
        right(self, sequence)
        sequence.token_ids = sequence.token_ids[:-1]

    right = Scheduler._preempt
    monkeypatch.setattr(Scheduler, "_preempt", preempt)
    assert faults()


def test_salts_that_are_all_alike_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = BlockHasher.root
    monkeypatch.setattr(BlockHasher, "root", lambda self, salt: right(self, None))
    assert faults()


def test_a_copy_source_that_is_not_held_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hit, "held", lambda self: self.blocks[self.blocks >= 0])
    assert faults()


def test_a_token_that_is_told_twice_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[TokenEvents] = []

    def retire(self: Scheduler, plan: StepPlan, result: StepResult) -> TokenEvents:
        told.append(right(self, plan, result))
        if len(told) < 100 or not told[-2].request_ids:
            return told[-1]
        return told[-2]

    right = Scheduler.retire
    monkeypatch.setattr(Scheduler, "retire", retire)
    assert faults()


def test_the_oldest_that_is_preempted_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = planner._victim

    def victim(state: planner.State, slots: Any) -> int:
        chosen = right(state, slots)
        return int(slots[0]) if chosen >= 0 and len(state.in_flight) == 0 else chosen

    monkeypatch.setattr(planner, "_victim", victim)
    assert faults(limits=replace(make_setup().limits, overlap=1))


def test_blocks_that_are_never_freed_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def release(self: SlotMemory, slot: int) -> None:
        self.pool.references[self.blocks.row(slot)[:1]] += 1
        right(self, slot)

    right = SlotMemory.release
    monkeypatch.setattr(SlotMemory, "release", release)
    assert faults()


def test_a_stop_that_is_judged_late_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = stopping.judge

    def judge(sequence: Sequence, tokens: IntArray) -> Any:
        return right(sequence, tokens[1:])

    monkeypatch.setattr("quire.engine.sched.scheduler.judge", judge)
    assert faults()
