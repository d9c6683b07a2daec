"""What is new of one open request, for a reader who is called when there is something.

The reader takes it then or later: what nobody takes waits in the output state, once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .params import RequestOutputKind
from .request import MoreText, RequestOutput


class Growing(Protocol):
    """An answer, or several, that grow."""

    @property
    def finished(self) -> bool: ...
    def output(self, kind: RequestOutputKind) -> RequestOutput: ...
    def more(self) -> MoreText | None: ...


class Reading:
    """Outputs of one request. Whoever has it closes it, which ends a request that has not ended."""

    __slots__ = ("_close", "_is_open", "_kind", "_state", "more")

    def __init__(
        self,
        state: Growing,
        kind: RequestOutputKind,
        close: Callable[[Growing], None],
    ) -> None:
        self._state = state
        self.more = state.more
        """Returns what is new where that is more text of one answer and nothing beside it, which
        costs much less than an output. None: take() has it. For DELTA."""
        self._kind = kind
        self._close = close
        self._is_open = True

    def take(self) -> RequestOutput | None:
        """Return what is new, None where nothing is; the last output has `finished`."""
        if self._kind is RequestOutputKind.FINAL_ONLY and not self._state.finished:
            return None
        output = self._state.output(self._kind)
        return output if output.outputs else None

    def close(self) -> None:
        """Read no more."""
        if self._is_open:
            self._is_open = False
            self._close(self._state)
