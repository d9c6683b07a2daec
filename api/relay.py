"""What passes a request's outputs on to its client, in one of two places.

While the client reads, that is where the engine calls: outputs are taken, worded and given to the
connection at once, and no task is woken. What has to wait (for the headers, for a client that is
slow to read) or ends the response is done by the request's handler, which sleeps until then. Both
do the same to the same outputs, and never at the same time: while the handler has the stream, it
does not flow, and what comes is left to the handler.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .caller import Caller
from .outputs import Outputs, chunks_of
from .reply import Teller
from .sse import EventStream

if TYPE_CHECKING:
    from ..engine.text.prepare import Prepared


class Relay:
    """Passes on one stream."""

    def __init__(
        self, caller: Caller, prepared: Sequence[Prepared], reply: Teller, stream: EventStream
    ) -> None:
        self._outputs = Outputs(caller, prepared, reply, self._told)
        self._reply = reply
        self._more = reply.more
        self._stream = stream
        self._handler = asyncio.Event()
        """Set when the handler is needed."""
        self._failure: Exception | None = None

    async def run(self) -> None:
        """Pass on all outputs. The requests have ended afterwards, however that went."""
        with self._outputs as outputs:
            while outputs.num_open:
                await self._handler.wait()
                self._handler.clear()
                await self._stream.room()
                if self._failure is not None:
                    raise self._failure
                await self._stream.send(chunks_of(self._outputs.take(), self._reply))

    def _told(self, place: int) -> None:
        """Pass on what is new, where nothing has to be waited for."""
        stream, outputs, tell_more = self._stream, self._outputs, self._more
        flows = self._failure is None and stream.flows
        try:
            if flows and tell_more is not None and (more := outputs.more(place)) is not None:
                stream.put(tell_more(place, more))
                return
            outputs.note(place)
            if flows:
                stream.put(stream.written(chunks_of(outputs.take(), self._reply)))
                if outputs.num_open:
                    return
        except Exception as error:
            self._failure = error
        self._handler.set()
