"""Server-sent events as OpenAI's clients read them: `data: {...}` chunks, then `data: [DONE]`.

In a stream of named events each bears its type as its name too, and the last one says the end.

The headers leave with the first event, so that what fails before it has a status of its own, or
with the first heartbeat: a comment in a stream that was silent, so that no proxy takes it for dead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from types import TracebackType

import msgspec
from aiohttp import web
from msgspec import Struct

from .limits import Limits
from .outlet import Outlet

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
HEARTBEAT = b": heartbeat\n\n"


def event(body: Struct, *, named: bool = False) -> bytes:
    """One event. named: by the tag of its struct."""
    data = b"data: " + msgspec.json.encode(body) + b"\n\n"
    tag = body.__struct_config__.tag if named else None
    return data if tag is None else f"event: {tag}\n".encode() + data


class EventStream:
    """A stream of events on one response: an async context manager, whose heart beats inside.

    Raises ConnectionError when the client is gone, or was cut because it does not read.
    """

    def __init__(self, request: web.Request, limits: Limits, *, named: bool = False) -> None:
        self._outlet = Outlet(request, web.StreamResponse(headers=HEADERS), limits)
        self._named = named
        self._every_s = limits.sse_heartbeat_s
        self._writing = asyncio.Lock()
        self._heart: asyncio.Task[None] | None = None
        self.is_open = False
        """Whether the headers have been sent: an error is an event from then on."""

    async def __aenter__(self) -> EventStream:
        if self._every_s:
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

    async def send(self, bodies: Iterable[Struct]) -> None:
        """Send events in one write; wait while the client is slow to read."""
        data = b"".join(event(body, named=self._named) for body in bodies)
        if data:
            await self._write(data)

    async def close(self) -> web.StreamResponse:
        """Say that nothing more comes."""
        if not self._named:
            await self._write(b"data: [DONE]\n\n")
        async with self._writing:
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
                    await self._write(HEARTBEAT)
