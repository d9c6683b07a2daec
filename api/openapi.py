"""From the table of routes to an OpenAPI 3.1 document, and to a page that shows it.

Schemas come from the structs that bodies are decoded by and responses encoded from, so that the
document cannot say what the server does not do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from http import HTTPStatus
from importlib import resources
from typing import Any

import msgspec
from aiohttp import web

from .. import __version__
from .auth import OPEN_PATHS
from .decode import only_fields
from .route import JSON, Route
from .schema import StreamOptions

VERSION = "3.1.0"
OF_BODIES = (400, 413, 415)
"""What may be wrong with any body."""
BEARER = "bearer"
PLACE = '"the document"'
"""Where the page has its document."""


class Documents:
    """The description of one application, made when somebody first asks for it."""

    def __init__(self, routes: Sequence[Route], *, asks_key: bool) -> None:
        self._routes = routes
        self._asks_key = asks_key

    @cached_property
    def document(self) -> bytes:
        """The OpenAPI document."""
        return msgspec.json.encode(make_document(self._routes, asks_key=self._asks_key))

    @cached_property
    def page(self) -> bytes:
        """The page, with the document in it."""
        page = resources.files(__package__).joinpath("web/docs.html").read_text(encoding="utf-8")
        assert page.count(PLACE) == 1, "docs.html has one place for the document"
        # "</script>" in a text must not end the script.
        return page.replace(PLACE, self.document.decode().replace("</", "<\\/")).encode()


DOCUMENTS: web.AppKey[Documents] = web.AppKey("documents", Documents)


def make_document(routes: Sequence[Route], *, asks_key: bool) -> dict[str, Any]:
    """Describe all routes. asks_key: whether they ask for an API key."""
    types: list[Any] = []
    for route in routes:
        types.append(route.failure)
        types += [one for one in (route.body, route.response, route.chunk) if one is not None]
    unique = list(dict.fromkeys(types))
    schemas, components = msgspec.json.schema_components(
        unique, ref_template="#/components/schemas/{name}"
    )
    for kind in (*unique, StreamOptions):
        _name_only_values(kind, components)
    found = dict(zip(unique, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = re.sub(r":[^}]*}", "}", route.path)
        operation = _operation(route, path, found)
        if asks_key and route.path not in OPEN_PATHS:
            operation["security"] = [{BEARER: []}]
            operation["responses"]["401"] = _error(401, found[route.failure])
        paths.setdefault(path, {})[route.method.lower()] = operation
    schemes = {BEARER: {"type": "http", "scheme": "bearer"}} if asks_key else {}
    return {
        "openapi": VERSION,
        "info": {
            "title": "Quire",
            "version": __version__,
            "description": "One request, one answer. OpenAI's API with vLLM's extra fields, "
            "and Ollama's.",
        },
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": schemes},
    }


def _operation(route: Route, path: str, schemas: dict[Any, Any]) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"{(\w+)}", path)
    ]
    parameters += [
        {
            "name": one.name,
            "in": "query",
            "description": one.summary,
            "schema": {"enum": list(one.allowed), "default": one.allowed[0]}
            if one.allowed
            else {"type": "string"},
        }
        for one in route.query
    ]
    content: dict[str, Any] = {route.media: {"schema": schemas.get(route.response, {})}}
    if route.chunk is not None:
        content[route.chunk_media] = {"schema": schemas[route.chunk]}
    statuses = {*route.errors, 500, *(OF_BODIES if route.body is not None else ())}
    operation: dict[str, Any] = {
        "operationId": f"{route.method.lower()}_{re.sub(r'[^a-z0-9]+', '_', path).strip('_')}",
        "summary": route.summary,
        "tags": [route.tag],
        "parameters": parameters,
        "responses": {"200": {"description": "It was done.", "content": content}}
        | {str(status): _error(status, schemas[route.failure]) for status in sorted(statuses)},
    }
    if route.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {route.body_media: {"schema": schemas[route.body]}},
        }
    return operation


def _error(status: int, schema: dict[str, Any]) -> dict[str, Any]:
    described = {
        "description": HTTPStatus(status).phrase,
        "content": {JSON: {"schema": schema}},
    }
    if status == 429:
        seconds = {"description": "Seconds to wait", "schema": {"type": "integer"}}
        described["headers"] = {"Retry-After": seconds}
    return described


def _name_only_values(kind: Any, components: dict[str, Any]) -> None:
    """Say of fields that take few values which: to the decoder they may be anything."""
    schema = components.get(getattr(kind, "__name__", ""))
    if schema is None:
        return
    for name, allowed in only_fields(kind):
        values = [one for one in allowed if one is not None]
        schema["properties"][name] = {"enum": [None, *values], "default": None}
