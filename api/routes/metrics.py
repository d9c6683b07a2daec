"""GET /metrics: the engine's numbers in Prometheus' text format."""

from __future__ import annotations

from aiohttp import web

from ..state import STATE

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


async def metrics(request: web.Request) -> web.Response:
    """All metrics of the engine."""
    body = request.app[STATE].engine.metrics.render()
    return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE})
