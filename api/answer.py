"""From prepared requests to an HTTP response, whole or as a stream.

Every generation is closed when its response ends, however it ends: closing aborts it. The server
cancels a handler whose client is gone, also while it waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web
from msgspec.structs import replace

from ..engine.request import BACKGROUND, RequestOutput
from .account import Account, account_of
from .caller import Caller, caller_of
from .errors import SERVER, ApiError, api_error
from .outlet import respond
from .reply import Teller, WholeTeller
from .route import JSON
from .sse import EventStream
from .state import STATE, ServerState

if TYPE_CHECKING:
    from ..engine.text.prepare import Prepared

logger = logging.getLogger("quire")

Batch = list[tuple[int, RequestOutput]]


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
    caller = caller_of(request)
    if stream:
        async with aclosing(begin(caller, prepared, reply)) as batches:
            return await _respond_stream(request, batches, reply)
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
    outputs: dict[int, RequestOutput] = {}
    async with aclosing(begin(caller, prepared, reply)) as batches:
        async for batch in batches:
            caller.account.note(batch)
            outputs.update(one_by_one(batch, reply))
    ended = [outputs[index] for index in sorted(outputs)]
    for output in ended:
        check_output(output)
    return msgspec.json.encode(reply.whole(ended))


def begin(
    caller: Caller, prepared: Sequence[Prepared], reply: WholeTeller
) -> AsyncGenerator[Batch, None]:
    """Begin to generate for all prompts. Closing it aborts them."""
    _describe(caller.account, prepared, reply)
    return merge([_generate(caller, one) for one in prepared])


def _generate(caller: Caller, prepared: Prepared) -> AsyncGenerator[RequestOutput, None]:
    """Begin to generate; from when the engine has the request, it counts as waiting there."""
    ticket = caller.account.ticket
    assert ticket is not None, "what generates is admitted first"
    num = prepared.request.params.n if prepared.beams is None else prepared.beams.n
    return caller.state.engine.generate(prepared, on_added=partial(ticket.hand_over, num))


def _describe(account: Account, prepared: Sequence[Prepared], reply: WholeTeller) -> None:
    """Note for the log and for traces what was asked."""
    first = prepared[0]
    asked = first.request.params if first.beams is None else first.beams
    account.tenant = first.request.tenant or account.tenant
    account.model, account.response_id = reply.model, reply.response_id
    account.temperature, account.max_tokens = asked.temperature, asked.max_tokens
    account.top_p = getattr(asked, "top_p", None)


async def _respond_stream(
    request: web.Request, batches: AsyncGenerator[Batch, None], reply: Teller
) -> web.StreamResponse:
    """What fails before the first output, and the first heartbeat, has its own status."""
    account = account_of(request)
    limits = request.app[STATE].limits
    async with EventStream(request, limits, reply.wire) as events:
        try:
            async for batch in batches:
                account.note(batch)
                await events.send(chunks_of(batch, reply))
            await events.send(reply.end())
        except ConnectionError:
            raise
        except Exception as error:
            if not events.is_open:
                raise
            # The engine does not work on while the client reads.
            await batches.aclose()
            told = api_error(error, account.request_id)
            await events.send(reply.failed(told, account.request_id))
        return await events.close()


def chunks_of(batch: Batch, reply: Teller) -> list[Any]:
    """Word what is new. ApiError where the engine could not finish a request."""
    chunks: list[Any] = []
    for index, output in one_by_one(batch, reply):
        check_output(output)
        chunks += reply.chunks(index, output)
    return chunks


def one_by_one(batch: Batch, reply: WholeTeller) -> Batch:
    """Tell the n answers kept of each prompt apart; each gets the index of its choice."""
    kept = [(place, reply.keep_best(output)) for place, output in batch]
    if reply.n == 1:
        return kept
    return [
        (place * reply.n + one.index, replace(output, outputs=(one,)))
        for place, output in kept
        for one in output.outputs
    ]


def check_output(output: RequestOutput) -> None:
    """ApiError 500 where the engine could not finish a request."""
    if output.outputs[0].finish_reason == "error":
        message = output.error or "the engine failed"
        raise ApiError(f"The request could not be finished: {message}", status=500, kind=SERVER)


async def merge(streams: Sequence[AsyncGenerator[RequestOutput, None]]) -> AsyncGenerator[Batch]:
    """Run streams concurrently; yield what is ready, with the index of its stream.

    The first exception of a stream ends all. Closing closes all. While nobody asks for more, a
    stream gets ahead by two outputs at most: what comes then gathers in its request's state.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for output in only:
                yield [(0, output)]
        return
    ready: asyncio.Queue[tuple[int, RequestOutput | Exception | None]] = asyncio.Queue(len(streams))
    pumps = [
        asyncio.create_task(_pump(index, stream, ready)) for index, stream in enumerate(streams)
    ]
    try:
        num_open = len(pumps)
        failure: Exception | None = None
        while num_open and failure is None:
            batch: Batch = []
            items = [await ready.get()]
            while not ready.empty():
                items.append(ready.get_nowait())
            for index, given in items:
                if isinstance(given, RequestOutput):
                    batch.append((index, given))
                else:
                    num_open -= 1
                    failure = failure or given
            if batch:
                yield batch
        if failure is not None:
            raise failure
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _pump(
    index: int,
    stream: AsyncGenerator[RequestOutput, None],
    ready: asyncio.Queue[tuple[int, RequestOutput | Exception | None]],
) -> None:
    try:
        async with aclosing(stream):
            async for output in stream:
                await ready.put((index, output))
        await ready.put((index, None))
    except Exception as error:
        await ready.put((index, error))
