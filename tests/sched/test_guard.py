"""The guard of the machines bites: plans that write what others read, and lost progress."""

from __future__ import annotations

import numpy as np
import pytest
from msgspec.structs import replace
from quire.engine.params import SamplingParams
from quire.engine.plan import StepPlan
from quire.fuzz.guard import Guard
from quire.fuzz.oracles import Rig
from quire.fuzz.strategies import make_limits, make_request

LONG = SamplingParams(max_tokens=20, ignore_eos=True)
PROMPT = [1, 2, 3, 4, 5, 6, 7, 8, 9]


@pytest.fixture
def rig() -> Rig:
    """Two that share two blocks of four tokens; the first is in slot 0."""
    made = Rig(make_limits(block_size=4))
    for seed in (1, 2):
        made.add(make_request(f"r{seed}", PROMPT, params=LONG, seed=seed))
        made.step()
    assert made.scheduler.stats.prefix_hits == 8
    return made


def writing(rig: Rig, slot: int, start: int, count: int) -> StepPlan:
    """The next plan, made to write elsewhere."""
    plan = rig.launch()
    assert plan is not None
    arrays = [np.array([one], np.int32) for one in (slot, start, count)]
    return replace(plan, slots=arrays[0], starts=arrays[1], num_tokens=arrays[2])


def test_what_a_scheduler_really_plans_is_let_through(rig: Rig) -> None:
    guard = Guard(rig.scheduler)
    for _ in range(5):
        plan = rig.launch()
        assert plan is not None
        guard.committed(plan)
        rig.land()


@pytest.mark.parametrize(("start", "count"), [(0, 1), (3, 2), (7, 3)])
def test_a_shared_block_must_not_be_written(rig: Rig, start: int, count: int) -> None:
    with pytest.raises(AssertionError, match="is shared"):
        Guard(rig.scheduler).committed(writing(rig, 1, start, count))


def test_a_published_block_must_not_be_written_in_part(rig: Rig) -> None:
    rig.scheduler.abort("r1")
    with pytest.raises(AssertionError):
        Guard(rig.scheduler).committed(writing(rig, 1, 4, 2))


def test_what_a_waiting_fork_holds_must_not_be_written() -> None:
    rig = Rig(make_limits(block_size=4, max_num_seqs=1))
    rig.add(make_request("parent", PROMPT, params=LONG, seed=1))
    rig.step()
    known = [*PROMPT, *rig.outputs["parent"]]
    rig.add(make_request("child", known, params=LONG, seed=2), "parent")
    guard = Guard(rig.scheduler)
    guard.committed(writing(rig, 0, 9, 1))
    rig.land()
    with pytest.raises(AssertionError):
        guard.committed(writing(rig, 0, 8, 1))


@pytest.mark.parametrize("lost", ["tokens", "slot"])
def test_the_oldest_must_not_lose_what_it_computed(rig: Rig, lost: str) -> None:
    guard = Guard(rig.scheduler)
    plan = rig.launch()
    assert plan is not None
    guard.committed(plan)
    rig.land()
    oldest = next(iter(rig.scheduler._running))
    if lost == "tokens":
        rig.scheduler._memory.table.submitted[oldest.slot] -= 1
    else:
        rig.scheduler._preempt(oldest)
        rig.scheduler._refresh_rows()
    with pytest.raises(AssertionError):
        guard._check_progress()
    guard.failed()
    guard._check_progress()
