"""Tool calls that were forced, read from an answer as it comes: names, arguments and their pieces.

The answer has the form that `structured.forced_tools` asked: the arguments of the named tool, or
`[{"name": ..., "parameters": {...}}, ...]` with exactly these spaces. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import msgspec
from msgspec import UNSET

from ..engine.request import FinishReason
from .schema import FunctionCall, ToolCall

HEAD = re.compile(r'[\[,]\s*\{"name": ("(?:[^"\\]|\\.)*"), "parameters": ')
_OPEN, _CLOSE = "{[", "}]"


class CallPiece(NamedTuple):
    """Something new of one call."""

    number: int
    """Which call."""
    name: str | None
    """With its first piece."""
    arguments: str


class CallReader:
    """Reads one answer. `push` its text piece by piece."""

    def __init__(self, name: str | None) -> None:
        """name: the one tool whose arguments the answer is; None: a list of calls."""
        self._name = name
        self._rest = ""
        self._index = -1
        self._depth = 0
        self._in_string = False
        self._escaped = False

    @property
    def num_calls(self) -> int:
        """Calls that have begun."""
        return self._index + 1

    def push(self, text: str) -> list[CallPiece]:
        """Return what is new."""
        if self._name is not None:
            return self._push_named(text)
        self._rest += text
        pieces: list[CallPiece] = []
        while True:
            if self._depth == 0:
                head = HEAD.search(self._rest)
                if head is None or head.end() == len(self._rest):
                    return pieces
                self._index += 1
                self._rest = self._rest[head.end() :]
                pieces.append(CallPiece(self._index, msgspec.json.decode(head[1]), ""))
            end = self._scan(self._rest)
            if end:
                pieces.append(CallPiece(self._index, None, self._rest[:end]))
            self._rest = self._rest[end:]
            if self._depth or not self._rest:
                return pieces

    def _push_named(self, text: str) -> list[CallPiece]:
        if self._index < 0:
            self._index = 0
            return [CallPiece(0, self._name, text)]
        return [CallPiece(0, None, text)] if text else []

    def _scan(self, text: str) -> int:
        """Return where the arguments end in text, or its length."""
        for place, char in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char in _OPEN:
                self._depth += 1
            elif char in _CLOSE:
                self._depth -= 1
                if self._depth == 0:
                    return place + 1
        return len(text)


class CallTeller:
    """Tells the calls of the choices of one response."""

    def __init__(self, name: str | None, new_id: Callable[[], str]) -> None:
        """name: see CallReader."""
        self._name, self._new_id = name, new_id
        self._readers: dict[int, CallReader] = {}

    def delta(self, choice: int, text: str) -> list[ToolCall]:
        """Return pieces of calls that a piece of a choice's text brings."""
        reader = self._readers.setdefault(choice, CallReader(self._name))
        return [
            ToolCall(
                index=piece.number,
                id=UNSET if piece.name is None else f"call_{self._new_id()}",
                type=UNSET if piece.name is None else "function",
                function=FunctionCall(
                    name=UNSET if piece.name is None else piece.name, arguments=piece.arguments
                ),
            )
            for piece in reader.push(text)
        ]

    def whole(self, text: str) -> list[ToolCall]:
        """Return the calls of a whole answer; the last one is cut off where the answer was."""
        calls: list[tuple[str, list[str]]] = []
        for piece in CallReader(self._name).push(text):
            if piece.name is not None:
                calls.append((piece.name, []))
            calls[-1][1].append(piece.arguments)
        return [
            ToolCall(
                id=f"call_{self._new_id()}",
                type="function",
                function=FunctionCall(name=name, arguments="".join(parts)),
            )
            for name, parts in calls
        ]

    def finish_reason(self, given: FinishReason | None) -> str | None:
        """OpenAI's word for how an answer of calls ended: the named tool's ends as a text does."""
        return "tool_calls" if given == "stop" and self._name is None else given
