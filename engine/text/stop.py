"""Stop strings across token borders: what may be shown, what must wait, where the text ends.

A pure text machine: it knows no tokens. What it releases depends on the text alone, never on how
the text was cut into deltas.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Released(NamedTuple):
    """Text that may be shown now, and the stop string that ended it."""

    text: str
    stop: str | None = None


class StopMatcher:
    """Finds the stop string whose last character comes first (of several, the longest).

    Text before it is released, the stop string itself too where `include` says so, nothing after.
    What may still become a stop string is held back, so nothing shown is ever taken back.
    """

    __slots__ = ("_firsts", "_held", "_include", "_longest", "_stops")

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        assert stops and all(stops), stops
        self._stops = tuple(sorted(set(stops), key=len, reverse=True))
        self._firsts = frozenset(stop[0] for stop in stops)
        self._longest = len(self._stops[0])
        self._include = include
        self._held = ""

    def feed(self, delta: str, *, armed: bool = True) -> Released:
        """Take the next text. Unarmed: stop strings that end in it do not count.

        Nothing may be fed after a match.
        """
        text = self._held + delta
        if armed and (match := self._find(text)) is not None:
            end, stop = match
            self._held = ""
            return Released(text[: end if self._include else end - len(stop)], stop)
        keep = self._first_possible(text)
        self._held = text[keep:]
        return Released(text[:keep])

    def flush(self) -> str:
        """Return what was held back: no more text will come."""
        text, self._held = self._held, ""
        return text

    def _find(self, text: str) -> tuple[int, str] | None:
        """Find the match that ends first, and ends in the new text."""
        best: tuple[int, str] | None = None
        for stop in self._stops:
            start = text.find(stop, max(0, len(self._held) - len(stop) + 1))
            if start >= 0 and (best is None or start + len(stop) < best[0]):
                best = start + len(stop), stop
        return best

    def _first_possible(self, text: str) -> int:
        """Return the first index from which the text's end is the beginning of a stop string."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if text[start] in self._firsts:
                tail = text[start:]
                if any(len(tail) < len(stop) and stop.startswith(tail) for stop in self._stops):
                    return start
        return len(text)
