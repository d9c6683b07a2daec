"""Reads calls written as Python, `[name(key="text", other=[1, None])]`, and writes them as JSON.

Literals are texts, numbers, True, False, None, lists, tuples and dicts; nothing is evaluated.
"""

from __future__ import annotations

import json
import math
from typing import Literal

from .calls import CallWriter, escape
from .json_calls import MAX_NAME, Read
from .tags import SPACE

MAX_DEPTH = 256
MAX_WORD = 1024
WORDS = {"True": "true", "False": "false", "None": "null"} | {
    word: word for word in ("true", "false", "null")
}
ESCAPES = {
    **{"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "a": "\a"},
    **{"\\": "\\", "'": "'", '"': '"', "\n": ""},
}
HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
CLOSERS = {"[": "]", "(": ")", "{": "}"}

Expected = Literal["open", "name", "paren", "key", "value", "next", "call"]


class PythonText:
    """One Python string. Gives JSON text between its quotes."""

    __slots__ = ("_escape", "_quote", "done")

    def __init__(self, quote: str) -> None:
        """quote: what opened it and will close it, one or three characters."""
        self._quote = quote
        self._escape = ""
        """An escape that is not whole."""
        self.done = False

    def push(self, text: str, place: int) -> tuple[int, str]:
        """Read on from a place; return the place behind and the JSON."""
        plain: list[str] = []
        while place < len(text) and not self.done:
            char = text[place]
            if self._escape:
                used, said = self._finish_escape(char)
                plain.append(said)
                place += used
                continue
            if char == "\\":
                self._escape = char
            elif char != self._quote[0]:
                plain.append(char)
            elif text.startswith(self._quote, place):
                self.done = True
                place += len(self._quote) - 1
            elif self._quote.startswith(text[place:]):
                break
            else:
                plain.append(char)
            place += 1
        return place, escape("".join(plain))

    def _finish_escape(self, char: str) -> tuple[int, str]:
        """Take a character of an escape; return how many were used (0 or 1), and what it says."""
        kind, digits = self._escape[1:2], self._escape[2:]
        if not kind:
            if char in HEX_DIGITS or char in "01234567":
                self._escape += char
                return 1, ""
            self._escape = ""
            return 1, ESCAPES.get(char, "\\" + char)
        if kind in HEX_DIGITS:
            if char not in "0123456789abcdefABCDEF":
                return 0, self._give_up()
            self._escape += char
            if len(digits) + 1 < HEX_DIGITS[kind]:
                return 1, ""
            return 1, self._decode(int(digits + char, 16))
        if char in "01234567" and len(digits) < 2:
            self._escape += char
            return 1, ""
        return 0, self._decode(int(kind + digits, 8))

    def _decode(self, number: int) -> str:
        held, self._escape = self._escape, ""
        # Half of a surrogate pair cannot be sent as text.
        return chr(number) if number <= 0x10FFFF and not 0xD800 <= number < 0xE000 else held

    def _give_up(self) -> str:
        held, self._escape = self._escape, ""
        return held


class PythonCalls:
    """A list of calls. Each begins with its first argument, or with its end."""

    def __init__(self, calls: CallWriter, *, strict: bool) -> None:
        """strict: only the request's tools are calls."""
        self._calls, self._strict = calls, strict
        self._expected: Expected = "open"
        self._name = ""
        self._nested: list[str] = []
        """Open brackets inside of the value."""
        self._may_close = False
        """The innermost bracket may close where a value may come."""
        self._comma = False
        """One is due before the next value: Python allows one before a bracket that closes."""
        self._is_key = False
        """The value is a key of a dict."""
        self._text: PythonText | None = None

    def push(self, text: str, *, final: bool) -> Read:
        """Read what has come; in the end nothing: what still waits is a beginning of anything."""
        if final:
            return Read(0, "more")
        place = 0
        while place < len(text):
            if self._text is not None:
                place, said = self._text.push(text, place)
                self._calls.arguments(said)
                if not self._text.done:
                    return Read(place, "more")
                self._text = None
                self._value_ends('"')
                continue
            if text[place] in SPACE:
                place += 1
                continue
            read = self._part(text, place)
            if read.status != "more":
                return read
            if read.used == place:
                return read
            place = read.used
        return Read(place, "more")

    def finish(self) -> None:
        """Nothing is held but what would say something else with more text."""

    def _part(self, text: str, place: int) -> Read:
        """Read one sign, word or quote; no progress: more of it must come."""
        char = text[place]
        match self._expected:
            case "open" if char == "[":
                self._expected = "name"
            case "key" if char == ")":
                return self._end_call(place)
            case "name" | "key":
                return self._word(text, place)
            case "paren" if char == "(":
                self._expected = "key"
            case "value":
                return self._value(text, place)
            case "next":
                return self._separator(char, place)
            case "call" if char == ",":
                self._expected = "name"
            case "call" if char == "]":
                return Read(place + 1, "done")
            case _:
                return Read(place, "failed")
        return Read(place + 1, "more")

    def _word(self, text: str, place: int) -> Read:
        """Read the name of a call or of an argument."""
        end = place
        while end < len(text) and (text[end].isalnum() or text[end] in "_.-"):
            end += 1
        if end - place > MAX_NAME:
            return Read(place, "failed")
        if end == len(text):
            return Read(place, "more")
        word = text[place:end]
        named = self._expected == "name"
        if (
            not word
            or word[0].isdigit()
            or (self._strict and named and not self._calls.knows(word))
        ):
            return Read(place, "failed")
        if named:
            self._name, self._expected = word, "paren"
            return Read(end, "more")
        # What follows decides whether it is an argument.
        sign = end
        while sign < len(text) and text[sign] in SPACE:
            sign += 1
        if sign == len(text):
            return Read(place, "more")
        if not text.startswith("=", sign):
            return Read(place, "failed")
        if not self._calls.is_open:
            self._calls.begin(self._name)
        self._calls.key(word)
        self._expected = "value"
        return Read(sign + 1, "more")

    def _end_call(self, place: int) -> Read:
        if not self._calls.is_open:
            self._calls.begin(self._name)
        self._calls.end(whole=True)
        self._expected = "call"
        return Read(place + 1, "more")

    def _value(self, text: str, place: int) -> Read:
        char = text[place]
        if char in "\"'":
            return self._open_text(text, place)
        if self._nested and self._may_close and char == CLOSERS[self._nested[-1]]:
            return self._close(place)
        if char in CLOSERS and not self._is_key:
            if len(self._nested) == MAX_DEPTH:
                return Read(place, "failed")
            self._separate()
            self._nested.append(char)
            self._calls.arguments("{" if char == "{" else "[")
            self._may_close, self._is_key = True, char == "{"
            return Read(place + 1, "more")
        end = place
        while end < len(text) and (text[end].isalnum() or text[end] in "_.+-"):
            end += 1
        if end - place > MAX_WORD:
            return Read(place, "failed")
        if end == len(text):
            return Read(place, "more")
        said = literal(text[place:end])
        if said is None:
            return Read(place, "failed")
        self._separate()
        self._calls.arguments(f'"{said}"' if self._is_key else said)
        self._value_ends("")
        return Read(end, "more")

    def _open_text(self, text: str, place: int) -> Read:
        quote = text[place] * 3
        if not text.startswith(quote, place):
            if quote.startswith(text[place:]):
                return Read(place, "more")
            quote = text[place]
        self._separate()
        self._calls.arguments('"')
        self._text = PythonText(quote)
        return Read(place + len(quote), "more")

    def _separate(self) -> None:
        if self._comma:
            self._calls.arguments(", ")
        self._comma = self._may_close = False

    def _value_ends(self, said: str) -> None:
        self._calls.arguments(said)
        self._expected = "next"

    def _separator(self, char: str, place: int) -> Read:
        """Read what is behind a value."""
        if not self._nested:
            if char == ",":
                self._expected = "key"
                return Read(place + 1, "more")
            return self._end_call(place) if char == ")" else Read(place, "failed")
        bracket = self._nested[-1]
        if self._is_key:
            if char != ":":
                return Read(place, "failed")
            self._calls.arguments(": ")
            self._expected, self._is_key = "value", False
        elif char == ",":
            self._expected, self._is_key = "value", bracket == "{"
            self._comma = self._may_close = True
        elif char == CLOSERS[bracket]:
            return self._close(place)
        else:
            return Read(place, "failed")
        return Read(place + 1, "more")

    def _close(self, place: int) -> Read:
        """Close the innermost bracket."""
        bracket = self._nested.pop()
        self._is_key = self._comma = self._may_close = False
        self._value_ends("}" if bracket == "{" else "]")
        return Read(place + 1, "more")


def literal(word: str) -> str | None:
    """Write a number or a constant of Python as JSON; None if it is neither."""
    if word in WORDS:
        return WORDS[word]
    try:
        if any(char in ".eEn" for char in word):
            number = float(word)
            return json.dumps(number) if math.isfinite(number) else None
        return json.dumps(int(word))
    except ValueError:
        return None
