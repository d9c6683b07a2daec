"""The whole engine under random orders of calls, against requests answered alone. Short, fixed."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from quire.fuzz.engine_machine import EngineMachine


def test_engine_keeps_the_law_under_any_order_of_calls() -> None:
    """Tokens and log probabilities, bit for bit, whatever happens to others and between steps."""
    run_state_machine_as_test(
        EngineMachine,
        settings=settings(
            max_examples=60,
            stateful_step_count=30,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    totals = EngineMachine.totals
    for name in ("preemptions", "copies", "forks", "evictions", "aborts", "hit tokens"):
        assert totals[name] > 0, (name, totals)
    for name in ("failures before the device", "failures after the device"):
        assert totals[name] > 0, (name, totals)
