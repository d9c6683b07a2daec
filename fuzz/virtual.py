"""Long lives of the control plane on virtual time: `python -m quire.fuzz.virtual --steps N`.

A real core and a real scheduler over a device that is simulated, thousands of steps an episode, so
that what only age brings is reached: full caches, evictions, slots used again and again. Traffic
comes in bursts and phases; steps are slow, die, or never end. An episode is a function of its seed.
Prints what was exercised; a failure prints the command that repeats it and gives exit status 1.
"""

from __future__ import annotations

import argparse
import heapq
import logging
import os
import sys
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import msgspec
from msgspec import Struct

from ..engine.core import EngineCore
from ..engine.errors import ParamsError
from ..engine.plan import StepPlan, StepResult
from ..engine.request import TokenEvents
from ..engine.sched.limits import SchedulerLimits
from ..engine.sched.scheduler import Scheduler
from .fast_device import FastDevice
from .ledger import LONGEST_WAIT, Account, Ledger
from .traffic import SALTS, Dice, Fate, Setup, Traffic, draw_duration_s, draw_fate, draw_setup

MOST_STEPS = 20_000
"""Of an episode, before it is drained."""
CHECK_EVERY = 97
STALL_S = 1.0
"""When a step that does not end is given up."""
ABORT_S = 0.02
"""Mean time from a request to its abort."""
_ROOTS = {None: 11, "a": 12, "b": 13}
_SECRET = b"0123456789abcdef"

MakeDevice = Callable[[SchedulerLimits, dict[int, int], bool], FastDevice]
"""From limits, roots, and whether the scheduler has told another device before."""


class ToldFuture(Future[StepResult]):
    """A result that may be asked for only once it is there: nobody else would bring it."""

    def result(self, timeout: float | None = None) -> StepResult:
        """See Future."""
        assert self.done(), "a step that is still on its way is waited for"
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """See Future."""
        assert self.done(), "a step that is still on its way is waited for"
        return super().exception(timeout)


class Step(NamedTuple):
    """A step on the device."""

    future: Future[StepResult]
    end_s: float
    fate: Fate
    result: StepResult | None
    """None: the device has not done it."""


class VirtualExecutor:
    """Executor whose steps end at drawn times. They run when submitted and are told at their end,
    so that an error of the device is raised in the call that caused it."""

    def __init__(self, device: FastDevice, dice: Dice, setup: Setup) -> None:
        self.device = device
        self.now_s = 0.0
        """Set by the driver."""
        self._dice, self._setup = dice, setup
        self._steps: deque[Step] = deque()
        self.is_dead = False
        """Whether the device misses steps: those that are in flight cannot run."""

    @property
    def oldest(self) -> Step | None:
        """The step that ends next."""
        return self._steps[0] if self._steps else None

    def submit(self, plan: StepPlan) -> Future[StepResult]:
        """See Executor."""
        begin_s = self._steps[-1].end_s if self._steps else self.now_s
        fate = draw_fate(self._dice, self._setup)
        seconds = draw_duration_s(self._dice, self._setup, plan.num_scheduled_tokens)
        self.is_dead |= fate == "before"
        result = None if self.is_dead else self.device.execute(plan)
        future = ToldFuture()
        end_s = begin_s + (STALL_S if fate == "stall" else seconds)
        self._steps.append(Step(future, end_s, fate, result))
        return future

    def finish(self) -> None:
        """Tell of the oldest step's end, and where it died of all behind it."""
        step = self._steps.popleft()
        if step.fate == "done":
            assert step.result is not None
            step.future.set_result(step.result)
            return
        for one in (step, *self._steps):
            one.future.set_exception(RuntimeError("the device died"))
        self._steps.clear()

    def abandon(self) -> None:
        """See Executor."""
        self._steps.clear()

    def close(self) -> None:
        """See Executor."""
        assert not self._steps, self._steps


@dataclass(slots=True, order=True)
class Due:
    """Something that comes at a time."""

    at_s: float
    number: int
    abort: str = ""
    """Whom to abort; else a burst."""


