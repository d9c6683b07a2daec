"""The worker thread: order, exceptions, threads, end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from quire.engine.device.link import Landed
from quire.engine.executor.inline import InlineExecutor


class FakeLanding:
    """A step that lands when its gate opens."""

    def __init__(self, outcome: Any) -> None:
        self.gate = threading.Event()
        self.outcome = outcome

    @property
    def is_ready(self) -> bool:
        return self.gate.is_set()

    def result(self) -> Any:
        assert self.gate.wait(5)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


class FakeRunner:
    """Records the plans that it is given."""

    def __init__(self, action: Callable[[int], Any] = lambda plan: plan) -> None:
        self.seen: list[int] = []
        self.action = action

    def launch(self, plan: int) -> Any:
        self.seen.append(plan)
        result = self.action(plan)
        return result if isinstance(result, FakeLanding) else Landed(result)


def make_executor(runner: Any, num_threads: int | None = None) -> Any:
    """An executor whose plans and results are whatever the fake takes and gives."""
    return InlineExecutor(runner, num_threads)


def test_plans_run_in_order_on_one_other_thread() -> None:
    runner = FakeRunner(lambda plan: threading.get_ident())
    executor = make_executor(runner)
    futures = [executor.submit(plan) for plan in range(50)]
    idents = {future.result() for future in futures}
    executor.close()
    assert runner.seen == list(range(50))
    assert len(idents) == 1
    assert threading.get_ident() not in idents


def test_submit_returns_before_the_step_ends() -> None:
    gate = threading.Event()
    executor = make_executor(FakeRunner(lambda plan: gate.wait(5)))
    future = executor.submit(1)
    assert not future.done()
    gate.set()
    assert future.result()
    executor.close()


def test_exception_travels_and_the_next_plan_runs() -> None:
    def action(plan: int) -> int:
        if plan == 1:
            raise AssertionError("plan 1")
        return plan

    executor = make_executor(FakeRunner(action))
    first, second = (executor.submit(plan) for plan in (1, 2))
    with pytest.raises(AssertionError, match="plan 1"):
        first.result()
    assert second.result() == 2
    executor.close()


def test_close_finishes_what_is_queued_and_may_be_called_twice() -> None:
    runner = FakeRunner()
    executor = make_executor(runner)
    future = executor.submit(7)
    executor.close()
    executor.close()
    assert future.done()
    with pytest.raises(RuntimeError):
        executor.submit(8)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_threads_are_set_in_the_worker(num_threads: int) -> None:
    executor = make_executor(FakeRunner(lambda plan: torch.get_num_threads()), num_threads)
    assert executor.submit(0).result() == num_threads
    executor.close()


def test_the_next_plan_is_launched_before_the_last_one_lands() -> None:
    landings = [FakeLanding(10), FakeLanding(11)]
    runner = FakeRunner(lambda plan: landings[plan])
    executor = make_executor(runner)
    first, second = executor.submit(0), executor.submit(1)
    landings[1].gate.set()
    with pytest.raises(TimeoutError):
        second.result(timeout=0.05)
    assert runner.seen == [0, 1]
    assert not first.done()
    landings[0].gate.set()
    assert (first.result(5), second.result(5)) == (10, 11)
    executor.close()


def test_results_come_in_order_even_where_a_later_step_is_ready_or_fails_at_once() -> None:
    first_landing = FakeLanding(0)
    order: list[int] = []

    def action(plan: int) -> Any:
        if plan == 2:
            raise AssertionError("plan 2")
        return first_landing if plan == 0 else plan

    executor = make_executor(FakeRunner(action))
    futures = [executor.submit(plan) for plan in range(3)]
    for plan, future in enumerate(futures):
        future.add_done_callback(lambda _, plan=plan: order.append(plan))
    with pytest.raises(TimeoutError):
        futures[1].result(timeout=0.05)
    first_landing.gate.set()
    assert isinstance(futures[2].exception(5), AssertionError)
    executor.close()
    assert order == [0, 1, 2]


def test_what_the_device_raises_travels_and_the_next_step_lands() -> None:
    landings = [FakeLanding(RuntimeError("device")), FakeLanding(1)]
    executor = make_executor(FakeRunner(lambda plan: landings[plan]))
    futures = [executor.submit(plan) for plan in range(2)]
    for landing in landings:
        landing.gate.set()
    with pytest.raises(RuntimeError, match="device"):
        futures[0].result(5)
    assert futures[1].result(5) == 1
    executor.close()


def test_a_step_that_has_landed_is_completed_by_the_launching_thread() -> None:
    """A CPU's steps take no second thread."""
    executor = make_executor(FakeRunner())
    assert [executor.submit(plan).result(5) for plan in range(5)] == list(range(5))
    assert executor._last is None
    executor.close()


def test_a_plan_that_waits_cannot_be_cancelled() -> None:
    """It changes the device: what follows is planned on top of it."""
    landing = FakeLanding(0)
    executor = make_executor(FakeRunner(lambda plan: landing))
    future = executor.submit(0)
    assert not future.cancel()
    landing.gate.set()
    assert future.result(5) == 0
    executor.close()


class FaultyLanding(FakeLanding):
    """A device that tells of its fault when it is asked whether it has ended."""

    @property
    def is_ready(self) -> bool:
        raise RuntimeError("an illegal memory access was encountered")


def test_a_fault_told_before_the_landing_travels_too() -> None:
    runner = FakeRunner(lambda plan: FaultyLanding(plan) if plan == 1 else plan)
    executor = make_executor(runner)
    with pytest.raises(RuntimeError, match="illegal"):
        executor.submit(1).result(timeout=5)
    assert executor.submit(2).result(timeout=5) == 2
    executor.close()
