"""Route: all that is said of one path, from which the application and /openapi.json are made."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler
from msgspec import Struct

from .decode import shorten
from .errors import ApiError, Failure, failure_type

JSON = "application/json"
EVENTS = "text/event-stream"
LINES = "application/x-ndjson"


class Query(Struct, frozen=True, kw_only=True):
    """One parameter in the query of a path."""

    name: str
    allowed: tuple[str, ...] = ()
    """Its values, the first one the default; (): any text, the default is none."""
    summary: str


class Route(Struct, frozen=True, kw_only=True):
    """One method of one path."""

    method: Literal["GET", "POST", "DELETE"]
    path: str
    """As aiohttp has it: {name}, or {name:.+} for what may hold slashes."""
    handler: Handler
    summary: str
    body: Any = None
    """Type of the body, a struct or a union; None: no body."""
    body_media: str = JSON
    """What the body is: JSON or a form."""
    response: Any = None
    """Type of the JSON response; None: nothing that a type describes."""
    chunk: Any = None
    """Type of what a stream is made of, where one is asked for,"""
    chunk_media: str = EVENTS
    """and what the stream is."""
    media: str = JSON
    query: tuple[Query, ...] = ()
    errors: tuple[int, ...] = ()
    """Statuses of its own; every route may say 401 and 500, every one with a body 400, 413, 415."""
    tag: str = "server"

    @property
    def failure(self) -> type[Failure]:
        """Type of its errors."""
        return failure_type(self.path)

    def register(self, router: web.UrlDispatcher) -> None:
        """Put it where requests find it."""
        if self.method == "GET":
            router.add_get(self.path, self.handler)  # and HEAD
        else:
            router.add_route(self.method, self.path, self.handler)


def json_response(body: Any, status: int = 200) -> web.Response:
    """A struct, or what else msgspec knows, as a response."""
    return web.Response(status=status, body=msgspec.json.encode(body), content_type=JSON)


def query_value(request: web.Request, query: Query) -> str:
    """Return the value of a parameter. ApiError for one that is not allowed."""
    given = request.query.getall(query.name, [query.allowed[0] if query.allowed else ""])
    if not query.allowed:
        return given[-1]
    if len(given) != 1 or given[0] not in query.allowed:
        raise ApiError(
            f"{query.name} is {shorten(', '.join(given))}: it must be one of "
            f"{', '.join(query.allowed)}.",
            param=query.name,
        )
    return given[0]
