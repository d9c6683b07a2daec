"""The loop body that both planes meet in: plan, commit, submit; land, retire.

EngineCore owns the plans in flight and nothing else; it knows the scheduler and an executor, no
tensor, no clock, no asyncio. Its driver waits on `oldest` in its own way (`.result()` offline,
`asyncio.wrap_future` in a loop) and then calls `land`.
"""

from __future__ import annotations

import logging
from collections import deque
from concurrent.futures import Future
from typing import Protocol

from .executor.base import Executor
from .plan import StepPlan, StepResult
from .request import Request, TokenEvents
from .sched.scheduler import Decision, Scheduler

logger = logging.getLogger("quire")


class Observer(Protocol):
    """Hears of everything that changes a core, in order, after it has happened. Must not raise."""

    def added(self, request: Request, parent_id: str | None) -> None:
        """A request waits. parent_id: of the request that it forks."""

    def aborted(self, request_id: str) -> None:
        """A living request was ended from outside."""

    def launched(self, decision: Decision, plan: StepPlan) -> None:
        """A step was committed; it is submitted next."""

    def landed(self, plan: StepPlan, result: StepResult) -> None:
        """The oldest step has a result, which is retired next."""

    def failed(self, plan: StepPlan, message: str) -> None:
        """The oldest step died, and all behind it with it."""

    def budgeted(self, num_tokens: int) -> None:
        """From the next step on, a step has at most so many tokens."""

    def cleared(self) -> None:
        """The prefix cache was emptied on request."""

    def closed(self) -> None:
        """Nothing more will come."""


class EngineCore:
    """Drives one scheduler and one executor, `overlap` plans deep. Not thread-safe."""

    def __init__(self, scheduler: Scheduler, executor: Executor, *, overlap: int) -> None:
        self.scheduler = scheduler
        self._executor = executor
        self._overlap = overlap
        self._in_flight: deque[tuple[StepPlan, Future[StepResult]]] = deque()
        self._observers: list[Observer] = []

    def watch(self, observer: Observer) -> None:
        """Tell an observer of everything from now on."""
        self._observers.append(observer)

    def unwatch(self, observer: Observer) -> None:
        """Tell an observer, who was told until now, of nothing more."""
        self._observers.remove(observer)

    @property
    def oldest(self) -> Future[StepResult] | None:
        """The result to wait for next, None when nothing is in flight."""
        return self._in_flight[0][1] if self._in_flight else None

    @property
    def has_unfinished(self) -> bool:
        """Whether any request waits or runs, or a step is still in flight."""
        return bool(self._in_flight) or self.scheduler.has_unfinished

    def add(self, request: Request) -> None:
        """Queue a request. ParamsError if it can never fit or its id is alive."""
        self.scheduler.add(request)
        for observer in self._observers:
            observer.added(request, None)

    def fork(self, parent_id: str, request: Request) -> None:
        """Queue a request that continues a living one. See Scheduler.fork."""
        self.scheduler.fork(parent_id, request)
        for observer in self._observers:
            observer.added(request, parent_id)

    def set_budget(self, num_tokens: int) -> None:
        """Bound the tokens of the steps from now on; see Scheduler.set_budget."""
        if self.scheduler.set_budget(num_tokens):
            for observer in self._observers:
                observer.budgeted(num_tokens)

    def reset_prefix_cache(self) -> bool:
        """Forget all cached prefixes; False (and nothing happens) while a block is in use."""
        done = self.scheduler.reset_prefix_cache()
        if done:
            for observer in self._observers:
                observer.cleared()
        return done

    def abort(self, request_id: str) -> TokenEvents | None:
        """End a request in whatever state it is; None if it is not alive."""
        events = self.scheduler.abort(request_id)
        if events is not None:
            for observer in self._observers:
                observer.aborted(request_id)
        return events

    def launch(self) -> int:
        """Submit as many steps as may be in flight; return how many tokens they compute."""
        num_tokens = 0
        while len(self._in_flight) < self._overlap:
            decision = self.scheduler.plan()
            if decision is None:
                break
            plan = self.scheduler.commit(decision)
            for observer in self._observers:
                observer.launched(decision, plan)
            self._in_flight.append((plan, self._executor.submit(plan)))
            num_tokens += plan.num_scheduled_tokens
        return num_tokens

    def land(self) -> TokenEvents:
        """Retire the oldest step, which must be in flight; wait for it if it is not done.

        A step that failed ends every request with a step in flight, with reason "error".
        """
        assert self._in_flight, "land without a step in flight"
        plan, future = self._in_flight.popleft()
        try:
            result = future.result()
        except Exception as error:
            logger.exception("step %d failed", plan.step)
            self._drain()
            return self._fail(plan, f"{type(error).__name__}: {error}")
        plan = plan.told(result.guesses)
        for observer in self._observers:
            observer.landed(plan, result)
        return self.scheduler.retire(plan, result)

    def _fail(self, plan: StepPlan, message: str) -> TokenEvents:
        for observer in self._observers:
            observer.failed(plan, message)
        return self.scheduler.fail(message)

    @property
    def oldest_plan(self) -> StepPlan | None:
        """The plan whose result is waited for."""
        return self._in_flight[0][0] if self._in_flight else None

    def abandon(self, message: str) -> TokenEvents:
        """Give up on the steps in flight, of which the oldest does not end, and on the executor.

        Ends every request with a step in flight with reason "error". `resume` must follow before
        the next launch.
        """
        assert self._in_flight, "abandon without a step in flight"
        plan, _ = self._in_flight[0]
        self._in_flight.clear()
        self._executor.abandon()
        return self._fail(plan, message)

    def resume(self, executor: Executor) -> None:
        """Go on with an executor whose device knows nothing yet."""
        self._executor = executor

    def rest(self) -> Executor:
        """Forget all cached prefixes and give up the executor, for the caller to close.

        Nothing may be alive or in flight. `resume` must follow before the next launch.
        """
        assert not self.has_unfinished, "rest while there is work"
        done = self.reset_prefix_cache()
        assert done, "blocks are in use and no request is alive"
        return self._executor

    def _drain(self) -> None:
        """Wait for the steps behind a failed one; what they gave is worthless."""
        while self._in_flight:
            _, future = self._in_flight.popleft()
            future.exception()

    def close(self) -> None:
        """Wait for what is in flight and release the device."""
        self._drain()
        self._executor.close()
        for observer in self._observers:
            observer.closed()
