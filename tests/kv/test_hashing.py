"""Keys of blocks."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from quire.engine.kv.hashing import KEY_BYTES, BlockHasher

HASHER = BlockHasher(4, bytes(range(16)))


def make_tokens(count: int, seed: int = 0) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, 1000, count, dtype=np.int32)


def keys_of(
    tokens: NDArray[np.int32], salt: str | None = None, hasher: BlockHasher = HASHER
) -> list[bytes]:
    keys: list[bytes] = []
    hasher.extend(keys, hasher.root(salt), tokens)
    return keys


def test_only_full_blocks_get_keys() -> None:
    """Case 2."""
    for count in range(13):
        assert len(keys_of(make_tokens(count))) == count // 4
    assert {len(key) for key in keys_of(make_tokens(13))} == {KEY_BYTES}


def test_a_key_covers_its_whole_prefix() -> None:
    """Case 1."""
    tokens = make_tokens(12)
    other = tokens.copy()
    other[0] += 1
    assert not set(keys_of(tokens)) & set(keys_of(other))
    same_block = np.concatenate((tokens[8:], tokens[8:]))
    assert len(set(keys_of(same_block))) == 2


@given(cuts=st.lists(st.integers(0, 40), max_size=6))
def test_incremental_keys_equal_those_of_one_go(cuts: list[int]) -> None:
    """Case 8."""
    tokens, keys = make_tokens(40), list[bytes]()
    for cut in [*sorted(cuts), 40]:
        HASHER.extend(keys, HASHER.root(None), tokens[:cut])
    assert keys == keys_of(tokens)


def test_extend_leaves_longer_chains_alone() -> None:
    keys = keys_of(make_tokens(12))
    before = list(keys)
    HASHER.extend(keys, HASHER.root(None), make_tokens(12)[:5])
    assert keys == before


def test_salts_separate_and_none_is_not_a_salt() -> None:
    """Case 4."""
    tokens = make_tokens(4)
    salts = (None, "", "a", "b", "none", "salt", "\ud800")
    assert len({keys_of(tokens, salt)[0] for salt in salts}) == len(salts)
    assert keys_of(tokens, "a") == keys_of(tokens, "a")


def test_another_secret_gives_other_keys() -> None:
    """Case 3."""
    other = BlockHasher(4, bytes(16))
    tokens = make_tokens(8)
    assert not set(keys_of(tokens)) & set(keys_of(tokens, None, other))
    # The links depend on the secret too, not only the root.
    links, others = list[bytes](), list[bytes]()
    HASHER.extend(links, bytes(16), tokens)
    other.extend(others, bytes(16), tokens)
    assert links[0] != others[0]
