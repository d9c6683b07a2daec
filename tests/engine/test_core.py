"""EngineCore over a fake executor: overlap, failures, nothing left behind."""

from __future__ import annotations

from concurrent.futures import Future

import numpy as np
import pytest
from quire.engine.core import EngineCore
from quire.engine.params import SamplingParams
from quire.engine.plan import StepPlan, StepResult
from quire.engine.request import Request
from quire.engine.sched.scheduler import Scheduler, SchedulerLimits


class FakeExecutor:
    """Answers each sampling row with the token `answer`; raises at the steps in `broken`."""

    def __init__(self, broken: frozenset[int] = frozenset()) -> None:
        self.plans: list[StepPlan] = []
        self.broken = broken
        self.closed = False

    def submit(self, plan: StepPlan) -> Future[StepResult]:
        self.plans.append(plan)
        future: Future[StepResult] = Future()
        if len(self.plans) - 1 in self.broken:
            future.set_exception(RuntimeError("device lost"))
        else:
            tokens = np.full(int(plan.samples.sum()), 5, np.int32)
            future.set_result(StepResult(step=plan.step, token_ids=tokens))
        return future

    def abandon(self) -> None:
        self.closed = True

    def close(self) -> None:
        self.closed = True


def make_core(executor: FakeExecutor, *, overlap: int = 1) -> EngineCore:
    limits = SchedulerLimits(
        max_num_seqs=4,
        max_num_batched_tokens=32,
        max_model_len=64,
        block_size=4,
        num_blocks=64,
        enable_prefix_caching=True,
        policy="fcfs",
        overlap=overlap,
    )
    return EngineCore(Scheduler(limits), executor, overlap=overlap)


def make_request(name: str, *, num_tokens: int = 6, max_tokens: int = 3) -> Request:
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    prompt = np.arange(num_tokens, dtype=np.int32)
    return Request(request_id=name, prompt_token_ids=prompt, params=params, seed=1)


def drain(core: EngineCore) -> dict[str, list[int]]:
    """Run to the end; the tokens of each request, -2 marking an end with an error."""
    tokens: dict[str, list[int]] = {}
    while core.has_unfinished:
        core.launch()
        events = core.land()
        for name, token in zip(events.request_ids, events.token_ids.tolist(), strict=True):
            tokens.setdefault(name, []).append(token)
        for end in events.finished:
            if end.reason == "error":
                assert "device lost" in (end.message or "")
                tokens[events.request_ids[end.index]].append(-2)
    return tokens


@pytest.mark.parametrize("overlap", [1, 2])
def test_every_request_gets_its_tokens_once(overlap: int) -> None:
    executor = FakeExecutor()
    core = make_core(executor, overlap=overlap)
    for index in range(9):
        core.add(make_request(f"r{index}", max_tokens=1 + index))
    tokens = drain(core)
    assert tokens == {f"r{index}": [5] * (1 + index) for index in range(9)}
    assert core.scheduler.num_free_blocks == core.scheduler.num_blocks


@pytest.mark.parametrize("overlap", [1, 2])
def test_no_more_plans_in_flight_than_overlap(overlap: int) -> None:
    executor = FakeExecutor()
    core = make_core(executor, overlap=overlap)
    core.add(make_request("a", max_tokens=10))
    core.launch()
    assert len(executor.plans) == overlap


@pytest.mark.parametrize("overlap", [1, 2])
def test_failed_step_ends_its_requests_and_no_others(overlap: int) -> None:
    """Requests in the failing step end with its message; one that waits is served afterwards."""
    executor = FakeExecutor(broken=frozenset({2}))
    core = make_core(executor, overlap=overlap)
    for index in range(6):
        core.add(make_request(f"r{index}"))
    tokens = drain(core)
    failed = [name for name, row in tokens.items() if row[-1] == -2]
    served = [name for name, row in tokens.items() if row == [5, 5, 5]]
    assert failed and "r5" in served
    assert sorted(failed + served) == [f"r{index}" for index in range(6)]
    core.scheduler.check()
    assert core.scheduler.num_free_blocks == core.scheduler.num_blocks


def test_close_waits_and_closes_the_executor() -> None:
    executor = FakeExecutor()
    core = make_core(executor)
    core.add(make_request("a"))
    core.launch()
    core.close()
    assert core.oldest is None and executor.closed
