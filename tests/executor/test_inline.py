"""The worker thread: order, exceptions, threads, end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from quire.engine.executor.inline import InlineExecutor


class FakeRunner:
    """Records the plans that it is given."""

    def __init__(self, action: Callable[[int], Any] = lambda plan: plan) -> None:
        self.seen: list[int] = []
        self.action = action

    def execute(self, plan: int) -> Any:
        self.seen.append(plan)
        return self.action(plan)


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
