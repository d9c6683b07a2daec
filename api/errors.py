"""Errors at the HTTP edge: every one leaves in OpenAI's shape and says what was given and allowed.

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
from .schema import ErrorBody, ErrorDetail, MessagesDetail, MessagesError

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

    def messages_body(self, request_id: str | None = None) -> MessagesError:
        """What Anthropic's clients read."""
        kind = MESSAGES_KINDS.get(self.status, INVALID if self.status < 500 else "api_error")
        return MessagesError(error=MessagesDetail(kind, str(self)), request_id=request_id)

    def body(self, request_id: str | None = None) -> ErrorBody:
        """What the client reads."""
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
    name, below = request_name(request), request.path.startswith(f"{MESSAGES}/")
    is_messages = below or request.path == MESSAGES
    return web.Response(
        status=error.status,
        headers=error.headers,
        body=msgspec.json.encode(error.messages_body(name) if is_messages else error.body(name)),
        content_type="application/json",
    )


def request_name(request: web.Request) -> str | None:
    """What the client may call a request that failed, when it asks about it."""
    account = find_account(request)
    return None if account is None else account.request_id


@web.middleware
async def error_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever a handler raises into an OpenAI-shaped error."""
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
        message = f"There is no {request.path[:200]} here: the API lies under /v1."
        return error_response(ApiError(message, status=404, code="unknown_url"), request)
    except Exception as error:
        return error_response(api_error(error, request_name(request)), request)
