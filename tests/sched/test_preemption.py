"""What happens when the blocks run out."""

from __future__ import annotations

from quire.engine.params import SamplingParams
from quire.fuzz.oracles import Rig
from quire.fuzz.strategies import make_limits, make_request

LONG = SamplingParams(max_tokens=12, ignore_eos=True)


def running(rig: Rig) -> list[str]:
    return [sequence.request_id for sequence in rig.scheduler._running]


def waiting(rig: Rig) -> list[str]:
    return [sequence.request_id for sequence in rig.scheduler._state.waiting]


def make_crowd(rig: Rig, lengths: dict[str, int], priorities: dict[str, int] | None = None) -> None:
    """Add requests of unlike prompts and run one step."""
    for seed, (name, length) in enumerate(lengths.items(), 1):
        priority = (priorities or {}).get(name, 0)
        request = make_request(name, [seed] * length, params=LONG, seed=seed, priority=priority)
        rig.add(request)
    rig.step()


def test_the_victim_loses_the_fewest_tokens_and_is_not_the_oldest() -> None:
    """Case 46."""
    rig = Rig(make_limits(num_blocks=6, max_model_len=24, block_size=4))
    make_crowd(rig, {"old": 4, "short": 3, "long": 8})
    while rig.scheduler.stats.num_preemptions == 0:
        rig.step()
    assert waiting(rig) == ["short"]
    rig.drain()


def test_of_victims_that_lose_equally_much_the_latest_goes() -> None:
    """Case 46: who waited longest is disturbed last."""
    rig = Rig(make_limits(num_blocks=6, max_model_len=24, block_size=4))
    make_crowd(rig, {"old": 4, "early": 4, "late": 4})
    while rig.scheduler.stats.num_preemptions == 0:
        rig.step()
    assert waiting(rig) == ["late"]
    rig.drain()


def test_the_oldest_is_never_preempted_even_if_it_loses_least() -> None:
    """Case 46: progress."""
    rig = Rig(make_limits(num_blocks=5, max_model_len=20, block_size=4))
    make_crowd(rig, {"old": 1, "long": 12})
    while not rig.ended:
        assert "old" in running(rig)
        rig.step()
    assert list(rig.ended) == ["old"]
    assert rig.scheduler.stats.num_preemptions > 0
    rig.drain()


def test_under_priority_the_least_urgent_is_the_victim() -> None:
    """Case 46."""
    limits = make_limits(num_blocks=6, max_model_len=24, block_size=4, policy="priority")
    rig = Rig(limits)
    make_crowd(rig, {"old": 4, "short": 3, "long": 8}, {"long": 5})
    while rig.scheduler.stats.num_preemptions == 0:
        rig.step()
    assert waiting(rig) == ["long"]
    rig.drain()


def test_a_preempted_sequence_returns_to_the_front_with_its_outputs() -> None:
    """Cases 13, 48: it is recomputed as prompt + outputs, its cached blocks hit again."""
    rig = Rig(make_limits(num_blocks=6, max_model_len=24, block_size=4, max_num_seqs=3))
    make_crowd(rig, {"old": 4, "short": 3, "long": 8})
    rig.add(make_request("late", [5], params=LONG, seed=9))
    while rig.scheduler.stats.num_preemptions == 0:
        rig.step()
    assert waiting(rig) == ["short", "late"]
    so_far = list(rig.outputs["short"])
    assert so_far
    while "short" not in running(rig):
        plan = rig.step()
    admitted = plan.admitted[0]
    assert admitted.token_ids.tolist() == [2] * 3 + so_far
    assert admitted.num_prompt_tokens == 3
    stats = rig.scheduler.stats
    assert stats.resumed_queries == len(admitted.token_ids)
    assert stats.prefix_queries == 15 + ("late" in running(rig))
    rig.drain()
    assert len(rig.outputs["short"]) == 12


def test_blocks_that_a_victim_shares_do_not_become_free() -> None:
    """Case 21: all three share two blocks; a victim gives only its third one, and two must go."""
    rig = Rig(make_limits(num_blocks=5, max_model_len=21, block_size=4))
    for seed, name in enumerate(("old", "early", "late"), 1):
        rig.add(make_request(name, [1] * 8 + [seed + 1] * 3, params=LONG, seed=seed))
    while rig.scheduler.stats.num_preemptions == 0:
        rig.step()
    assert running(rig) == ["old"]
    assert waiting(rig) == ["early", "late"]
    rig.drain()


def test_a_resumed_sequence_hits_its_own_outputs() -> None:
    """Case 13: what may be hit ends with prompt and outputs, not with the prompt."""
    rig = Rig(make_limits(num_blocks=5, max_model_len=20, block_size=4))
    make_crowd(rig, {"old": 8, "short": 3})
    while rig.scheduler.stats.num_preemptions == 0:
        rig.step()
    assert waiting(rig) == ["short"]
    rig.scheduler.abort("old")
    assert rig.step().starts.tolist() == [4], "the prompt's three tokens and one output"
    assert rig.scheduler.stats.resumed_hits == 4
    rig.drain()


def test_a_preempting_step_admits_nobody_and_withdraws_its_victim() -> None:
    """Cases 47, 48."""
    rig = Rig(make_limits(num_blocks=6, max_model_len=24, block_size=4))
    make_crowd(rig, {"old": 4, "short": 3, "long": 8})
    rig.add(make_request("late", [5], params=LONG, seed=9))
    while True:
        victims = len(running(rig))
        plan = rig.step()
        if rig.scheduler.stats.num_preemptions:
            break
    assert not plan.admitted
    assert len(plan.slots) == victims - 1
    assert len(plan.released) == 1
    assert plan.released[0] not in plan.slots
    rig.drain()


def test_with_steps_in_flight_planning_waits_for_an_idle_victim() -> None:
    """Case 46: a sequence with a step in flight cannot be preempted."""
    rig = Rig(make_limits(num_blocks=4, max_model_len=16, block_size=4, overlap=2))
    for seed, name in enumerate(("a", "b"), 1):
        rig.add(make_request(name, [seed] * 6, params=LONG.__class__(max_tokens=9), seed=seed))
    waits = 0
    while rig.scheduler.has_unfinished:
        while len(rig.flying) < 2 and rig.launch():
            pass
        waits += len(rig.flying) == 1 and rig.scheduler.num_running == 2
        rig.land()
    assert waits > 0
    assert rig.scheduler.stats.num_preemptions > 0


def test_one_sequence_may_use_the_whole_pool() -> None:
    """Cases 21, 39."""
    for overlap in (1, 2):
        rig = Rig(make_limits(num_blocks=4, max_model_len=17, block_size=4, overlap=overlap))
        params = SamplingParams(max_tokens=None, ignore_eos=True)
        for seed in range(2, 6):
            rig.add(make_request(f"r{seed}", [seed] * 3, params=params, seed=seed))
        rig.drain()
        assert all(len(outputs) == 14 for outputs in rig.outputs.values())
