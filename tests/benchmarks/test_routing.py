"""Routers: known replicas only, bounded memory, equal choices for equal calls, prefixes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quire.benchmarks.routing import ROUTERS, PrefixAware, RouterName, make_router
from quire.benchmarks.traces import Segment, tokens_of

CALLS = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 3), st.integers(1, 40)), min_size=1, max_size=4),
        st.lists(st.integers(0, 20), min_size=3, max_size=3),
    ),
    max_size=30,
)


def loads(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize("name", ROUTERS)
@given(calls=CALLS)
def test_equal_calls_give_equal_choices_of_known_replicas(name: RouterName, calls: list) -> None:  # type: ignore[type-arg]
    first, second = make_router(name), make_router(name)
    for segments, values in calls:
        prompt = tokens_of(Segment(*segment) for segment in segments)
        before = loads(*values)
        chosen = first.choose(prompt, before)
        assert 0 <= chosen < 3
        assert chosen == second.choose(prompt.copy(), before.copy())
        assert before.tolist() == values


@given(calls=CALLS, capacity=st.integers(1, 8))
def test_memory_is_bounded_and_replicas_may_go(calls: list, capacity: int) -> None:  # type: ignore[type-arg]
    router = PrefixAware(capacity=capacity, block_size=4, width=2)
    for index, (segments, values) in enumerate(calls):
        prompt = tokens_of(Segment(*segment) for segment in segments)
        count = 3 - index % 3
        assert 0 <= router.choose(prompt, loads(*values[:count])) < count
        assert router.num_keys <= capacity


def test_round_robin_takes_turns() -> None:
    router = make_router("round-robin")
    prompt = tokens_of([Segment(0, 4)])
    assert [router.choose(prompt, loads(9, 0, 0)) for _ in range(4)] == [0, 1, 2, 0]


def test_least_loaded_takes_the_first_of_equals() -> None:
    router = make_router("least-loaded")
    assert router.choose(tokens_of([Segment(0, 4)]), loads(3, 1, 1)) == 1


def test_a_prefix_goes_where_it_was_served_last_unless_that_queue_is_too_long() -> None:
    router = PrefixAware(block_size=16, request_tokens=20, width=1)
    shared = Segment(0, 64)

    def choose(own: int, *values: int) -> int:
        return router.choose(tokens_of([shared, Segment(own, 16)]), loads(*values))

    assert choose(1, 1, 0, 1) == 1
    assert choose(2, 0, 3, 0) == 1, "64 tokens are worth 3 requests of 20"
    assert choose(3, 0, 4, 1) == 0, "but not 4"
    assert choose(4, 1, 0, 0) == 0, "from now on replica 0 served it last"


def test_the_longest_match_wins_among_equal_queues() -> None:
    router = PrefixAware(block_size=16)
    short = tokens_of([Segment(0, 32)])
    long = tokens_of([Segment(0, 32), Segment(1, 32)])
    assert router.choose(long, loads(0, 1)) == 0
    assert router.choose(short, loads(60, 0)) == 1
    assert router.choose(long, loads(0, 0)) == 0
    assert router.choose(short, loads(0, 0)) == 0


def test_the_first_block_of_a_prompt_is_forgotten_last() -> None:
    router = PrefixAware(capacity=2, block_size=16)
    prompt = tokens_of([Segment(0, 64)])
    assert router.choose(prompt, loads(1, 0)) == 1
    assert router.num_keys == 2
    assert router.choose(prompt, loads(0, 0)) == 1