class Episode:
    """One engine's life. `steps` and `totals` tell how far it came, also after a failure."""

    def __init__(
        self,
        seed: int,
        *,
        setup: Setup | None = None,
        make_device: MakeDevice = FastDevice,
        states: set[str] | None = None,
    ) -> None:
        """setup: None draws it."""
        self._dice = dice = Dice(seed)
        drawn = draw_setup(dice, MOST_STEPS)
        self.setup = setup = setup or drawn
        self._limits = limits = setup.limits
        self._traffic = Traffic(dice, limits, _ROOTS)
        self._make_device = make_device
        scheduler = Scheduler(limits, secret=_SECRET)
        device = make_device(limits, self._traffic.roots, False)
        self._executor = VirtualExecutor(device, dice, setup)
        self._core = EngineCore(scheduler, self._executor, overlap=limits.overlap)
        self.ledger = Ledger(
            self._core, limits, self._traffic.roots, set() if states is None else states
        )
        self._phase = self._traffic.phase()
        self._due: list[Due] = []
        self._numbers = count()
        self._schedule(0.0)

    @property
    def num_steps(self) -> int:
        """Steps launched."""
        return self.ledger.totals["steps"]

    def run(self) -> Counter[str]:
        """Live until the end; raises what an oracle raises. Returns what was exercised."""
        core, ledger = self._core, self.ledger
        next_check = CHECK_EVERY
        while self._due or core.has_unfinished:
            core.launch()
            oldest = self._executor.oldest
            due_s = self._due[0].at_s if self._due else float("inf")
            if oldest is not None and oldest.end_s < due_s:
                self._advance(oldest.end_s)
                self._land(oldest)
            else:
                assert self._due, ("nothing proceeds", list(ledger.accounts))
                self._advance(due_s)
                self._come(heapq.heappop(self._due))
            if self.num_steps >= next_check and not self._executor.is_dead:
                next_check = self.num_steps + CHECK_EVERY
                ledger.check(self._executor.device)
        ledger.close()
        core.close()
        ledger.totals["episodes"] += 1
        return ledger.totals

    def _advance(self, now_s: float) -> None:
        assert now_s >= self._executor.now_s, (now_s, self._executor.now_s)
        self._executor.now_s = now_s

    def _schedule(self, wait_s: float, abort: str = "") -> None:
        at_s = self._executor.now_s + wait_s
        heapq.heappush(self._due, Due(at_s, next(self._numbers), abort))

    def _land(self, step: Step) -> None:
        """Take what the oldest step gave, or find that it died or does not end."""
        core, executor, totals = self._core, self._executor, self.ledger.totals
        num_failures = totals["failures"]
        if step.fate == "stall":
            events = core.abandon("the step does not end")
            executor = VirtualExecutor(self._new_device(), self._dice, self.setup)
            executor.now_s, self._executor = self._executor.now_s, executor
            core.resume(executor)
        else:
            executor.finish()
            events = core.land()
        self._take(events)
        assert totals["failures"] - num_failures == (step.fate != "done"), step.fate
        totals[f"steps that end: {step.fate}"] += 1
        if step.fate == "done":
            return
        scheduler = core.scheduler
        assert scheduler.num_free_blocks == scheduler.num_blocks, scheduler.num_free_blocks
        totals["requests that outlive a failure"] += len(self.ledger.accounts)
        # Whatever was written cannot be trusted any more.
        if executor.is_dead:
            executor.device, executor.is_dead = self._new_device(), False
        executor.device.forget()

    def _new_device(self) -> FastDevice:
        return self._make_device(self._limits, self._traffic.roots, True)

    def _take(self, events: TokenEvents) -> None:
        for account in self.ledger.take(events):
            if account.alone.reason != "error":
                self._traffic.ended(account.known)

    def _come(self, due: Due) -> None:
        """Abort a request, or let a burst come and schedule the next."""
        ledger, dice = self.ledger, self._dice
        if due.abort:
            events = self._core.abort(due.abort)
            assert (events is not None) == (due.abort in ledger.accounts), due
            if events is not None:
                self._take(events)
            return
        if self.num_steps >= self.setup.num_steps:
            return
        if dice.chance(0.01):
            self._phase = self._traffic.phase()
        room = self._phase.most_alive - len(ledger.accounts)
        for _ in range(min(room, 1 + dice.below(self._phase.burst))):
            self._enter()
        if dice.chance(self.setup.gesture):
            self._gesture()
        self._schedule(dice.wait(self._phase.gap_s))

    def _enter(self) -> None:
        """Add or fork a request; it may be one that is aborted later."""
        accounts, dice = self.ledger.accounts, self._dice
        parent: Account | None = None
        if accounts and dice.chance(self.setup.fork):
            parent = accounts[dice.pick(list(accounts))]
            if len(parent.known) + 1 > self._limits.max_model_len:
                parent = None
        if parent is None:
            request = self._traffic.request(dice.pick(SALTS))
            self._core.add(request)
        else:
            request = self._traffic.request(parent.request.cache_salt, parent.known)
            self._core.fork(parent.request.request_id, request)
        if dice.chance(self.setup.abort):
            self._schedule(dice.wait(ABORT_S), request.request_id)

    def _gesture(self) -> None:
        """Change the budget, empty the prefix cache, or ask what must be refused."""
        core, accounts = self._core, self.ledger.accounts
        match self._dice.below(3):
            case 0:
                core.set_budget(1 + self._dice.below(self._limits.max_num_batched_tokens))
            case 1:
                idle = core.scheduler.num_free_blocks == self._limits.num_blocks
                assert core.reset_prefix_cache() == idle
            case _:
                too_long = self._traffic.request(None, [1] * self._limits.max_model_len)
                for request in (too_long, *(one.request for one in list(accounts.values())[:1])):
                    try:
                        core.add(request)
                    except ParamsError:
                        continue
                    raise AssertionError(f"{request.request_id} was accepted")


