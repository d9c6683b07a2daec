"""The scheduler under random orders of calls, against requests run alone. Short and fixed."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from quire.fuzz.scheduler_machine import SchedulerMachine


def test_scheduler_keeps_the_law_under_any_order_of_calls() -> None:
    """Cases 1, 4, 12-14, 18-27, 30, 31, 34, 35, 39, 44, 46-52, 54-57."""
    run_state_machine_as_test(
        SchedulerMachine,
        settings=settings(
            max_examples=120,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            phases=(Phase.generate, Phase.shrink),  # steering would repeat the deepest few
            suppress_health_check=list(HealthCheck),
        ),
    )
    totals = SchedulerMachine.totals
    for name in ("preemptions", "copies", "forks", "evictions", "aborts", "failures"):
        assert totals[name] > 0, (name, totals)
