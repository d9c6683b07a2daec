"""Run the state machines for a while with random seeds: `python -m quire.fuzz.run --minutes N`.

With --jobs J, that many processes, each with seeds of its own. Prints what was exercised and how
many states were reached; a failure prints the steps that reproduce it, saves them under
fuzz/corpus, and ends the run with status 1 while the other processes go on.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import IO

import msgspec
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from msgspec import Struct

from .allocator_machine import AllocatorMachine
from .engine_machine import EngineMachine
from .scheduler_machine import SchedulerMachine

ROUND_EXAMPLES = 40
NUM_STEPS = 80
MACHINES = (AllocatorMachine, SchedulerMachine, EngineMachine)
CORPUS = Path(__file__).resolve().parent / "corpus"
STEER_EVERY = 4
"""Rounds of a machine: one that is steered goes deeper, the others reach more states."""
SEEDS_PER_JOB = 10**6
PROGRESS_S = 60.0

Machine = type[AllocatorMachine] | type[SchedulerMachine] | type[EngineMachine]


class Found(Struct):
    """What one process has done."""

    num_rounds: int = 0
    totals: dict[str, dict[str, int]] = msgspec.field(default_factory=dict)
    """By machine."""
    states: dict[str, set[str]] = msgspec.field(default_factory=dict)
    failures: list[str] = msgspec.field(default_factory=list)

    def join(self, other: Found) -> None:
        """Take in what another process has done."""
        self.num_rounds += other.num_rounds
        for name, totals in other.totals.items():
            mine = self.totals.setdefault(name, {})
            for what, count in totals.items():
                mine[what] = mine.get(what, 0) + count
        for name, states in other.states.items():
            self.states.setdefault(name, set()).update(states)
        self.failures += other.failures

    def tell(self) -> str:
        """Format for people, a machine a line."""
        lines = []
        for name, totals in self.totals.items():
            done = ", ".join(f"{count:,} {what}" for what, count in sorted(totals.items()))
            reached = len(self.states.get(name, ()))
            lines.append(f"{name}: " + (f"{reached:,} states reached; " if reached else "") + done)
        return "\n".join(lines)


def run_round(machine: Machine, number: int, *, steer: bool = False) -> None:
    """Run one round of examples from seed `number`; raises what the machine raises.

    steer: towards what machines aim at.
    """
    phases = (Phase.generate, *([Phase.target] if steer else []), Phase.shrink)
    options = settings(
        max_examples=ROUND_EXAMPLES,
        stateful_step_count=NUM_STEPS,
        deadline=None,
        database=None,
        derandomize=False,
        print_blob=True,
        report_multiple_bugs=False,
        phases=phases,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(seed(number)(machine), settings=options)


def save(machine: str, command: str, error: BaseException, folder: Path) -> Path:
    """Keep a failure as readable steps: the shrunk example as calls of the machine."""
    notes = "\n".join(getattr(error, "__notes__", ()))
    text = f"{command}\n{type(error).__name__}: {error}\n\n{notes}\n"
    folder.mkdir(exist_ok=True)
    name = hashlib.blake2b(notes.encode() or text.encode(), digest_size=6).hexdigest()
    path = folder / f"{machine.lower()}-{name}.txt"
    path.write_text(text)
    return path


def explore(end_s: float, number: int, folder: Path, only: str = "", steer: bool = False) -> Found:
    """Alternate the machines until the time is over or one fails.

    only: one machine, all of its rounds steered or none, to repeat a failure.
    """
    found, told_s = Found(), time.monotonic()
    machines = [one for one in MACHINES if one.__name__ == only] or MACHINES
    while time.monotonic() < end_s and not found.failures:
        machine = machines[found.num_rounds % len(machines)]
        if not only:
            steer = found.num_rounds // len(machines) % STEER_EVERY == STEER_EVERY - 1
        where = number + found.num_rounds
        try:
            run_round(machine, where, steer=steer)
        except Exception as error:
            traceback.print_exc()
            name = machine.__name__
            command = f"--machine {name} --seed {where}{' --steer' if steer else ''}"
            path = save(name, command, error, folder)
            found.failures.append(f"{name} failed with {command}: {path}")
        found.num_rounds += 1
        if time.monotonic() - told_s > PROGRESS_S:
            told_s = time.monotonic()
            steps = {one.__name__: one.totals["steps"] for one in MACHINES}
            print(f"seed {number}: {found.num_rounds} rounds, steps {steps}", file=sys.stderr)
    for machine in MACHINES:
        found.totals[machine.__name__] = dict(machine.totals)
        found.states[machine.__name__] = getattr(machine, "states", set())
    return found


def explore_in_processes(minutes: float, number: int, jobs: int, folder: Path) -> Found:
    """Run `explore` in several processes, each with seeds of its own."""
    command = [sys.executable, "-m", "quire.fuzz.run", "--minutes", str(minutes), "--report"]
    command += ["--corpus", str(folder)]
    children: list[subprocess.Popen[bytes]] = [
        subprocess.Popen(
            [*command, "--seed", str(number + job * SEEDS_PER_JOB)], stdout=subprocess.PIPE
        )
        for job in range(jobs)
    ]
    found = Found()
    for child in children:
        pipe: IO[bytes] | None = child.stdout
        assert pipe is not None
        data = pipe.read()
        child.wait()
        try:
            found.join(msgspec.json.decode(data, type=Found))
        except msgspec.MsgspecError:
            found.failures.append(f"a process ended with status {child.returncode}")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Explore, print, and tell by the exit status whether nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, default=None, help="of the first round")
    names = [machine.__name__ for machine in MACHINES]
    parser.add_argument("--machine", choices=names, default="", help="only this one")
    parser.add_argument("--steer", action="store_true", help="with --machine: every round")
    parser.add_argument("--corpus", type=Path, default=CORPUS, help="where failures are kept")
    parser.add_argument("--report", action="store_true", help="write JSON, for a parent process")
    options = parser.parse_args(arguments)
    # Steps die on purpose: what the engine logs of them says nothing.
    logging.getLogger("quire").setLevel(logging.CRITICAL)
    number = options.seed if options.seed is not None else time.time_ns() % 2**32
    if options.report:
        found = explore(time.monotonic() + options.minutes * 60, number, options.corpus)
        sys.stdout.buffer.write(msgspec.json.encode(found))
        return 1 if found.failures else 0
    print(f"first seed {number}", flush=True)
    if options.jobs > 1:
        found = explore_in_processes(options.minutes, number, options.jobs, options.corpus)
    else:
        end_s = time.monotonic() + options.minutes * 60
        found = explore(end_s, number, options.corpus, options.machine, options.steer)
    print(f"{found.num_rounds} rounds")
    print(found.tell())
    for failure in found.failures:
        print(failure)
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