class Outcome(Struct):
    """What episodes have exercised, and where they failed."""

    totals: dict[str, int] = msgspec.field(default_factory=dict)
    states: set[str] = msgspec.field(default_factory=set)
    failures: list[str] = msgspec.field(default_factory=list)

    def join(self, other: Outcome) -> None:
        """Take in another one."""
        for name, number in other.totals.items():
            known = self.totals.get(name, 0)
            self.totals[name] = max(known, number) if name == LONGEST_WAIT else known + number
        self.states |= other.states
        self.failures += other.failures


def live(seed: int) -> Outcome:
    """Run one episode; a failure is told, with the command that repeats it."""
    outcome = Outcome()
    episode = Episode(seed, states=outcome.states)
    try:
        episode.run()
    except Exception:
        outcome.failures.append(
            f"{traceback.format_exc()}{episode.setup}\n"
            f"episode {seed} failed at step {episode.num_steps}: "
            f"python -m quire.fuzz.virtual --episode {seed}"
        )
    outcome.totals = dict(episode.ledger.totals)
    return outcome


def be_quiet() -> None:
    """Steps that die are meant to: what the engine logs of them says nothing."""
    logging.getLogger("quire").setLevel(logging.CRITICAL)


def explore(num_steps: int, seed: int, jobs: int) -> Iterator[Outcome]:
    """Run episodes from `seed` on, in processes, until they have made so many steps."""
    done, coming, seeds = 0, set[Future[Outcome]](), count(seed)
    with ProcessPoolExecutor(jobs, initializer=be_quiet) as pool:
        while done < num_steps or coming:
            while done < num_steps and len(coming) < jobs:
                coming.add(pool.submit(live, next(seeds)))
            ended, coming = wait(coming, return_when=FIRST_COMPLETED)
            for future in ended:
                outcome = future.result()
                done += outcome.totals.get("steps", 0)
                if outcome.failures:
                    done = num_steps
                yield outcome


def main(arguments: list[str] | None = None) -> int:
    """Run, print, and tell by the exit status whether nothing failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, default=None, help="of the first episode")
    parser.add_argument("--episode", type=int, default=None, help="only that of this seed")
    options = parser.parse_args(arguments)
    be_quiet()
    begin_s = time.perf_counter()
    found = Outcome()
    if options.episode is not None:
        found.join(live(options.episode))
    else:
        seed = options.seed if options.seed is not None else time.time_ns() % 2**32
        print(f"first seed {seed}", flush=True)
        for outcome in explore(options.steps, seed, options.jobs):
            found.join(outcome)
    wall_s = time.perf_counter() - begin_s
    for name, number in sorted(found.totals.items()):
        print(f"{number:>12,} {name}")
    print(f"{len(found.states):>12,} states reached")
    cpu_s = sum(os.times()[:4])  # with the processes that have ended
    rate = found.totals.get("steps", 0) / wall_s
    print(f"{wall_s:>12,.1f} s, {cpu_s:,.1f} s of CPU, {rate:,.0f} steps/s")
    for failure in found.failures:
        print(failure)
    return 1 if found.failures else 0


if __name__ == "__main__":
    sys.exit(main())
