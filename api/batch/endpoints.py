"""What a line of a batch may ask, and its answer: the routes' own, in the same process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from msgspec import Struct

from ..answer import whole
from ..caller import Caller
from ..decode import decode
from ..errors import ApiError, api_error
from ..pooled_schema import ClassifyBody, EmbeddingBody, RerankBody, ScoreBody
from ..reply import WholeTeller
from ..responses_schema import ResponsesBody
from ..routes.chat import prepare_chat
from ..routes.completions import prepare_texts
from ..routes.pooled import prepare_classes, prepare_embeddings, prepare_ranks, prepare_scores
from ..routes.responses import prepare_response
from ..schema import ChatBody, CompletionBody, ErrorBody

if TYPE_CHECKING:
    from ...engine.text.prepare import Prepared


class Endpoint(NamedTuple):
    """One path that batches may ask."""

    body: type[Struct]
    prepare: Callable[[Caller, Any], Awaitable[tuple[Sequence[Prepared], WholeTeller]]]
    """Gives what is computed and who words it; ApiError or another QuireError."""


RANKS = Endpoint(RerankBody, prepare_ranks)
SCORES = Endpoint(ScoreBody, prepare_scores)
CLASSES = Endpoint(ClassifyBody, prepare_classes)
ENDPOINTS = {
    "/v1/chat/completions": Endpoint(ChatBody, prepare_chat),
    "/v1/completions": Endpoint(CompletionBody, prepare_texts),
    "/v1/responses": Endpoint(ResponsesBody, prepare_response),
    "/v1/embeddings": Endpoint(EmbeddingBody, prepare_embeddings),
    **dict.fromkeys(("/v1/score", "/score"), SCORES),
    **dict.fromkeys(("/v1/rerank", "/v2/rerank", "/rerank"), RANKS),
    **dict.fromkeys(("/v1/classify", "/classify"), CLASSES),
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
        return Answered(200, await whole(caller, *await endpoint.prepare(caller, body)))
    except Exception as error:
        told = api_error(error, account.request_id)
        return Answered(told.status, msgspec.json.encode(told.body(ErrorBody, account.request_id)))
    finally:
        if account.ticket is not None:
            account.ticket.release()
