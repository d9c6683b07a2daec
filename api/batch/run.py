"""The requests of one input, a bounded number at a time: for a server's batch, and offline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from ..account import Account
from ..caller import Caller
from ..state import ServerState
from .endpoints import ENDPOINTS, answer_body
from .journal import Journal
from .lines import read_line, split
from .schema import Answer, Line, LineResponse

UNAVAILABLE = 503
"""The engine sleeps, or the server stops: no answer to the request."""
AGAIN_S = 0.2
"""After which it is asked again."""


class Work(NamedTuple):
    """What is done of an input, and how."""

    state: ServerState
    path: Path
    """The input, scanned without a fault."""
    urls: Sequence[str]
    places: asyncio.Semaphore
    """One for each request that may be answered at once."""
    until_ready: Callable[[], Awaitable[None]]
    """Waits until the engine takes requests."""
    told: Callable[[], None]
    """Called after each answer."""
    tenant: str = ""
    background: bool = False


async def run_lines(work: Work, journal: Journal) -> None:
    """Answer all lines that have no answer yet. What was begun is aborted when this is cancelled.

    OSError where an answer cannot be written.
    """
    try:
        async with asyncio.TaskGroup() as group:
            for _, data in split(work.path, work.state.limits.max_body_bytes):
                line = read_line(data, work.urls)
                if line.custom_id in journal:
                    await asyncio.sleep(0)
                    continue
                await work.places.acquire()
                task = group.create_task(_run_line(work, line, journal))
                # Not by the task itself: one that is cancelled before it begins does nothing.
                task.add_done_callback(lambda _: work.places.release())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from errors


async def _run_line(work: Work, line: Line, journal: Journal) -> None:
    state = work.state
    while True:
        await work.until_ready()
        account = Account(
            request_id=state.new_id(),
            started_s=asyncio.get_running_loop().time(),
            background=work.background,
            tenant=work.tenant,
        )
        state.begin()
        try:
            endpoint = ENDPOINTS[line.url]
            status, body = await answer_body(Caller(state, account), endpoint, bytes(line.body))
        finally:
            state.end()
        # What an engine that stops says of its requests is no answer to them.
        engine = state.engine
        if status != UNAVAILABLE and (engine.is_running or engine.is_sleeping):
            break
        await asyncio.sleep(AGAIN_S)
    response = LineResponse(status, account.request_id, msgspec.Raw(body))
    # To the page cache, in microseconds: not worth a thread, where a cancellation would leave it.
    journal.add(
        Answer(id=f"batch_req_{state.new_id()}", custom_id=line.custom_id, response=response)
    )
    work.told()
