"""The access log: one line for each request when it is over, as JSON or as text.

It tells who asked for what and how it went: a tenant's name and counts, never a key, a query, a
prompt or an answer.
"""

from __future__ import annotations

import logging
from typing import Any, Literal

import msgspec
from aiohttp import web
from aiohttp.abc import AbstractAccessLogger
from msgspec import Struct

from .account import Account, find_account

LOGGER_NAME = "quire.access"
MAX_PATH_CHARS = 256
GONE = 499
"""Status of a request whose client went before it was answered, as nginx writes it."""

AccessLogFormat = Literal["json", "text", "off"]


class Entry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line."""

    method: str
    path: str
    """Without the query."""
    status: int
    duration_ms: float
    request_id: str | None = None
    response_id: str | None = None
    bytes_sent: int = msgspec.field(name="bytes", default=-1)
    """Of the body; not told where the client went."""
    tenant: str | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None

    def text(self) -> str:
        """The line for people."""
        parts = [self.method, self.path, str(self.status), f"{self.duration_ms:.1f} ms"]
        named = {
            "bytes": self.bytes_sent if self.bytes_sent >= 0 else None,
            "prompt tokens": self.prompt_tokens,
            "output tokens": self.output_tokens,
            "tenant": self.tenant,
            "id": self.request_id,
        }
        parts += [f"{name} {value}" for name, value in named.items() if value is not None]
        return " ".join(parts[:4]) + "".join(f", {part}" for part in parts[4:])


class AccessLog(AbstractAccessLogger):
    """Writes entries where the server says that a response has been sent."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        """Write the line of a request that was answered. time: seconds that it took."""
        self._write(request, response.status, time, response.body_length)

    def gone(self, request: web.BaseRequest, time: float) -> None:
        """Write the line of a request whose client did not wait for all of the answer."""
        self._write(request, GONE, time, -1)

    def _write(self, request: web.BaseRequest, status: int, time_s: float, bytes_sent: int) -> None:
        account = find_account(request)
        path = request.rel_url.raw_path
        if len(path) > MAX_PATH_CHARS:
            path = path[: MAX_PATH_CHARS - 3] + "..."
        known: dict[str, Any] = {} if account is None else _known(account)
        entry = Entry(
            method=request.method,
            path=path,
            status=status,
            duration_ms=round(time_s * 1e3, 1),
            bytes_sent=bytes_sent,
            **known,
        )
        as_json = self.log_format == "json"
        line = msgspec.json.encode(entry).decode() if as_json else entry.text()
        self.logger.log(logging.INFO, "%s", line)


def _known(account: Account) -> dict[str, Any]:
    """Return the fields of an Entry that an account tells."""
    known: dict[str, Any] = {
        "request_id": account.request_id,
        "response_id": account.response_id,
        "tenant": account.tenant or None,
    }
    if account.prompt_tokens:
        known["prompt_tokens"] = account.num_prompt_tokens
        known["output_tokens"] = account.num_output_tokens
        known["cached_tokens"] = account.num_cached_tokens
    return known
