"""What an operator does to a running server: /reset_prefix_cache, /sleep, /wake_up."""

from __future__ import annotations

from aiohttp import web
from msgspec import Struct

from ..errors import ApiError
from ..route import Query, json_response, query_value
from ..state import STATE

LEVEL = Query(name="level", allowed=("1",), summary="1: the KV memory is given back, weights stay")
MODE = Query(name="mode", allowed=("wait",), summary="wait: what was begun ends first")


class Done(Struct, frozen=True):
    """It was done."""

    success: bool = True


class Sleeping(Struct, frozen=True):
    """GET /is_sleeping."""

    is_sleeping: bool


async def reset_prefix_cache(request: web.Request) -> web.Response:
    """Forget all cached prefixes. ApiError 409 while requests use the memory."""
    engine = request.app[STATE].engine
    if not engine.reset_prefix_cache():
        raise ApiError(
            f"The cache is in use by {engine.num_unfinished} answers, and nothing was forgotten: "
            "try again when none is running.",
            status=409,
            code="cache_in_use",
        )
    return json_response(Done())


async def sleep(request: web.Request) -> web.Response:
    """Begin nothing new, wait for what runs, then give the KV memory back."""
    query_value(request, LEVEL)
    query_value(request, MODE)
    await request.app[STATE].engine.sleep()
    return json_response(Done())


async def wake_up(request: web.Request) -> web.Response:
    """Take requests again."""
    await request.app[STATE].engine.wake_up()
    return json_response(Done())


async def is_sleeping(request: web.Request) -> web.Response:
    """Whether it sleeps."""
    return json_response(Sleeping(request.app[STATE].engine.is_sleeping))
