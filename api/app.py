"""The HTTP application: routes and middleware around one engine. Opens no socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from .auth import auth_middleware
from .decode import MAX_BODY_BYTES
from .errors import error_middleware
from .routes.chat import chat_completions
from .routes.completions import completions
from .routes.debug import debug_requests
from .routes.health import health
from .routes.metrics import metrics
from .routes.models import list_models, show_model
from .routes.version import version
from .state import STATE, ServerState

logger = logging.getLogger("quire")


def create_app(
    state: ServerState,
    *,
    api_keys: Sequence[str] = (),
    allowed_origins: Sequence[str] = (),
    log_requests: bool = False,
) -> web.Application:
    """An application that answers for state.engine."""
    middlewares: list[Middleware] = [count_middleware]
    if log_requests:
        middlewares.append(log_middleware)
    middlewares.append(error_middleware)
    if allowed_origins:
        middlewares.append(preflight_middleware)
    if api_keys:
        middlewares.append(auth_middleware(api_keys))
    app = web.Application(middlewares=middlewares, client_max_size=MAX_BODY_BYTES)
    app[STATE] = state
    if allowed_origins:
        _allow_origins(app, allowed_origins)
    app.router.add_post("/v1/completions", completions)
    app.router.add_post("/v1/chat/completions", chat_completions)
    app.router.add_get("/v1/models", list_models)
    app.router.add_get("/v1/models/{model:.+}", show_model)
    app.router.add_get("/health", health)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/version", version)
    app.router.add_get("/debug/requests", debug_requests)
    return app


@web.middleware
async def count_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Keep count of what is being answered, for the drain."""
    state = request.app[STATE]
    state.num_active += 1
    state.idle.clear()
    try:
        return await handler(request)
    finally:
        state.num_active -= 1
        if not state.num_active:
            state.idle.set()


@web.middleware
async def log_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """One line for each request when it has been answered."""
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    status = "gone"
    try:
        response = await handler(request)
        status = str(response.status)
        return response
    finally:
        took_ms = (loop.time() - started_s) * 1e3
        logger.info("%s %s %s %.1f ms", request.method, request.raw_path, status, took_ms)


@web.middleware
async def preflight_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer a browser that asks whether it may; it cannot send a key with that."""
    if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
        return web.Response(
            status=204,
            headers={
                "Access-Control-Allow-Methods": "GET, POST",
                "Access-Control-Allow-Headers": "Authorization, Content-Type",
                "Access-Control-Max-Age": "600",
            },
        )
    return await handler(request)


def _allow_origins(app: web.Application, allowed: Sequence[str]) -> None:
    async def tell(request: web.Request, response: web.StreamResponse) -> None:
        origin = request.headers.get("Origin")
        if origin is not None and ("*" in allowed or origin in allowed):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Vary"] = "Origin"

    app.on_response_prepare.append(tell)
