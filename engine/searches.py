"""The beam searches of an engine: their sequences are requests of one token, kept until forked.

Owns which sequence belongs to which search, and what has come of the step that each search is in.
A search moves when all its sequences have their token: the next ones fork them, share all that is
computed, and compute one token each.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

from .beams import BeamSearch
from .core import EngineCore
from .errors import ParamsError
from .request import Finished
from .text.output import TokenLogprobs

logger = logging.getLogger("quire")


@dataclass(slots=True, eq=False)
class Step:
    """A search and the step it is in."""

    search: BeamSearch
    sequences: list[str]
    """Ids of the live sequences, in the search's order."""
    rows: dict[str, TokenLogprobs] = field(default_factory=dict)
    """What came of them."""
    failure: str | None = None


class Searches:
    """Drives open searches through one core. Not thread-safe."""

    def __init__(self, core: EngineCore) -> None:
        self._core = core
        self._steps: dict[str, Step] = {}
        """By the id of each sequence."""
        self._current: dict[str, Step] = {}
        """By the id of the search's request."""
        self._changed: list[Step] = []
        """Steps that something has come of."""

    def __bool__(self) -> bool:
        return bool(self._steps)

    def __contains__(self, sequence_id: str) -> bool:
        return sequence_id in self._steps

    def num_candidates(self, sequence_id: str) -> int:
        """How many of the likeliest tokens a sequence's search asks for."""
        return self._steps[sequence_id].search.request.num_candidates

    def begin(self, search: BeamSearch) -> None:
        """Queue a search. ParamsError if its id is in use or its prompt can never fit."""
        self._core.add(search.request)
        name = search.request.request_id
        self._steps[name] = self._current[name] = Step(search, [name])

    def take(self, sequence_id: str, row: TokenLogprobs | None, end: Finished | None) -> None:
        """Note the one token of a sequence, or that it has none."""
        step = self._steps[sequence_id]
        if row is None or end is None or end.reason != "length":
            message = end.message if end is not None else None
            step.failure = message or "a sequence of the search ended before its time"
        else:
            step.rows[sequence_id] = row
        if step not in self._changed:
            self._changed.append(step)

    def move(self) -> list[BeamSearch]:
        """Bring all searches on whose step is complete; return those."""
        changed, self._changed = self._changed, []
        moved = []
        for step in changed:
            if step.failure is not None:
                self.end(step.search)
                step.search.fail(step.failure)
            elif len(step.rows) == len(step.sequences):
                self._advance(step)
            else:
                continue
            moved.append(step.search)
        return moved

    def end(self, search: BeamSearch) -> None:
        """End a search's sequences and give back what they hold."""
        step = self._current.pop(search.request.request_id, None)
        if step is not None:
            self._release(step.sequences)

    def _release(self, sequences: list[str]) -> None:
        for name in sequences:
            del self._steps[name]
            self._core.abort(name)

    def _advance(self, step: Step) -> None:
        """Take a search's step, and queue the next one's sequences before their parents go.

        What fails in one search ends that search alone.
        """
        search, parents = step.search, step.sequences
        name, following = search.request.request_id, Step(search, [])
        try:
            for place, request in search.advance([step.rows[name] for name in parents]):
                self._core.fork(parents[place], request)
                following.sequences.append(request.request_id)
                self._steps[request.request_id] = following
        except Exception as error:
            if not isinstance(error, ParamsError):
                logger.exception("the search of request %s failed", search.request.request_id)
            self._release(following.sequences)
            search.fail(f"{type(error).__name__}: {error}")
        self._release(parents)
        if search.finished:
            del self._current[name]
        else:
            self._current[name] = following
