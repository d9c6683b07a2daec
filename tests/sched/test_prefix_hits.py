"""Prefix hits: to the token, between rows of one step, between equal salts only."""

from __future__ import annotations

from quire.engine.params import SamplingParams
from quire.engine.plan import StepPlan
from quire.fuzz.oracles import Rig
from quire.fuzz.strategies import make_limits, make_request

ONE = SamplingParams(max_tokens=1)


def run(rig: Rig, prompt: list[int], *, seed: int, salt: str | None = None) -> StepPlan:
    """Run a request to its end; gives its first step."""
    name = f"r{seed}"
    rig.add(make_request(name, prompt, params=ONE, seed=seed, salt=salt))
    first = rig.step()
    rig.drain()
    return first


def test_a_second_request_computes_only_what_differs() -> None:
    rig = Rig(make_limits())
    run(rig, [1, 2, 3, 4, 5, 6, 1, 2], seed=1)
    plan = run(rig, [1, 2, 3, 4, 5, 6, 0, 0, 0], seed=2)
    assert (plan.starts.tolist(), plan.num_tokens.tolist()) == ([6], [3])
    assert len(plan.copy_sources) == 1, "the block of 5, 6, 1, 2 is copied for its first two"
    assert rig.scheduler.stats.prefix_hits == 6


def test_a_full_hit_leaves_one_token_to_compute() -> None:
    """Case 12."""
    rig = Rig(make_limits())
    prompt = [1, 2, 3, 4, 5, 6, 1, 2]
    run(rig, prompt, seed=1)
    plan = run(rig, prompt, seed=2)
    assert (plan.starts.tolist(), plan.num_tokens.tolist()) == ([7], [1])
    assert len(plan.copy_sources) == 1
    assert rig.outputs["r2"], "and it samples"


def test_one_token_blocks_and_prompts_of_one_token() -> None:
    rig = Rig(make_limits(block_size=1))
    assert run(rig, [1], seed=1).starts.tolist() == [0]
    assert run(rig, [1], seed=2).starts.tolist() == [0]
    assert run(rig, [1, 2], seed=3).starts.tolist() == [1]


