"""From prepared requests to an HTTP response, whole or as a stream.

Every generation is closed when its response ends, however it ends: closing aborts it. The server
cancels a handler whose client is gone, also while it waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from ..engine.request import BACKGROUND, RequestOutput
from .account import Account
from .caller import Caller, caller_of
from .errors import SERVER, ApiError, api_error
from .outlet import respond
from .outputs import Batch, Outputs, check_output
from .relay import Relay
from .reply import Teller, WholeTeller
from .route import JSON
from .sse import EventStream
from .state import ServerState

if TYPE_CHECKING:
    from ..engine.text.prepare import Prepared


def check_accepting(state: ServerState) -> None:
    """Refuse new work while the server stops or sleeps."""
    if state.engine.is_sleeping:
        raise ApiError(
            "The engine sleeps: POST /wake_up first.",
            status=503,
            kind=SERVER,
            code="engine_sleeping",
        )
    if state.draining or not state.engine.is_running:
        raise ApiError(
            "The server is stopping and takes no new requests.",
            status=503,
            kind=SERVER,
            code="engine_unavailable",
        )


def admit(caller: Caller, num_answers: int) -> None:
    """Give a request its places in the queue, until it is over. ApiError 429 if there are none."""
    account = caller.account
    assert account.ticket is None, "a request is admitted once"
    admission = caller.state.admission
    account.ticket = admission.pass_by() if account.background else admission.admit(num_answers)


def priority_of(caller: Caller, given: int | None) -> int:
    """Return the priority of a request whose body says `given`. ApiError for the background's."""
    if caller.account.background:
        return BACKGROUND
    if given is not None and given >= BACKGROUND:
        raise ApiError(f"priority is {given}: it must be below {BACKGROUND}.", param="priority")
    return given or 0


async def answer(
    request: web.Request, prepared: Sequence[Prepared], reply: Teller, *, stream: bool
) -> web.StreamResponse:
    """Generate for all prompts at once and respond.

    stream: as the output_kind of what is prepared.
    """
    if stream:
        return await _respond_stream(request, prepared, reply)
    return await respond_whole(request, prepared, reply)


async def respond_whole(
    request: web.Request, prepared: Sequence[Prepared], reply: WholeTeller
) -> web.StreamResponse:
    """Generate for all prompts at once and respond when all are done."""
    caller = caller_of(request)
    data = await whole(caller, prepared, reply)
    return await respond(request, data, caller.state.limits, {"Content-Type": JSON})


async def whole(caller: Caller, prepared: Sequence[Prepared], reply: WholeTeller) -> bytes:
    """Generate for all prompts at once; return the response as JSON."""
    ended: dict[int, RequestOutput] = {}
    async with aclosing(follow(caller, prepared, reply)) as batches:
        async for batch in batches:
            ended.update(batch)
    told = [ended[index] for index in sorted(ended)]
    for output in told:
        check_output(output)
    return msgspec.json.encode(reply.whole(told))


async def follow(
    caller: Caller, prepared: Sequence[Prepared], reply: WholeTeller
) -> AsyncGenerator[Batch, None]:
    """Generate for all prompts; yield what is new of each choice. Closing it aborts them."""
    _describe(caller.account, prepared, reply)
    news = asyncio.Event()

    def call(place: int) -> None:
        outputs.note(place)
        news.set()

    with Outputs(caller, prepared, reply, call) as outputs:
        while outputs.num_open:
            await news.wait()
            news.clear()
            yield outputs.take()


def _describe(account: Account, prepared: Sequence[Prepared], reply: WholeTeller) -> None:
    """Note for the log and for traces what was asked."""
    first = prepared[0]
    asked = first.request.params if first.beams is None else first.beams
    account.tenant = first.request.tenant or account.tenant
    account.model, account.response_id = reply.model, reply.response_id
    account.temperature, account.max_tokens = asked.temperature, asked.max_tokens
    account.top_p = getattr(asked, "top_p", None)


async def _respond_stream(
    request: web.Request, prepared: Sequence[Prepared], reply: Teller
) -> web.StreamResponse:
    """What fails before the first output, and the first heartbeat, has its own status."""
    caller = caller_of(request)
    account = caller.account
    _describe(account, prepared, reply)
    async with EventStream(request, caller.state.limits, reply.wire) as stream:
        try:
            await Relay(caller, prepared, reply, stream).run()
            await stream.send(reply.end())
        except ConnectionError:
            raise
        except Exception as error:
            if not stream.is_open:
                raise
            told = api_error(error, account.request_id)
            await stream.send(reply.failed(told, account.request_id))
        return await stream.close()
