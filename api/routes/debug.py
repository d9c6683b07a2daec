"""GET /debug/requests: what is being answered, and what happened to it so far."""

from __future__ import annotations

import msgspec
from aiohttp import web
from msgspec import Struct

from ...engine.request import Timeline
from ...engine.timeline import Story
from ..state import STATE


class ShownRequest(Struct, frozen=True):
    """One request."""

    request_id: str
    state: str
    """waiting, running or ended."""
    tenant: str
    num_prompt_tokens: int
    timeline: Timeline


class ShownRequests(Struct, frozen=True):
    """All that have not ended, and some that have; oldest first."""

    living: list[ShownRequest]
    ended: list[ShownRequest]


def _show(story: Story) -> ShownRequest:
    request = story.request
    return ShownRequest(
        request.request_id,
        story.state,
        request.tenant,
        len(request.prompt_token_ids),
        story.tell(),
    )


async def debug_requests(request: web.Request) -> web.Response:
    """Stories of all requests that the engine knows."""
    timelines = request.app[STATE].engine.timelines
    body = ShownRequests(
        [_show(story) for story in timelines.living], [_show(story) for story in timelines.ended]
    )
    return web.Response(body=msgspec.json.encode(body), content_type="application/json")
