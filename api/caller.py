"""Who asks, over HTTP or by a line of a batch: what an answer needs beside the body."""

from __future__ import annotations

from typing import NamedTuple

from aiohttp import web

from .account import Account, account_of
from .state import STATE, ServerState


class Caller(NamedTuple):
    """Who asks, and of which server."""

    state: ServerState
    account: Account


def caller_of(request: web.Request) -> Caller:
    """Return who asks by an HTTP request that has reached a route."""
    return Caller(request.app[STATE], account_of(request))
