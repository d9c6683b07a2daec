"""One thread and its queue of calls: what an executor needs, and can walk away from.

ThreadPoolExecutor will not do: the interpreter waits for its threads at exit, also for one that
hangs in a device.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue


class Worker:
    """Runs calls one after another on a thread of its own. A call must not raise."""

    def __init__(self, name: str, start: Callable[[], None] | None = None) -> None:
        """start: called first, on the thread."""
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._closed = self._abandoned = False
        if start is not None:
            self._calls.put(start)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], None]) -> None:
        """Queue a call. RuntimeError after close or abandon."""
        if self._closed:
            raise RuntimeError("the executor is closed")
        self._calls.put(call)

    def close(self) -> None:
        """Run what is queued, then end. May be called twice; does not wait if abandoned."""
        if not self._closed:
            self._closed = True
            self._calls.put(None)
        if not self._abandoned:
            self._thread.join()

    def abandon(self) -> None:
        """Run nothing more, and never wait for the call that is running."""
        self._closed = self._abandoned = True
        self._calls.put(None)

    def _run(self) -> None:
        while (call := self._calls.get()) is not None and not self._abandoned:
            call()
