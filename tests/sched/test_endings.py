"""Abort in every state, steps that die, and what is left at the end."""

from __future__ import annotations

import numpy as np
import pytest
from quire.engine.params import SamplingParams
from quire.engine.plan import StepResult
from quire.fuzz.oracles import Rig
from quire.fuzz.strategies import make_limits, make_request

LONG = SamplingParams(max_tokens=20, ignore_eos=True)


@pytest.mark.parametrize("overlap", [1, 2])
@pytest.mark.parametrize("state", ["waiting", "prefill", "in flight", "decode", "preempted"])
def test_abort_in_every_state(state: str, overlap: int) -> None:
    """Case 51: one event, at once; blocks are free when the steps in flight have retired."""
    rig = Rig(make_limits(budget=4, num_blocks=8, max_model_len=32, overlap=overlap))
    rig.add(make_request("other", [3, 3], params=LONG, seed=2))
    rig.step()
    rig.add(make_request("a", [1] * 7, params=LONG, seed=1))
    if state in ("prefill", "in flight"):
        rig.launch()
    if state == "prefill":
        rig.land()
    if state == "decode":
        for _ in range(4):
            rig.step()
    while state == "preempted" and not rig.scheduler.stats.num_preemptions:
        rig.step()
    events = rig.scheduler.abort("a")
    assert events is not None
    assert events.request_ids == ["a"]
    assert events.token_ids.tolist() == [-1]
    assert [f.reason for f in events.finished] == ["abort"]
    rig.scheduler.check()
    assert rig.scheduler.abort("a") is None
    before = len(rig.outputs["a"])
    rig.drain()
    assert len(rig.outputs["a"]) == before


def test_abort_of_the_unknown_and_the_finished_does_nothing() -> None:
    """Case 25."""
    rig = Rig(make_limits())
    assert rig.scheduler.abort("nobody") is None
    rig.add(make_request("a", [1], params=SamplingParams(max_tokens=1), seed=1))
    rig.drain()
    assert rig.scheduler.abort("a") is None


def test_nothing_is_left_when_all_have_ended() -> None:
    """Case 52: and each slot is reported as released once, in the next plan."""
    rig = Rig(make_limits(max_num_seqs=3))
    for seed in range(1, 4):
        rig.add(make_request(f"r{seed}", [seed] * 5, params=LONG, seed=seed))
    rig.drain()
    assert not rig.scheduler.has_unfinished
    assert (rig.scheduler.num_running, rig.scheduler.num_waiting) == (0, 0)
    assert rig.scheduler.plan() is None
    rig.add(make_request("next", [1], params=LONG, seed=9))
    plan = rig.launch()
    assert plan is not None
    slots = {plan.admitted[0].slot, *plan.released.tolist()}
    assert slots == {0, 1, 2}
    rig.land()
    assert rig.step().released.tolist() == []
    rig.drain()


def test_a_step_that_died_ends_those_in_it_and_spares_the_rest() -> None:
    rig = Rig(make_limits(budget=6, max_num_seqs=3, overlap=2))
    rig.add(make_request("a", [1, 2, 3, 4, 5], params=LONG, seed=1))
    rig.step()
    for seed, name in enumerate("bcd", 2):
        rig.add(make_request(name, [1, 2, 3, 4, 5], params=LONG, seed=seed))
    rig.launch()
    doomed = {s.request_id for s in rig.scheduler._running}
    events = rig.scheduler.fail("boom")
    rig.flying.clear()
    assert set(events.request_ids) == doomed
    assert {(f.reason, f.message) for f in events.finished} == {("error", "boom")}
    rig.scheduler.check()
    assert rig.scheduler.num_free_blocks == rig.scheduler.num_blocks
    rig.device.memory.clear()
    rig.drain()
    assert set(rig.ended) == {"b", "c", "d"} - doomed


def test_a_step_that_died_amid_a_copy_leaves_no_source_pinned() -> None:
    """Case 30: the sources of copies in flight are let go with their steps."""
    rig = Rig(make_limits())
    rig.add(make_request("a", [1, 2, 3, 4, 5, 6, 1, 2], params=LONG, seed=1))
    rig.drain()
    rig.add(make_request("b", [1, 2, 3, 4, 5, 6, 0, 0], params=LONG, seed=2))
    plan = rig.launch()
    assert plan is not None
    assert len(plan.copy_sources) == 1
    rig.scheduler.fail("boom")
    assert rig.scheduler.num_free_blocks == rig.scheduler.num_blocks
    rig.scheduler.check()


def test_idle_sequences_survive_a_failure_and_are_recomputed() -> None:
    rig = Rig(make_limits(budget=1))
    rig.add(make_request("a", [1, 2], params=LONG, seed=1))
    rig.step()
    rig.step()
    rig.add(make_request("b", [3], params=LONG, seed=2))
    rig.step()
    rig.launch()
    busy = {s.request_id for s in rig.scheduler._running if s.slot in rig.flying[0][0].slots}
    rig.flying.clear()
    events = rig.scheduler.fail("boom")
    assert set(events.request_ids) == busy
    rig.device.memory.clear()
    rig.drain()
    assert set(rig.ended) | busy == {"a", "b"}


def test_results_must_come_in_order() -> None:
    """Case 56."""
    rig = Rig(make_limits(overlap=2))
    rig.add(make_request("a", [1, 2], params=LONG, seed=1))
    rig.launch()
    rig.launch()
    plan, result = rig.flying[1]
    with pytest.raises(AssertionError):
        rig.scheduler.retire(plan, result)


def test_a_result_of_the_wrong_length_is_noticed() -> None:
    rig = Rig(make_limits())
    rig.add(make_request("a", [1, 2], params=LONG, seed=1))
    plan = rig.launch()
    assert plan is not None
    with pytest.raises(AssertionError):
        rig.scheduler.retire(plan, StepResult(plan.step, np.zeros(2, np.int32)))


@pytest.mark.parametrize("damage", ["reference", "slot", "key", "length"])
def test_check_notices_damage(damage: str) -> None:
    """Case 34: what the machines rely on."""
    rig = Rig(make_limits())
    rig.add(make_request("a", [1, 2, 3, 4, 5], params=LONG, seed=1))
    rig.step()
    memory = rig.scheduler._memory
    match damage:
        case "reference":
            memory.pool.references[memory.blocks.row(0)[0]] += 1
        case "slot":
            memory.free_slots.pop()
        case "key":
            memory.index.keyed[memory.blocks.row(0)[0]] = False
        case _:
            memory.table.submitted[0] += 4
    with pytest.raises(AssertionError):
        rig.scheduler.check()
