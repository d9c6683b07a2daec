"""Run the state machines for a while with random seeds: `python -m quire.fuzz.run --minutes N`.

With --jobs J, that many processes, each with seeds of its own. Prints what was exercised and how
many states were reached; a failure prints the steps that reproduce it, saves them as commands under
fuzz/corpus (see commands.py), and ends the run with status 1 while the other processes go on.
`--repeat FILE` does saved commands again.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import msgspec
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from msgspec import Struct

from .allocator_machine import AllocatorMachine
from .commands import Heading, read, repeat, write
from .engine_machine import EngineMachine
from .scheduler_machine import SchedulerMachine
from .virtual import be_quiet

ROUND_EXAMPLES = 40
NUM_STEPS = 80
MACHINES = (AllocatorMachine, SchedulerMachine, EngineMachine)
CORPUS = Path(__file__).resolve().parent / "corpus"
STEER_EVERY = 4
"""Rounds of a machine: one that is steered goes deeper, the others reach more states."""
SEEDS_PER_JOB = 10**6
PROGRESS_S = 60.0
LEAST_ROUNDS, MOST_ROUNDS = 4, 16
"""Of `cover`: what examples come to varies much from seed to seed."""

MAX_NOTE = 500
"""Characters."""

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


def run_round(
    machine: Machine,
    number: int,
    *,
    steer: bool = False,
    num_examples: int = ROUND_EXAMPLES,
    num_steps: int = NUM_STEPS,
) -> None:
    """Run one round of examples from seed `number`; raises what the machine raises.

    steer: towards what machines aim at.
    """
    phases = (Phase.generate, *([Phase.target] if steer else []), Phase.shrink)
    options = settings(
        max_examples=num_examples,
        stateful_step_count=num_steps,
        deadline=None,
        database=None,
        derandomize=False,
        print_blob=True,
        report_multiple_bugs=False,
        phases=phases,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(seed(number)(machine), settings=options)


def cover(machine: Machine, wanted: Iterable[str], *, num_examples: int, num_steps: int) -> None:
    """Run a few rounds, always the same, and more until all that is wanted has happened.

    Raises what the machine raises, and AssertionError where something is still missing.
    """
    missing = list(wanted)
    for number in range(MOST_ROUNDS):
        run_round(machine, number, num_examples=num_examples, num_steps=num_steps)
        missing = [what for what in missing if not machine.totals[what]]
        if number + 1 >= LEAST_ROUNDS and not missing:
            return
    raise AssertionError((missing, machine.totals))


def save(machine: Machine, command: str, error: BaseException, folder: Path) -> Path:
    """Keep a failure: the commands of the shrunk example, which Hypothesis has run last."""
    commands = machine.newest
    name = hashlib.blake2b(msgspec.json.encode(commands), digest_size=6).hexdigest()
    path = folder / f"{machine.__name__.lower()}-{name}.jsonl"
    note = f"{type(error).__name__}: {error}"[:MAX_NOTE]
    write(path, Heading(machine.__name__, note, command), commands)
    return path


def repeat_file(path: Path) -> None:
    """Do saved commands again; raises what the machine raises."""
    heading, commands = read(path)
    machine = next(one for one in MACHINES if one.__name__ == heading.machine)
    repeat(machine, commands)


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
            path = save(machine, command, error, folder)
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


def explore_in_processes(options: argparse.Namespace, number: int) -> Found:
    """Run `explore` in several processes, each with seeds of its own."""
    command = [sys.executable, "-m", "quire.fuzz.run", "--report"]
    command += ["--minutes", str(options.minutes), "--corpus", str(options.corpus)]
    if options.machine:
        command += ["--machine", options.machine, *(["--steer"] if options.steer else [])]
    seeds = [number + job * SEEDS_PER_JOB for job in range(options.jobs)]
    children: list[subprocess.Popen[bytes]] = [
        subprocess.Popen([*command, "--seed", str(seed)], stdout=subprocess.PIPE) for seed in seeds
    ]
    found = Found()
    for first, child in zip(seeds, children, strict=True):
        pipe: IO[bytes] | None = child.stdout
        assert pipe is not None
        data = pipe.read()
        child.wait()
        try:
            found.join(msgspec.json.decode(data, type=Found))
        except msgspec.MsgspecError:
            ended = f"a process ended with status {child.returncode}"
            found.failures.append(f"{ended}, its first seed was {first}")
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
    parser.add_argument("--repeat", type=Path, metavar="FILE", help="do saved commands again")
    options = parser.parse_args(arguments)
    be_quiet()
    if options.repeat:
        repeat_file(options.repeat)
        return 0
    number = options.seed if options.seed is not None else time.time_ns() % 2**32
    if options.report:
        end_s = time.monotonic() + options.minutes * 60
        found = explore(end_s, number, options.corpus, options.machine, options.steer)
        sys.stdout.buffer.write(msgspec.json.encode(found))
        return 1 if found.failures else 0
    print(f"first seed {number}", flush=True)
    if options.jobs > 1:
        found = explore_in_processes(options, number)
    else:
        end_s = time.monotonic() + options.minutes * 60
        found = explore(end_s, number, options.corpus, options.machine, options.steer)
    print(f"{found.num_rounds} rounds, {time.process_time():.0f} s of CPU time in this process")
    print(found.tell())
    for failure in found.failures:
        print(failure)
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
