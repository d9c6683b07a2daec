"""Reference counts and the order of reuse."""

from __future__ import annotations

import numpy as np
import pytest
from quire.engine.kv.block_pool import BlockPool, IdArray

KEYED = np.ones(8, np.bool_)
BLANK = np.zeros(8, np.bool_)


def ids(*blocks: int) -> IdArray:
    return np.array(blocks, np.intp)


def test_take_gives_blank_blocks_before_cached_ones() -> None:
    """Case 23."""
    pool = BlockPool(4)
    pool.take(4)
    pool.drop(ids(0, 1), KEYED)
    pool.drop(ids(2, 3), BLANK)
    taken, num_blank = pool.take(3)
    assert (taken.tolist(), num_blank) == ([2, 3, 0], 2)


def test_take_evicts_oldest_cached_block_and_tails_before_heads() -> None:
    """Case 22."""
    pool = BlockPool(6)
    pool.take(6)
    pool.drop(ids(2, 1, 0), KEYED)
    pool.drop(ids(5, 4, 3), KEYED)
    assert pool.free_order() == [2, 1, 0, 5, 4, 3]
    pool.hold(ids(2, 1))
    pool.drop(ids(2, 1), KEYED)
    assert pool.take(6)[0].tolist() == [0, 5, 4, 3, 2, 1]


def test_a_hit_takes_a_block_out_of_the_middle() -> None:
    """Case 20."""
    pool = BlockPool(5)
    pool.take(5)
    pool.drop(ids(4, 3, 2, 1, 0), KEYED)
    pool.hold(ids(2))
    assert pool.num_free == 4
    assert pool.take(4)[0].tolist() == [4, 3, 1, 0]
    assert pool.references[2] == 1


def test_a_shared_block_is_free_only_when_its_last_holder_drops_it() -> None:
    """Case 24."""
    pool = BlockPool(2)
    taken, _ = pool.take(1)
    pool.hold(taken)
    pool.drop(taken, KEYED)
    assert pool.num_free == 1
    pool.drop(taken, KEYED)
    assert pool.num_free == 2


def test_double_free_asserts() -> None:
    """Case 25."""
    pool = BlockPool(2)
    taken, _ = pool.take(1)
    pool.drop(taken, KEYED)
    with pytest.raises(AssertionError, match="double free"):
        pool.drop(taken, KEYED)


def test_taking_nothing_everything_and_too_much() -> None:
    """Case 27."""
    pool = BlockPool(3)
    for _ in range(5):
        assert pool.take(0)[0].tolist() == []
        everything, _ = pool.take(3)
        assert sorted(everything.tolist()) == [0, 1, 2]
        with pytest.raises(AssertionError):
            pool.take(1)
        assert pool.num_free == 0
        pool.drop(everything, KEYED)
        pool.check(np.isin(np.arange(3), pool.free_order()))


def test_the_queue_survives_many_times_its_length() -> None:
    pool = BlockPool(8)
    taken, _ = pool.take(8)
    pool.drop(taken, KEYED)
    for round_ in range(100):
        pool.hold(ids(round_ % 8, (round_ + 3) % 8))
        pool.drop(ids(round_ % 8, (round_ + 3) % 8), KEYED)
        pool.check(KEYED)
    assert pool.free_order()[-2:] == [99 % 8, (99 + 3) % 8]


def test_forgotten_keys_make_free_blocks_blank() -> None:
    pool = BlockPool(3)
    pool.take(3)
    pool.drop(ids(1, 0), KEYED)
    pool.forget_keys()
    pool.check(BLANK)
    assert pool.num_free == 2
    assert pool.take(2)[1] == 2
