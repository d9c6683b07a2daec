"""GET /version and /server_info: what serves, and with which options."""

from __future__ import annotations

import platform
from typing import Any

import msgspec
from aiohttp import web
from msgspec import Struct

from ... import __version__
from ..route import Query, json_response, query_value
from ..state import STATE

CONFIG_FORMAT = Query(
    name="config_format", allowed=("json", "text"), summary="how the options are written"
)


class Version(Struct, frozen=True):
    """The version of this server."""

    version: str


class SystemInfo(Struct, frozen=True):
    """Where it runs."""

    python: str
    platform: str


class ServerInfo(Struct, frozen=True):
    """GET /server_info. No key is in it, and no tenant by its name."""

    version: str
    quire_config: Any
    """The options of the engine: an object, or a text."""
    limits: dict[str, int | float | None]
    """Those of the server, docs/limits.md."""
    system_env: SystemInfo


async def version(request: web.Request) -> web.Response:
    """The version of this server."""
    return json_response(Version(__version__))


async def server_info(request: web.Request) -> web.Response:
    """The options of this server."""
    state = request.app[STATE]
    config: Any = state.engine.config
    if query_value(request, CONFIG_FORMAT) == "text":
        config = str(config)
    limits = msgspec.structs.asdict(state.limits)
    system = SystemInfo(platform.python_version(), platform.platform())
    return json_response(ServerInfo(__version__, config, limits, system))
