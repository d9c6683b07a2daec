"""What a line of a batch may ask, and its answer: the routes' own, in the same process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from ..answer import whole
from ..caller import Caller
from ..decode import decode
from ..errors import ApiError, api_error
from ..responses_schema import ResponsesBody
from ..routes.chat import prepare_chat
from ..routes.completions import prepare_texts
from ..routes.responses import prepare_response
from ..schema import ChatBody, CompletionBody, ErrorBody


class Endpoint(NamedTuple):
    """One path that batches may ask."""

    body: type[Struct]
    answer: Callable[[Caller, Any], Awaitable[bytes]]
    """Gives the whole response as JSON; ApiError or another QuireError where there is none."""


async def _chat(caller: Caller, body: ChatBody) -> bytes:
    return await whole(caller, *await prepare_chat(caller, body))


async def _texts(caller: Caller, body: CompletionBody) -> bytes:
    return await whole(caller, *await prepare_texts(caller, body))


async def _response(caller: Caller, body: ResponsesBody) -> bytes:
    return await whole(caller, *await prepare_response(caller, body))


ENDPOINTS = {
    "/v1/chat/completions": Endpoint(ChatBody, _chat),
    "/v1/completions": Endpoint(CompletionBody, _texts),
    "/v1/responses": Endpoint(ResponsesBody, _response),
}


class Answered(NamedTuple):
    """A status and a body."""

    status: int
    body: bytes


async def answer_body(caller: Caller, endpoint: Endpoint, data: bytes) -> Answered:
    """Answer a body as its route does, errors too; the caller's ticket is given back."""
    account = caller.account
    try:
        body = decode(data, endpoint.body, caller.state.limits)
        if getattr(body, "stream", None):
            raise ApiError("stream is true: a batch has whole answers.", param="stream")
        return Answered(200, await endpoint.answer(caller, body))
    except Exception as error:
        told = api_error(error, account.request_id)
        return Answered(told.status, msgspec.json.encode(told.body(ErrorBody, account.request_id)))
    finally:
        if account.ticket is not None:
            account.ticket.release()
