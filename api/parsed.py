"""Chat answers taken apart: events of engine/parsing as messages and their pieces. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from ..engine.parsing.events import Arguments, CallBegin, CallEnd, Content, Event, Reasoning
from ..engine.parsing.machine import AnswerParser
from ..engine.request import FinishReason
from .schema import ChatMessage, FunctionCall, ToolCall

SHORT_ID = 9


@dataclass(slots=True, eq=False)
class Parts:
    """What some events of one answer say."""

    content: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)

    def add_arguments(self, number: int, text: str) -> None:
        """Add to the call, which may have begun in an earlier piece."""
        last = self.calls[-1] if self.calls else None
        if last is None or last.index != number:
            self.calls.append(ToolCall(index=number, function=FunctionCall(arguments=text)))
            return
        function = replace(last.function, arguments=last.function.arguments + text)
        self.calls[-1] = replace(last, function=function)


@dataclass(slots=True, eq=False)
class ParsedAnswers:
    """Tells the choices of one response."""

    start: Callable[[], AnswerParser]
    new_id: Callable[[], str]
    short_ids: bool = False
    """Ids of calls are nine letters and digits, as some templates demand."""
    has_reasoning: bool = False
    """Whether messages say what was thought, be it nothing."""
    one_call: bool = False
    forced: str | None = None
    """The one tool that the request names; "" where it demands some call."""
    _parsers: dict[int, AnswerParser] = field(default_factory=dict)
    _num_calls: dict[int, int] = field(default_factory=dict)
    """That began, told or not,"""
    _num_gathered: dict[int, int] = field(default_factory=dict)
    """and those in messages and their pieces."""

    def delta(self, choice: int, text: str, *, ends: bool) -> ChatMessage | str:
        """Return what a piece of a choice's text brings; a string if that is content or nothing."""
        events = self.read(choice, text)
        if ends:
            events += self.finish(choice)
        parts = self._gather(choice, events)
        if not (parts.reasoning or parts.calls):
            return parts.content
        reasoning = parts.reasoning or UNSET
        return ChatMessage(
            content=parts.content or UNSET,
            reasoning=reasoning,
            reasoning_content=reasoning,
            tool_calls=parts.calls or UNSET,
        )

    def whole(self, choice: int, text: str) -> ChatMessage:
        """Return the message of a whole answer; its last call is cut off where the answer was."""
        parts = self._gather(choice, self.read(choice, text) + self.finish(choice))
        reasoning: str | UnsetType | None = UNSET
        if self.has_reasoning:
            reasoning = parts.reasoning or None
        calls = [replace(call, index=UNSET) for call in parts.calls]
        return ChatMessage(
            role="assistant",
            content=parts.content or (None if calls or self.forced is not None else ""),
            reasoning=reasoning,
            reasoning_content=reasoning,
            tool_calls=calls or UNSET,
        )

    def read(self, choice: int, text: str) -> list[Event]:
        """Return what a piece of a choice's text says, as far as it is told; calls have ids."""
        if choice not in self._parsers:
            self._parsers[choice] = self.start()
        return self._told(choice, self._parsers[choice].push(text))

    def finish(self, choice: int) -> list[Event]:
        """Return what else an answer says that has ended: of what is open, as far as it came."""
        return self._told(choice, self._parsers.pop(choice).finish())

    def finish_reason(self, choice: int, given: FinishReason | None) -> str | None:
        """OpenAI's word for how an answer ended; one of a named tool ends as a text does."""
        called = bool(self._num_calls.get(choice)) and not self.forced
        return "tool_calls" if given == "stop" and called else given

    def _told(self, choice: int, events: Sequence[Event]) -> list[Event]:
        told: list[Event] = []
        for event in events:
            number = self._num_calls.get(choice, 0) - 1
            match event:
                case Content():
                    told.append(event)
                case Reasoning() if self.has_reasoning:
                    told.append(event)
                case CallBegin(name, call_id):
                    self._num_calls[choice] = number + 2
                    if self._tells(number + 1):
                        told.append(CallBegin(name, call_id or self._call_id()))
                case Arguments() | CallEnd() if self._tells(number):
                    told.append(event)
                case Reasoning() | Arguments() | CallEnd():
                    pass
        return told

    def _gather(self, choice: int, events: Sequence[Event]) -> Parts:
        """Sum up events that are told; a choice's calls are numbered as they begin."""
        parts = Parts()
        number = self._num_gathered.get(choice, 0) - 1
        for event in events:
            match event:
                case Content(text):
                    parts.content += text
                case Reasoning(text):
                    parts.reasoning += text
                case CallBegin(name, call_id):
                    assert call_id is not None, "told calls have ids"
                    number += 1
                    parts.calls.append(_call(number, name, call_id))
                case Arguments(text):
                    parts.add_arguments(number, text)
                case CallEnd():
                    pass
        self._num_gathered[choice] = number + 1
        return parts

    def _tells(self, number: int) -> bool:
        return number == 0 or not self.one_call

    def _call_id(self) -> str:
        return self.new_id()[:SHORT_ID] if self.short_ids else f"call_{self.new_id()}"


def _call(number: int, name: str, call_id: str) -> ToolCall:
    function = FunctionCall(name=name, arguments="")
    return ToolCall(index=number, id=call_id, type="function", function=function)
