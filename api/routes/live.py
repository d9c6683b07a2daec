"""GET /debug/live: what the engine is doing, as server-sent events while somebody watches."""

from __future__ import annotations

from contextlib import aclosing

from aiohttp import web

from ..sse import NAMED_EVENTS, EventStream
from ..state import STATE


async def debug_live(request: web.Request) -> web.StreamResponse:
    """A few looks at the engine every second, until the client goes or the server drains."""
    state = request.app[STATE]
    async with (
        aclosing(state.viewers.events()) as events,
        EventStream(request, state.limits, NAMED_EVENTS) as stream,
    ):
        async for event in events:
            await stream.send([event])
        return await stream.close()
