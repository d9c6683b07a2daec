"""Who is admitted, with how many tokens and blocks."""

from __future__ import annotations

import numpy as np
import pytest
from quire.engine.errors import ParamsError
from quire.engine.params import SamplingParams
from quire.engine.request import BACKGROUND
from quire.fuzz.oracles import Rig
from quire.fuzz.strategies import make_limits, make_request


def tokens(plan_counts: object) -> list[int]:
    return [int(count) for count in np.asarray(plan_counts)]


def test_running_come_first_then_the_queue_and_the_last_is_cut() -> None:
    """Case 35."""
    rig = Rig(make_limits(budget=10))
    rig.add(make_request("a", [1] * 4, seed=1))
    assert tokens(rig.step().num_tokens) == [4]
    rig.add(make_request("b", [2] * 6, seed=2))
    rig.add(make_request("c", [3] * 9, seed=3))
    plan = rig.step()
    assert tokens(plan.num_tokens) == [1, 6, 3]
    assert plan.samples.tolist() == [True, True, False]
    plan = rig.step()
    assert tokens(plan.num_tokens) == [1, 1, 6]
    assert plan.samples.tolist() == [True, True, True]
    rig.drain()


def test_decodes_come_before_chunks_under_a_small_budget() -> None:
    """Case 35."""
    rig = Rig(make_limits(budget=3, policy="priority"))
    rig.add(make_request("decode", [2], seed=1))
    rig.step()
    rig.add(make_request("chunk", [3] * 20, seed=2, priority=-1))
    rig.step()
    plan = rig.step()
    assert [s.request_id for s in rig.scheduler._running] == ["chunk", "decode"]
    assert tokens(plan.num_tokens) == [2, 1]
    rig.drain()


def test_a_prompt_longer_than_the_budget_is_computed_in_chunks() -> None:
    """Case 38."""
    rig = Rig(make_limits(budget=7))
    rig.add(make_request("a", [1, 2, 3] * 6, seed=1))
    assert [tokens(rig.step().num_tokens) for _ in range(3)] == [[7], [7], [4]]
    assert rig.outputs["a"]
    rig.drain()


def test_mid_prefill_steps_give_no_events() -> None:
    rig = Rig(make_limits(budget=4))
    rig.add(make_request("a", [1] * 6, seed=1))
    rig.launch()
    assert rig.land().request_ids == []
    rig.launch()
    assert rig.land().request_ids == ["a"]
    rig.drain()


def test_a_prefill_is_admitted_only_if_all_of_it_fits_beside_the_others() -> None:
    """Case 39: its first chunk would fit, and would only be preempted."""
    rig = Rig(make_limits(budget=5, num_blocks=5, max_model_len=17))
    rig.add(make_request("a", [1] * 12, params=SamplingParams(max_tokens=4), seed=1))
    rig.add(make_request("b", [2] * 12, params=SamplingParams(max_tokens=1), seed=2))
    while "a" not in rig.ended:
        assert len(rig.step().slots) == 1
    rig.drain()
    assert rig.scheduler.stats.num_preemptions == 0


def test_some_blocks_stay_spare_unless_nothing_else_runs() -> None:
    """Case 40."""
    rig = Rig(
        make_limits(max_num_seqs=8, num_blocks=200, block_size=1, max_model_len=201, budget=999)
    )
    rig.add(make_request("a", [1] * 100, seed=1))
    rig.step()
    rig.add(make_request("b", [2] * 98, seed=2))
    rig.step()
    assert rig.scheduler.num_waiting == 1, "99 blocks are free, two of them spare"
    rig.scheduler.abort("a")
    rig.step()
    assert rig.scheduler.num_waiting == 0
    rig.scheduler.abort("b")
    rig.add(make_request("c", [3] * 200, seed=3))
    assert len(rig.step().slots) == 1, "alone it may have all"
    rig.drain()


def test_spare_blocks_count_between_newcomers_of_one_step_too() -> None:
    """Case 40: the second of them finds 100 blocks free, two of them spare."""
    rig = Rig(
        make_limits(max_num_seqs=8, num_blocks=200, block_size=1, max_model_len=201, budget=999)
    )
    rig.add(make_request("a", [1] * 100, seed=1))
    rig.add(make_request("b", [2] * 99, seed=2))
    assert len(rig.step().slots) == 1
    rig.drain()


