"""Which sizes padded steps have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace
from quire.engine.device.buckets import CHUNKED_TOKENS, Buckets, Padded, make_buckets
from quire.engine.plan import Drafts

from .test_inputs import make_plan


@pytest.mark.parametrize(
    ("most", "sizes"),
    [
        (1, (1,)),
        (2, (1, 2)),
        (3, (1, 2, 3)),
        (8, (1, 2, 4, 8)),
        (20, (1, 2, 4, 8, 16, 20)),
        (256, (1, 2, 4, *range(8, 257, 8))),
        (300, (1, 2, 4, *range(8, 257, 8), 288, 300)),
    ],
)
def test_flat_sizes(most: int, sizes: tuple[int, ...]) -> None:
    assert make_buckets(most).flat == sizes


@pytest.mark.parametrize(
    ("seqs", "drafts", "most"),
    [(1, 4, 5), (8, 0, 8), (60, 4, 256), (256, 4, 256), (300, 16, 300), (3, 16, 51)],
)
def test_flat_sizes_hold_guesses_up_to_a_bound(seqs: int, drafts: int, most: int) -> None:
    assert make_buckets(seqs, drafts).flat[-1] == most
    assert set(make_buckets(seqs).flat) - {seqs} <= set(make_buckets(seqs, drafts).flat)


@pytest.mark.parametrize(
    ("seqs", "rows"),
    [
        (1, (2,)),
        (2, (2, 3)),
        (40, (2, 8, 32, 41)),
        (256, (2, 8, 32, 128, 257)),
        (900, (2, 8, 32, 128, 512)),
    ],
)
def test_rows_of_steps_with_chunks_hold_all_and_padding(seqs: int, rows: tuple[int, ...]) -> None:
    assert make_buckets(seqs).rows == rows


@pytest.mark.parametrize(
    ("most", "split", "flat"),
    [
        (256, 24, (256, 24)),
        (256, 27, (256, 24)),
        (256, 400, (256,)),
        (256, 0, (256,)),
        (3, 2, (3, 2)),
    ],
)
def test_the_largest_are_the_last_on_both_sides_of_splitting(
    most: int, split: int, flat: tuple[int, ...]
) -> None:
    """Parts of split attention grow with the rows up to a bound, all else without one."""
    chunked, *found = make_buckets(most).largest(split)
    assert chunked == Padded(most + 1, CHUNKED_TOKENS[-1], is_flat=False)
    assert found == [Padded(size, size, is_flat=True) for size in flat]


@given(
    st.integers(1, 40),
    st.lists(st.tuples(st.integers(1, 400), st.booleans()), min_size=1, max_size=40),
)
@example(40, [(18, True)] + [(1, True)] * 7)
def test_a_padded_step_has_room_for_all(most: int, rows: list[tuple[int, bool]]) -> None:
    """For its tokens, for its rows, and for a row of padding where tokens are left."""
    counts, samples = [count for count, _ in rows[:most]], [one for _, one in rows[:most]]
    plan: Any = make_plan([*range(len(counts))], [0] * len(counts), counts, samples)
    found = make_buckets(most, 3).find(plan)
    if found is None:
        assert sum(counts) > CHUNKED_TOKENS[-1] or not any(samples)
        assert max(counts) > 17 or sum(counts) > 160 or not any(samples)
        return
    assert found.num_tokens >= sum(counts)
    if found.is_flat:
        assert found.num_rows == found.num_tokens and max(counts) <= 17
    else:
        assert len(counts) < found.num_rows < found.num_tokens
        assert np.count_nonzero(samples) <= found.num_rows


@pytest.mark.parametrize(
    ("num_rows", "num_drafts", "size"), [(256, 2, 256), (300, 2, 300), (40, 7, 256), (10, 2, 30)]
)
def test_guesses_that_fit_no_flat_size_stay_as_they_are(
    num_rows: int, num_drafts: int, size: int
) -> None:
    """Sizes of steps with chunks are for steps of whose tokens not all yield a sample."""
    buckets = make_buckets(num_rows, num_drafts)
    for num_tokens, fits in ((size, True), (size + 1, False)):
        counts = np.full(num_rows, num_tokens // num_rows, np.int32)
        counts[: num_tokens % num_rows] += 1
        drafts = Drafts(counts - 1, np.zeros(num_tokens - num_rows, np.int32))
        plan = make_plan([*range(num_rows)], [0] * num_rows, counts.tolist(), [True] * num_rows)
        found = buckets.find(replace(plan, drafts=drafts))
        assert found == (Padded(size, size, is_flat=True) if fits else None)


def test_without_sizes_nothing_is_padded() -> None:
    assert Buckets().find(make_plan([0], [3], [1], [True])) is None
