"""The prefix index: keys, twins, trees."""

from __future__ import annotations

import numpy as np
import pytest
from quire.engine.kv.hashing import BlockHasher
from quire.engine.kv.prefix_index import MAX_SIBLINGS, UPCOMING, PrefixIndex

HASHER = BlockHasher(2, bytes(16))
ROOT = HASHER.root(None)


def keys_of(tokens: list[int]) -> list[bytes]:
    keys: list[bytes] = []
    HASHER.extend(keys, ROOT, np.array(tokens, np.int32))
    return keys


def publish(index: PrefixIndex, tokens: list[int], blocks: list[int]) -> list[bytes]:
    """Publish the last len(blocks) blocks of `tokens`."""
    keys = keys_of(tokens)
    content = np.array(tokens, np.int32).reshape(-1, 2)[-len(blocks) :]
    index.publish(ROOT, keys, np.array(blocks, np.int32), content)
    index.check()
    return keys


def partial(index: PrefixIndex, parent: int | None, *tokens: int) -> tuple[int, int]:
    return index.partial(ROOT, parent, np.array(tokens, np.int32))


def test_find_stops_at_the_first_hole() -> None:
    """Case 16."""
    index = PrefixIndex(8, 2)
    keys = publish(index, [1, 2, 3, 4, 5, 6], [0, 1, 2])
    assert index.find(keys) == [0, 1, 2]
    index.remove([1])
    index.check()
    assert index.find(keys) == [0]


def test_find_tells_what_is_still_upcoming() -> None:
    """Case 19."""
    index = PrefixIndex(8, 2)
    keys = keys_of([1, 2, 3, 4])
    publish(index, [1, 2], [5])
    assert index.find(keys) == [5]
    assert index.find(keys, {keys[1]}) == [5, UPCOMING]


def test_the_longest_partial_match_wins() -> None:
    index = PrefixIndex(8, 2)
    publish(index, [1, 2], [0])
    publish(index, [1, 3], [1])
    publish(index, [1, 3, 7, 8], [2])
    assert partial(index, None, 1, 3) == (1, 2)
    assert partial(index, None, 1, 2) == (0, 2)
    assert partial(index, None, 1)[1] == 1
    assert partial(index, None, 4, 2) == (-1, 0)
    assert partial(index, 1, 7, 9) == (2, 1)
    assert partial(index, 1, 8, 9) == (-1, 0)


def test_only_the_newest_siblings_are_compared() -> None:
    index = PrefixIndex(MAX_SIBLINGS + 8, 2)
    for block in range(MAX_SIBLINGS + 1):
        publish(index, [1, 100 + block], [block])
    assert partial(index, None, 1, 100) == (MAX_SIBLINGS, 1)
    assert partial(index, None, 1, 101) == (1, 2)


def test_one_of_two_blocks_with_one_key_remains_findable() -> None:
    """Case 9, in both orders of removal."""
    for first, second in ((0, 1), (1, 0)):
        index = PrefixIndex(8, 2)
        keys = publish(index, [1, 2, 3, 4], [0, 4])
        publish(index, [1, 2], [1])
        index.remove([first])
        index.check()
        assert index.find(keys) == [second, 4]
        assert partial(index, second, 3, 9) == (4, 1)
        assert partial(index, None, 1, 9) == (second, 1)
        index.remove([second])
        index.check()
        assert index.find(keys) == []
        assert len(index) == 1


def test_an_inner_twin_inherits_its_place_in_the_tree() -> None:
    index = PrefixIndex(8, 2)
    keys = publish(index, [1, 2, 3, 4, 5, 6], [0, 1, 2])
    publish(index, [1, 2, 3, 4], [5])
    publish(index, [1, 2, 3, 9], [6])
    index.remove([1])
    index.check()
    assert index.find(keys) == [0, 5, 2]
    assert partial(index, 0, 3, 9) == (6, 2)
    assert partial(index, 5, 5, 7) == (2, 1)


def test_orphans_are_found_again_when_their_parent_returns() -> None:
    index = PrefixIndex(8, 2)
    keys = publish(index, [1, 2, 3, 4], [0, 1])
    index.remove([0])
    index.check()
    assert index.find(keys) == []
    publish(index, [1, 2], [5])
    assert index.find(keys) == [5, 1]
    index.remove([1, 5])
    index.check()
    assert len(index) == 0


def test_reuse_of_a_block_forgets_its_old_key() -> None:
    """Case 26."""
    index = PrefixIndex(4, 2)
    old = publish(index, [1, 2], [3])
    index.remove([3])
    new = publish(index, [7, 8], [3])
    assert index.find(old) == []
    assert index.find(new) == [3]
    with pytest.raises(AssertionError, match="published twice"):
        publish(index, [9, 9], [3])
    index.remove([3])
    with pytest.raises(AssertionError, match="no key"):
        index.remove([3])


def test_clear_forgets_everything() -> None:
    """Case 29."""
    index = PrefixIndex(8, 2)
    keys = publish(index, [1, 2, 3, 4], [0, 1])
    publish(index, [1, 2], [2])
    index.clear()
    index.check()
    assert index.find(keys) == []
    assert not index.keyed.any()
    assert partial(index, None, 1, 2) == (-1, 0)
