"""The answers to all prompts of one HTTP request, as far as they have come.

Each prompt is a request of the engine's. What has come of any is noted when the engine calls, and
taken when whoever reads is ready for it: until then it gathers in the requests' states.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from ..engine.request import MoreText, RequestOutput
from .caller import Caller
from .errors import SERVER, ApiError
from .reply import Teller, WholeTeller

if TYPE_CHECKING:
    from ..engine.reading import Reading
    from ..engine.text.prepare import Prepared

Batch = list[tuple[int, RequestOutput]]
"""Outputs, and the place of the prompt or the index of the choice that each belongs to."""


class Outputs:
    """A context manager: the requests begin when it is entered, and end with it."""

    def __init__(
        self,
        caller: Caller,
        prepared: Sequence[Prepared],
        reply: WholeTeller,
        call: Callable[[int], None],
    ) -> None:
        """call: as AsyncEngine.read has it, with the place of a prompt: there is something new."""
        self._caller = caller
        self._prepared = prepared
        self._reply = reply
        self._call = call
        self._readings: list[Reading] = []
        self._due: dict[int, None] = {}
        """Places of prompts of whose answers there is something new."""
        self._stack = ExitStack()
        self.num_open = len(prepared)
        """Prompts whose answers have not been taken to their end."""

    def __enter__(self) -> Outputs:
        with ExitStack() as stack:
            for place, one in enumerate(self._prepared):
                self._readings.append(stack.enter_context(closing(self._begin(place, one))))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def note(self, place: int) -> None:
        """Note that there is something new of a prompt, for the next take."""
        self._due[place] = None

    def more(self, place: int) -> MoreText | None:
        """Return what is new of a prompt's answer where that is text alone, else None: see take."""
        told = self._readings[place].more()
        if told is not None:
            self._caller.account.num_output_tokens += told.num_tokens
        return told

    def take(self) -> Batch:
        """Return what is new of each choice of the prompts that were noted."""
        batch = []
        for place in self._due:
            output = self._readings[place].take()
            if output is not None:
                self.num_open -= output.finished
                batch.append((place, output))
        self._due.clear()
        self._caller.account.note(batch)
        return one_by_one(batch, self._reply)

    def _begin(self, place: int, prepared: Prepared) -> Reading:
        """Begin to generate; from when the engine has the request, it counts as waiting there."""
        ticket = self._caller.account.ticket
        assert ticket is not None, "what generates is admitted first"
        num = prepared.request.params.n if prepared.beams is None else prepared.beams.n
        return self._caller.state.engine.read(
            prepared, partial(self._call, place), on_added=partial(ticket.hand_over, num)
        )


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


def chunks_of(batch: Batch, reply: Teller) -> list[Any]:
    """Word what is new. ApiError where the engine could not finish a request."""
    chunks: list[Any] = []
    for index, output in batch:
        check_output(output)
        chunks += reply.chunks(index, output)
    return chunks


def check_output(output: RequestOutput) -> None:
    """ApiError 500 where the engine could not finish a request."""
    if output.outputs[0].finish_reason == "error":
        message = output.error or "the engine failed"
        raise ApiError(f"The request could not be finished: {message}", status=500, kind=SERVER)
