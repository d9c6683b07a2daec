"""The output of one answer as items, and the events of /v1/responses that tell of them. Pure.

An item follows the other as the text has them. What is told does not depend on how the text is
cut into pieces: a whole response is what its stream would have told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import assert_never

from msgspec.structs import replace

from ..engine.parsing.events import Arguments, CallBegin, CallEnd, Content, Event, Reasoning
from ..engine.request import CompletionOutput, FinishReason, RequestOutput
from .parsed import ParsedAnswers
from .responses_schema import (
    ArgumentsDelta,
    ArgumentsDone,
    ItemAdded,
    ItemDone,
    OutputCall,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
    Part,
    PartAdded,
    PartDone,
    ReasoningDelta,
    ReasoningDone,
    ReasoningText,
    StreamEvent,
    TextDelta,
    TextDone,
)


@dataclass(slots=True, eq=False)
class OutputItems:
    """Grows with an answer."""

    new_id: Callable[[], str]
    done: list[OutputItem] = field(default_factory=list)
    """Items that are over."""
    _open: OutputItem | None = None
    _pieces: list[str] = field(default_factory=list)
    """Of the open one."""

    def push(self, events: Sequence[Event], *, status: str = "completed") -> list[StreamEvent]:
        """Take what the answer says next; return what of it is new.

        status: of calls that end with it.
        """
        told: list[StreamEvent] = []
        for event in events:
            match event:
                case Content(text):
                    told += self._begin_text(OutputMessage, "msg")
                    told += self._add(text)
                case Reasoning(text):
                    told += self._begin_text(OutputReasoning, "rs")
                    told += self._add(text)
                case CallBegin(name, call_id):
                    assert call_id is not None, "told calls have ids"
                    told += self._close("completed")
                    told += self._begin(
                        OutputCall(
                            id=self._id("fc"), status="in_progress", call_id=call_id, name=name
                        )
                    )
                case Arguments(text):
                    told += self._add(text)
                case CallEnd():
                    told += self._close(status)
        return told

    def finish(self, events: Sequence[Event], *, cut: bool) -> list[StreamEvent]:
        """Take the rest of an answer, and end what is open. An answer of nothing is a message."""
        status = "incomplete" if cut else "completed"
        told = self.push(events, status=status)
        if not self.done and self._open is None:
            told += self._begin_text(OutputMessage, "msg")
        return told + self._close(status)

    def _id(self, prefix: str) -> str:
        return f"{prefix}_{self.new_id()}"

    def _begin_text(
        self, kind: type[OutputMessage] | type[OutputReasoning], prefix: str
    ) -> list[StreamEvent]:
        """Begin a message or a thought, unless one is open."""
        if isinstance(self._open, kind):
            return []
        told = self._close("completed")
        item = kind(id=self._id(prefix), status="in_progress")
        empty: Part = OutputText("") if isinstance(item, OutputMessage) else ReasoningText("")
        place = len(self.done)
        part = PartAdded(item_id=item.id, output_index=place, part=empty)
        return [*told, *self._begin(item), part]

    def _begin(self, item: OutputItem) -> list[StreamEvent]:
        assert self._open is None, self._open
        self._open = item
        return [ItemAdded(output_index=len(self.done), item=item)]

    def _add(self, text: str) -> list[StreamEvent]:
        """Add to the open item."""
        item = self._open
        assert item is not None, "what is added has begun"
        if not text:
            return []
        self._pieces.append(text)
        kinds = {
            OutputMessage: TextDelta,
            OutputReasoning: ReasoningDelta,
            OutputCall: ArgumentsDelta,
        }
        return [kinds[type(item)](item_id=item.id, output_index=len(self.done), delta=text)]

    def _close(self, status: str) -> list[StreamEvent]:
        """End the open item, if there is one."""
        item = self._open
        if item is None:
            return []
        text = "".join(self._pieces)
        self._open = None
        self._pieces.clear()
        told = _whole(item, len(self.done), text, status)
        assert isinstance(told[-1], ItemDone), told
        self.done.append(told[-1].item)
        return told


@dataclass(slots=True, eq=False)
class AnswerItems:
    """The items of one answer, out of what the engine gives of it."""

    parsed: ParsedAnswers | None
    items: OutputItems
    last: RequestOutput | None = None
    """What came last: the answer has ended where it says why."""
    num_tokens: int = 0
    """Of the answer so far."""

    def read(self, output: RequestOutput) -> list[StreamEvent]:
        """Take an output; return what of the items is new."""
        (given,) = output.outputs
        self.last = output
        self.num_tokens += len(given.token_ids)
        told: list[StreamEvent] = []
        if self.parsed is not None:
            told += self.items.push(self.parsed.read(0, given.text))
        elif given.text:
            told += self.items.push([Content(given.text)])
        if given.finish_reason is not None:
            rest = [] if self.parsed is None else self.parsed.finish(0)
            told += self.items.finish(rest, cut=given.finish_reason != "stop")
        return told

    def ended(self) -> tuple[RequestOutput, CompletionOutput, FinishReason]:
        """Return the last output, its answer, and why that ended."""
        assert self.last is not None, "an answer that ended has begun"
        (given,) = self.last.outputs
        assert given.finish_reason is not None, "an answer that ended says why"
        return self.last, given, given.finish_reason


def _whole(item: OutputItem, place: int, text: str, status: str) -> list[StreamEvent]:
    """Tell of an item that ends; the last event has all of it."""
    done: StreamEvent
    part: Part
    match item:
        case OutputCall():
            done = ArgumentsDone(
                item_id=item.id, output_index=place, name=item.name, arguments=text
            )
            item = replace(item, arguments=text, status=status)
            return [done, ItemDone(output_index=place, item=item)]
        case OutputMessage():
            part = OutputText(text)
            done = TextDone(item_id=item.id, output_index=place, text=text)
            item = replace(item, content=(part,), status=status)
        case OutputReasoning():
            part = ReasoningText(text)
            done = ReasoningDone(item_id=item.id, output_index=place, text=text)
            item = replace(item, content=(part,), status=status)
        case _:
            assert_never(item)
    over = PartDone(item_id=item.id, output_index=place, part=part)
    return [done, over, ItemDone(output_index=place, item=item)]
