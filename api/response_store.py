"""Responses that later requests may name: in memory, of each API key its own.

Bounded in bytes, all keys together; the oldest are forgotten first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from .responses_schema import Item, ResponseObject, StreamEvent


class Stored(NamedTuple):
    """A response, and all items that it answers, those before its own request included."""

    response: ResponseObject
    items: list[Item]
    events: Sequence[StreamEvent] = ()
    """Of a stream that may be read again."""

    def conversation(self) -> list[Item]:
        """Return what was said up to the answer, and the answer as a client would give it back."""
        answer: list[Item] = msgspec.json.decode(msgspec.json.encode(self.response.output))
        return [*self.items, *answer]


class ResponseStore:
    """Keeps responses by the name of their owner and their id."""

    def __init__(self, max_bytes: int) -> None:
        """max_bytes: as JSON; a response counts with all of its items and events."""
        self._max_bytes = max_bytes
        self._kept: dict[tuple[str, str], tuple[Stored, int]] = {}
        self._num_bytes = 0

    def keep(self, owner: str, stored: Stored) -> None:
        """Keep a response, unless there is no room for it alone."""
        place = owner, stored.response.id
        self.drop(*place)
        num_bytes = len(msgspec.json.encode(stored))
        if num_bytes > self._max_bytes:
            return
        self._kept[place] = stored, num_bytes
        self._num_bytes += num_bytes
        while self._num_bytes > self._max_bytes:
            self.drop(*next(iter(self._kept)))

    def find(self, owner: str, response_id: str) -> Stored | None:
        """Return a response; None if this owner has none of this id."""
        found = self._kept.get((owner, response_id))
        return None if found is None else found[0]

    def drop(self, owner: str, response_id: str) -> bool:
        """Forget a response; tell whether it was there."""
        dropped = self._kept.pop((owner, response_id), None)
        if dropped is None:
            return False
        self._num_bytes -= dropped[1]
        return True
