"""API keys: every path but /health asks for `Authorization: Bearer KEY` when keys were given."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from .errors import ApiError

OPEN_PATHS = frozenset({"/health"})


def auth_middleware(api_keys: Sequence[str]) -> Middleware:
    """A middleware that lets only requests with one of the keys pass."""
    digests = [_digest(key) for key in api_keys]

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in OPEN_PATHS:
            return await handler(request)
        scheme, _, key = request.headers.get("Authorization", "").partition(" ")
        given = _digest(key.strip())
        # Digests have one length and every key is compared, so the time tells nothing.
        matches = sum(hmac.compare_digest(given, digest) for digest in digests)
        if scheme.lower() != "bearer" or not matches:
            raise ApiError(
                "The API key is missing or wrong: send it as `Authorization: Bearer KEY`.",
                status=401,
                code="invalid_api_key",
            )
        return await handler(request)

    return check


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
