"""A target time between tokens bounds what a step computes, and changes no token."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quire import LLM, AsyncEngine, RequestOutputKind, SamplingParams
from quire.engine import replay as replaying
from quire.engine import trace
from quire.engine.core import EngineCore
from quire.engine.pacing import LEAST_CHUNK, Pacer
from quire.engine.sched.scheduler import Scheduler, SchedulerLimits
from quire.fuzz.strategies import make_request

from .test_core import FakeExecutor

MAX_TOKENS = 2048


class Clock:
    """Time that goes on when told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize(("fixed_s", "token_s"), [(0.005, 1e-4), (0.0, 1e-4), (0.02, 1e-6)])
def test_budget_meets_the_target_once_steps_were_seen(fixed_s: float, token_s: float) -> None:
    """A device of known cost: the budget comes within a tenth of what the target allows."""
    clock, rng = Clock(), random.Random(1)
    pacer = Pacer(0.03, MAX_TOKENS, clock)
    limits = SchedulerLimits(64, MAX_TOKENS, 4096, 16, 4096, False)
    core = EngineCore(Scheduler(limits), FakeExecutor(), overlap=1)
    core.watch(pacer)
    steps: list[tuple[int, float]] = []
    for index in range(300):
        if len(core.scheduler._alive) < 8:
            prompt = [1] * rng.randrange(1, 3000)
            core.add(make_request(f"r{index}", prompt, params=SamplingParams(max_tokens=4)))
        core.set_budget(pacer.budget(core.scheduler.num_running))
        num_tokens = core.launch()
        seconds = (fixed_s + token_s * num_tokens) * rng.uniform(0.95, 1.05)
        clock.now_s += seconds
        if core.scheduler.num_running > 1:
            steps.append((num_tokens, seconds))
        if num_tokens:
            core.land()
    late = [seconds for _, seconds in steps[100:]]
    assert np.quantile(late, 0.95) <= 0.03 * 1.1
    if fixed_s + token_s * MAX_TOKENS > 0.03:
        assert max(late) >= 0.03 * 0.85, "the target is used"


def test_prompts_proceed_whatever_the_target() -> None:
    pacer = Pacer(1e-9, MAX_TOKENS, Clock())
    assert pacer.budget(0) == MAX_TOKENS, "nobody waits for a token"
    assert pacer.budget(5) == MAX_TOKENS, "nothing is known"
    pacer._weight, pacer._tokens, pacer._seconds, pacer._squares = 1.0, 100.0, 1.0, 1e4
    assert pacer.budget(5) == LEAST_CHUNK
    assert 100 < pacer.budget(100) <= 100 + LEAST_CHUNK
    assert pacer.budget(10**6) == MAX_TOKENS


async def test_a_target_changes_no_token_and_replays(tiny: Path, tmp_path: Path) -> None:
    """With the hardest target every step has another budget than without one."""
    prompts = [[index + 1, *range(1, 5 * index + 2)] for index in range(8)]
    params = SamplingParams(
        max_tokens=8,
        ignore_eos=True,
        seed=3,
        logprobs=1,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    options: dict[str, Any] = {"skip_tokenizer_init": True, "num_threads": 1, "num_kv_blocks": 64}
    log = tmp_path / "log"
    async with AsyncEngine(
        model=str(tiny), target_itl_ms=1e-6, record=str(log), **options
    ) as engine:

        async def ask(prompt: list[int]) -> object:
            stream = engine.generate(prompt, params)
            return [one.outputs async for one in stream][-1]

        answers = await asyncio.gather(*map(ask, prompts))
    with LLM(str(tiny), **options) as llm:
        outputs = llm.generate(prompts, params, use_tqdm=False)
    assert answers == [output.outputs for output in outputs]
    read = trace.read_log(log)
    budgets = [one.num_tokens for one in read.entries if isinstance(one, trace.Budgeted)]
    assert min(budgets) <= 2 * LEAST_CHUNK
    assert replaying.replay(read, {}).mismatch is None
