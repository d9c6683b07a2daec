"""What stands around every route: accounts, counts, request ids, pages that may call."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from .access_log import GONE, AccessLog
from .account import Account, find_account, set_account
from .state import STATE, ServerState
from .tracing import RequestTracer

REQUEST_ID = "X-Request-Id"
ALLOWED_HEADERS = f"Authorization, X-Api-Key, Anthropic-Version, Content-Type, {REQUEST_ID}"


def account_middleware(access_log: AccessLog | None, tracer: RequestTracer | None) -> Middleware:
    """The outermost middleware: opens and settles the account of each request.

    Keeps count of what is being answered, for the drain.
    """

    @web.middleware
    async def settle(request: web.Request, handler: Handler) -> web.StreamResponse:
        state, loop = request.app[STATE], asyncio.get_running_loop()
        account = Account(_request_id(request, state), loop.time())
        set_account(request, account)
        state.begin()
        status = GONE
        try:
            response = await handler(request)
            status = response.status
            return response
        except (asyncio.CancelledError, ConnectionError):
            if access_log is not None:
                access_log.gone(request, loop.time() - account.started_s)
            raise
        finally:
            if account.ticket is not None:
                account.ticket.release()
            if tracer is not None and account.response_id is not None:
                tracer.tell(request, account, status, loop.time() - account.started_s)
            state.end()

    return settle


def _request_id(request: web.Request, state: ServerState) -> str:
    """Take the client's name for its request where it is sane, else make one."""
    given = request.headers.get(REQUEST_ID, "")
    sane = given.isascii() and given.isprintable() and given.strip() == given
    return given if sane and 0 < len(given) <= state.limits.max_request_id_chars else state.new_id()


async def tell_request_id(request: web.Request, response: web.StreamResponse) -> None:
    """Name the request in its response, whatever that is."""
    account = find_account(request)
    if account is not None:
        response.headers[REQUEST_ID] = account.request_id


@web.middleware
async def preflight_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer a browser that asks whether it may; it cannot send a key with that."""
    if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
        return web.Response(
            status=204,
            headers={
                "Access-Control-Allow-Methods": "GET, POST, DELETE",
                "Access-Control-Allow-Headers": ALLOWED_HEADERS,
                "Access-Control-Max-Age": "600",
            },
        )
    return await handler(request)


def allow_origins(app: web.Application, allowed: Sequence[str]) -> None:
    """Let pages of these origins read responses."""

    async def tell(request: web.Request, response: web.StreamResponse) -> None:
        origin = request.headers.get("Origin")
        if origin is not None and ("*" in allowed or origin in allowed):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = f"{REQUEST_ID}, Retry-After"
            response.headers["Vary"] = "Origin"

    app.on_response_prepare.append(tell)
