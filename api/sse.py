"""Server-sent events as OpenAI's clients read them: `data: {...}` chunks, then `data: [DONE]`."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from aiohttp import web
from msgspec import Struct

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}


def event(body: Struct) -> bytes:
    """One event."""
    return b"data: " + msgspec.json.encode(body) + b"\n\n"


class EventStream:
    """An open stream of events on one response. Raises ConnectionError when the client is gone."""

    def __init__(self, response: web.StreamResponse) -> None:
        self._response = response

    @classmethod
    async def open(cls, request: web.Request) -> EventStream:
        """Send the headers."""
        response = web.StreamResponse(headers=HEADERS)
        await response.prepare(request)
        return cls(response)

    async def send(self, bodies: Iterable[Struct]) -> None:
        """Send events in one write; wait while the client is slow to read."""
        data = b"".join(map(event, bodies))
        if data:
            await self._response.write(data)

    async def close(self) -> web.StreamResponse:
        """Say that nothing more comes."""
        await self._response.write(b"data: [DONE]\n\n")
        await self._response.write_eof()
        return self._response
