"""The HTTP application: routes and middleware around one engine. Opens no socket."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Middleware

from .access_log import AccessLog
from .auth import ApiKeys, auth_middleware
from .background import BACKGROUND_RESPONSES, BackgroundResponses
from .batch.archive import ARCHIVE, Archive
from .errors import error_middleware
from .middleware import account_middleware, allow_origins, preflight_middleware, tell_request_id
from .openapi import DOCUMENTS, Documents
from .routes.page import page
from .routes.table import ROUTES
from .state import STATE, ServerState
from .tracing import RequestTracer
from .web_files import FILE_PATHS, WEB_FILES, make_web_files


def create_app(
    state: ServerState,
    *,
    api_keys: ApiKeys,
    allowed_origins: Sequence[str] = (),
    access_log: AccessLog | None = None,
    tracer: RequestTracer | None = None,
    files_dir: Path | None = None,
) -> web.Application:
    """An application that answers for state.engine."""
    middlewares: list[Middleware] = [
        account_middleware(access_log, tracer),
        error_middleware,
    ]
    if allowed_origins:
        middlewares.append(preflight_middleware)
    if api_keys:
        middlewares.append(auth_middleware(api_keys))
    app = web.Application(middlewares=middlewares, client_max_size=state.limits.max_body_bytes)
    app[STATE] = state
    app[ARCHIVE] = Archive(state, files_dir)
    app[BACKGROUND_RESPONSES] = BackgroundResponses(
        state.limits.max_background_responses, state.responses
    )
    app[DOCUMENTS] = Documents(ROUTES, asks_key=bool(api_keys))
    app.on_response_prepare.append(tell_request_id)
    if allowed_origins:
        allow_origins(app, allowed_origins)
    for route in ROUTES:
        route.register(app.router)
    app[WEB_FILES] = make_web_files()
    for path in FILE_PATHS:
        app.router.add_get(path, page)
    return app
