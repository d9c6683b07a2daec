"""API keys: every path but /health asks for `Authorization: Bearer KEY` when keys were given."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from typing import Literal

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
        scheme, given = _given(request)
        # Digests have one length and every key is compared, so the time tells nothing.
        matches = sum(hmac.compare_digest(given, digest) for digest in digests)
        if scheme != "bearer" or not matches:
            raise ApiError(
                "The API key is missing or wrong: send it as `Authorization: Bearer KEY`.",
                status=401,
                code="invalid_api_key",
            )
        return await handler(request)

    return check


def name_of(kind: Literal["key", "user"], text: str) -> str:
    """Name an API key or a user, of one length, without telling which."""
    return f"{kind}-{_digest(text).hex()[:16]}"


def tenant_of(request: web.Request, user: str | None, *, by_key: bool) -> str:
    """Name whose request it is: the key's, where keys are asked for, else that of `user`."""
    if by_key:
        return _key_name(request)
    return name_of("user", user) if user else ""


def cache_salt(request: web.Request, salt: str | None, *, isolate: bool) -> str | None:
    """Return the cache salt of a request whose body says `salt`.

    isolate: prefixes are found only by the key that wrote them. Whether a prompt was cached can be
    told from the time that it takes, and so what others have asked.
    """
    if not isolate or salt == "":
        return salt
    # A name has a fixed length, so no salt of a client looks like another key's.
    return _key_name(request) if salt is None else f"{_key_name(request)} {salt}"


def _key_name(request: web.Request) -> str:
    return f"key-{_given(request)[1].hex()[:16]}"


def _given(request: web.Request) -> tuple[str, bytes]:
    """Return the scheme, in lower case, and the digest of the key that a request brings."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return scheme.lower(), _digest(key.strip())


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
