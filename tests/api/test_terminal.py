"""The chat's conversation: what is kept of a turn that ends, is stopped, or fails."""

from __future__ import annotations

import asyncio
import io
import os
import signal
from collections.abc import AsyncGenerator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from quire.api.terminal import Conversation, _turn
from quire.engine.errors import EngineError, ParamsError
from quire.engine.params import RequestOutputKind, SamplingParams


class Scripted:
    """An engine that says `pieces`, then does `end`."""

    def __init__(self, pieces: Sequence[str] = ("he", "llo"), end: Any = None) -> None:
        self.pieces, self.end = pieces, end
        self.asked: list[Any] = []
        self.num_open = 0

    def chat_input(self, messages: Sequence[dict[str, Any]]) -> dict[str, Any]:
        self.asked.append([(one["role"], one["content"]) for one in messages])
        return {"prompt": "", "prompt_token_ids": [1]}

    async def generate(self, prompt: Any, params: Any) -> AsyncGenerator[Any, None]:
        assert params.output_kind is RequestOutputKind.DELTA
        self.num_open += 1
        try:
            for piece in self.pieces:
                await asyncio.sleep(0)
                yield SimpleNamespace(error=None, outputs=[SimpleNamespace(text=piece)])
            if self.end is not None:
                await self.end()
        finally:
            self.num_open -= 1


def make_conversation(engine: Scripted, system: str | None = None) -> Conversation:
    return Conversation(engine, SamplingParams(), system)  # type: ignore[arg-type]


def test_turns_follow_each_other() -> None:
    engine = Scripted()
    conversation = make_conversation(engine, "be")
    out = io.StringIO()
    asyncio.run(conversation.ask("one", out))
    asyncio.run(conversation.ask("two", out))
    assert out.getvalue() == "hello\nhello\n"
    assert engine.asked[1] == [
        ("system", "be"),
        ("user", "one"),
        ("assistant", "hello"),
        ("user", "two"),
    ]
    conversation.reset()
    asyncio.run(conversation.ask("three", out))
    assert engine.asked[2] == [("system", "be"), ("user", "three")]


def test_interrupt_stops_the_answer_and_keeps_what_was_said(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Also where the suite runs in the background of a shell, which has interrupts ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    async def interrupt() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()

    engine = Scripted(end=interrupt)
    conversation = make_conversation(engine)
    with asyncio.Runner() as runner:
        assert _turn(runner, conversation, "one") == 130
        engine.end = None
        assert _turn(runner, conversation, "two") == 0
    assert engine.num_open == 0
    assert engine.asked[1] == [("user", "one"), ("assistant", "hello"), ("user", "two")]
    assert capsys.readouterr().out == "hello\nhello\n"
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("error", [ParamsError("too long"), EngineError("broken")])
def test_failed_turn_leaves_no_trace(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    async def fail() -> None:
        raise error

    engine = Scripted(pieces=(), end=fail)
    conversation = make_conversation(engine)
    with asyncio.Runner() as runner:
        assert _turn(runner, conversation, "one") == 1
        engine.end = None
        assert _turn(runner, conversation, "two") == 0
    assert engine.asked[1] == [("user", "two")]
    assert str(error) in capsys.readouterr().err
