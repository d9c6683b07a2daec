"""Two steps in flight."""

from __future__ import annotations

import numpy as np
import pytest
from quire.engine.params import SamplingParams
from quire.engine.plan import StepResult
from quire.engine.request import LogprobRows
from quire.engine.sched.scheduler import Scheduler
from quire.fuzz.oracles import Rig
from quire.fuzz.strategies import make_limits, make_request


def test_a_decode_is_planned_before_its_token_is_known() -> None:
    """Case 54."""
    rig = Rig(make_limits(overlap=2))
    rig.add(make_request("a", [1, 2, 3], seed=1))
    first, second = rig.launch(), rig.launch()
    assert first is not None
    assert second is not None
    assert (second.starts.tolist(), second.num_tokens.tolist()) == ([3], [1])
    assert rig.launch() is None, "two steps are the limit"
    rig.drain()


def test_no_step_is_planned_past_a_certain_end() -> None:
    """Case 54: the length cap is seen without the token."""
    rig = Rig(make_limits(overlap=2))
    rig.add(make_request("a", [1], params=SamplingParams(max_tokens=2), seed=1))
    assert rig.launch() is not None
    assert rig.launch() is not None
    rig.land()
    assert rig.launch() is None
    rig.drain()
    assert len(rig.outputs["a"]) == 2


@pytest.mark.parametrize("where", ["older", "newer"])
@pytest.mark.parametrize("end", ["abort", "fail"])
def test_a_sequence_in_only_one_of_two_steps_in_flight_ends_as_any_other(
    where: str, end: str
) -> None:
    """Cases 51, 56: its last step may be the older one, its first the newer one."""
    rig = Rig(make_limits(overlap=2))
    if where == "older":
        rig.add(make_request("a", [1, 2, 3], params=SamplingParams(max_tokens=1), seed=1))
    rig.add(make_request("b", [4, 4, 4], seed=2))
    first = rig.launch()
    if where == "newer":
        rig.add(make_request("a", [1, 2, 3], seed=1))
    second = rig.launch()
    assert first is not None and second is not None
    assert len(first.slots) + len(second.slots) == 3
    if end == "fail":
        assert set(rig.scheduler.fail("boom").request_ids) == {"a", "b"}
        return
    free = rig.scheduler.num_free_blocks
    assert rig.scheduler.abort("a") is not None
    assert rig.scheduler.num_free_blocks == free, "its block is still being written"
    assert rig.land().request_ids == ["b"]
    assert (rig.scheduler.num_free_blocks > free) == (where == "older")
    assert rig.land().request_ids == ["b"]
    rig.drain()


def make_pair(scheduler: Scheduler) -> list[StepResult]:
    """Give results that end both sequences in their first step, with a second one in flight."""
    for name in "ab":
        scheduler.add(make_request(name, [1, 2, 3], eos=(5,)))
    return [StepResult(step, np.array([5, 1], np.int32)) for step in (1, 2)]


def test_a_stopped_sequence_drains_and_its_late_token_is_dropped() -> None:
    """Cases 55, 56: blocks are freed after the newest step, in order."""
    scheduler = Scheduler(make_limits(overlap=2))
    results = make_pair(scheduler)
    plans = [scheduler.commit(d) for d in (scheduler.plan(),) if d]
    plans += [scheduler.commit(d) for d in (scheduler.plan(),) if d]
    events = scheduler.retire(plans[0], results[0])
    assert [events.request_ids[f.index] for f in events.finished] == ["a"]
    scheduler.check()
    held = scheduler.num_blocks - scheduler.num_free_blocks
    assert held == 2, "the block of a is still written by the second step"
    events = scheduler.retire(plans[1], results[1])
    scheduler.check()
    assert events.request_ids == ["b"]
    assert scheduler.num_blocks - scheduler.num_free_blocks == 1


def test_late_logprobs_are_dropped_with_their_tokens() -> None:
    scheduler = Scheduler(make_limits(overlap=2))
    results = make_pair(scheduler)
    plans = []
    for _ in range(2):
        decision = scheduler.plan()
        assert decision is not None
        plans.append(scheduler.commit(decision))
    scheduler.retire(plans[0], results[0])
    rows = LogprobRows(
        np.array([-1.0, -2.0], np.float32),
        np.array([1, 2], np.int32),
        np.array([[1], [2]], np.int32),
        np.array([[-1.0], [-2.0]], np.float32),
    )
    events = scheduler.retire(plans[1], StepResult(2, results[1].token_ids, rows))
    assert events.logprobs is not None
    assert events.logprobs.sampled.tolist() == [-2.0]
    assert events.logprobs.top_ids.tolist() == [[2]]


def test_an_id_used_again_is_not_confused_with_its_predecessor() -> None:
    """Case 55."""
    rig = Rig(make_limits(overlap=2))
    rig.add(make_request("a", [1, 2, 3], seed=1))
    rig.launch()
    rig.scheduler.abort("a")
    rig.add(make_request("a", [4, 4], seed=2))
    rig.launch()
    assert rig.land().request_ids == []
    assert rig.land().request_ids == ["a"]
    rig.drain()


def test_a_block_is_not_published_before_its_token_is_known() -> None:
    """Case 57: the device has written the block, but nobody here knows its last token."""
    rig = Rig(make_limits(overlap=2, block_size=4))
    rig.add(make_request("a", [1, 2, 3], params=SamplingParams(max_tokens=9), seed=1))
    rig.launch()
    rig.launch()
    rig.scheduler.abort("a")
    assert not rig.scheduler._memory.index.keyed.any()
    rig.land()
    rig.land()
    assert not rig.scheduler._memory.index.keyed.any(), "its token was dropped"
    rig.drain()


def test_results_do_not_depend_on_overlap() -> None:
    outputs = []
    for overlap in (1, 2):
        rig = Rig(make_limits(overlap=overlap, num_blocks=16, budget=9))
        for seed in range(1, 9):
            prompt = [seed % 3, 2, 3, 1, 2, 3, 1][: seed + 1]
            rig.add(make_request(f"r{seed}", prompt, seed=seed, eos=(0,)))
        rig.drain()
        alive = {name: [t for t in tokens if t >= 0] for name, tokens in rig.outputs.items()}
        outputs.append((alive, {name: f.reason for name, f in rig.ended.items()}))
    assert outputs[0] == outputs[1]
