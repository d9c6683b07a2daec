"""Readers of outputs, called a few at a time, so that the engine's next step waits for few of them.

A loop runs what is ready in order: were all readers of a step called at once, its next step would
be landed behind all of them. Who has not been called yet is called once, however much has come
since: what one reads then is all of it, so that readers fall behind and the engine does not.
A reader is a function and no task: what wakes a task costs more than what it reads.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from itertools import islice

logger = logging.getLogger("quire")

AT_ONCE = 32
"""Readers that are called in one turn of the loop. A landing takes some turns to reach the driver;
a reader takes ten or twenty microseconds, and so does a turn."""


class Waking:
    """One function for each reader, by the id of its request. Belongs to one loop."""

    def __init__(self) -> None:
        self._readers: dict[str, Callable[[], None]] = {}
        self._due: dict[str, None] = {}
        """Who has something to read and was not called yet, who waits longest first."""
        self._is_waking = False

    def __bool__(self) -> bool:
        return bool(self._readers)

    def enter(self, name: str, read: Callable[[], None]) -> None:
        """Take in a new reader, which must not raise."""
        self._readers[name] = read

    def leave(self, name: str) -> None:
        """Forget a reader."""
        del self._readers[name]
        self._due.pop(name, None)

    def tell(self, names: Iterable[str]) -> None:
        """Call readers, soon; those that left are not looked for."""
        due, readers = self._due, self._readers
        for name in names:
            if name in readers:
                due[name] = None
        if due and not self._is_waking:
            self._is_waking = True
            asyncio.get_running_loop().call_soon(self._wake)

    def _wake(self) -> None:
        due, readers = self._due, self._readers
        for name in list(islice(due, AT_ONCE)):
            if name not in due:
                continue  # one that was called before it has had it leave
            del due[name]
            try:
                readers[name]()
            except Exception:
                logger.exception("what reads request %s failed", name)
        self._is_waking = bool(due)
        if due:
            asyncio.get_running_loop().call_soon(self._wake)
