"""Streams of structs: server-sent events as OpenAI's clients read them (`data: {...}` chunks, then
`data: [DONE]`), events that bear their type as their name, the last of which says the end, or lines
of JSON as Ollama's clients read them.

The headers leave with the first event, so that what fails before it has a status of its own, or
with the first heartbeat: a comment in a stream that was silent, so that no proxy takes it for dead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple

import msgspec
from aiohttp import web
from msgspec import Struct

from .limits import Limits
from .outlet import Outlet

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
HEARTBEAT = b": heartbeat\n\n"


def event(body: Struct) -> bytes:
    """One event."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


def named_event(body: Struct) -> bytes:
    """One event, named by the tag of its struct."""
    tag = body.__struct_config__.tag
    return event(body) if tag is None else f"event: {tag}\n".encode() + event(body)


def line(body: Struct) -> bytes:
    """One line."""
    return msgspec.json.encode(body) + b"\n"


class Wire(NamedTuple):
    """How a stream is written."""

    headers: Mapping[str, str]
    write: Callable[[Struct], bytes]
    end: bytes = b""
    """What says that nothing more comes,"""
    heartbeat: bytes = b""
    """and that the stream lives, where there is a way to say so."""


EVENT_HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", **HEADERS}
EVENTS = Wire(EVENT_HEADERS, event, end=b"data: [DONE]\n\n", heartbeat=HEARTBEAT)
NAMED_EVENTS = Wire(EVENT_HEADERS, named_event, heartbeat=HEARTBEAT)
LINES = Wire({"Content-Type": "application/x-ndjson", **HEADERS}, line)


class EventStream:
    """A stream on one response: an async context manager, whose heart beats inside.

    Raises ConnectionError when the client is gone, or was cut because it does not read.
    """

    def __init__(self, request: web.Request, limits: Limits, wire: Wire = EVENTS) -> None:
        self._outlet = Outlet(request, web.StreamResponse(headers=wire.headers), limits)
        self._wire = wire
        self._every_s = limits.sse_heartbeat_s
        self._writing = asyncio.Lock()
        self._heart: asyncio.Task[None] | None = None
        self.is_open = False
        """Whether the headers have been sent: an error is an event from then on."""

    async def __aenter__(self) -> EventStream:
        if self._every_s and self._wire.heartbeat:
            self._heart = asyncio.create_task(self._beat(), name="quire-heartbeat")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._heart is not None:
            self._heart.cancel()
            await asyncio.gather(self._heart, return_exceptions=True)

    def written(self, events: Iterable[Struct]) -> bytes:
        """Return the bytes of events."""
        return b"".join(map(self._wire.write, events))

    @property
    def flows(self) -> bool:
        """Whether put() may be called: the stream is open, its client reads, nobody has it."""
        return not self._writing.locked() and self._outlet.has_room

    def put(self, data: bytes) -> None:
        """Send what was written, if anything, where the stream flows."""
        if data:
            self._outlet.put(data)

    async def send(self, events: Iterable[Struct]) -> None:
        """Send events in one write; wait while the client is slow to read."""
        data = self.written(events)
        if data:
            await self._write(data)

    async def room(self) -> None:
        """Wait while the client is slow to read what it was sent."""
        async with self._writing:
            if self.is_open:
                await self._outlet.room()

    async def close(self) -> web.StreamResponse:
        """Say that nothing more comes."""
        if self._wire.end:
            await self._write(self._wire.end)
        async with self._writing:
            if not self.is_open:
                self.is_open = True
                await self._outlet.open()
            return await self._outlet.close()

    async def _write(self, data: bytes) -> None:
        async with self._writing:
            if not self.is_open:
                self.is_open = True
                await self._outlet.open()
            await self._outlet.write(data)

    async def _beat(self) -> None:
        """Send a comment whenever nothing was sent for a while."""
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        # A client that is gone, or is cut here, has its handler cancelled by the server.
        with suppress(ConnectionError):
            while True:
                last_s = max(started_s, self._outlet.written_s)
                silent_s = loop.time() - last_s
                if silent_s < self._every_s:
                    await asyncio.sleep(self._every_s - silent_s)
                elif self._writing.locked():
                    # Somebody waits for the client to read: there is no lack of bytes.
                    await asyncio.sleep(self._every_s)
                else:
                    await self._write(self._wire.heartbeat)
