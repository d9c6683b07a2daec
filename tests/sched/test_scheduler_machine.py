"""The scheduler under random orders of calls, against requests run alone. Short and fixed."""

from __future__ import annotations

from quire.fuzz.run import cover
from quire.fuzz.scheduler_machine import SchedulerMachine


def test_scheduler_keeps_the_law_under_any_order_of_calls() -> None:
    """Cases 1, 4, 12-14, 18-27, 30, 31, 34, 35, 39, 44, 46-52, 54-57."""
    wanted = (
        *("preemptions", "copies", "forks", "evictions", "aborts", "failures"),
        *("guesses", "right guesses"),
    )
    cover(SchedulerMachine, wanted, num_examples=30, num_steps=40)
