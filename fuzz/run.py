"""Run the state machines for a while with random seeds: `python -m quire.fuzz.run --minutes N`.

Prints what was exercised; a failure prints the steps that reproduce it and ends with status 1.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from .allocator_machine import AllocatorMachine
from .engine_machine import EngineMachine
from .scheduler_machine import SchedulerMachine

ROUND_EXAMPLES = 150
NUM_STEPS = 80


def run_round(machine: type[RuleBasedStateMachine], number: int) -> None:
    """Run one round of examples from seed `number`; raises what the machine raises."""
    options = settings(
        max_examples=ROUND_EXAMPLES,
        stateful_step_count=NUM_STEPS,
        deadline=None,
        database=None,
        derandomize=False,
        print_blob=True,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(seed(number)(machine), settings=options)


def describe(totals: Counter[str]) -> str:
    """Format counters for one line."""
    return ", ".join(f"{count} {name}" for name, count in sorted(totals.items()))


def main(arguments: list[str] | None = None) -> int:
    """Alternate the machines until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=None, help="of the first round")
    options = parser.parse_args(arguments)
    end = time.monotonic() + options.minutes * 60
    number = options.seed if options.seed is not None else time.time_ns() % 2**32
    machines = (AllocatorMachine, SchedulerMachine, EngineMachine)
    print(f"first seed {number}")
    rounds = 0
    while time.monotonic() < end:
        machine = machines[rounds % len(machines)]
        try:
            run_round(machine, number + rounds)
        except Exception:
            traceback.print_exc()
            print(f"{machine.__name__} failed with --seed {number + rounds}")
            return 1
        rounds += 1
    for machine in machines:
        print(f"{machine.__name__}: {describe(machine.totals)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
