"""Forms that are meant to hurt are refused or followed, and the engine's other requests do not
notice."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from quire import AsyncEngine, RequestOutput, SamplingParams
from quire.engine.async_engine import LONG_PROMPT_CHARS
from quire.engine.errors import EngineError, ParamsError
from quire.engine.structured import StructuredOutputsParams
from quire.engine.text.prepare import FoundGrammar
from quire.fuzz.hostile_forms import MAKERS, make_hostile

NUMBERS = (*range(len(MAKERS)), 33, 35, 48, 56, 97, 100, 277)
"""One of each maker; then some that are too ambiguous, too large or too deep, one that forces
letters without end, and one that is found to be too much only while it is followed."""
PROMPTS = ["Tell me a story.", "What is two plus three?"]


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[AsyncEngine]:
    async with AsyncEngine(num_threads=1, num_kv_blocks=64, max_model_len=256) as made:
        yield made


async def ask(engine: AsyncEngine, prompt: str, params: SamplingParams) -> RequestOutput:
    last: RequestOutput | None = None
    async for one in engine.generate(prompt, params):
        last = one
    assert last is not None
    return last


async def answers(engine: AsyncEngine) -> list[tuple[int, ...]]:
    """What the others ask, all the time."""
    params = SamplingParams(max_tokens=24, seed=5, temperature=0.8, ignore_eos=True)
    outputs = await asyncio.gather(*(ask(engine, prompt, params) for prompt in PROMPTS))
    return [output.outputs[0].token_ids for output in outputs]


async def verdict(engine: AsyncEngine, number: int) -> str:
    """What becomes of a hostile form."""
    try:
        form = make_hostile(number)
        params = SamplingParams(max_tokens=12, seed=number, structured_outputs=form)
        output = await ask(engine, PROMPTS[0], params)
    except ParamsError as error:
        return "refused" if error.param == "structured_outputs" else f"{error.param}: {error}"
    reason = output.outputs[0].finish_reason
    if reason == "error":
        assert output.error is not None and "cannot be followed" in output.error
        return "failed"
    assert reason in ("stop", "length") and output.error is None
    return "followed"


async def test_hostile_forms_hurt_nobody_else(engine: AsyncEngine) -> None:
    expected, rounds = await answers(engine), 0
    hostile = asyncio.gather(*(verdict(engine, number) for number in NUMBERS))
    while not hostile.done():
        assert await answers(engine) == expected
        rounds += 1
    verdicts = dict(zip(NUMBERS, await hostile, strict=True))
    assert rounds > 3, "they were answered while grammars were compiled"
    assert {"refused", "followed"} <= {*verdicts.values()}, verdicts
    assert verdicts[35] == verdicts[48] == verdicts[56] == "refused", verdicts
    assert await answers(engine) == expected
    assert engine.is_running and engine.num_unfinished == 0


async def test_grammars_that_wait_to_be_compiled_hold_no_other_request_up(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long text is tokenized in a thread: there is one, however many grammars take their time."""
    begun, let_go, find = threading.Event(), threading.Event(), engine.front.find_grammar

    def wait(params: SamplingParams) -> FoundGrammar:
        begun.set()
        assert let_go.wait(60)
        return find(params)

    monkeypatch.setattr(engine.front, "find_grammar", wait)
    form = StructuredOutputsParams(regex="[a-z]{3}")
    waiting = asyncio.gather(
        *(
            ask(engine, PROMPTS[0], SamplingParams(seed=seed, structured_outputs=form))
            for seed in range(40)
        )
    )
    try:
        async with asyncio.timeout(30):
            assert await asyncio.to_thread(begun.wait, 20)
            long = "word " * LONG_PROMPT_CHARS
            params = SamplingParams(max_tokens=2, truncate_prompt_tokens=9)
            assert len((await ask(engine, long, params)).outputs[0].token_ids) > 0
    finally:
        let_go.set()
    assert all(re.fullmatch("[a-z]{3}", one.outputs[0].text) for one in await waiting)


async def test_a_stopped_engine_compiles_nothing(engine: AsyncEngine) -> None:
    await engine.stop()
    form = StructuredOutputsParams(regex="[a-z]{3}")
    with pytest.raises(EngineError, match="shutting down"):
        await ask(engine, PROMPTS[0], SamplingParams(structured_outputs=form))
