"""Histograms: percentiles within a bin, addable."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quire.benchmarks.latency import Histogram

SECONDS = st.lists(st.floats(0, 1e4), min_size=1, max_size=50)


@given(values=SECONDS, percent=st.sampled_from([1, 50, 90, 99, 100]))
def test_percentiles_are_exact_within_a_bin(values: list[float], percent: int) -> None:
    histogram = Histogram()
    histogram.extend(np.array(values))
    exact = sorted(values)[max(1, -(-len(values) * percent // 100)) - 1]
    assert histogram.percentile(percent) == pytest.approx(exact, rel=0.01, abs=2e-6)
    assert histogram.mean() == pytest.approx(np.mean(values))
    assert histogram.largest == max(values)


@given(left=SECONDS, right=SECONDS)
def test_merging_counts_both(left: list[float], right: list[float]) -> None:
    one, other, both = Histogram(), Histogram(), Histogram()
    for value in left:
        one.add(value)
        both.add(value)
    other.extend(np.array(right))
    both.extend(np.array(right))
    one.merge(other)
    assert one.figures() == pytest.approx(both.figures())
    assert one.count == len(left) + len(right)


def test_nothing_has_no_percentiles() -> None:
    assert set(Histogram().figures().values()) == {0.0}
