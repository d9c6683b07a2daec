"""GET /openapi.json, and /docs: the same as a page, whole in itself, that can be kept as a file."""

from __future__ import annotations

from aiohttp import web

from ..openapi import DOCUMENTS
from ..route import JSON

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


async def openapi(request: web.Request) -> web.Response:
    """This API as an OpenAPI document."""
    return web.Response(body=request.app[DOCUMENTS].document, content_type=JSON)


async def docs(request: web.Request) -> web.Response:
    """This API as a page."""
    return web.Response(
        body=request.app[DOCUMENTS].page,
        content_type="text/html",
        charset="utf-8",
        headers={"Content-Security-Policy": POLICY},
    )
