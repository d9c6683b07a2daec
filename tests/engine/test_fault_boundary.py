"""What fails for one request ends that request alone: no other notices, and nothing is left."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
import torch
from quire import AsyncEngine, RequestOutput, SamplingParams
from quire.engine import front
from quire.engine.device.sampling_rows import SamplingTable
from quire.engine.grammar.follower import Follower
from quire.engine.sched import stopping
from quire.engine.structured import StructuredOutputsParams
from quire.engine.text import output
from quire.engine.text.output import OutputState
from quire.engine.text.stop import StopMatcher

VICTIM = "victim"
PROMPTS = ["Tell me a story.", "Tell me a story of a fox.", "What is two plus three?", "Hello"]
MARK = 77
"""Asked for by the victim alone: its top_k, and its seed."""


FORM = StructuredOutputsParams(regex=r"[ -~\n]*")


class Broken(Exception):
    """The fault that is planted."""


@pytest_asyncio.fixture
async def engine() -> AsyncIterator[AsyncEngine]:
    async with AsyncEngine(num_threads=1, num_kv_blocks=64, max_model_len=256) as made:
        yield made


def wrapped(target: Any, is_victim: Callable[..., bool]) -> Callable[..., Any]:
    """The same function, but it breaks for the victim."""

    def call(*arguments: Any, **options: Any) -> Any:
        if is_victim(*arguments, **options):
            raise Broken("planted")
        return target(*arguments, **options)

    return call


def is_victim(state: OutputState, *_: Any, **__: Any) -> bool:
    return state.request.request_id == VICTIM


def break_detokenizer(patch: pytest.MonkeyPatch, engine: AsyncEngine) -> None:
    def release(self: OutputState, text: str) -> bool:
        return is_victim(self)

    patch.setattr(OutputState, "_release", wrapped(OutputState._release, release))


def break_start_of_output(patch: pytest.MonkeyPatch, engine: AsyncEngine) -> None:
    patch.setattr(
        OutputState,
        "__init__",
        wrapped(OutputState.__init__, lambda _, request, *__: request.request_id == VICTIM),
    )


def break_stop_strings(patch: pytest.MonkeyPatch, engine: AsyncEngine) -> None:
    def has_mark(self: StopMatcher, text: str, *, armed: bool) -> bool:
        return VICTIM in str(self._stops)

    patch.setattr(StopMatcher, "feed", wrapped(StopMatcher.feed, has_mark))


def break_logprobs(patch: pytest.MonkeyPatch, engine: AsyncEngine) -> None:
    patch.setattr(front, "take_row", wrapped(output.take_row, lambda _, __, count: count == 7))


def break_prompt_logprobs(patch: pytest.MonkeyPatch, engine: AsyncEngine) -> None:
    patch.setattr(OutputState, "push_prompt", wrapped(OutputState.push_prompt, is_victim))


def break_stop_rule(patch: pytest.MonkeyPatch, engine: AsyncEngine) -> None:
    rule = wrapped(stopping._apply, lambda sequence, *_: sequence.request_id == VICTIM)
    patch.setattr(stopping, "_apply", rule)


def break_parameters(patch: pytest.MonkeyPatch, engine: AsyncEngine) -> None:
    admit = wrapped(SamplingTable.admit, lambda _, admitted: admitted.params.top_k == MARK)
    patch.setattr(SamplingTable, "admit", admit)


def break_grammar(patch: pytest.MonkeyPatch, engine: AsyncEngine) -> None:
    """Of the victim, the only one that has the form; in its fourth step."""
    masks = iter(range(100))
    patch.setattr(Follower, "fill", wrapped(Follower.fill, lambda *_: next(masks) == 3))


def break_compiler(patch: pytest.MonkeyPatch, engine: AsyncEngine) -> None:
    grammars = engine.front.grammars
    patch.setattr(grammars, "compile", wrapped(grammars.compile, lambda _: True))


def break_logits(patch: pytest.MonkeyPatch, engine: AsyncEngine) -> None:
    """A row of NaN."""
    runner = engine.front.core._executor._runner  # type: ignore[attr-defined]
    ops = runner.ops

    class Poisoned:
        def __getattr__(self, name: str) -> Any:
            return getattr(ops, name)

        def sample(self, logits: torch.Tensor, rows: Any, edited: Any = None) -> torch.Tensor:
            logits[rows.seeds == MARK] = torch.nan
            drawn: torch.Tensor = ops.sample(logits, rows, edited)
            return drawn

    patch.setattr(runner, "ops", Poisoned())


def break_output(patch: pytest.MonkeyPatch, engine: AsyncEngine) -> None:
    patch.setattr(OutputState, "output", wrapped(OutputState.output, is_victim))


def break_tokenizer(patch: pytest.MonkeyPatch, engine: AsyncEngine) -> None:
    def is_prompt(_: Any, text: str, **__: Any) -> bool:
        return VICTIM in text

    kind = type(engine.tokenizer)
    patch.setattr(kind, "encode", wrapped(kind.encode, is_prompt))


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


async def ask(
    engine: AsyncEngine, prompt: str, name: str, form: StructuredOutputsParams | None = None
) -> RequestOutput | Exception:
    """Give the last output, or what the stream raised. form: the victim's."""
    victim = name == VICTIM
    params = SamplingParams(
        max_tokens=12,
        ignore_eos=True,
        seed=MARK if victim else 5,
        temperature=0.8,
        top_k=MARK if victim else 0,
        stop=["no such words", VICTIM] if victim else ["no such words"],
        logprobs=7 if victim else 2,
        prompt_logprobs=4 if victim else 1,
        structured_outputs=form if victim else None,
    )
    last: RequestOutput | None = None
    try:
        async for one in engine.generate(prompt, params, name):
            last = one
    except Exception as error:
        return error
    assert last is not None
    return last


