"""Pool, tables and index under random orders of calls, against lists and dicts. Short and fixed."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from quire.fuzz.allocator_machine import AllocatorMachine


def test_blocks_agree_with_the_slow_model_under_any_order_of_calls() -> None:
    """Cases 1, 2, 4, 8, 9, 14, 16, 20, 22-24, 26, 27, 29, 34."""
    run_state_machine_as_test(
        AllocatorMachine,
        settings=settings(
            max_examples=250,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
    totals = AllocatorMachine.totals
    for name in ("hits", "partial hits", "twins", "evictions", "refused", "steps with orphans"):
        assert totals[name] > 0, (name, totals)
