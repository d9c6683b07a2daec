"""/v1/responses: answers as items, which later requests may build on by the id of a response."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import web
from msgspec.structs import replace

from ..account import Account
from ..answer import answer
from ..auth import tenant_of
from ..background import BACKGROUND_RESPONSES, Job
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
    StreamEvent,
    TextOptions,
)
from ..route import Query, json_response, query_value
from ..sse import NAMED_EVENTS, EventStream
from ..state import STATE, ServerState

if TYPE_CHECKING:
    from ...engine.text.prepare import Prepared

STREAM = Query(
    name="stream",
    allowed=("false", "true"),
    summary="tell the events of a response that was asked for with background and stream",
)
STARTING_AFTER = Query(
    name="starting_after", summary="the sequence_number of the last event that is known"
)
MOST_DIGITS = 12
PAGING = Paging(default=20, most=100)


async def create_response(request: web.Request) -> web.StreamResponse:
    """Answer items, and those of the response that is named."""
    caller = caller_of(request)
    body = await read_body(request, ResponsesBody)
    if body.background:
        return await _in_background(request, caller, body)
    return await answer(request, *await prepare_response(caller, body), stream=bool(body.stream))


async def _in_background(
    request: web.Request, caller: Caller, body: ResponsesBody
) -> web.StreamResponse:
    """Begin an answer that is made whether the client stays or not."""
    if body.store is False:
        raise ApiError(
            "store is false and background true: what is made in the background must be kept.",
            param="store",
        )
    if not caller.state.limits.response_store_bytes:
        raise ApiError("background is true: this server keeps no responses.", param="background")
    responses = request.app[BACKGROUND_RESPONSES]
    responses.check_room()
    # The client's account ends with this request; that of the job with the job.
    asks = caller.account
    account = Account(asks.request_id, asks.started_s, tenant=asks.tenant)
    own = Caller(caller.state, account)
    try:
        # All are followed as they come, whoever looks.
        prepared, reply, items = await _prepare(own, replace(body, stream=True))
        job = Job(tenant_of(caller), items, reply, keeps_events=bool(body.stream))
        responses.start(own, [prepared], job)
    except BaseException:
        if account.ticket is not None:
            account.ticket.release()
        raise
    return await _tell(request, job.follow(0)) if body.stream else json_response(job.response)


async def _tell(
    request: web.Request, events: AsyncGenerator[Sequence[StreamEvent]]
) -> web.StreamResponse:
    """Send what is told of a response."""
    limits = request.app[STATE].limits
    async with EventStream(request, limits, NAMED_EVENTS) as stream, aclosing(events):
        async for new in events:
            await stream.send(new)
        return await stream.close()


async def prepare_response(
    caller: Caller, body: ResponsesBody
) -> tuple[list[Prepared], ResponseReply]:
    """Let a request in, and prepare what is generated and who words it."""
    if body.background:
        raise ApiError("background is true: a batch is in the background.", param="background")
    prepared, reply, items = await _prepare(caller, body)
    state, owner = caller.state, tenant_of(caller)

    def keep(response: ResponseObject) -> None:
        if response.store:
            state.responses.keep(owner, Stored(response, items))

    reply.keep = keep
    return [prepared], reply


class _Opened(NamedTuple):
    """A request that is let in."""

    prepared: Prepared
    reply: ResponseReply
    items: list[Item]
    """What is answered, earlier responses included."""


async def _prepare(caller: Caller, body: ResponsesBody) -> _Opened:
    """Let a request in, and prepare what is generated and who words it; nobody keeps it yet."""
    state = caller.state
    items = [*_earlier(state, tenant_of(caller), body), *read_items(body.input, state.new_id)]
    with renamed(NAMES):
        asked = await ask(caller, chat_body(body, items), "resp_")
    tokenizer = state.engine.tokenizer
    reply = ResponseReply(
        asked=_response(caller, body, asked),
        answer=AnswerItems(asked.parsed, OutputItems(state.new_id)),
        clock=state.clock,
        num_tokens=lambda text: len(tokenizer.encode(text, add_special_tokens=False)),
    )
    return _Opened(asked.prepared, reply, items)


async def show_response(request: web.Request) -> web.StreamResponse:
    """A response that was kept or is being made, or its events. ApiError 404 for another."""
    wish, after = query_value(request, STREAM), query_value(request, STARTING_AFTER)
    job = _job(request)
    if wish == "false":
        if after:
            raise ApiError("starting_after needs stream=true.", param="starting_after")
        return json_response(_kept(request).response if job is None else job.response)
    start = _start(after)
    if job is not None and job.keeps_events:
        return await _tell(request, job.follow(start))
    events = () if job is not None else _kept(request).events
    if not events:
        raise ApiError(
            f"stream is true: the response {show(request.match_info['response_id'])} was not asked "
            "for with background and stream true.",
            param="stream",
        )
    return await _tell(request, _all_at_once(events[start:]))


async def _all_at_once(events: Sequence[StreamEvent]) -> AsyncGenerator[Sequence[StreamEvent]]:
    yield events


def _start(after: str) -> int:
    """Return the first event to tell."""
    if after and not (after.isascii() and after.isdigit() and len(after) <= MOST_DIGITS):
        raise ApiError(
            f"starting_after is {show(after)}: it must be the sequence_number of an event.",
            param="starting_after",
        )
    return int(after) + 1 if after else 0


async def delete_response(request: web.Request) -> web.Response:
    """Forget a response, after ending it. ApiError 404 for one that is not there."""
    job = _job(request)
    response = _kept(request).response if job is None else job.response
    if job is not None:
        await request.app[BACKGROUND_RESPONSES].cancel(job)
    request.app[STATE].responses.drop(_owner(request), response.id)
    return json_response(Deleted(id=response.id))


async def cancel_response(request: web.Request) -> web.Response:
    """End a response in the background; one that has ended is shown. ApiError 400 for others."""
    job = _job(request)
    if job is not None:
        return json_response(await request.app[BACKGROUND_RESPONSES].cancel(job))
    response = _kept(request).response
    if response.background:
        return json_response(response)
    raise ApiError(
        f"The response {show(response.id)} is {response.status}: only a response in the background "
        "can be cancelled. Close the connection to abort an answer.",
        code="unsupported_value",
    )


async def list_input_items(request: web.Request) -> web.Response:
    """What a response answers, earlier responses included."""
    order = query_value(request, ORDER)
    job = _job(request)
    items = _kept(request).items if job is None else job.items
    page = PAGING.page(request, items, lambda item: str(item["id"]), order)
    return json_response(ItemList(**page._asdict()))


def _owner(request: web.Request) -> str:
    """Name who may see a response: whoever has the key that asked for it."""
    return tenant_of(caller_of(request))


def _job(request: web.Request) -> Job | None:
    """Return the response that is meant, where it is being made."""
    name = request.match_info["response_id"]
    return request.app[BACKGROUND_RESPONSES].find(_owner(request), name)


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
            "is forgotten, or has not ended.",
            status=404,
            param="previous_response_id",
            code="previous_response_not_found",
        )
    if stored.response.status in ("failed", "cancelled"):
        raise ApiError(
            f"previous_response_id is {show(name)}: that response is {stored.response.status}.",
            param="previous_response_id",
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
        background=bool(body.background),
    )
