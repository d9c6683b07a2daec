"""A step that does not end: its requests are told, the others are answered, the engine lives."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from quire import AsyncEngine, RequestOutput, SamplingParams
from quire.engine.device.runner import ModelRunner
from quire.engine.errors import ConfigError
from quire.engine.plan import StepPlan

STUCK = 55
"""The prompt token on which the device hangs."""


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Make steps that admit a prompt of STUCK wait; set at the end, so that the thread ends."""
    release = threading.Event()
    launch = ModelRunner.launch

    def stuck(self: ModelRunner, plan: StepPlan) -> Any:
        if any(STUCK in one.token_ids for one in plan.admitted):
            release.wait()
        return launch(self, plan)

    monkeypatch.setattr(ModelRunner, "launch", stuck)
    yield release
    release.set()


async def ask(engine: AsyncEngine, prompt: list[int], max_tokens: int = 30) -> RequestOutput:
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True, detokenize=False, seed=3)
    outputs = [one async for one in engine.generate(prompt, params)]
    return outputs[-1]


def make_engine(tiny: Path, **options: Any) -> AsyncEngine:
    return AsyncEngine(
        model=str(tiny), skip_tokenizer_init=True, num_threads=1, num_kv_blocks=32, **options
    )


@pytest.mark.parametrize("overlap", [1, 2])
async def test_a_hanging_step_ends_its_requests_and_nothing_else(
    tiny: Path, hang: threading.Event, caplog: pytest.LogCaptureFixture, overlap: int
) -> None:
    """Two in flight are told, one that waits for a slot is answered as it is alone."""
    options: dict[str, Any] = {"max_num_seqs": 2, "overlap": overlap, "max_model_len": 64}
    async with make_engine(tiny, step_timeout_s=0.3, **options) as engine:
        params = SamplingParams(max_tokens=60, ignore_eos=True, detokenize=False)
        first = engine.generate([1, 2, 3], params)
        await anext(first)
        ended = await asyncio.gather(ask(engine, [STUCK]), ask(engine, [4, 5]))
        told = [one async for one in first]
        assert told[-1].outputs[0].finish_reason == "error", "it had a step in flight"
        assert ended[0].outputs[0].finish_reason == "error"
        assert "did not end within 0.3 s" in (ended[0].error or "")
        assert ended[1].outputs[0].finish_reason == "length"
        assert engine.is_running
        again = await ask(engine, [4, 5])
        assert again.outputs == ended[1].outputs
        scheduler = engine.front.core.scheduler
        assert scheduler.num_free_blocks == scheduler.num_blocks
        scheduler.check()
    assert "stuck" in caplog.text, "the stacks of all threads are in the log"
    assert "tokens 0 to 0" in caplog.text, "the batch is in the log"
    assert "request-1" in caplog.text


async def test_without_another_executor_every_request_is_told_why(
    tiny: Path, hang: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(tiny, step_timeout_s=0.2, max_num_seqs=1)
    await engine.start()

    def none() -> Any:
        raise ConfigError("no room")

    monkeypatch.setattr(engine.front, "renew_executor", none)
    outputs = await asyncio.gather(ask(engine, [STUCK]), ask(engine, [4, 5]))
    assert [one.outputs[0].finish_reason for one in outputs] == ["error", "error"]
    assert "did not end" in (outputs[0].error or "")
    assert "the engine stopped: ConfigError: no room" in (outputs[1].error or "")
    assert engine.errored
    assert not engine.is_running
    hang.set()
    await engine.stop()


@pytest.mark.parametrize("limit", [0, -1.0, float("nan"), True, "a"])
def test_a_limit_that_is_no_time_is_refused(limit: Any) -> None:
    with pytest.raises(ConfigError, match="step_timeout_s is .*: it must be a number above 0"):
        AsyncEngine(step_timeout_s=limit)