def told(given: RequestOutput | Exception) -> tuple[Any, ...]:
    """What a stream told last; nothing if it raised."""
    if isinstance(given, Exception):
        return ()
    assert given.prompt_logprobs is not None
    return given.outputs, given.prompt_logprobs


@pytest.mark.parametrize(
    ("place", "says"),
    [
        (break_tokenizer, None),
        (break_start_of_output, None),
        (break_detokenizer, "Broken: planted"),
        (break_stop_strings, "Broken: planted"),
        (break_logprobs, "Broken: planted"),
        (break_prompt_logprobs, "Broken: planted"),
        (break_stop_rule, "A stop rule failed: Broken: planted"),
        (break_parameters, "Its parameters failed: Broken: planted"),
        (break_compiler, None),
        (break_grammar, "Its grammar failed: Broken: planted"),
        (break_logits, "not finite"),
        (break_output, None),
    ],
)
async def test_a_fault_of_one_request_ends_that_request_alone(
    engine: AsyncEngine,
    monkeypatch: pytest.MonkeyPatch,
    place: Callable[[pytest.MonkeyPatch, AsyncEngine], None],
    says: str | None,
) -> None:
    """says: what the victim is told in its output; None: its stream raises the fault itself."""

    async def round_of(names: list[str]) -> list[RequestOutput | Exception]:
        texts = [f"A {VICTIM}" if name == VICTIM else PROMPTS[int(name)] for name in names]
        form = FORM if place in (break_grammar, break_compiler) else None
        return await asyncio.gather(
            *(ask(engine, text, name, form) for text, name in zip(texts, names, strict=True))
        )

    others = [str(index) for index in range(len(PROMPTS))]
    expected = list(map(told, await round_of(others)))
    assert all(expected)
    with monkeypatch.context() as patch:
        place(patch, engine)
        victim, *rest = await round_of([VICTIM, *others])
    assert list(map(told, rest)) == expected
    if says is None:
        assert isinstance(victim, Broken), victim
    else:
        assert isinstance(victim, RequestOutput), victim
        assert victim.outputs[0].finish_reason == "error"
        if place is break_grammar:
            assert len(victim.outputs[0].token_ids) == 3, "what it had drawn before is told"
        assert victim.error is not None
        assert says in victim.error
    await until_empty(engine)
    after = await ask(engine, PROMPTS[0], "0")
    assert told(after) == expected[0]
    assert engine.is_running


async def test_a_request_that_cannot_begin_is_not_queued(
    engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_start_of_output(monkeypatch, engine)
    with pytest.raises(Broken):
        engine.front.add(await engine.prepare("Hello", None, VICTIM), 0.0)
    assert not engine.front.core.has_unfinished
    assert engine.num_unfinished == 0
