"""A client that does not read holds nobody: its tokens gather in one place, then it is cut.

Clients are raw sockets with small buffers; limits are small, so that nothing has to be waited for.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from typing import Any

import aiohttp
import pytest
from quire import AsyncEngine
from quire.api import outlet
from quire.api.limits import Limits
from quire.api.server import Server, ServerOptions, bind

PIECE = "x" * 5000
LIMITS = Limits(stream_buffer_bytes=4096, slow_reader_timeout_s=0.2, sse_heartbeat_s=0)


def connect(url: str) -> socket.socket:
    """A connection whose kernel takes little."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    host, _, port = url.removeprefix("http://").rpartition(":")
    sock.settimeout(10)
    sock.connect((host, int(port)))
    sock.setblocking(False)
    return sock


async def ask(sock: socket.socket, body: dict[str, Any], path: str = "/v1/completions") -> None:
    """Send a request and read nothing."""
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n"
    head += "Content-Type: application/json\r\nConnection: close\r\n\r\n"
    await asyncio.get_running_loop().sock_sendall(sock, head.encode() + data)


async def read_all(sock: socket.socket) -> bytes:
    """Read until the other side closes or resets."""
    loop, found = asyncio.get_running_loop(), b""
    try:
        while data := await loop.sock_recv(sock, 65536):
            found += data
    except ConnectionResetError:
        found += b"<reset>"
    return found


@pytest.mark.parametrize("count", [1, 3])
async def test_who_takes_nothing_is_cut_and_its_requests_are_aborted(
    serve_fake: Any, count: int
) -> None:
    engine = serve_fake.engine(pieces=[PIECE] * 400)
    fake = await serve_fake(engine, limits=LIMITS)
    with connect(fake.url) as sock:
        await ask(sock, {"prompt": ["hi"] * count, "stream": True})
        await engine.until(lambda: len(engine.aborted) == count)
        assert (await read_all(sock)).endswith(b"<reset>")
    assert engine.ended == []
    await asyncio.wait_for(fake.server.state.idle.wait(), 10)
    assert fake.server.state.admission.num_queued == 0


async def test_a_cut_client_holds_no_other(serve_fake: Any) -> None:
    fake = await serve_fake(serve_fake.engine(pieces=[PIECE] * 400), limits=LIMITS)
    with connect(fake.url) as sock:
        await ask(sock, {"prompt": "hi", "stream": True})
        body = {"prompt": "hi", "stream": True}
        async with fake.session.post(f"{fake.url}/v1/completions", json=body) as response:
            assert (await response.read()).endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("pieces", [[PIECE] * 40, [PIECE * 60]], ids=["many events", "one event"])
