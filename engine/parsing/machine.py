"""The machine that reads answers of every format: a state, the text that waits, the tags it knows.

Push text as it comes and take events; nothing is read twice but what has waited, and only that
waits which may still become a tag or the head of a call. What comes out does not depend on how the
text was cut. No text raises: what is no call in the end is content.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from .calls import CallWriter, Tools
from .events import Content, Event, Reasoning
from .gate import Gate, SpecialFilter
from .json_calls import MAX_NAME, JsonArguments, JsonCall
from .python_calls import PythonCalls
from .states import Exit, State
from .tags import TagSet, skip_space
from .values import ValueText

MAX_TURN = 4096
"""Characters that are read at a time: each tag costs as much as the text that waits."""
WORD = re.compile(r"\s*[^\s\[\](){}<>\"']*\s*")
"""A name, an id or a kind."""
LINE = re.compile(r"[^\n]*")
KEY = re.compile(r"[^\n<>]*")


class Place(NamedTuple):
    """A state, and its tags."""

    state: State
    tags: TagSet
    exits: Mapping[str, Exit]


class Grammar(NamedTuple):
    """A format made ready."""

    places: Mapping[str, Place]
    start: str
    special: TagSet | None = None
    """Special tokens' texts, where clients do not see them; the states' own tags among them."""
    hidden: frozenset[str] = frozenset()
    """Those of them that are no tags."""
    openers: frozenset[str] = frozenset()
    """Tags that may begin a call."""


class AnswerParser:
    """Reads one answer. `push` its text, then `finish`."""

    def __init__(
        self, grammar: Grammar, tools: Tools | None = None, *, named: str | None = None
    ) -> None:
        """tools: of the request; named: the one that it forces."""
        self._grammar = grammar
        self._calls = CallWriter(tools)
        self._named = named
        self._filter = SpecialFilter(grammar.special, grammar.hidden) if grammar.special else None
        self._content, self._thought = Gate(), Gate(separator="\n")
        self._held = ""
        self._pending = ""
        """What was read of a call that may turn out to be content."""
        self._opening = True
        """A tag that was read belongs to a call that may come, not to what has ended."""
        self._word = ""
        self._name = ""
        self._reader: JsonArguments | JsonCall | PythonCalls | None = None
        self._value: ValueText | None = None
        self._here = grammar.places[grammar.start]
        self._enter(grammar.start)

    def push(self, text: str) -> list[Event]:
        """Take the next text; return what is new."""
        for start in range(0, len(text), MAX_TURN):
            piece = text[start : start + MAX_TURN]
            self._advance(piece if self._filter is None else self._filter.push(piece), final=False)
        return self._calls.take()

    def finish(self) -> list[Event]:
        """Return the rest: no more text will come. An open call is told as far as it came."""
        if self._filter is not None:
            self._advance(self._filter.finish(), final=False)
        self._advance("", final=True)
        self._close_state()
        self._calls.end(whole=False)
        self._calls.say(Reasoning, self._thought.finish())
        self._calls.say(Content, self._content.finish())
        return self._calls.take()

    def _advance(self, text: str, *, final: bool) -> None:
        self._held += text
        while self._held and self._step(final=final):
            pass

    def _step(self, *, final: bool) -> bool:
        """Read on in a state; tell whether there is more to do."""
        match self._here.state.role:
            case "content" | "reasoning":
                return self._read_text(final=final)
            case "layout":
                return self._read_layout(final=final)
            case "kind" | "name" | "id" | "key" | "header":
                return self._read_word(final=final)
            case "value":
                return self._read_value()
            case "json" | "call" | "python":
                return self._read_nested(final=final)
            case "named":
                self._begin_named()
                self._calls.arguments(self._take(len(self._held)))
                return False

    def _enter(self, name: str) -> None:
        """Go to a state, in the proper way."""
        here = self._here = self._grammar.places[name]
        state = here.state
        self._word = ""
        match state.role:
            case "content":
                self._settle()
            case "reasoning":
                self._settle()
                self._thought.tag()
            case "json":
                self._reader = JsonArguments(self._calls, here.tags)
            case "call":
                keys, strict = state.arguments, state.bare
                self._reader = JsonCall(self._calls, here.tags, keys, strict=strict)
            case "python":
                self._reader = PythonCalls(self._calls, strict=state.bare)
            case "value":
                self._value = ValueText(self._calls.schema, self._name, lines=state.lines)

    def _leave(self, tag: str) -> None:
        """Go where a tag at the beginning of the text leads to."""
        way = self._here.exits[tag]
        if self._here.state.role == "reasoning":
            self._thought.tag()
        self._opening = self._opening or tag in self._grammar.openers
        if not self._opening:
            self._pending = ""
        if not way.keep:
            taken = self._take(len(tag))
            self._pending += taken if self._opening else ""
        if way.ends:
            self._end(whole=True)
        self._enter(way.to)

    def _settle(self) -> None:
        """Note that what was read has its meaning: it will be no content."""
        self._pending, self._opening = "", False
        self._content.tag()

    def _take(self, size: int) -> str:
        text, self._held = self._held[:size], self._held[size:]
        return text

    def _say(self, text: str) -> None:
        """Tell text of the state."""
        if self._here.state.role == "reasoning":
            self._calls.say(Reasoning, self._thought.push(text))
        else:
            self._calls.say(Content, self._content.push(text))

    def _begin(self, name: str, call_id: str | None = None) -> None:
        self._calls.begin(name, call_id)
        self._settle()

    def _begin_named(self) -> None:
        if not self._calls.is_open:
            assert self._named is not None, "a format for a named tool, and none is named"
            self._begin(self._named)

    def _end(self, *, whole: bool) -> None:
        if self._calls.is_open:
            self._calls.end(whole=whole)
            self._settle()

    def _recover(self) -> None:
        """Take what was no call for content, and go on behind it."""
        self._calls.end(whole=False)
        self._opening = False
        text, self._pending = self._pending, ""
        if self._grammar.special is not None:
            text = self._grammar.special.without(text)
        self._here = self._grammar.places["content"]
        self._word = ""
        self._say(text)

    def _read_text(self, *, final: bool) -> bool:
        found = self._here.tags.find(self._held, final=final)
        self._say(self._take(found.place))
        if not found.tag:
            return False
        self._leave(found.tag)
        return True

    def _read_layout(self, *, final: bool) -> bool:
        self._pending += self._take(skip_space(self._held))
        if not self._held:
            return False
        tag = self._here.tags.at(self._held, 0, final=final)
        if tag == "" or (tag is None and self._is_cut()):
            return False
        otherwise = self._here.state.otherwise
        if tag is not None:
            self._leave(tag)
        elif self._grammar.places[otherwise].state.role == "content":
            self._recover()
        else:
            self._held, self._pending = self._pending + self._held, ""
            self._enter(otherwise)
        return True

    def _is_cut(self) -> bool:
        """Tell whether what is left is the beginning of a tag behind something that has ended."""
        return not self._opening and self._here.tags.begins(self._held)

    def _read_word(self, *, final: bool) -> bool:
        """Read a name or a key up to its tag."""
        here = self._here
        # What may be the beginning of its end is not a key's, whatever comes.
        found = here.tags.find(self._held, final=final and here.state.role != "key")
        pattern = {"key": KEY, "header": LINE}.get(here.state.role, WORD)
        # A tag may hold signs that no word has: the word ends before it.
        before = len(self._word)
        match = pattern.match(self._word + self._held[: found.place])
        assert match is not None, pattern
        fits = min(match.end(), MAX_NAME) - before
        text = self._take(min(fits, found.place))
        self._word += text
        self._pending += text
        if fits < found.place:
            self._recover()
            return True
        if not found.tag:
            return False
        word = self._word.strip()
        way = here.exits[found.tag]
        if way.blank != (not word):
            self._recover()
        elif here.state.role == "header":
            self._route(word, found.tag)
        else:
            self._use_word(word, way)
            self._leave(found.tag)
        return True

    def _use_word(self, word: str, way: Exit) -> None:
        """Do what a name, an id or a key means."""
        state = self._here.state
        if way.blank:
            return
        match state.role:
            case "name":
                self._name, call_id = split_name(word, state)
                if self._grammar.places[way.to].state.role != "id":
                    self._begin(self._name, call_id)
            case "id":
                self._begin(self._name, word)
            case "key":
                self._name = word
                self._calls.key(word)
                self._settle()

    def _route(self, header: str, tag: str) -> None:
        """Go where the header of a message says."""
        channel, recipient = read_header(header)
        name = recipient.removeprefix("functions.")
        self._take(len(tag))
        self._settle()
        takes_calls = self._calls.tools is None or self._calls.tools
        if not takes_calls and recipient:
            self._enter("content")
        elif name and (name != recipient or (self._calls.tools and name in self._calls.tools)):
            self._begin(name)
            self._enter("arguments")
        else:
            self._enter("thought" if recipient or channel == "analysis" else "content")

    def _read_value(self) -> bool:
        assert self._value is not None, self._here
        # The beginning of its end is not the value's, whatever comes.
        found = self._here.tags.find(self._held, final=False)
        self._calls.arguments(self._value.push(self._take(found.place)))
        if not found.tag:
            return False
        self._calls.arguments(self._value.close())
        self._value = None
        self._leave(found.tag)
        return True

    def _read_nested(self, *, final: bool) -> bool:
        reader, here = self._reader, self._here
        assert reader is not None, here
        num_before = self._calls.num_calls
        read = reader.push(self._held, final=final)
        text = self._take(read.used)
        if self._calls.num_calls > num_before:
            self._settle()
        elif self._opening:
            self._pending += text
        if read.status == "more":
            return False
        reader.finish()
        self._reader = None
        match read.status:
            case "done":
                self._end(whole=True)
                self._enter(here.state.then)
            case "tag":
                tag = here.tags.at(self._held, 0, final=True)
                assert tag, self._held
                self._end(whole=True)
                self._leave(tag)
            case "failed" if self._calls.is_open:
                self._end(whole=False)
                self._enter(here.state.then)
            case "failed":
                self._recover()
        return True

    def _close_state(self) -> None:
        """Tell what a state still holds at the end of the answer."""
        match self._here.state.role:
            case "json" | "call" | "python" if self._calls.is_open:
                assert self._reader is not None, self._here
                self._reader.finish()
            case "value":
                assert self._value is not None, self._here
                self._calls.arguments(self._value.finish())
            case "key":
                self._calls.key(self._word.lstrip(), whole=False)
            case "named":
                self._begin_named()
            case "content" | "reasoning" | "header":
                pass
            case "layout" if self._is_cut():
                pass
            case _:
                self._pending += self._take(len(self._held))
                self._recover()


def split_name(word: str, state: State) -> tuple[str, str | None]:
    """Take a tool's name out of what was written; and the call's id, if that is all of it."""
    name, call_id = word, None
    if state.number:
        head, _, number = word.rpartition(state.number)
        if head and number.isdecimal():
            name, call_id = head, word
    return name.removeprefix(state.prefix) or name, call_id


def read_header(text: str) -> tuple[str, str]:
    """Return channel and recipient that the header of a message in harmony's format names."""
    words = text.replace("<|", " <|").replace("|>", "|> ").split()
    channel = recipient = ""
    for before, word in zip(["", *words], words, strict=False):
        if before == "<|channel|>":
            channel = word
        if word.startswith("to="):
            recipient = word.removeprefix("to=")
    return channel, recipient
