"""What the client of /v1/messages is told: a Teller of blocks, which are items by other names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from ..engine.request import CompletionOutput, FinishReason, RequestOutput
from .errors import ApiError, Failure
from .messages_schema import (
    Block,
    BlockDelta,
    BlockStart,
    BlockStop,
    Ending,
    MessageDelta,
    MessageEvent,
    MessageObject,
    MessageStart,
    MessageStop,
    MessageUsage,
    MoreInput,
    MoreText,
    MoreThinking,
    TextBlock,
    ThinkingBlock,
    ToolUse,
)
from .reply import TellMore
from .response_items import AnswerItems
from .responses_schema import (
    ArgumentsDelta,
    ItemAdded,
    ItemDone,
    OutputCall,
    OutputItem,
    OutputMessage,
    ReasoningDelta,
    StreamEvent,
    TextDelta,
)
from .schema import MessagesError
from .sse import NAMED_EVENTS, Wire


@dataclass(slots=True, eq=False)
class MessagesReply:
    """Keeps what its events share."""

    response_id: str
    model: str
    answer: AnswerItems
    n: int = 1
    wire: Wire = NAMED_EVENTS
    more: TellMore | None = None

    def keep_best(self, output: RequestOutput) -> RequestOutput:
        """See Teller."""
        return output

    def chunks(self, index: int, output: RequestOutput) -> list[MessageEvent]:
        """See Teller."""
        begins = self.answer.last is None
        told: list[MessageEvent] = [*to_blocks(self.answer.read(output))]
        if begins:
            start = MessageObject(id=self.response_id, model=self.model, usage=self._usage(output))
            told.insert(0, MessageStart(start))
        return told

    def end(self) -> list[MessageEvent]:
        """See Teller."""
        output, given, reason = self.answer.ended()
        delta = Ending(
            stop_reason=self._stop_reason(given, reason),
            stop_sequence=stop_text(given),
            seed=given.seed,
        )
        return [MessageDelta(delta=delta, usage=self._usage(output)), MessageStop()]

    def failed(self, error: ApiError, request_id: str) -> list[Failure]:
        """See Teller."""
        return [error.body(MessagesError, request_id)]

    def whole(self, outputs: Sequence[RequestOutput]) -> MessageObject:
        """See Teller."""
        self.answer.read(outputs[0])
        output, given, reason = self.answer.ended()
        return MessageObject(
            id=self.response_id,
            model=self.model,
            content=tuple(map(_block, self.answer.items.done)),
            stop_reason=self._stop_reason(given, reason),
            stop_sequence=stop_text(given),
            usage=self._usage(output),
            seed=given.seed,
        )

    def _stop_reason(self, given: CompletionOutput, reason: FinishReason) -> str:
        """Anthropic's word for how an answer ended, where it has one."""
        if reason == "length":
            return "max_tokens"
        if reason != "stop":
            return reason
        if stop_text(given) is not None:
            return "stop_sequence"
        called = any(isinstance(item, OutputCall) for item in self.answer.items.done)
        return "tool_use" if called else "end_turn"

    def _usage(self, output: RequestOutput) -> MessageUsage:
        num_cached = output.num_cached_tokens
        return MessageUsage(
            input_tokens=len(output.prompt_token_ids) - num_cached,
            cache_read_input_tokens=num_cached,
            output_tokens=self.answer.num_tokens,
        )


def stop_text(given: CompletionOutput) -> str | None:
    """Return the stop sequence that ended an answer, if one did."""
    stopped = given.finish_reason == "stop" and isinstance(given.stop_reason, str)
    return str(given.stop_reason) if stopped else None


def to_blocks(events: Sequence[StreamEvent]) -> Iterator[MessageEvent]:
    """Tell events of items as those of blocks."""
    for event in events:
        match event:
            case ItemAdded(output_index=index, item=item):
                yield BlockStart(index=index, content_block=_block(item))
            case TextDelta(output_index=index, delta=text):
                yield BlockDelta(index=index, delta=MoreText(text))
            case ReasoningDelta(output_index=index, delta=text):
                yield BlockDelta(index=index, delta=MoreThinking(text))
            case ArgumentsDelta(output_index=index, delta=text):
                yield BlockDelta(index=index, delta=MoreInput(text))
            case ItemDone(output_index=index):
                yield BlockStop(index=index)
            case _:
                pass


def _block(item: OutputItem) -> Block:
    if isinstance(item, OutputCall):
        return ToolUse(id=item.call_id, name=item.name, input=_object(item.arguments))
    text = "".join(part.text for part in item.content)
    return TextBlock(text) if isinstance(item, OutputMessage) else ThinkingBlock(text)


def _object(arguments: str) -> dict[str, Any]:
    """Return the object that arguments hold; those that were cut hold none."""
    try:
        value = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        return {}
    return value if isinstance(value, dict) else {}