async def test_who_reads_slowly_gets_all(
    serve_fake: Any, pieces: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each read lets some bytes through, and the time that it may take begins anew."""
    monkeypatch.setattr(outlet, "LAST_LOOK_S", 0.01)  # it is seen to take nothing for a while
    fake = await serve_fake(serve_fake.engine(pieces=pieces), limits=LIMITS)
    loop, found = asyncio.get_running_loop(), b""
    with connect(fake.url) as sock:
        await ask(sock, {"prompt": "hi", "stream": True})
        started_s = loop.time()
        while data := await loop.sock_recv(sock, 8192):
            found += data
            await asyncio.sleep(0.03)
        assert loop.time() - started_s > LIMITS.slow_reader_timeout_s
    assert found.count(b"x") >= len("".join(pieces))
    assert b"data: [DONE]" in found
    assert fake.engine.aborted == []


async def test_without_a_timeout_nobody_is_cut(serve_fake: Any) -> None:
    limits = Limits(stream_buffer_bytes=4096, slow_reader_timeout_s=0)
    engine = serve_fake.engine(pieces=[PIECE] * 100)
    fake = await serve_fake(engine, limits=limits)
    with connect(fake.url) as sock:
        await ask(sock, {"prompt": "hi", "stream": True})
        await engine.until(lambda: len(engine.started) == 1)
        await asyncio.sleep(0.3)
        assert engine.num_unfinished == 1
        assert b"data: [DONE]" in await read_all(sock)


@pytest.mark.parametrize("num_tokens", [4, 2000])
async def test_a_whole_answer_that_nobody_reads_is_given_up(
    serve_fake: Any, num_tokens: int
) -> None:
    """The engine is done with it; what is left is memory and a connection."""
    fake = await serve_fake(serve_fake.engine(pieces=[PIECE] * num_tokens), limits=LIMITS)
    with connect(fake.url) as sock:
        await ask(sock, {"prompt": "hi"})
        await fake.engine.until(lambda: len(fake.engine.ended) == 1)
        if num_tokens > 100:
            await asyncio.wait_for(fake.server.state.idle.wait(), 10)
            assert (await read_all(sock)).endswith(b"<reset>")
        else:
            answer = (await read_all(sock)).partition(b"\r\n\r\n")[2]
            assert json.loads(answer)["choices"][0]["text"] == PIECE * num_tokens


@pytest.mark.parametrize(
    "asked",
    [
        {"logprobs": 10, "return_token_ids": True},
        {"stream_options": {"include_usage": True}, "request_id": "long" * 200},
    ],
    ids=["more than text", "text alone"],
)
async def test_tokens_gather_while_a_client_does_not_read(
    engine: AsyncEngine, asked: dict[str, Any]
) -> None:
    """The engine goes on; what was made in between comes as few events, and all of it comes."""
    limits = Limits(stream_buffer_bytes=1024, slow_reader_timeout_s=30)
    server = Server(engine, ServerOptions(limits=limits))
    await server.start(bind("127.0.0.1", 0))
    body = {"prompt": [[7, 8], [9, 10]], "max_tokens": 60, "ignore_eos": True, "seed": 1}
    body |= {"temperature": 1, "stream": True, **asked}
    with connect(server.url) as sock:
        await ask(sock, body)
        begun = await asyncio.get_running_loop().sock_recv(sock, 1)
        # It waits for answers, not for who reads them.
        await engine.sleep()
        slow = events_of(begun + await read_all(sock))
    await engine.wake_up()
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{server.url}/v1/completions", json=body) as response,
    ):
        quick = events_of(await response.read())
    await server.stop()
    assert len(slow) < len(quick) / 2
    assert said(slow) == said(quick)


def events_of(data: bytes) -> list[Any]:
    """The events in what a raw socket read, chunks and all."""
    head, _, rest = data.partition(b"\r\n\r\n")
    if head.startswith(b"HTTP/"):
        data = b""
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            data += rest[: int(size, 16)]
            rest = rest[int(size, 16) + 2 :]
    assert data.endswith(b"data: [DONE]\n\n")
    return [json.loads(one[6:]) for one in data.split(b"\n\n")[:-2]]


def said(events: list[Any]) -> Any:
    """All tokens and texts of each choice, and the usage where it is told."""
    tokens: dict[int, list[int]] = {}
    texts: dict[int, str] = {}
    for event in events:
        for choice in event["choices"]:
            index = choice["index"]
            tokens.setdefault(index, []).extend(choice.get("token_ids", ()))
            texts[index] = texts.get(index, "") + choice["text"]
    return tokens, texts, events[-1].get("usage")


async def test_a_silent_stream_has_a_heartbeat(serve_fake: Any) -> None:
    """Also before the first token: a proxy takes a connection without bytes for dead."""
    gate = asyncio.Semaphore(0)
    limits = Limits(sse_heartbeat_s=0.02)
    fake = await serve_fake(serve_fake.engine(gate=gate), limits=limits)
    body = {"prompt": "hi", "stream": True}
    async with fake.session.post(f"{fake.url}/v1/completions", json=body) as response:
        assert response.status == 200
        for _ in range(2):
            assert await response.content.readuntil(b"\n\n") == b": heartbeat\n\n"
        gate.release()
        event = b": heartbeat\n\n"
        while event.startswith(b":"):
            event = await response.content.readuntil(b"\n\n")
        assert json.loads(event[6:])["choices"][0]["text"] == "a"
        assert await response.content.readuntil(b"\n\n") == b": heartbeat\n\n"
        gate.release()
        gate.release()
        rest = (await response.read()).split(b"\n\n")
    assert [json.loads(one[6:])["choices"][0]["text"] for one in rest if one[:7] == b"data: {"] == [
        "b",
        "c",
    ]
    assert rest[-2] == b"data: [DONE]"


async def test_a_stream_that_speaks_has_no_heartbeat(serve_fake: Any) -> None:
    fake = await serve_fake(limits=Limits(sse_heartbeat_s=5))
    body = {"prompt": "hi", "stream": True}
    async with fake.session.post(f"{fake.url}/v1/completions", json=body) as response:
        assert b"heartbeat" not in await response.read()
    quiet = await serve_fake(
        serve_fake.engine(gate=asyncio.Semaphore(0)), limits=Limits(sse_heartbeat_s=0)
    )
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await quiet.session.post(f"{quiet.url}/v1/completions", json=body)


async def test_what_fails_behind_a_heartbeat_is_an_event(serve_fake: Any) -> None:
    gate = asyncio.Semaphore(0)
    engine = serve_fake.engine(gate=gate, error="broken")
    engine.pieces = ("a",)
    fake = await serve_fake(engine, limits=Limits(sse_heartbeat_s=0.02))
    body = {"prompt": "hi", "stream": True}
    headers = {"X-Request-Id": "mine"}
    async with fake.session.post(
        f"{fake.url}/v1/completions", json=body, headers=headers
    ) as response:
        assert await response.content.readuntil(b"\n\n") == b": heartbeat\n\n"
        gate.release()
        events = [one for one in (await response.read()).split(b"\n\n") if one[:1] == b"d"]
    error = json.loads(events[0][6:])["error"]
    assert "broken" in error["message"]
    assert error["request_id"] == "mine"
    assert events[1:] == [b"data: [DONE]"]


async def test_a_reset_in_mid_stream_aborts(serve_fake: Any) -> None:
    engine = serve_fake.engine(pieces=[PIECE] * 400)
    fake = await serve_fake(engine, limits=LIMITS)
    sock = connect(fake.url)
    await ask(sock, {"prompt": "hi", "stream": True})
    await engine.until(lambda: len(engine.started) == 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    await engine.until(lambda: len(engine.aborted) == 1)
    await asyncio.wait_for(fake.server.state.idle.wait(), 10)
