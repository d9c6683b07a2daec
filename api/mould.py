"""Events that differ in one text, written without making them: what a stream mostly consists of.

An event of one more token is some structs of which all but a few letters were written before. Its
mould keeps what stands on either side of these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")


class Mould(Generic[T]):
    """The bytes of `write(say(text))` for any text, which they hold once, as a string of JSON."""

    __slots__ = ("_before", "_behind")

    def __init__(self, say: Callable[[str], T], write: Callable[[T], bytes]) -> None:
        one, other = write(say("0")), write(say("1"))
        # They differ in one letter, and beside it stand the quotes of the text.
        (place,) = (at for at, (a, b) in enumerate(zip(one, other, strict=True)) if a != b)
        self._before, self._behind = one[: place - 1], one[place + 2 :]
        assert one == self.cast("0"), one

    def cast(self, text: str) -> bytes:
        """Return the event that says this text."""
        return b"".join((self._before, msgspec.json.encode(text), self._behind))
