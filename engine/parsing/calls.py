"""The calls of one answer as they are found: what is said of them, and which one is open.

Owns the events of an answer that have not been taken. Readers of all formats write into it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .events import Arguments, CallBegin, CallEnd, Content, Event, Reasoning

Tools = Mapping[str, Any]
"""JSON Schemas of the arguments, by the names of a request's tools."""


class CallWriter:
    """Takes calls. Arguments that come key by key are put together as one object."""

    __slots__ = ("_events", "_num_keys", "_said", "is_open", "num_calls", "schema", "tools")

    def __init__(self, tools: Tools | None) -> None:
        """tools: None where any name is one."""
        self.tools = tools
        self.schema: Any = None
        """Of the open call's arguments."""
        self.is_open = False
        self.num_calls = 0
        """That have begun."""
        self._events: list[Event] = []
        self._num_keys = 0
        self._said = False

    def knows(self, name: str) -> bool:
        """Tell whether a tool may be called by this name."""
        return self.tools is None or name in self.tools

    def say(self, kind: type[Content] | type[Reasoning], text: str) -> None:
        """Add text beside calls."""
        if text:
            self._events.append(kind(text))

    def begin(self, name: str, call_id: str | None = None) -> None:
        """Open a call."""
        assert not self.is_open, name
        self._events.append(CallBegin(name, call_id))
        self.num_calls += 1
        self.schema = (self.tools or {}).get(name)
        self.is_open, self._num_keys, self._said = True, 0, False

    def arguments(self, text: str) -> None:
        """Add to the arguments of the open call."""
        assert self.is_open, text
        if text:
            self._events.append(Arguments(text))
            self._said = True

    def key(self, key: str, *, whole: bool = True) -> None:
        """Add the key of an argument, whose value follows."""
        self.arguments(("{" if not self._num_keys else ", ") + '"' + escape(key))
        self._num_keys += 1
        if whole:
            self.arguments('": ')

    def end(self, *, whole: bool) -> None:
        """Close the open call, if there is one; whole: all of its arguments have come."""
        if not self.is_open:
            return
        if whole and (self._num_keys or not self._said):
            self.arguments("}" if self._num_keys else "{}")
        self._events.append(CallEnd())
        self.is_open = False

    def take(self) -> list[Event]:
        """Return what is new, neighbours of a kind as one."""
        events: list[Event] = []
        for event in self._events:
            last = events[-1] if events else None
            match last, event:
                case (Content(before), Content(text)):
                    events[-1] = Content(before + text)
                case (Reasoning(before), Reasoning(text)):
                    events[-1] = Reasoning(before + text)
                case (Arguments(before), Arguments(text)):
                    events[-1] = Arguments(before + text)
                case _:
                    events.append(event)
        self._events = []
        return events


def escape(text: str) -> str:
    """Write a text as JSON does between its quotes."""
    return json.dumps(text, ensure_ascii=False)[1:-1]
