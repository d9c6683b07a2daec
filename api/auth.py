"""API keys: every path but /health and the files of the page asks for `Authorization: Bearer KEY`
when keys were given.

Anthropic's clients say `X-Api-Key: KEY`, which is the same where there is no Authorization.

What is open is listed, here and in `web_files`, so that a new route is closed without anybody
thinking of it. The page's files are the same for everybody and hold nothing of a server: what it
shows, it asks for with the key that is typed into it. Only digests are kept of keys.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from ..engine.errors import ConfigError
from .account import account_of
from .caller import Caller
from .errors import ApiError
from .web_files import FILE_PATHS

logger = logging.getLogger("quire")

OPEN_PATHS = frozenset({"/health", "/", *FILE_PATHS})


class ApiKeys:
    """The keys that open a server: some given, some of a file, which may change."""

    def __init__(self, keys: Sequence[str] = (), file: Path | None = None) -> None:
        """ConfigError where the file cannot be read or has no key."""
        self._given = tuple(keys)
        self._file = file
        self._digests: tuple[bytes, ...] = ()
        self.reload()

    def reload(self) -> None:
        """Read the file again. ConfigError, and the keys stay as they were, where that fails."""
        keys = [*self._given, *(read_keys(self._file) if self._file is not None else ())]
        self._digests = tuple(map(_digest, keys))

    def __bool__(self) -> bool:
        return bool(self._digests)

    def open_with(self, digest: bytes) -> bool:
        """Whether a key of this digest is one of them."""
        # Digests have one length and every key is compared, so the time tells nothing.
        return sum(hmac.compare_digest(digest, one) for one in self._digests) > 0


def read_keys(file: Path) -> list[str]:
    """Read one key a line, but for empty lines and those that begin with #. ConfigError."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        mode = file.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"api_key_file {str(file)!r} cannot be read: {error}.") from error
    keys = [key for line in lines if (key := line.strip()) and not key.startswith("#")]
    if not keys:
        raise ConfigError(f"api_key_file {str(file)!r} has no key: write one a line.")
    if mode & 0o077:
        logger.warning("The API keys in %s can be read by others than their owner: chmod 600", file)
    return keys


def auth_middleware(keys: ApiKeys) -> Middleware:
    """A middleware that lets only requests with one of the keys pass."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in OPEN_PATHS:
            return await handler(request)
        scheme, given = _given(request)
        if scheme != "bearer" or not keys.open_with(given):
            raise ApiError(
                "The API key is missing or wrong: send it as `Authorization: Bearer KEY` or "
                "`X-Api-Key: KEY`.",
                status=401,
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        account_of(request).tenant = _key_name(request)
        return await handler(request)

    return check


def name_of(kind: Literal["key", "user"], text: str) -> str:
    """Name an API key or a user, of one length, without telling which."""
    return f"{kind}-{_digest(text).hex()[:16]}"


def tenant_of(caller: Caller, user: str | None = None) -> str:
    """Name whose request it is: the key's, where keys are asked for, else that of `user`."""
    if caller.state.has_keys:
        return caller.account.tenant
    return name_of("user", user) if user else ""


def cache_salt(caller: Caller, salt: str | None) -> str | None:
    """Return the cache salt of a request whose body says `salt`.

    Where keys are isolated, prefixes are found only by the key that wrote them. Whether a prompt
    was cached can be told from the time that it takes, and so what others have asked.
    """
    if not caller.state.isolate_keys or salt == "":
        return salt
    # A name has a fixed length, so no salt of a client looks like another key's.
    key = caller.account.tenant
    return key if salt is None else f"{key} {salt}"


def _key_name(request: web.Request) -> str:
    return f"key-{_given(request)[1].hex()[:16]}"


def _given(request: web.Request) -> tuple[str, bytes]:
    """Return the scheme, in lower case, and the digest of the key that a request brings."""
    key = request.headers.get("X-Api-Key")
    if key is not None and "Authorization" not in request.headers:
        return "bearer", _digest(key.strip())
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return scheme.lower(), _digest(key.strip())


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
