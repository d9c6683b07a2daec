"""GET /health: 200 while new requests are taken, else 503. It never asks for a key."""

from __future__ import annotations

from aiohttp import web

from ..state import STATE


async def health(request: web.Request) -> web.Response:
    """Whether a load balancer should send requests here."""
    state = request.app[STATE]
    if state.draining:
        return web.json_response({"status": "draining"}, status=503)
    if not state.engine.is_running:
        return web.json_response({"status": "stopped"}, status=503)
    return web.json_response({"status": "ok"})
