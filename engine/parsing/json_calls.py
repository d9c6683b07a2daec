"""Reads JSON as it comes: the arguments of a call, or an object that has its name too.

Arguments are passed on as they were written. Only strings and brackets are looked at, so that JSON
with faults comes through whole, and tags inside of strings are text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

from .calls import CallWriter
from .tags import SPACE, TagSet, skip_space

MAX_NAME = 512
"""Characters of a name; what is longer is none."""
Status = Literal["more", "done", "failed", "tag"]


class Read(NamedTuple):
    """How much of a text was read. tag: the next is one that ends the state."""

    used: int
    status: Status


class ValueScanner:
    """Finds the end of one JSON value."""

    __slots__ = ("_depth", "_escaped", "_in_string", "_kind", "_tags")

    def __init__(self, tags: TagSet) -> None:
        """tags: end the value outside of its strings."""
        self._tags = tags
        self._kind: Literal["", "nested", "string", "plain"] = ""
        self._depth = 0
        self._in_string = self._escaped = False

    def push(self, text: str, start: int, *, final: bool) -> Read:
        """Read on from a place."""
        place = start
        while place < len(text):
            char = text[place]
            if self._in_string:
                place += 1
                if self._string_ends(char) and self._kind == "string":
                    return Read(place, "done")
                continue
            tag = self._tags.at(text, place, final=final)
            if tag is not None:
                return Read(place, "tag" if tag else "more")
            if self._kind == "plain" and char in ",}]:" + SPACE:
                return Read(place, "done")
            place += 1
            if self._plain_ends(char):
                return Read(place, "done")
        return Read(place, "more")

    def _string_ends(self, char: str) -> bool:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._in_string = False
        return not self._in_string

    def _plain_ends(self, char: str) -> bool:
        """Take a character outside of strings; tell whether it closes the value."""
        if char == '"' and self._kind != "plain":
            self._in_string = True
            self._kind = self._kind or "string"
        elif char in "{[" and self._kind != "plain":
            self._depth += 1
            self._kind = "nested"
        elif char in "}]" and self._kind == "nested":
            self._depth -= 1
            return self._depth == 0
        elif not self._kind:
            self._kind = "plain"
        return False


class JsonArguments:
    """Arguments alone, of a call that is open."""

    __slots__ = ("_calls", "_scanner", "_tags")

    def __init__(self, calls: CallWriter, tags: TagSet) -> None:
        self._calls, self._tags = calls, tags
        self._scanner: ValueScanner | None = None

    def push(self, text: str, *, final: bool) -> Read:
        """Read what has come; up to a tag where it is no object."""
        place = 0
        if self._scanner is None:
            place = skip_space(text)
            if place == len(text):
                return Read(place, "more")
            self._scanner = ValueScanner(self._tags)
        read = self._scanner.push(text, place, final=final)
        self._calls.arguments(text[place : read.used])
        return read

    def finish(self) -> None:
        """Nothing is held."""


class JsonCall:
    """An object with the name and the arguments of a call. It begins when both are known to come.

    What has other members is a call too, unless strict.
    """

    def __init__(
        self, calls: CallWriter, tags: TagSet, keys: Sequence[str], *, strict: bool
    ) -> None:
        self._calls, self._tags, self._keys, self._strict = calls, tags, keys, strict
        self._expected: Literal["open", "key", "colon", "value", "next"] = "open"
        self._key = ""
        self._name: str | None = None
        self._value: ValueScanner | None = None
        self._first = True
        self._has_arguments = False
        self._early: str | None = None
        """Arguments that cannot be told before they are whole, or before the name."""

    def push(self, text: str, *, final: bool) -> Read:
        """Read what has come."""
        place = 0
        while True:
            if self._value is not None:
                read = self._value.push(text, place, final=final)
                self._take(text[place : read.used])
                place = read.used
                if read.status != "done":
                    failed = read.status == "tag" and not self._calls.is_open
                    return Read(place, "failed" if failed else read.status)
                self._value = None
                self._close_value()
                self._expected = "next"
            place = skip_space(text, place)
            if place == len(text):
                return Read(place, "more")
            step = self._member(text, place)
            if isinstance(step, Read):
                return step
            place = step

    def finish(self) -> None:
        """Tell what was held of an open call."""
        if self._calls.is_open and self._early:
            self._calls.arguments(self._early)
            self._early = None

    def _member(self, text: str, place: int) -> int | Read:
        """Read one part of a member; return the place behind it, or how reading ended."""
        char = text[place]
        match self._expected:
            case "open" if char == "{":
                self._expected = "key"
            case "key" if char == '"':
                return self._read_key(text, place)
            case "key" if char == "}" and self._first:
                return self._close(place + 1)
            case "colon" if char == ":":
                self._expected = "value"
            case "value":
                return self._read_value(text, place)
            case "next" if char == ",":
                self._expected = "key"
            case "next" if char == "}":
                return self._close(place + 1)
            case _:
                return Read(place, "failed")
        return place + 1

    def _read_key(self, text: str, place: int) -> int | Read:
        end = string_end(text, place)
        if end is None:
            return Read(place, "failed" if len(text) - place > MAX_NAME else "more")
        key = decode_string(text[place:end])
        unknown = self._strict and key not in ("name", "id", "type", *self._keys)
        if key is None or end - place > MAX_NAME or unknown:
            return Read(place, "failed")
        self._key, self._expected, self._first = key, "colon", False
        return end

    def _read_value(self, text: str, place: int) -> int | Read:
        if self._key == "name" and self._name is None:
            if text[place] != '"':
                return Read(place, "failed")
            end = string_end(text, place)
            if end is None:
                return Read(place, "failed" if len(text) - place > MAX_NAME else "more")
            self._name = decode_string(text[place:end])
            unknown = self._strict and not self._calls.knows(self._name or "")
            if not self._name or end - place > MAX_NAME or unknown:
                return Read(place, "failed")
            self._expected = "next"
            return end
        self._value = ValueScanner(self._tags)
        if self._key in self._keys and not self._has_arguments:
            self._has_arguments = True
            if text[place] != "{" or self._name is None:
                self._early = ""
            if self._name is not None:
                self._calls.begin(self._name)
        else:
            self._key = ""
        return place

    def _take(self, text: str) -> None:
        if self._key not in self._keys:
            return
        if self._early is None:
            self._calls.arguments(text)
        else:
            self._early += text

    def _close_value(self) -> None:
        if self._key in self._keys and self._early is not None and self._calls.is_open:
            self._calls.arguments(plain_arguments(self._early))
            self._early = None

    def _close(self, place: int) -> Read:
        if self._name is None or (self._strict and not self._has_arguments):
            return Read(place, "failed")
        if not self._calls.is_open:
            self._calls.begin(self._name)
            self._calls.arguments(plain_arguments(self._early or "{}"))
            self._early = None
        return Read(place, "done")


def plain_arguments(text: str) -> str:
    """Unwrap arguments that were written as a JSON text inside a JSON text; null is none."""
    if text.startswith('"'):
        inner = decode_string(text)
        if inner is not None and inner.lstrip().startswith("{"):
            return inner
    return "{}" if text == "null" else text


def string_end(text: str, start: int) -> int | None:
    """Return the place behind the JSON string that begins at start, None if it has not ended."""
    place = start + 1
    while place < len(text):
        if text[place] == '"':
            return place + 1
        place += 2 if text[place] == "\\" else 1
    return None


def decode_string(text: str) -> str | None:
    """Return what a JSON string says, None if it is broken."""
    try:
        return msgspec.json.decode(text.encode(), type=str, strict=True)
    except (msgspec.MsgspecError, UnicodeError):
        return None
