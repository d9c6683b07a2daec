"""Responses that are made while nobody waits: started, looked at, followed, cancelled.

Owns the tasks of one server. A bounded number is made at once; what has ended is the store's. A
server that drains waits for them, as for any answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web

from .answer import follow
from .caller import Caller
from .errors import ApiError, api_error
from .outputs import chunks_of
from .response_reply import ResponseReply
from .response_store import ResponseStore, Stored
from .responses_schema import Item, ResponseObject, StreamEvent

if TYPE_CHECKING:
    from ..engine.text.prepare import Prepared

RETRY_S = 10


@dataclass(slots=True, eq=False)
class Job:
    """One response that is being made."""

    owner: str
    items: list[Item]
    """What it answers."""
    reply: ResponseReply
    keeps_events: bool
    """Whether its stream may be read again later."""
    events: list[StreamEvent] = field(default_factory=list)
    """All so far, by their numbers."""
    task: asyncio.Task[None] | None = None
    final: ResponseObject | None = None
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def response(self) -> ResponseObject:
        """The response as far as it is."""
        return self.final or self.reply.so_far()

    def tell(self, events: Sequence[StreamEvent]) -> None:
        """Add what is new, and wake who follows."""
        self.events += events
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def follow(self, start: int) -> AsyncGenerator[Sequence[StreamEvent]]:
        """Yield the events from number `start` on, as they come, up to the last one."""
        while self.final is None or start < len(self.events):
            news = self._news
            if start < len(self.events):
                new = self.events[start:]
                start += len(new)
                yield new
            else:
                await news.wait()


class BackgroundResponses:
    """The responses of one server that are being made."""

    def __init__(self, most: int, store: ResponseStore) -> None:
        """most: at once, all keys together. store: takes each when it has ended."""
        self._most = most
        self._store = store
        self._jobs: dict[tuple[str, str], Job] = {}

    def check_room(self) -> None:
        """ApiError 429 where no other may begin."""
        if len(self._jobs) >= self._most:
            raise ApiError(
                f"{len(self._jobs)} responses are made in the background: at most {self._most} "
                f"may be. Try again in {RETRY_S} s.",
                status=429,
                kind="rate_limit_error",
                code="background_full",
                headers={"Retry-After": str(RETRY_S)},
            )

    def start(self, caller: Caller, prepared: Sequence[Prepared], job: Job) -> None:
        """Begin to make a response. The account of the caller is the job's from now on."""
        self.check_room()
        place = job.owner, job.reply.response_id
        if place in self._jobs:
            raise ApiError(f"request_id names {place[1]}, which is being made.", param="request_id")
        self._jobs[place] = job
        caller.state.begin()
        job.tell(job.reply.queued())
        job.task = asyncio.create_task(self._make(caller, prepared, job), name="quire-background")
        # Not by the task itself: one that is cancelled before it begins does nothing.
        job.task.add_done_callback(lambda _: self._settle(caller, job))

    def find(self, owner: str, response_id: str) -> Job | None:
        """Return what is being made; None if this owner has nothing of this id."""
        return self._jobs.get((owner, response_id))

    async def cancel(self, job: Job) -> ResponseObject:
        """End a job, unless it has ended; return what there is of it."""
        assert job.task is not None, "a job that is found was started"
        job.task.cancel()
        await asyncio.wait([job.task])
        assert job.final is not None, "a job that is over has a last state"
        return job.final

    async def close(self) -> None:
        """Cancel all."""
        for job in list(self._jobs.values()):
            await self.cancel(job)

    async def _make(self, caller: Caller, prepared: Sequence[Prepared], job: Job) -> None:
        reply, account = job.reply, caller.account
        try:
            async with aclosing(follow(caller, prepared, reply)) as batches:
                async for batch in batches:
                    job.tell(chunks_of(batch, reply))
            self._end(job, reply.end())
        except Exception as error:
            told = api_error(error, account.request_id)
            self._end(job, reply.failed(told, account.request_id))

    def _settle(self, caller: Caller, job: Job) -> None:
        """Count a job no more, however it ended."""
        if job.final is None:
            self._end(job, job.reply.cancelled())
        ticket = caller.account.ticket
        if ticket is not None:
            ticket.release()
        caller.state.end()

    def _end(self, job: Job, last: Sequence[StreamEvent]) -> None:
        """Have the store keep what was made."""
        final = getattr(last[-1], "response", None)
        assert isinstance(final, ResponseObject), last
        job.final = final
        del self._jobs[job.owner, final.id]
        kept = [*job.events, *last] if job.keeps_events else ()
        self._store.keep(job.owner, Stored(final, job.items, kept))
        job.tell(last)


BACKGROUND_RESPONSES: web.AppKey[BackgroundResponses] = web.AppKey(
    "background", BackgroundResponses
)
