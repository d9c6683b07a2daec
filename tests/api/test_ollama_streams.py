"""Ollama's client and an engine that answers what it is told: calls, thoughts, what goes wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import ollama
import pytest
from quire.api.limits import Limits
from quire.engine.parsing.choose import Parsers
from quire.engine.parsing.formats import REASONING_FORMATS, TOOL_FORMATS

MESSAGES: Any = [{"role": "user", "content": "hi"}]
TOOLS: Any = [{"type": "function", "function": {"name": name}} for name in ("look", "wait")]


@asynccontextmanager
async def faked_client(
    serve_fake: Any, *pieces: str, parsers: Parsers | None = None, **how: Any
) -> AsyncIterator[tuple[Any, ollama.AsyncClient]]:
    """An engine that answers with pieces, and a client that asks it."""
    engine = serve_fake.engine(pieces=pieces, parsers=parsers or Parsers(), **how)
    faked = await serve_fake(engine)
    async with ollama.AsyncClient(host=faked.url) as client:
        yield engine, client


CALLS = (
    'Let me.<tool_call>\n{"name": "look", "arguments": {"at": "n\\u00e4h\\n</tool_call>"}}\n'
    '</tool_call>\n<tool_call>\n{"name": "wait", "arguments": {}}\n</tool_call>'
)
HERMES = Parsers(TOOL_FORMATS["hermes"], REASONING_FORMATS["qwen3"])


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_calls_are_told_whole(serve_fake: Any, size: int) -> None:
    text = f"<think>hm</think>{CALLS}"
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    async with faked_client(serve_fake, *pieces, parsers=HERMES) as (_, client):
        whole = await client.chat("fake", MESSAGES, tools=TOOLS)
        stream = await client.chat("fake", MESSAGES, tools=TOOLS, stream=True)
        told = [piece async for piece in stream]
        assert (whole.message.content, whole.message.thinking) == ("Let me.", "hm")
        assert "".join(one.message.content or "" for one in told) == "Let me."
        assert "".join(one.message.thinking or "" for one in told) == "hm"
        streamed = [call for one in told for call in one.message.tool_calls or ()]
        for calls in (whole.message.tool_calls or (), streamed):
            assert [(call.function.name, call.function.arguments) for call in calls] == [
                ("look", {"at": "näh\n</tool_call>"}),
                ("wait", {}),
            ]
        assert whole.done_reason == told[-1].done_reason == "stop"
        assert not told[-1].message.tool_calls
        # A client sends what it was told back as it is.
        again = await client.chat("fake", [*MESSAGES, whole.message], tools=TOOLS)
        assert again.done


async def test_a_call_that_is_cut_off_is_not_told(serve_fake: Any) -> None:
    async with faked_client(serve_fake, CALLS[:60], parsers=HERMES) as (_, client):
        whole = await client.chat("fake", MESSAGES, tools=TOOLS)
        stream = await client.chat("fake", MESSAGES, tools=TOOLS, stream=True)
        told = [piece async for piece in stream]
        assert whole.message.content == "Let me." and not whole.message.tool_calls
        assert not any(piece.message.tool_calls for piece in told)


async def test_tools_need_a_model_that_calls_them(serve_fake: Any) -> None:
    async with faked_client(serve_fake, "a") as (_, client):
        with pytest.raises(ollama.ResponseError, match="does not support tools"):
            await client.chat("fake", MESSAGES, tools=TOOLS)


@pytest.mark.parametrize(
    ("think", "told"),
    [
        (None, {}),
        (True, {"enable_thinking": True, "thinking": True}),
        (False, {"enable_thinking": False, "thinking": False}),
        ("low", {"enable_thinking": True, "thinking": True, "reasoning_effort": "low"}),
    ],
)
async def test_the_template_is_told_whether_to_think(
    serve_fake: Any, think: Any, told: dict[str, Any]
) -> None:
    seen: list[Any] = []

    class Watching(serve_fake.engine):  # type: ignore[misc]  # a fixture has it
        def chat_prompt(self, messages: Any, **options: Any) -> str:
            names = ("enable_thinking", "thinking", "reasoning_effort")
            seen.append({name: options[name] for name in names if name in options})
            return str(super().chat_prompt(messages))

    faked = await serve_fake(Watching(pieces=["<think>hm</think>", "Yes."], parsers=HERMES))
    async with ollama.AsyncClient(host=faked.url) as client:
        chat = await client.chat("fake", MESSAGES, think=think)
        text = await client.generate("fake", "a", think=think)
        with pytest.raises(ollama.ResponseError, match="think"):
            await client.chat("fake", MESSAGES, think="much")
    assert seen == [told, told]
    thought = None if think is False else "hm"
    assert (chat.message.content, chat.message.thinking) == ("Yes.", thought)
    assert (text.response, text.thinking) == ("Yes.", thought)


async def test_what_fails_in_a_stream_is_its_last_line(serve_fake: Any) -> None:
    how: Any = {"failure": RuntimeError("boom")}
    async with faked_client(serve_fake, "a", "b", **how) as (engine, client):
        stream: Any = await client.chat("fake", MESSAGES, stream=True)
        assert (await anext(stream)).message.content == "a"
        with pytest.raises(ollama.ResponseError, match="its log says why") as failed:
            await anext(stream)
        assert "boom" not in failed.value.error
        with pytest.raises(ollama.ResponseError) as failed:
            await client.chat("fake", MESSAGES)
        assert failed.value.status_code == 500
        assert engine.num_unfinished == 0


async def test_a_client_that_goes_away_ends_its_request(serve_fake: Any) -> None:
    gate = asyncio.Semaphore(2)
    async with faked_client(serve_fake, *"abcd", gate=gate) as (engine, client):
        stream: Any = await client.generate("fake", "a", stream=True)
        first: Any = await anext(stream)
        assert first.response == "a" and engine.num_unfinished == 1
        await stream.aclose()
        await engine.until(lambda: engine.aborted)
        assert engine.num_unfinished == 0 and not engine.ended


async def test_heartbeats_do_not_reach_lines(serve_fake: Any) -> None:
    """Ollama's clients read every line as JSON."""
    gate = asyncio.Semaphore(1)
    engine = serve_fake.engine(pieces="ab", gate=gate)
    faked = await serve_fake(engine, limits=Limits(sse_heartbeat_s=0.001))
    body = {"model": "fake", "prompt": "a"}
    async with faked.session.post(f"{faked.url}/api/generate", json=body) as response:
        first = await response.content.readline()
        async with faked.session.post(
            f"{faked.url}/v1/completions", json={"prompt": "a", "stream": True}
        ) as events:
            # Once that stream has had heartbeats, this one would have had some too.
            while b"heartbeat" not in await events.content.readline():
                pass
            gate.release()
            gate.release()
            gate.release()
            await events.read()
        rest = await response.content.read()
    assert [json.loads(line)["done"] for line in (first, *rest.splitlines())] == [
        False,
        False,
        True,
    ]


async def test_a_missing_key_is_told_in_ollamas_shape(serve_fake: Any) -> None:
    faked = await serve_fake(api_keys=["secret"])
    async with ollama.AsyncClient(host=faked.url) as client:
        with pytest.raises(ollama.ResponseError, match=r"^The API key is missing") as refused:
            await client.list()
        assert refused.value.status_code == 401
    headers = {"Authorization": "Bearer secret"}
    async with ollama.AsyncClient(host=faked.url, headers=headers) as client:
        assert (await client.chat("fake", MESSAGES)).message.content == "abc"
