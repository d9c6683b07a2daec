"""/v1/responses: answers as items, which later requests may build on by the id of a response."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from ..answer import answer
from ..auth import tenant_of
from ..caller import Caller, caller_of
from ..conversation import Asked, ask
from ..convert import renamed
from ..decode import read_body, show
from ..errors import ApiError
from ..paging import ORDER, Paging
from ..response_items import AnswerItems, OutputItems
from ..response_reply import ResponseReply
from ..response_store import Stored
from ..responses_input import NAMES, chat_body, read_items
from ..responses_schema import (
    Deleted,
    Item,
    ItemList,
    ReasoningOptions,
    ResponseObject,
    ResponsesBody,
    TextOptions,
)
from ..route import Query, json_response, query_value
from ..state import STATE, ServerState

if TYPE_CHECKING:
    from ...engine.text.prepare import Prepared

STREAM = Query(
    name="stream", allowed=("false",), summary="a response that was kept is not streamed"
)
PAGING = Paging(default=20, most=100)


async def create_response(request: web.Request) -> web.StreamResponse:
    """Answer items, and those of the response that is named."""
    caller = caller_of(request)
    body = await read_body(request, ResponsesBody)
    return await answer(request, *await prepare_response(caller, body), stream=bool(body.stream))


async def prepare_response(
    caller: Caller, body: ResponsesBody
) -> tuple[list[Prepared], ResponseReply]:
    """Let a request in, and prepare what is generated and who words it."""
    state, owner = caller.state, tenant_of(caller)
    items = [*_earlier(state, owner, body), *read_items(body.input, state.new_id)]
    with renamed(NAMES):
        asked = await ask(caller, chat_body(body, items), "resp_")
    tokenizer = state.engine.tokenizer

    def keep(response: ResponseObject) -> None:
        if response.store:
            state.responses.keep(owner, Stored(response, items))

    reply = ResponseReply(
        asked=_response(caller, body, asked),
        answer=AnswerItems(asked.parsed, OutputItems(state.new_id)),
        clock=state.clock,
        num_tokens=lambda text: len(tokenizer.encode(text, add_special_tokens=False)),
        keep=keep,
    )
    return [asked.prepared], reply


async def show_response(request: web.Request) -> web.Response:
    """A response that was kept. ApiError 404 for another."""
    query_value(request, STREAM)
    return json_response(_kept(request).response)


async def delete_response(request: web.Request) -> web.Response:
    """Forget a response; those that build on it stay whole."""
    response = _kept(request).response
    request.app[STATE].responses.drop(_owner(request), response.id)
    return json_response(Deleted(id=response.id))


async def cancel_response(request: web.Request) -> web.Response:
    """ApiError 400: only background responses can be cancelled, and there are none."""
    response = _kept(request).response
    raise ApiError(
        f"The response {show(response.id)} is {response.status}: only a response in the background "
        "can be cancelled, and this server makes none. Close the connection to abort an answer.",
        code="unsupported_value",
    )


async def list_input_items(request: web.Request) -> web.Response:
    """What a response answers, earlier responses included."""
    order = query_value(request, ORDER)
    page = PAGING.page(request, _kept(request).items, lambda item: str(item["id"]), order)
    return json_response(ItemList(**page._asdict()))


def _owner(request: web.Request) -> str:
    """Name who may see a response: whoever has the key that asked for it."""
    return tenant_of(caller_of(request))


def _kept(request: web.Request) -> Stored:
    name = request.match_info["response_id"]
    stored = request.app[STATE].responses.find(_owner(request), name)
    if stored is None:
        raise ApiError(
            f"There is no response {show(name)}: it was not kept, or is forgotten.",
            status=404,
            param="response_id",
            code="response_not_found",
        )
    return stored


def _earlier(state: ServerState, owner: str, body: ResponsesBody) -> list[Item]:
    """Return what was said before, where the request builds on a response."""
    name = body.previous_response_id
    if name is None:
        return []
    stored = state.responses.find(owner, name)
    if stored is None:
        raise ApiError(
            f"previous_response_id is {show(name)}: there is no such response. It was not kept, "
            "or is forgotten.",
            status=404,
            param="previous_response_id",
            code="previous_response_not_found",
        )
    return stored.conversation()


def _response(caller: Caller, body: ResponsesBody, asked: Asked) -> ResponseObject:
    """Tell what was asked."""
    state, params = caller.state, asked.prepared.request.params
    return ResponseObject(
        id=asked.response_id,
        created_at=int(state.clock()),
        model=state.engine.model_name,
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        metadata=body.metadata or {},
        parallel_tool_calls=body.parallel_tool_calls is not False,
        previous_response_id=body.previous_response_id,
        reasoning=body.reasoning or ReasoningOptions(),
        seed=body.seed,
        # Those of batches would drive all others out.
        store=body.store is not False and not caller.account.background,
        temperature=params.temperature,
        text=TextOptions(
            format=(body.text and body.text.format) or {"type": "text"}, verbosity="medium"
        ),
        tool_choice="auto" if body.tool_choice is None else body.tool_choice,
        tools=body.tools or [],
        top_p=params.top_p,
        user=body.user,
    )
