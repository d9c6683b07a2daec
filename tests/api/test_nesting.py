"""How deep a body may be nested is told as a reader of every byte would tell it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quire.api import nesting
from quire.api.nesting import is_deeper

LEAVES = st.none() | st.integers() | st.text('[]{}"\\aä\n', max_size=6)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text('[}"\\b', max_size=3), inner, max_size=3)
    ),
    max_leaves=30,
)


def depth(value: Any) -> int:
    """Lists and objects on the longest way down."""
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 0


@given(VALUES, st.booleans())
@settings(deadline=None)
def test_depth_is_that_of_the_value(value: Any, escape: bool) -> None:
    data = json.dumps(value, ensure_ascii=escape).encode()
    found = depth(value)
    assert not is_deeper(data, found)
    if found:
        assert is_deeper(data, found - 1)


@pytest.mark.parametrize("size", [1, 7, 64])
def test_pieces_carry_depth_and_strings_over(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nesting, "PIECE", size)
    value = [[{"a]": ["x[[[", {"b": ['"', "\\", [1]]}]}], "[" * 40]
    data = json.dumps(value).encode()
    assert is_deeper(data, depth(value) - 1)
    assert not is_deeper(data, depth(value))
