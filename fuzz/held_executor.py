"""HeldExecutor: an Executor whose plans run one by one, when a test says so, and may die."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from typing import Literal

from ..engine.device.runner import ModelRunner
from ..engine.plan import StepPlan, StepResult

Fault = Literal["before", "after"]
"""When a step dies: before the device did anything of it, or when all of it was done."""
FAULTS: tuple[Fault, ...] = ("before", "after")


class HeldFuture(Future[StepResult]):
    """A result that is computed, with all in front of it, when it is asked for."""

    def __init__(self, executor: HeldExecutor) -> None:
        super().__init__()
        self._executor = executor

    def result(self, timeout: float | None = None) -> StepResult:
        """See Future."""
        self._executor.run_until(self)
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """See Future."""
        self._executor.run_until(self)
        return super().exception(timeout)


class HeldExecutor:
    """Executor that runs plans in their order, each when it is told to or has to."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._held: deque[tuple[StepPlan, HeldFuture]] = deque()
        self.fault: Fault | None = None
        """Of the next step that runs."""

    @property
    def num_held(self) -> int:
        """Steps that were submitted and have not run."""
        return len(self._held)

    def submit(self, plan: StepPlan) -> Future[StepResult]:
        """See Executor."""
        self._held.append((plan, HeldFuture(self)))
        return self._held[-1][1]

    def run(self) -> None:
        """Run the oldest step that is held."""
        plan, future = self._held.popleft()
        fault, self.fault = self.fault, None
        try:
            if fault == "before":
                raise RuntimeError("the device died")
            result = self._runner.execute(plan)
            if fault == "after":
                raise RuntimeError("the device died")
        except Exception as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    def run_until(self, future: HeldFuture) -> None:
        """Run what is held until a result is there."""
        while not future.done():
            self.run()

    def abandon(self) -> None:
        """See Executor."""
        self._held.clear()

    def close(self) -> None:
        """See Executor."""
        while self._held:
            self.run()
