"""What the client of /v1/responses is told of its one answer: a Teller of items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from ..engine.parsing.events import Content
from ..engine.request import FinishReason, RequestOutput
from .errors import SERVER, ApiError
from .parsed import ParsedAnswers
from .response_items import OutputItems
from .responses_schema import (
    Completed,
    Created,
    Failed,
    Incomplete,
    IncompleteDetails,
    InProgress,
    InputDetails,
    OutputDetails,
    OutputReasoning,
    ResponseFailure,
    ResponseObject,
    ResponseUsage,
    StreamEvent,
)


@dataclass(slots=True, eq=False)
class ResponseReply:
    """Keeps what its events share. The store has a response before the client is told its end."""

    asked: ResponseObject
    """Without an answer."""
    parsed: ParsedAnswers | None
    items: OutputItems
    clock: Callable[[], float]
    num_tokens: Callable[[str], int]
    """Of a text."""
    keep: Callable[[ResponseObject], None]
    n: int = 1
    names_events: bool = True
    _num_told: int = 0
    _last: RequestOutput | None = None
    _num_output_tokens: int = 0
    _final: ResponseObject | None = field(default=None)

    @property
    def response_id(self) -> str:
        """See Teller."""
        return self.asked.id

    @property
    def model(self) -> str:
        """See Teller."""
        return self.asked.model

    def keep_best(self, output: RequestOutput) -> RequestOutput:
        """See Teller."""
        return output

    def chunks(self, index: int, output: RequestOutput) -> list[StreamEvent]:
        """See Teller."""
        return self._numbered([*self._begin(), *self._read(output)])

    def end(self) -> list[StreamEvent]:
        """See Teller."""
        final = self._end()
        if final.incomplete_details is not None:
            return self._numbered([Incomplete(response=final)])
        return self._numbered([Completed(response=final)])

    def failed(self, error: ApiError, request_id: str) -> list[StreamEvent]:
        """See Teller."""
        code = "server_error" if error.kind == SERVER else "invalid_prompt"
        message = f"{error} (request {request_id})"
        response = replace(
            self.asked,
            status="failed",
            error=ResponseFailure(code, message),
            output=tuple(self.items.done),
        )
        return self._numbered([*self._begin(), Failed(response=response)])

    def whole(self, outputs: Sequence[RequestOutput]) -> ResponseObject:
        """See Teller."""
        (output,) = outputs
        self._read(output)
        return self._end()

    def _begin(self) -> list[StreamEvent]:
        if self._num_told:
            return []
        return [Created(response=self.asked), InProgress(response=self.asked)]

    def _read(self, output: RequestOutput) -> list[StreamEvent]:
        (given,) = output.outputs
        self._last = output
        self._num_output_tokens += len(given.token_ids)
        told: list[StreamEvent] = []
        if self.parsed is not None:
            told += self.items.push(self.parsed.read(0, given.text))
        elif given.text:
            told += self.items.push([Content(given.text)])
        if given.finish_reason is not None:
            rest = [] if self.parsed is None else self.parsed.finish(0)
            told += self.items.finish(rest, cut=given.finish_reason != "stop")
        return told

    def _end(self) -> ResponseObject:
        """Return the response with its answer, and have it kept."""
        assert self._last is not None and self._final is None, "an answer ends once"
        (given,) = self._last.outputs
        assert given.finish_reason is not None, "an answer that ends says why"
        details = None
        if given.finish_reason != "stop":
            details = IncompleteDetails(incomplete_reason(given.finish_reason))
        self._final = replace(
            self.asked,
            status="completed" if details is None else "incomplete",
            incomplete_details=details,
            completed_at=int(self.clock()) if details is None else None,
            output=tuple(self.items.done),
            seed=given.seed,
            usage=self._usage(self._last),
        )
        self.keep(self._final)
        return self._final

    def _usage(self, output: RequestOutput) -> ResponseUsage:
        num_input, num_output = len(output.prompt_token_ids), self._num_output_tokens
        num_thought = sum(
            self.num_tokens(part.text)
            for item in self.items.done
            if isinstance(item, OutputReasoning)
            for part in item.content
        )
        return ResponseUsage(
            input_tokens=num_input,
            input_tokens_details=InputDetails(output.num_cached_tokens),
            output_tokens=num_output,
            output_tokens_details=OutputDetails(min(num_thought, num_output)),
            total_tokens=num_input + num_output,
        )

    def _numbered(self, events: Sequence[StreamEvent]) -> list[StreamEvent]:
        start = self._num_told
        self._num_told += len(events)
        return [
            replace(event, sequence_number=number) for number, event in enumerate(events, start)
        ]


def incomplete_reason(reason: FinishReason) -> str:
    """OpenAI's word for why an answer is not whole, where it has one."""
    return "max_output_tokens" if reason == "length" else reason
