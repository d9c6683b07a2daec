"""Block tables."""

from __future__ import annotations

import numpy as np
import pytest
from quire.engine.kv.block_table import BlockTable, spread, widened


def ids(*blocks: int) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    return np.array(blocks, np.intp)


def test_append_writes_several_blocks_for_each_slot_in_order() -> None:
    table = BlockTable(3, 4)
    table.fill(1, ids(7))
    slots, indices = table.append(ids(1, 2), ids(2, 1), ids(4, 5, 6))
    assert slots.tolist() == [1, 1, 2]
    assert indices.tolist() == [1, 2, 0]
    assert table.row(1).tolist() == [7, 4, 5]
    assert table.row(2).tolist() == [6]
    assert table.capacity.tolist() == [0, 12, 4]


def test_the_table_widens_and_keeps_what_it_had() -> None:
    table = BlockTable(2, 1)
    table.fill(0, np.arange(5))
    for block in range(5, 300):
        table.append(ids(0), ids(1), ids(block))
    assert table.row(0).tolist() == list(range(300))
    table.fill(1, np.arange(1000))
    assert table.row(0).tolist() == list(range(300))


def test_a_cleared_slot_is_empty_and_a_full_one_is_not_filled_twice() -> None:
    table = BlockTable(1, 4)
    table.fill(0, ids(3))
    with pytest.raises(AssertionError):
        table.fill(0, ids(4))
    table.clear(0)
    assert table.row(0).tolist() == []


def test_spread_counts_on_from_each_first_index() -> None:
    slots, indices = spread(ids(5, 8), ids(2, 0), ids(3, 1), 4)
    assert slots.tolist() == [5, 5, 5, 8]
    assert indices.tolist() == [2, 3, 4, 0]


def test_widening_copies_only_what_is_in_use() -> None:
    array = np.full((3, 4), 9, np.int32)
    wider = widened(array, 5, ids(0, 2, 4))
    assert wider.tolist() == [[0] * 8, [9, 9, *[0] * 6], [9] * 4 + [0] * 4]
    assert widened(wider, 8, ids(0, 0, 0)) is wider
