"""Forks: shared blocks, the copy of a partial one, and children that have to wait."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from quire.engine.errors import ParamsError
from quire.engine.params import SamplingParams
from quire.fuzz.oracles import VOCAB, Rig
from quire.fuzz.strategies import make_limits, make_request

LONG = SamplingParams(max_tokens=9, ignore_eos=True)


def make_parent(rig: Rig, num_steps: int = 3) -> list[int]:
    """Run a parent for some steps; gives its known tokens."""
    rig.add(make_request("parent", [1, 2, 3, 4, 5], params=LONG, seed=1))
    for _ in range(num_steps):
        rig.step()
    return [1, 2, 3, 4, 5, *rig.outputs["parent"]]


def fork(rig: Rig, known: list[int], name: str, seed: int) -> None:
    rig.add(make_request(name, known, params=LONG, seed=seed), parent="parent")


@pytest.mark.parametrize("caching", [True, False])
def test_full_blocks_are_shared_and_the_partial_one_is_copied(caching: bool) -> None:
    """Cases 30, 31."""
    rig = Rig(make_limits(caching=caching))
    known = make_parent(rig)
    fork(rig, known, "child", 2)
    plan = rig.step()
    blocks = rig.scheduler._memory.blocks
    parent, child = (blocks.row(s.slot).tolist() for s in rig.scheduler._running)
    assert child[0] == parent[0]
    assert child[1] != parent[1]
    assert (plan.copy_sources.tolist(), plan.copy_targets.tolist()) == ([parent[1]], [child[1]])
    assert (plan.starts.tolist(), plan.num_tokens.tolist()) == ([7, 7], [1, 1])
    rig.drain()


def test_a_child_outlives_its_parent_and_the_other_way_round() -> None:
    """Case 31."""
    for first in ("parent", "child"):
        rig = Rig(make_limits())
        fork(rig, make_parent(rig), "child", 2)
        rig.step()
        rig.scheduler.abort(first)
        rig.scheduler.check()
        rig.drain()


def test_a_parent_that_ends_leaves_the_share_of_a_waiting_child() -> None:
    rig = Rig(make_limits(caching=False))
    fork(rig, make_parent(rig), "child", 2)
    rig.scheduler.abort("parent")
    plan = rig.step()
    assert (plan.starts.tolist(), plan.num_tokens.tolist()) == ([7], [1])
    rig.drain()


def test_many_children_of_one_partial_block() -> None:
    rig = Rig(make_limits(max_num_seqs=8))
    known = make_parent(rig)
    for seed in range(2, 7):
        fork(rig, known, f"child{seed}", seed)
    plan = rig.step()
    assert len(set(plan.copy_sources.tolist())) == 1
    assert len(set(plan.copy_targets.tolist())) == rig.scheduler.stats.num_copies == 5
    rig.drain()


def test_an_aborted_waiting_child_gives_its_share_back() -> None:
    """Case 51."""
    rig = Rig(make_limits())
    fork(rig, make_parent(rig), "child", 2)
    rig.scheduler.abort("child")
    rig.scheduler.check()
    rig.drain()


def test_a_share_that_is_given_back_is_evicted_from_its_tail() -> None:
    """Case 22."""
    rig = Rig(make_limits())
    fork(rig, make_parent(rig, num_steps=6), "child", 2)
    head, tail = rig.scheduler._memory.blocks.row(0)[:2].tolist()
    rig.scheduler.abort("parent")
    rig.scheduler.abort("child")
    assert rig.scheduler._memory.pool.free_order()[-2:] == [tail, head]
    rig.drain()


def test_waiting_children_give_way_before_anybody_is_preempted() -> None:
    rig = Rig(make_limits(num_blocks=4, max_model_len=17, max_num_seqs=2, caching=False))
    known = make_parent(rig)
    fork(rig, known, "child", 2)
    rig.add(make_request("other", [6] * 6, params=LONG, seed=3))
    rig.scheduler.abort("parent")
    rig.drain()
    assert len(rig.outputs["child"]) == len(rig.outputs["other"]) == 9


def test_nobody_is_preempted_while_a_waiting_child_holds_blocks() -> None:
    """The pool is just enough for the two that run, once the child gives its two blocks up."""
    rig = Rig(make_limits(num_blocks=8, max_model_len=32, max_num_seqs=2, caching=False))
    rig.add(make_request("other", [3] * 6, params=LONG, seed=3))
    known = make_parent(rig)
    rig.add(make_request("next", [4] * 6, params=LONG, seed=4))
    fork(rig, known, "child", 2)
    rig.scheduler.abort("parent")
    rig.drain()
    assert rig.scheduler.stats.num_preemptions == 0
    assert len(rig.outputs["child"]) == 9


def test_children_whose_shares_fill_the_pool_do_not_block_each_other() -> None:
    rig = Rig(make_limits(num_blocks=3, max_model_len=13, max_num_seqs=1, caching=False))
    known = make_parent(rig, num_steps=4)
    fork(rig, known, "one", 2)
    rig.scheduler.abort("parent")
    fork_of = rig.add(make_request("two", known, params=SamplingParams(max_tokens=2), seed=3))
    rig.drain()
    assert rig.ended["one"].reason == "length"
    assert rig.ended[fork_of].reason == "length"


def test_a_fork_of_a_waiting_request_is_an_ordinary_request() -> None:
    rig = Rig(make_limits())
    rig.add(make_request("parent", [1, 2], seed=1))
    rig.add(make_request("child", [1, 2], seed=2), parent="parent")
    rig.drain()


def test_what_a_step_in_flight_writes_is_shared() -> None:
    """The device runs the steps in order: the child's copy comes after the parent's writes."""
    rig = Rig(make_limits(overlap=2))
    rig.add(make_request("parent", [1, 2, 3, 4, 5, 6], params=LONG, seed=1))
    rig.launch()
    fork(rig, [1, 2, 3, 4, 5, 6], "early", 2)
    plan = rig.launch()
    assert plan is not None
    assert (plan.starts.tolist(), len(plan.copy_sources)) == ([6, 5], 1)
    rig.land()
    fork(rig, [1, 2, 3, 4, 5, 6, *rig.outputs["parent"]], "late", 3)
    rig.scheduler.abort("parent")
    rig.drain()
    assert {name: len(outputs) for name, outputs in rig.outputs.items() if name != "parent"} == {
        "early": 9,
        "late": 9,
    }


@pytest.mark.parametrize("length", [1, 3, 4, 5, 6])
def test_a_fork_may_continue_a_part_of_its_parent(length: int) -> None:
    """It shares the blocks of that part and computes one token, whatever came behind."""
    rig = Rig(make_limits(caching=False))
    known = make_parent(rig)
    computed = rig.scheduler.stats.num_scheduled_tokens
    rig.add(make_request("child", known[:length], seed=9), "parent")
    plan = rig.step()
    assert plan.num_tokens.tolist() == [1, 1]
    assert rig.scheduler.stats.num_scheduled_tokens == computed + 2
    rig.drain()


def test_bad_forks_are_refused() -> None:
    rig = Rig(make_limits())
    known = make_parent(rig)
    with pytest.raises(ParamsError, match="not alive"):
        rig.scheduler.fork("nobody", make_request("child", known))
    for other in ([*known, 1], [*known[:-1], known[-1] + 1], known[1:]):
        with pytest.raises(ParamsError, match="what its parent begins with"):
            rig.scheduler.fork("parent", make_request("child", other))
    with pytest.raises(ParamsError, match="salt"):
        rig.scheduler.fork("parent", make_request("child", known, salt="a"))
    with pytest.raises(ParamsError, match="in use"):
        rig.scheduler.fork("parent", make_request("parent", known))
    rig.scheduler.check()
    rig.drain()


ONE = SamplingParams(max_tokens=1)


def keep(rig: Rig, name: str, prompt: list[int], parent: str | None = None) -> list[int]:
    """Queue a sequence of one token that is kept; gives its prompt."""
    rig.add(
        replace(make_request(name, prompt, params=ONE, seed=len(rig.outputs)), keep=True), parent
    )
    return prompt


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize("length", [3, 4, 5, 8])
def test_what_ended_and_was_kept_is_forked_with_another_last_token(
    caching: bool, length: int
) -> None:
    """Each child computes one token; full blocks are the parent's, the partial one is copied."""
    rig = Rig(make_limits(caching=caching))
    prompt = keep(rig, "parent", [7] * length)
    rig.step()
    assert rig.ended["parent"].reason == "length" and not rig.scheduler.has_unfinished
    used = -(-length // 4)
    assert rig.scheduler.num_blocks - rig.scheduler.num_free_blocks == used
    for token in (1, 2, 3):
        keep(rig, f"child{token}", [*prompt, token], "parent")
    assert rig.scheduler.abort("parent") is not None
    plan = rig.step()
    assert plan.num_tokens.tolist() == [1, 1, 1]
    assert len(plan.copy_sources) == (3 if length % 4 else 0)
    # Full blocks once, one more for each.
    assert rig.scheduler.num_blocks - rig.scheduler.num_free_blocks == length // 4 + 3
    for token in (1, 2, 3):
        assert rig.scheduler.abort(f"child{token}") is not None
    rig.drain()
    assert rig.scheduler.num_free_blocks == rig.scheduler.num_blocks


def test_a_child_of_what_was_kept_has_its_place_in_the_order() -> None:
    """It goes on with the same request: what came later waits behind it."""
    rig = Rig(make_limits(max_num_seqs=1))
    prompt = keep(rig, "parent", [7] * 5)
    rig.step()
    rig.add(make_request("other", [1, 2], params=ONE, seed=40))
    for token in (1, 2):
        keep(rig, f"child{token}", [*prompt, token], "parent")
    order = []
    for _ in range(3):
        rig.step()
        order.append(list(rig.ended)[-1])
    assert order == ["child1", "child2", "other"]


def test_what_was_kept_gives_way_to_those_that_run() -> None:
    rig = Rig(make_limits(num_blocks=4, max_model_len=17, max_num_seqs=2, caching=False))
    prompt = keep(rig, "parent", [7] * 8)
    rig.step()
    rig.add(make_request("other", [6] * 8, params=LONG, seed=30))
    while "other" not in rig.ended:
        rig.step()
    keep(rig, "child", [*prompt, 3], "parent")
    plan = rig.step()
    assert plan.num_tokens.tolist() == [9], "computed anew"
    assert rig.scheduler.abort("child") is not None and rig.scheduler.abort("parent") is not None
    rig.drain()


def test_a_step_that_dies_takes_what_was_kept() -> None:
    rig = Rig(make_limits())
    prompt = keep(rig, "parent", [7] * 5)
    rig.step()
    rig.add(make_request("other", [6] * 8, params=LONG, seed=30))
    rig.launch()
    rig.flying.clear()
    rig.scheduler.fail("the device died")
    rig.scheduler.check()
    keep(rig, "child", [*prompt, 3], "parent")
    assert rig.step().num_tokens.tolist() == [6]
    assert rig.scheduler.abort("child") is not None and rig.scheduler.abort("parent") is not None
    assert rig.scheduler.abort("parent") is None


def test_a_sequence_that_failed_is_not_kept() -> None:
    """Nor one that a stop token ended: only what came to its length may be forked."""
    rig = Rig(make_limits())
    stopping = SamplingParams(max_tokens=4, stop_token_ids=tuple(range(VOCAB)))
    rig.add(replace(make_request("a", [1, 2], params=stopping, seed=1), keep=True))
    rig.step()
    assert rig.ended["a"].reason == "stop"
    assert rig.scheduler.abort("a") is None
    rig.drain()


def test_ids_of_what_was_kept_are_in_use_and_other_beginnings_are_refused() -> None:
    rig = Rig(make_limits())
    prompt = keep(rig, "parent", [7] * 5)
    rig.step()
    with pytest.raises(ParamsError, match="in use"):
        rig.scheduler.add(make_request("parent", [1]))
    for other in ([*prompt, 1, 1], [8, *prompt[1:], 1]):
        with pytest.raises(ParamsError, match="what its parent begins with"):
            rig.scheduler.fork("parent", make_request("child", other))
    rig.scheduler.abort("parent")
    with pytest.raises(ParamsError, match="not alive"):
        rig.scheduler.fork("parent", make_request("child", [*prompt, 1]))
    rig.drain()
