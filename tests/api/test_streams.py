"""How responses leave: events, interleaved prompts, failures in mid-stream, clients that go."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest


def events(text: str) -> list[Any]:
    """The events of a stream, checked for their form; the last must be [DONE]."""
    blocks = text.split("\n\n")
    assert blocks[-1] == "" and blocks[-2] == "data: [DONE]", blocks[-3:]
    for block in blocks[:-1]:
        assert block.startswith("data: ") and "\n" not in block, block
    return [json.loads(block[6:]) for block in blocks[:-2]]


async def test_stream_is_events_that_end_with_done(serve_fake: Any) -> None:
    fake = await serve_fake()
    body = {"prompt": "hi", "stream": True}
    async with fake.session.post(f"{fake.url}/v1/completions", json=body) as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        chunks = events(await response.text())
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["a", "b", "c"]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert all("usage" not in chunk for chunk in chunks)
    assert chunks[-1]["choices"][0]["seed"] == 7


async def test_usage_comes_last_and_is_null_before(serve_fake: Any) -> None:
    fake = await serve_fake()
    body = {"prompt": ["hi", "you"], "stream": True, "stream_options": {"include_usage": True}}
    async with fake.session.post(f"{fake.url}/v1/completions", json=body) as response:
        chunks = events(await response.text())
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 6,
        "total_tokens": 11,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_continuous_usage_grows(serve_fake: Any) -> None:
    fake = await serve_fake()
    options = {"continuous_usage_stats": True}
    body = {"prompt": "hi", "stream": True, "stream_options": options}
    async with fake.session.post(f"{fake.url}/v1/completions", json=body) as response:
        chunks = events(await response.text())
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3]


async def test_several_prompts_interleave(serve_fake: Any) -> None:
    fake = await serve_fake()
    body = {"prompt": ["x", "y", "z"], "stream": True}
    async with fake.session.post(f"{fake.url}/v1/completions", json=body) as response:
        chunks = events(await response.text())
    order = [chunk["choices"][0]["index"] for chunk in chunks]
    assert order[:3] == [0, 1, 2]
    for index in range(3):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in own) == "abc"


async def test_echo_comes_once_and_first(serve_fake: Any) -> None:
    fake = await serve_fake()
    body = {"prompt": ["hi", "you"], "stream": True, "echo": True}
    async with fake.session.post(f"{fake.url}/v1/completions", json=body) as response:
        chunks = events(await response.text())
    texts = {0: "", 1: ""}
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == {0: "hiabc", 1: "youabc"}
    body = {"prompt": [104, 105], "echo": True}
    async with fake.session.post(f"{fake.url}/v1/completions", json=body) as response:
        assert (await response.json())["choices"][0]["text"] == "hiabc"


async def test_chat_stream_says_the_role_once(serve_fake: Any) -> None:
    fake = await serve_fake()
    body = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
    async with fake.session.post(f"{fake.url}/v1/chat/completions", json=body) as response:
        chunks = events(await response.text())
    assert [chunk["object"] for chunk in chunks] == ["chat.completion.chunk"] * 4
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"content": "", "role": "assistant"}
    assert deltas[1:] == [{"content": "a"}, {"content": "b"}, {"content": "c"}]


async def test_empty_pieces_are_not_sent(serve_fake: Any) -> None:
    fake = await serve_fake(serve_fake.engine(pieces=("", "a", "", "b", "")))
    body = {"prompt": "hi", "stream": True}
    async with fake.session.post(f"{fake.url}/v1/completions", json=body) as response:
        chunks = events(await response.text())
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["a", "b", ""]


async def test_token_ids_are_told_where_asked(serve_fake: Any) -> None:
    fake = await serve_fake()
    body = {"prompt": "hi", "stream": True, "return_token_ids": True}
    async with fake.session.post(f"{fake.url}/v1/completions", json=body) as response:
        choices = [chunk["choices"][0] for chunk in events(await response.text())]
    assert [choice["token_ids"] for choice in choices] == [[97], [98], [99]]
    assert choices[0]["prompt_token_ids"] == [104, 105]
    assert "prompt_token_ids" not in choices[1]


@pytest.mark.parametrize("count", [1, 3])
async def test_request_that_the_engine_fails_is_a_500(serve_fake: Any, count: int) -> None:
    fake = await serve_fake(serve_fake.engine(error="the logits were not finite"))
    body = {"prompt": ["hi"] * count}
    async with fake.session.post(f"{fake.url}/v1/completions", json=body) as response:
        assert response.status == 500
        error = (await response.json())["error"]
    assert error["type"] == "server_error"
    assert "the logits were not finite" in error["message"]
    streaming: dict[str, Any] = {"prompt": ["hi"] * count, "stream": True}
    async with fake.session.post(f"{fake.url}/v1/completions", json=streaming) as response:
        assert response.status == 200
        chunks = events(await response.text())
    assert "the logits were not finite" in chunks[-1]["error"]["message"]
    assert fake.engine.num_unfinished == 0


@pytest.mark.parametrize("count", [1, 3])
async def test_fault_in_mid_stream_is_an_event_that_tells_no_secret(
    serve_fake: Any, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    fake = await serve_fake(serve_fake.engine(failure=KeyError("secret")))
    body = {"prompt": ["hi"] * count, "stream": True}
    async with fake.session.post(f"{fake.url}/v1/completions", json=body) as response:
        text = await response.text()
    assert events(text)[-1]["error"]["type"] == "server_error"
    assert "secret" not in text
    assert "secret" in caplog.text
    assert fake.engine.num_unfinished == 0


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("count", [1, 3])
async def test_fault_before_the_first_token_is_a_500(
    serve_fake: Any, stream: bool, count: int
) -> None:
    fake = await serve_fake(serve_fake.engine(pieces=(), failure=KeyError("secret")))
    body = {"prompt": ["hi"] * count, "stream": stream}
    async with fake.session.post(f"{fake.url}/v1/completions", json=body) as response:
        assert response.status == 500
        assert "secret" not in await response.text()


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("count", [1, 3])
async def test_client_that_goes_aborts_its_requests(
    serve_fake: Any, stream: bool, count: int
) -> None:
    gate = asyncio.Semaphore(count if stream else 0)
    fake = await serve_fake(serve_fake.engine(gate=gate))
    data = json.dumps({"prompt": ["hi"] * count, "stream": stream}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
    reader, writer = await asyncio.open_connection("127.0.0.1", int(fake.url.rpartition(":")[2]))
    writer.write(head.encode() + b"Content-Type: application/json\r\n\r\n" + data)
    if stream:
        await reader.readuntil(b"data: ")
    await fake.engine.until(lambda: len(fake.engine.started) == count)
    assert fake.engine.num_unfinished == count
    writer.close()
    await fake.engine.until(lambda: len(fake.engine.aborted) == count)
    assert fake.engine.ended == []
    await writer.wait_closed()
    await fake.server.state.idle.wait()