def test_rows_of_one_step_share_what_the_first_of_them_computes() -> None:
    """Case 19: sixteen requests that share 512 of 544 tokens compute the 512 once."""
    limits = make_limits(
        max_num_seqs=16, budget=2048, max_model_len=600, block_size=16, num_blocks=256
    )
    rig = Rig(limits)
    shared = [i % 7 for i in range(512)]
    for seed in range(1, 17):
        tail = [seed % 7, seed // 7, *[i % 5 for i in range(30)]]
        rig.add(make_request(f"r{seed}", shared + tail, params=ONE, seed=seed))
    plan = rig.step()
    assert plan.num_tokens.tolist() == [544, *[32] * 15]
    assert not len(plan.copy_sources), "nothing is copied from a block of the same step"
    assert rig.scheduler.stats.prefix_hits == 15 * 512
    rig.drain()


def test_a_block_of_the_same_step_is_shared_but_not_copied_from() -> None:
    """Case 19: copies run before the writes of their step."""
    rig = Rig(make_limits())
    rig.add(make_request("a", [1, 2, 3, 4, 5, 6, 1, 2], params=ONE, seed=1))
    rig.add(make_request("b", [1, 2, 3, 4, 5, 6, 0, 0], params=ONE, seed=2))
    plan = rig.step()
    assert plan.starts.tolist() == [0, 4]
    assert not len(plan.copy_sources)
    rig.drain()


def test_a_chunk_of_a_running_prefill_is_shared_in_its_step() -> None:
    rig = Rig(make_limits(budget=8))
    rig.add(make_request("a", [1, 2, 3, 4] * 3, params=ONE, seed=1))
    rig.step()
    rig.add(make_request("b", [1, 2, 3, 4] * 3 + [5], params=ONE, seed=2))
    plan = rig.step()
    assert plan.starts.tolist() == [8, 12], "the last block of a, computed now, is hit by b"
    rig.drain()


def test_salts_separate_tenants() -> None:
    """Case 4."""
    rig = Rig(make_limits())
    prompt = [1, 2, 3, 4, 5, 6]
    starts = [
        run(rig, prompt, seed=seed, salt=salt).starts.tolist()[0]
        for seed, salt in enumerate((None, "a", "b", "a", None, ""), 1)
    ]
    assert starts == [0, 0, 0, 4, 4, 0]


def test_events_tell_the_cached_tokens_of_the_first_admission() -> None:
    rig = Rig(make_limits())
    run(rig, [1, 2, 3, 4, 5, 6, 1, 2], seed=1)
    rig.add(make_request("new", [2, 2], params=SamplingParams(max_tokens=3), seed=2))
    rig.add(make_request("hit", [1, 2, 3, 4, 5, 6, 0], params=SamplingParams(max_tokens=3), seed=3))
    while rig.launch():
        assert rig.land().num_cached_tokens.tolist() == [0, 6]


def test_without_caching_nothing_is_shared_or_counted() -> None:
    """Case 18."""
    rig = Rig(make_limits(caching=False))
    for seed in (1, 2):
        assert run(rig, [1, 2, 3, 4, 5, 6], seed=seed).starts.tolist() == [0]
    stats = rig.scheduler.stats
    assert (stats.prefix_queries, stats.prefix_hits) == (0, 0)


def test_lookups_count_once_an_admission_and_change_nothing_before() -> None:
    """Cases 14, 18: a request that waits is looked up in every step and counted once."""
    rig = Rig(make_limits(num_blocks=5, max_model_len=18))
    rig.add(make_request("a", [1, 2, 3, 4] * 3, params=SamplingParams(max_tokens=5), seed=1))
    rig.step()
    rig.add(make_request("b", [1, 2, 3, 4, 0] * 3, params=ONE, seed=2))
    while rig.scheduler.num_waiting:
        references = rig.scheduler._memory.pool.references.copy()
        order = rig.scheduler._memory.pool.free_order()
        rig.scheduler.plan()
        assert (rig.scheduler._memory.pool.references == references).all()
        assert rig.scheduler._memory.pool.free_order() == order
        rig.step()
    rig.drain()
    stats = rig.scheduler.stats
    assert (stats.prefix_queries, stats.prefix_hits) == (12 + 15, 4)


def test_a_hit_on_free_blocks_does_not_count_them_twice() -> None:
    """Case 20: with all six blocks free, three of them hit, only three others can be taken."""
    rig = Rig(make_limits(num_blocks=6, max_model_len=25, block_size=4))
    run(rig, [1, 2, 3, 4] * 3 + [5], seed=1)
    params = SamplingParams(max_tokens=1)
    rig.add(make_request("b", [1, 2, 3, 4] * 3 + [6] * 8, params=params, seed=2))
    rig.add(make_request("c", [1, 2, 3, 4] * 3 + [0] * 8, params=params, seed=3))
    plan = rig.step()
    assert plan.starts.tolist() == [12]
    rig.drain()


def test_free_blocks_that_two_rows_hit_are_taken_from_the_free_ones_once() -> None:
    """Case 20: six free blocks, three of them hit by both rows, one new one for each row."""
    rig = Rig(make_limits(num_blocks=6, max_model_len=25, block_size=4))
    run(rig, [1, 2, 3, 4] * 3 + [5], seed=1)
    for seed in (2, 3):
        rig.add(make_request(f"r{seed}", [1, 2, 3, 4] * 3 + [seed - 2], params=ONE, seed=seed))
    assert rig.step().starts.tolist() == [12, 12]
    rig.drain()


def test_a_known_block_is_preferred_to_its_twin_of_the_same_step() -> None:
    """Case 19: what follows a known block can be compared, and the copy need not wait."""
    rig = Rig(make_limits())
    prompt = [1, 2, 3, 4, 5, 6, 1, 2]
    run(rig, [*prompt, 3, 3, 3, 3], seed=1)
    rig.add(make_request("a", prompt, params=ONE, seed=2))
    rig.add(make_request("b", [*prompt, 3, 3, 0], params=ONE, seed=3))
    assert rig.step().starts.tolist() == [7, 10]
    rig.drain()


def test_when_the_source_of_a_copy_does_not_fit_its_tokens_are_computed() -> None:
    """Cases 21, 30: the copy would need one block more than the pool has."""
    rig = Rig(make_limits(num_blocks=2, max_model_len=9, block_size=4))
    run(rig, [1, 2, 3, 4, 5, 6, 1, 2], seed=1)
    plan = run(rig, [1, 2, 3, 4, 5, 6, 0, 0], seed=2)
    assert (plan.starts.tolist(), len(plan.copy_sources)) == ([4], 0)


def test_the_source_of_a_copy_stays_until_the_step_has_retired() -> None:
    """Case 30."""
    rig = Rig(make_limits(overlap=2))
    run(rig, [1, 2, 3, 4, 5, 6, 1, 2], seed=1)
    rig.add(make_request("b", [1, 2, 3, 4, 5, 6, 0, 0], params=ONE, seed=2))
    plan = rig.launch()
    assert plan is not None
    source = int(plan.copy_sources[0])
    assert rig.scheduler._memory.pool.references[source] == 1
    rig.scheduler.abort("b")
    assert rig.scheduler._memory.pool.references[source] == 1
    rig.land()
    assert rig.scheduler._memory.pool.references[source] == 0
    rig.drain()


def test_outputs_are_cached_when_their_sequence_ends() -> None:
    rig = Rig(make_limits())
    rig.add(make_request("a", [1, 2, 3], params=SamplingParams(max_tokens=10), seed=1))
    rig.drain()
    history = [1, 2, 3, *rig.outputs["a"]]
    plan = run(rig, [*history, 5], seed=2)
    assert plan.starts.tolist() == [12], "thirteen tokens, the last of which was never fed"


def test_the_cache_is_reset_only_when_nothing_is_in_use() -> None:
    """Case 29."""
    rig = Rig(make_limits())
    rig.add(make_request("a", [1, 2, 3, 4, 5], params=ONE, seed=1))
    rig.launch()
    assert not rig.scheduler.reset_prefix_cache()
    rig.land()
    assert rig.scheduler.reset_prefix_cache()
    rig.scheduler.check()
    assert run(rig, [1, 2, 3, 4, 5], seed=2).starts.tolist() == [0]


def test_eviction_takes_the_least_recently_used_and_tails_first() -> None:
    """Cases 22, 26."""
    rig = Rig(make_limits(num_blocks=5, max_model_len=18))
    run(rig, [1, 2, 3, 4, 1, 1, 1, 1], seed=1)
    run(rig, [2, 2, 3, 4, 2, 2, 2, 2], seed=2)
    run(rig, [1, 2, 3, 4, 6], seed=3)
    # Four blocks hold keys. Six new tokens need two: one blank, one evicted, the tail of seed 1.
    run(rig, [5, 5, 5, 5, 5, 5], seed=4)
    assert rig.scheduler.stats.num_evictions == 1
    assert run(rig, [1, 2, 3, 4, 1, 1, 1, 1], seed=5).starts.tolist() == [4]


def test_the_tail_of_a_sequence_is_evicted_before_its_head() -> None:
    """Case 22."""
    rig = Rig(make_limits(num_blocks=3, max_model_len=12))
    run(rig, [1, 2, 3, 4, 1, 1, 1, 1], seed=1)
    run(rig, [5, 5, 5, 5, 5], seed=2)
    assert rig.scheduler.stats.num_evictions == 1
    assert run(rig, [1, 2, 3, 4, 1, 1, 1, 1], seed=3).starts.tolist() == [4]


def test_evictions_are_counted_by_block() -> None:
    rig = Rig(make_limits(num_blocks=3, max_model_len=12))
    run(rig, [1, 2, 3, 4, 1, 1, 1, 1], seed=1)
    run(rig, [5] * 9, seed=2)
    assert rig.scheduler.stats.num_evictions == 2


def test_twins_are_both_published() -> None:
    """Case 9: two equal prompts, admitted in different steps before the last block is full."""
    rig = Rig(make_limits(budget=4))
    params = SamplingParams(max_tokens=6)
    prompt = [1, 2, 3, 4, 5, 6, 1, 2, 3]
    rig.add(make_request("a", prompt, params=params, seed=1))
    rig.step()
    rig.add(make_request("b", prompt, params=params, seed=2))
    rig.drain()
    assert run(rig, prompt, seed=3).starts.tolist() == [8]
