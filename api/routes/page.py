"""GET /: the page, and under /web the files that it is made of."""

from __future__ import annotations

from aiohttp import web

from ..web_files import WEB_FILES


async def page(request: web.Request) -> web.Response:
    """The file of a path that is in the table; nothing, where the browser has it."""
    file = request.app[WEB_FILES][request.path]
    known = {one.value for one in request.if_none_match or ()}
    if file.tag in known:
        return web.Response(status=304, headers=file.headers)
    return web.Response(body=file.body, headers=file.headers)
