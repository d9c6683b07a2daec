"""From the bytes of a request to a checked body, or an error that says what was given and allowed.

Pure but for reading the request. The slow part, looking up the value at fault, runs for bad bodies
only.
"""

from __future__ import annotations

import difflib
import re
from functools import cache
from typing import Any, TypeVar

import msgspec
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from msgspec import Struct

from .errors import ApiError
from .limits import Limits
from .nesting import is_deeper
from .schema import ALSO, NEVER, GenerationBody, Only
from .state import STATE

Body = TypeVar("Body", bound=Struct)

SHOWN_CHARS = 80


async def read_body(request: web.Request, kind: type[Body]) -> Body:
    """Read, decode and check a JSON body. ApiError 400, 413 or 415."""
    if request.content_type != "application/json" and request.headers.get("Content-Type"):
        raise ApiError(
            f"Content-Type is {request.content_type}: it must be application/json.", status=415
        )
    limits = request.app[STATE].limits
    most = limits.max_body_bytes
    try:
        length = request.content_length or 0
        if length > most:
            raise web.HTTPRequestEntityTooLarge(most, length)
        data = await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise ApiError(
            f"The body is too large: at most {most} bytes ({most / 2**20:g} MiB) are allowed.",
            status=413,
        ) from error
    except (HttpProcessingError, web.RequestPayloadError) as error:
        raise ApiError(f"The body cannot be read: {shorten(str(error))}.") from error
    return decode(data, kind, limits)


def decode(data: bytes, kind: type[Body], limits: Limits) -> Body:
    """Decode and check a JSON body. ApiError 400."""
    if is_deeper(data, limits.max_nesting):
        raise ApiError(
            "The body is nested too deeply: lists and objects may lie at most "
            f"{limits.max_nesting} deep in each other."
        )
    try:
        body = msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise _misfit(str(error), data, kind) from error
    except msgspec.DecodeError as error:
        raise ApiError(f"The body must be valid JSON (no NaN, no Infinity): {error}.") from error
    except UnicodeDecodeError as error:
        raise ApiError("The body must be JSON in UTF-8.") from error
    except RecursionError as error:
        raise ApiError("The body is nested too deeply.") from error
    check_only(body)
    if isinstance(body, GenerationBody) and body.stream_options is not None:
        check_only(body.stream_options, "stream_options.")
        if not body.stream:
            raise ApiError("stream_options needs stream: true.", param="stream_options")
    return body


def check_only(body: Struct, prefix: str = "") -> None:
    """Refuse values that are not supported. ApiError names the field."""
    for field, allowed in only_fields(type(body)):
        value = getattr(body, field)
        if value is None or any(_same(value, one) for one in allowed):
            continue
        named = [show(one) for one in allowed if one is not None]
        only = f"only {' or '.join(named)} is supported" if named else "this is not supported yet"
        only = NEVER.get(field, only)
        name = prefix + field
        raise ApiError(f"{name} is {show(value)}: {only}.", param=name, code="unsupported_value")


@cache
def only_fields(kind: type[Struct]) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    """The fields of a body that have few supported values, with these."""
    found = []
    for field in msgspec.structs.fields(kind):
        if field.type == Only:
            make = field.default_factory
            default = field.default if make is msgspec.NODEFAULT else make()
            found.append((field.name, (default, *ALSO.get(field.name, ()))))
    return tuple(found)


def _same(value: Any, allowed: Any) -> bool:
    return bool(value == allowed) and isinstance(value, bool) == isinstance(allowed, bool)


def _misfit(message: str, data: bytes, kind: type[Struct]) -> ApiError:
    """Say which value does not fit, in words of the body and not of the decoder."""
    expected, _, place = message.partition(" - at `")
    path = place.rstrip("`").partition("$")[2].removeprefix(".")
    unknown = re.search(r"unknown field `(.*)`", expected, re.DOTALL)
    if unknown is not None:
        name = f"{path}.{unknown[1]}" if path else unknown[1]
        names = kind.__struct_fields__ if not path else ()
        close = difflib.get_close_matches(unknown[1], names, 1)
        hint = f"did you mean {close[0]}?" if close else "misspelt, or not supported."
        return ApiError(f"{shorten(name)} is not a known field: {hint}", param=shorten(name))
    missing = re.search(r"missing required field `(.*)`", expected)
    if missing is not None:
        name = f"{path}.{missing[1]}" if path else missing[1]
        return ApiError(f"{name} is missing: it must be given.", param=name)
    if not path:
        return ApiError(f"The body must be a JSON object: {expected.lower()}.")
    found, value = _find(data, path)
    expected = expected[:1].lower() + expected[1:]
    given = f"{path} is {show(value)}" if found else path
    return ApiError(f"{given}: {expected}.", param=path.partition(".")[0].partition("[")[0])


def _find(data: bytes, path: str) -> tuple[bool, Any]:
    """The value at a path like `messages[0].role`; (False, None) where there is no telling."""
    try:
        value = msgspec.json.decode(data)
        for name, index in re.findall(r"([^.\[\]]+)(?![^\[]*\])|\[(\d+)\]", path):
            value = value[int(index)] if index else value[name]
    except (msgspec.DecodeError, KeyError, IndexError, TypeError, RecursionError):
        return False, None
    return True, value


def show(value: Any) -> str:
    """A JSON value, short enough for a message."""
    return shorten(msgspec.json.encode(value).decode())


def shorten(text: str) -> str:
    """At most SHOWN_CHARS characters of a text."""
    return text if len(text) <= SHOWN_CHARS else text[: SHOWN_CHARS - 3] + "..."
