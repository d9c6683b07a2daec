"""GET /version."""

from __future__ import annotations

from aiohttp import web

from ... import __version__


async def version(request: web.Request) -> web.Response:
    """The version of this server."""
    return web.json_response({"version": __version__})
