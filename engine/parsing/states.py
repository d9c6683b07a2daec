"""How formats of answers are written down: states, and the tags that lead from one to another.

A format is data, one machine (machine.py) reads them all. `content` is the state that every format
comes back to. What its tags do not explain is content.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

Role = Literal[
    "content",
    "reasoning",
    "layout",
    "kind",
    "name",
    "id",
    "key",
    "value",
    "json",
    "call",
    "python",
    "header",
    "named",
]
"""What the text of a state is.

layout: space between tags. kind: a word that says nothing. name, id: of a call, which begins behind
them. key, value: of one argument. json: arguments, up to the end of the value. call: a JSON object
with name and arguments. python: `[name(key=value), ...]`. header: of a message in harmony's format.
named: arguments of the one tool that the request names, up to the end.
"""


class Exit(Struct, frozen=True):
    """A tag that ends a state."""

    tag: str
    to: str
    keep: bool = False
    """The tag belongs to the next state's text."""
    ends: bool = False
    """It ends the call."""
    blank: bool = False
    """name: only where no name came before it."""


class State(Struct, frozen=True, kw_only=True):
    """What text is, and how it ends."""

    role: Role
    exits: tuple[Exit, ...] = ()
    then: str = "content"
    """json, call, python: where the machine goes behind the value."""
    otherwise: str = "content"
    """layout: where it goes where no tag comes."""
    arguments: tuple[str, ...] = ("arguments", "parameters")
    """call: names of the member that has the arguments."""
    bare: bool = False
    """call, python: no tag was before it, so that it must name one of the request's tools and say
    nothing else."""
    prefix: str = ""
    """name: what it may begin with, which is not the name's."""
    number: str = ""
    """name: what a number begins with that may follow it; all of it is then the call's id."""
    lines: bool = False
    """value: a new line on both sides is layout."""


class ToolFormat(Struct, frozen=True, kw_only=True):
    """How a model calls tools."""

    first: tuple[Exit, ...] = ()
    """Out of the beginning of the content,"""
    content: tuple[Exit, ...] = ()
    """and out of all of it."""
    states: Mapping[str, State]
    telltales: tuple[str, ...] = ()
    """Texts which a chat template of such a model all has; none: it is never chosen by itself."""
    short_ids: bool = False
    """Templates of such models take ids of nine letters and digits only."""


class ReasoningFormat(Struct, frozen=True, kw_only=True):
    """How a model writes its thoughts."""

    start: str
    end: str
    telltales: tuple[str, ...]
    opened: bool = False
    """Answers begin with a thought whose start is not written, unless the prompt has its end."""
    also: tuple[Exit, ...] = ()
    """Other tags that end a thought."""
    messages: Mapping[str, State] | None = None
    """Where an answer is messages, each with a header: their states, from "start" on."""
