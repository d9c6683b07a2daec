"""Errors at the HTTP edge: every one leaves in the shape that clients of its path know (OpenAI's,
Anthropic's, Ollama's), and says what was given and allowed.

Owns the map from exceptions to statuses. The body of an internal error tells nothing of its cause;
the log does.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from ..engine.errors import EngineError, ParamsError, QuireError
from .account import find_account
from .schema import ErrorBody, ErrorDetail, MessagesDetail, MessagesError, PlainError

logger = logging.getLogger("quire")

MESSAGES = "/v1/messages"
"""Where Anthropic's clients ask, and below."""
MESSAGES_KINDS = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
"""Their names of what else may be wrong."""
INVALID = "invalid_request_error"
SERVER = "server_error"
OLLAMA = "/api/"
"""Where Ollama's clients ask: below."""

Failure = ErrorBody | MessagesError | PlainError
"""The shapes of errors: OpenAI's, Anthropic's, Ollama's."""


class ApiError(QuireError):
    """A request that is answered with an error."""

    def __init__(
        self,
        message: str,
        *,
        status: int = 400,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def body(self, kind: type[Failure], request_id: str | None = None) -> Failure:
        """What the client reads, in the shape that it knows."""
        if kind is PlainError:
            return PlainError(str(self))
        if kind is MessagesError:
            name = MESSAGES_KINDS.get(self.status, INVALID if self.status < 500 else "api_error")
            return MessagesError(error=MessagesDetail(name, str(self)), request_id=request_id)
        assert kind is ErrorBody, kind
        return ErrorBody(ErrorDetail(str(self), self.kind, self.param, self.code, request_id))


def internal_error() -> ApiError:
    """The answer to a fault of ours; the log has the cause."""
    return ApiError("The server failed on this request; its log says why.", status=500, kind=SERVER)


def api_error(error: Exception, request_id: str | None = None) -> ApiError:
    """What a client is told of an exception. request_id: for the log."""
    match error:
        case ApiError():
            return error
        case ParamsError():
            return ApiError(str(error), param=error.param)
        case EngineError():
            return ApiError(str(error), status=503, kind=SERVER, code="engine_unavailable")
        case QuireError():
            return ApiError(str(error))
        case RecursionError():
            return ApiError("The request is nested too deeply.")
        case web.HTTPException():
            return _http_error(error)
        case _:
            logger.error("internal error in request %s", request_id, exc_info=error)
            return internal_error()


def _http_error(error: web.HTTPException) -> ApiError:
    message = f"{HTTPStatus(error.status).phrase}."
    return ApiError(message, status=error.status, kind=INVALID if error.status < 500 else SERVER)


def error_response(error: ApiError, request: web.Request) -> web.Response:
    """The whole answer to a failed request."""
    return web.Response(
        status=error.status,
        headers=error.headers,
        body=msgspec.json.encode(error.body(failure_type(request.path), request_name(request))),
        content_type="application/json",
    )


def failure_type(path: str) -> type[Failure]:
    """Return the shape that errors of a path have, whether a route is there or not."""
    if path.startswith(OLLAMA):
        return PlainError
    if path == MESSAGES or path.startswith(f"{MESSAGES}/"):
        return MessagesError
    return ErrorBody


def request_name(request: web.Request) -> str | None:
    """What the client may call a request that failed, when it asks about it."""
    account = find_account(request)
    return None if account is None else account.request_id


@web.middleware
async def error_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever a handler raises into an error of the path's shape."""
    try:
        return await handler(request)
    except ConnectionError:
        raise  # the client is gone: nobody to tell
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        message = f"{request.path} does not take {request.method}: it takes {allowed}."
        wrong = ApiError(message, status=405, headers={"Allow": allowed})
        return error_response(wrong, request)
    except web.HTTPNotFound:
        places = "the API lies under /v1, Ollama's under /api"
        message = f"There is no {request.path[:200]} here: {places}."
        return error_response(ApiError(message, status=404, code="unknown_url"), request)
    except Exception as error:
        return error_response(api_error(error, request_name(request)), request)
