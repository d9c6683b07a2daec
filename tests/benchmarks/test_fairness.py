"""A noisy tenant is felt, but not beyond its share: in the simulation that makes the figures."""

from __future__ import annotations

import pytest
from quire.benchmarks import fairness
from quire.benchmarks.fairness import AT_ONCE, NOISY, Load

PER_S = 30.0
SECONDS = 30
"""Enough that the 99th percentile is not the greatest of a few."""


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fairness, "SECONDS", float(SECONDS))


def test_how_much_a_noisy_tenant_sends_does_not_matter_to_the_quiet() -> None:
    per_s = fairness.QUIET_PART * PER_S
    alone = fairness.quiet_waits("", None, per_s)
    capacity = int(PER_S) * SECONDS
    some = fairness.quiet_waits("", Load(NOISY, PER_S, capacity), per_s)
    floods = [
        fairness.quiet_waits("", Load(NOISY, rate, 4 * capacity), per_s)
        for rate in (4 * PER_S, AT_ONCE)
    ]
    queued = fairness.quiet_waits("", Load(NOISY, AT_ONCE, 4 * capacity), per_s, apart=False)
    assert alone.p99 < some.p99 < 1.0
    assert all(0.5 < flood.p99 / some.p99 < 2.0 for flood in floods), (some, floods)
    assert queued.p50 > 20 * floods[-1].p50


def test_two_that_always_wait_are_served_by_their_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fairness, "SECONDS", 50.0)
    shares = fairness.shares({"a": 1.0, "b": 3.0}, PER_S)
    assert shares.ratio == pytest.approx(3.0, rel=0.1)
