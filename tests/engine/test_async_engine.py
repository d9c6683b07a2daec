"""AsyncEngine in a loop: streams, aborts, closing, stopping; the engine ends empty every time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from quire import LLM, AsyncEngine, RequestOutputKind, SamplingParams
from quire.engine.errors import EngineError, ParamsError

OPTIONS: dict[str, Any] = {"skip_tokenizer_init": True, "num_threads": 1, "num_kv_blocks": 128}
DELTA, FINAL = RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY


@pytest_asyncio.fixture
async def engine(tiny: Path) -> AsyncIterator[AsyncEngine]:
    async with AsyncEngine(model=str(tiny), **OPTIONS) as made:
        yield made
        await until_empty(made)


async def until_empty(engine: AsyncEngine) -> None:
    """Wait (bounded) for steps in flight to drain; then nothing may be left."""
    scheduler = engine.front.core.scheduler
    for _ in range(1000):
        if not scheduler.has_unfinished:
            break
        await asyncio.sleep(0.005)
    assert not scheduler.has_unfinished
    assert scheduler.num_free_blocks == scheduler.num_blocks
    assert engine.num_unfinished == 0
    scheduler.check()


def params(max_tokens: int = 8, **changes: Any) -> SamplingParams:
    return SamplingParams(
        max_tokens=max_tokens, ignore_eos=True, detokenize=False, seed=5, **changes
    )


async def test_concurrent_streams_equal_the_offline_answers(
    engine: AsyncEngine, tiny: Path
) -> None:
    prompts = [[index + 2, 3, index % 5 + 1] for index in range(12)]

    async def ask(prompt: list[int]) -> tuple[int, ...]:
        last: tuple[int, ...] = ()
        async for output in engine.generate(prompt, params()):
            assert output.outputs[0].token_ids[: len(last)] == last, "cumulative outputs grow"
            last = output.outputs[0].token_ids
        return last

    answers = await asyncio.gather(*(ask(prompt) for prompt in prompts))
    with LLM(str(tiny), **OPTIONS) as llm:
        outputs = llm.generate(prompts, params(), use_tqdm=False)
    assert list(answers) == [output.outputs[0].token_ids for output in outputs]


async def test_deltas_add_up_and_final_comes_once(engine: AsyncEngine) -> None:
    deltas: list[int] = []
    async for output in engine.generate([5, 6], params(output_kind=DELTA)):
        deltas.extend(output.outputs[0].token_ids)
    finals = [output async for output in engine.generate([5, 6], params(output_kind=FINAL))]
    assert len(finals) == 1
    assert tuple(deltas) == finals[0].outputs[0].token_ids


async def test_slow_reader_gets_everything(engine: AsyncEngine) -> None:
    """What was not read waits in one output; nothing is lost and nothing piles up."""
    tokens: list[int] = []
    async for output in engine.generate([5, 6], params(40, output_kind=DELTA)):
        tokens.extend(output.outputs[0].token_ids)
        await asyncio.sleep(0.02)
    assert len(tokens) == 40


async def test_abort_ends_the_stream(engine: AsyncEngine) -> None:
    reasons = []
    async for output in engine.generate([5, 6], params(200), "mine"):
        if len(output.outputs[0].token_ids) >= 3 and not output.finished:
            await engine.abort("mine")
        reasons.append(output.outputs[0].finish_reason)
    assert reasons[-1] == "abort"
    await engine.abort("mine")
    await engine.abort("never there")


async def test_closing_a_stream_aborts_its_request(engine: AsyncEngine) -> None:
    stream = engine.generate([5, 6], params(200))
    await anext(stream)
    assert engine.num_unfinished == 1
    await stream.aclose()
    assert engine.num_unfinished == 0


async def test_cancelled_reader_aborts_its_request(engine: AsyncEngine) -> None:
    async def read() -> None:
        async for _ in engine.generate([5, 6], params(250)):
            pass

    task = asyncio.create_task(read())
    await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await until_empty(engine)


async def test_open_id_is_refused_and_the_first_is_unharmed(engine: AsyncEngine) -> None:
    stream = engine.generate([5, 6], params(30), "same")
    await anext(stream)
    with pytest.raises(ParamsError, match="in use"):
        await anext(engine.generate([5, 6], params(), "same"))
    outputs = [output async for output in stream]
    assert len(outputs[-1].outputs[0].token_ids) == 30


async def test_failed_step_is_told_and_survived(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = engine.front.core._executor._runner  # type: ignore[attr-defined]
    monkeypatch.setattr(runner, "model", None)
    outputs = [output async for output in engine.generate([5, 6], params())]
    assert outputs[-1].outputs[0].finish_reason == "error"
    assert "AttributeError" in (outputs[-1].error or "")
    monkeypatch.undo()
    outputs = [output async for output in engine.generate([5, 6], params())]
    assert len(outputs[-1].outputs[0].token_ids) == 8


async def test_stop_drains_or_aborts(tiny: Path) -> None:
    for timeout_s, reason in ((30.0, "length"), (0.0, "abort")):
        engine = AsyncEngine(model=str(tiny), **OPTIONS)
        await engine.start()

        async def read(engine: AsyncEngine = engine) -> str | None:
            last = None
            async for output in engine.generate([5, 6], params(250)):
                last = output.outputs[0].finish_reason
            return last

        task = asyncio.create_task(read())
        await asyncio.sleep(0.01)
        await engine.stop(timeout_s)
        assert await task == reason
        with pytest.raises(EngineError):
            await anext(engine.generate([5, 6], params()))


async def test_use_before_start_says_so() -> None:
    with pytest.raises(EngineError, match="not started"):
        await anext(AsyncEngine().generate([1]))


async def test_a_prepared_request_keeps_its_kind_of_output(engine: AsyncEngine) -> None:
    prepared = await engine.prepare([5, 6], params(output_kind=FINAL))
    outputs = [output async for output in engine.generate(prepared)]
    assert [len(one.outputs[0].token_ids) for one in outputs] == [8]
    with pytest.raises(ParamsError, match="output_kind is 'delta': it must be a RequestOutputKind"):
        params(output_kind="delta")
