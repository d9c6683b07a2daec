"""From prepared requests to an HTTP response, whole or as a stream.

Every generation is closed when its response ends, however it ends: closing aborts it. The server
cancels a handler whose client is gone, also while it waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web
from msgspec.structs import replace

from ..engine.request import RequestOutput
from .errors import SERVER, ApiError, api_error
from .reply import Reply
from .sse import EventStream
from .state import STATE, ServerState

if TYPE_CHECKING:
    from ..engine.text.prepare import Prepared

logger = logging.getLogger("quire")

Batch = list[tuple[int, RequestOutput]]


def check_accepting(state: ServerState) -> None:
    """Refuse new work while the server stops."""
    if state.draining or not state.engine.is_running:
        raise ApiError(
            "The server is stopping and takes no new requests.",
            status=503,
            kind=SERVER,
            code="engine_unavailable",
        )


async def answer(
    request: web.Request, prepared: Sequence[Prepared], reply: Reply, *, stream: bool
) -> web.StreamResponse:
    """Generate for all prompts at once and respond.

    stream: as the output_kind of what is prepared.
    """
    engine = request.app[STATE].engine
    streams = [engine.generate(one) for one in prepared]
    async with aclosing(merge(streams)) as batches:
        if stream:
            return await _respond_stream(request, batches, reply)
        outputs: dict[int, RequestOutput] = {}
        async for batch in batches:
            outputs.update(one_by_one(batch, reply))
    ended = [outputs[index] for index in sorted(outputs)]
    for output in ended:
        check_output(output)
    return web.Response(
        body=msgspec.json.encode(reply.whole(ended)), content_type="application/json"
    )


async def _respond_stream(
    request: web.Request, batches: AsyncGenerator[Batch, None], reply: Reply
) -> web.StreamResponse:
    """Headers leave with the first output, so that what fails before it has its own status."""
    first = await anext(batches)
    # Of a search all answers come here; the best are kept once.
    first = [(place, reply.keep_best(output)) for place, output in first]
    for _, output in one_by_one(first, reply):
        check_output(output)
    events = await EventStream.open(request)
    try:
        await events.send(_chunks(first, reply))
        async for batch in batches:
            await events.send(_chunks(batch, reply))
        await events.send(reply.end())
    except ConnectionError:
        raise
    except Exception as error:
        await events.send([api_error(error).body()])
    return await events.close()


def _chunks(batch: Batch, reply: Reply) -> list[msgspec.Struct]:
    chunks: list[msgspec.Struct] = []
    for index, output in one_by_one(batch, reply):
        check_output(output)
        chunks += reply.chunks(index, output)
    return chunks


def one_by_one(batch: Batch, reply: Reply) -> Batch:
    """Tell the n answers kept of each prompt apart; each gets the index of its choice."""
    kept = [(place, reply.keep_best(output)) for place, output in batch]
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

    The first exception of a stream ends all. Closing closes all.
    """
    if len(streams) == 1:
        async with aclosing(streams[0]) as only:
            async for output in only:
                yield [(0, output)]
        return
    ready: asyncio.Queue[tuple[int, RequestOutput | Exception | None]] = asyncio.Queue()
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
                ready.put_nowait((index, output))
        ready.put_nowait((index, None))
    except Exception as error:
        ready.put_nowait((index, error))
