"""Whether the server lives and whether it takes requests: /health, /ping, /ready, /load.

/health never asks for a key.
"""

from __future__ import annotations

from aiohttp import web
from msgspec import Struct

from ..route import json_response
from ..state import STATE, Status


class Health(Struct, frozen=True):
    """How the server is."""

    status: Status


class Load(Struct, frozen=True):
    """GET /load, vLLM's name."""

    server_load: int
    """Answers that have been begun and have not ended, waiting ones too."""


async def health(request: web.Request) -> web.Response:
    """Whether the server should go on living; a sleeping one should."""
    status = request.app[STATE].status
    return json_response(Health(status), 200 if status in ("ok", "sleeping") else 503)


async def ready(request: web.Request) -> web.Response:
    """Whether a load balancer should send requests here."""
    status = request.app[STATE].status
    return json_response(Health(status), 200 if status == "ok" else 503)


async def load(request: web.Request) -> web.Response:
    """How much there is to do."""
    return json_response(Load(request.app[STATE].engine.num_unfinished))
