"""What an answer says, piece by piece. Pure."""

from __future__ import annotations

from typing import NamedTuple


class Content(NamedTuple):
    """Text for the user."""

    text: str


class Reasoning(NamedTuple):
    """Text of a thought."""

    text: str


class CallBegin(NamedTuple):
    """A tool is called; what follows up to CallEnd is its arguments."""

    name: str
    id: str | None = None
    """Where the model wrote one."""


class Arguments(NamedTuple):
    """The next piece of the arguments, as JSON text."""

    text: str


class CallEnd(NamedTuple):
    """No more of the call will come, whole or not."""


Event = Content | Reasoning | CallBegin | Arguments | CallEnd
