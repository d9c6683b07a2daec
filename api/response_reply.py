"""What the client of /v1/responses is told of its one answer: a Teller of items."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from msgspec.structs import replace

from ..engine.request import FinishReason, RequestOutput
from .errors import SERVER, ApiError
from .reply import TellMore
from .response_items import AnswerItems
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
    Queued,
    ResponseFailure,
    ResponseObject,
    ResponseUsage,
    StreamEvent,
)
from .sse import NAMED_EVENTS, Wire


@dataclass(slots=True, eq=False)
class ResponseReply:
    """Keeps what its events share. The store has a response before the client is told its end."""

    asked: ResponseObject
    """Without an answer."""
    answer: AnswerItems
    clock: Callable[[], float]
    num_tokens: Callable[[str], int]
    """Of a text."""
    keep: Callable[[ResponseObject], None] | None = None
    n: int = 1
    wire: Wire = NAMED_EVENTS
    more: TellMore | None = None
    _num_told: int = 0
    _begun: bool = False

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
        return self._numbered([*self._begin(), *self.answer.read(output)])

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
            output=tuple(self.answer.items.done),
        )
        return self._numbered([*self._begin(), Failed(response=response)])

    def whole(self, outputs: Sequence[RequestOutput]) -> ResponseObject:
        """See Teller."""
        (output,) = outputs
        self.answer.read(output)
        return self._end()

    def queued(self) -> list[StreamEvent]:
        """Tell of a response that nobody waits for."""
        assert not self._num_told, "the first events are told first"
        return self._numbered([Created(response=self.so_far()), Queued(response=self.so_far())])

    def so_far(self) -> ResponseObject:
        """Return the response as far as it is: queued, or in progress with the items that are
        over."""
        begun = self.answer.last is not None
        status = "in_progress" if begun or not self.asked.background else "queued"
        return replace(self.asked, status=status, output=tuple(self.answer.items.done))

    def cancelled(self) -> list[StreamEvent]:
        """Tell the end of a response that is not wanted any more."""
        response = replace(self.so_far(), status="cancelled")
        return self._numbered([*self._begin(), Incomplete(response=response)])

    def _begin(self) -> list[StreamEvent]:
        if self._begun:
            return []
        self._begun = True
        began: list[StreamEvent] = [InProgress(response=self.asked)]
        return began if self._num_told else [Created(response=self.asked), *began]

    def _end(self) -> ResponseObject:
        """Return the response with its answer, and have it kept."""
        output, given, reason = self.answer.ended()
        details = None
        if reason != "stop":
            details = IncompleteDetails(incomplete_reason(reason))
        final = replace(
            self.asked,
            status="completed" if details is None else "incomplete",
            incomplete_details=details,
            completed_at=int(self.clock()) if details is None else None,
            output=tuple(self.answer.items.done),
            seed=given.seed,
            usage=self._usage(output),
        )
        if self.keep is not None:
            self.keep(final)
        return final

    def _usage(self, output: RequestOutput) -> ResponseUsage:
        num_input, num_output = len(output.prompt_token_ids), self.answer.num_tokens
        num_thought = sum(
            self.num_tokens(part.text)
            for item in self.answer.items.done
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
