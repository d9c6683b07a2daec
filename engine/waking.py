"""Readers of outputs, woken a few at a time, so that the engine's next step waits for few of them.

A loop runs what is ready in order: were all readers of a step woken at once, its next step would be
landed behind all of them. Who has not been woken yet is woken once, however much has come since:
what one reads then is all of it, so that readers fall behind and the engine does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

AT_ONCE = 16
"""Readers that are woken in one turn of the loop. A landing takes some turns to reach the driver;
a reader takes some tens of microseconds, a turn about ten."""


class Waking:
    """One event for each reader, by the id of its request. Belongs to one loop."""

    def __init__(self) -> None:
        self._events: dict[str, asyncio.Event] = {}
        self._due: dict[str, None] = {}
        """Who has something to read and was not woken yet, who waits longest first."""
        self._is_waking = False

    def __bool__(self) -> bool:
        return bool(self._events)

    def enter(self, name: str) -> asyncio.Event:
        """Return the event of a new reader."""
        event = self._events[name] = asyncio.Event()
        return event

    def leave(self, name: str) -> None:
        """Forget a reader."""
        del self._events[name]
        self._due.pop(name, None)

    def tell(self, names: Iterable[str]) -> None:
        """Wake readers, soon; those that left are not looked for."""
        due, events = self._due, self._events
        for name in names:
            if name in events:
                due[name] = None
        if due and not self._is_waking:
            self._wake()

    def _wake(self) -> None:
        due = self._due
        for _ in range(min(AT_ONCE, len(due))):
            name = next(iter(due))
            del due[name]
            self._events[name].set()
        self._is_waking = bool(due)
        if due:
            asyncio.get_running_loop().call_soon(self._wake)