@pytest.mark.parametrize("block_size", [1, 16])
@pytest.mark.parametrize("num_prompt", [1, 64, 127, 128, 129, 256])
def test_the_last_token_may_stand_just_behind_the_last_block(
    block_size: int, num_prompt: int
) -> None:
    """Case 44: it is sampled and never fed, so no block holds it, and arrays must have room."""
    rig = Rig(
        make_limits(
            max_num_seqs=1,
            budget=999,
            max_model_len=257,
            block_size=block_size,
            num_blocks=256 // block_size,
        )
    )
    params = SamplingParams(max_tokens=None, ignore_eos=True)
    rig.add(make_request("a", [1] * num_prompt, params=params, seed=1))
    rig.drain()
    assert len(rig.outputs["a"]) == 257 - num_prompt


def test_the_queue_is_not_overtaken() -> None:
    rig = Rig(make_limits(num_blocks=6, max_model_len=24))
    rig.add(make_request("a", [1] * 12, params=SamplingParams(max_tokens=2), seed=1))
    rig.step()
    rig.add(make_request("big", [2] * 16, params=SamplingParams(max_tokens=1), seed=2))
    rig.add(make_request("small", [3], params=SamplingParams(max_tokens=1), seed=3))
    assert len(rig.step().slots) == 1
    assert rig.scheduler.num_waiting == 2
    rig.drain()


def test_slots_limit_the_running() -> None:
    """Case 36."""
    rig = Rig(make_limits(max_num_seqs=2))
    for seed in range(1, 5):
        rig.add(make_request(f"r{seed}", [seed], seed=seed))
    assert len(rig.step().slots) == 2
    assert (rig.scheduler.num_running, rig.scheduler.num_waiting) == (2, 2)
    rig.drain()


@pytest.mark.parametrize(
    ("prompt", "params", "field"),
    [
        ([], SamplingParams(), "prompt"),
        ([1] * 64, SamplingParams(), "prompt"),
        ([1] * 30, SamplingParams(max_tokens=20), "max_tokens"),
        ([1], SamplingParams(max_tokens=None), "max_tokens"),
    ],
)
def test_what_can_never_fit_fails_at_once(
    prompt: list[int], params: SamplingParams, field: str
) -> None:
    """Case 39."""
    rig = Rig(make_limits(num_blocks=10))
    with pytest.raises(ParamsError) as caught:
        rig.add(make_request("a", prompt, params=params, seed=1))
    assert caught.value.param == field
    assert not rig.scheduler.has_unfinished
    rig.scheduler.check()


def test_an_id_that_is_alive_is_refused_and_one_that_ended_is_not() -> None:
    rig = Rig(make_limits())
    rig.add(make_request("a", [1], seed=1))
    with pytest.raises(ParamsError, match="in use"):
        rig.scheduler.add(make_request("a", [1], seed=1))
    rig.scheduler.abort("a")
    rig.add(make_request("a", [1], seed=1))
    rig.drain()


def test_a_sequence_of_exactly_the_model_length_ends_there() -> None:
    """Case 44."""
    rig = Rig(make_limits(max_model_len=12, num_blocks=3))
    params = SamplingParams(max_tokens=None, ignore_eos=True)
    rig.add(make_request("a", [1] * 11, params=params, seed=1))
    rig.add(make_request("b", [3] * 8, params=params, seed=3))
    rig.drain()
    assert len(rig.outputs["a"]) == 1
    assert len(rig.outputs["b"]) == 4
    assert rig.ended["a"].reason == rig.ended["b"].reason == "length"


def test_priority_orders_the_queue_and_fcfs_ignores_it() -> None:
    for policy, expected in (("priority", ["c", "b", "a"]), ("fcfs", ["a", "b", "c"])):
        rig = Rig(make_limits(max_num_seqs=1, policy=policy))
        for seed, name in enumerate("abc", 1):
            params = SamplingParams(max_tokens=1)
            rig.add(make_request(name, [seed], params=params, seed=seed, priority=-seed))
        order = []
        while rig.scheduler.has_unfinished:
            rig.launch()
            order += rig.land().request_ids
        assert order == expected, policy


@pytest.mark.parametrize("policy", ["priority", "fcfs"])
def test_the_background_is_behind_everybody_under_every_policy(policy: str) -> None:
    """Also for a tenant that has paid less: its turn comes when nobody else waits."""
    rig = Rig(make_limits(max_num_seqs=1, policy=policy))
    for seed, priority in enumerate((0, BACKGROUND, BACKGROUND, 0), 1):
        tenant = "patient" if priority else ""
        params = SamplingParams(max_tokens=1)
        request = make_request(
            str(seed), [seed], params=params, seed=seed, priority=priority, tenant=tenant
        )
        rig.add(request)
    rig.launch()
    assert (rig.scheduler.num_waiting, rig.scheduler.num_background) == (3, 2)
    order = [*rig.land().request_ids]
    while rig.scheduler.has_unfinished:
        rig.launch()
        order += rig.land().request_ids
    assert order == ["1", "4", "2", "3"]
    assert rig.scheduler.num_background == 0
