"""The order of sequences: by priority, then by arrival. One sorted list serves both queues.

Owns the order only. A preempted sequence keeps its arrival and so returns to its old place, which
is the front of everything that came later.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import islice, pairwise
from operator import attrgetter

from .sequence import Sequence

_rank = attrgetter("rank")


class RankedQueue:
    """Sequences sorted by rank; appending at the end and removing the first few are cheap."""

    __slots__ = ("_sequences",)

    def __init__(self) -> None:
        self._sequences: list[Sequence] = []

    def __len__(self) -> int:
        return len(self._sequences)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._sequences)

    def __getitem__(self, place: int) -> Sequence:
        return self._sequences[place]

    def first(self, count: int) -> Iterator[Sequence]:
        """Iterate over the first `count` sequences."""
        return islice(self._sequences, count)

    def num_from(self, priority: int) -> int:
        """Count those of this priority and of less urgent ones."""
        return len(self._sequences) - bisect_left(self._sequences, (priority,), key=_rank)

    def add(self, sequence: Sequence) -> None:
        """Put a sequence at its place."""
        insort(self._sequences, sequence, key=_rank)

    def remove(self, sequence: Sequence) -> None:
        """Take out a sequence, which must be there."""
        place = bisect_left(self._sequences, sequence.rank, key=_rank)
        assert self._sequences[place] is sequence, sequence.request_id
        del self._sequences[place]

    def remove_first(self, count: int) -> None:
        """Take out the first `count` sequences at once."""
        del self._sequences[:count]

    def check(self) -> None:
        """Assert the invariants. Slow."""
        ranks = [sequence.rank for sequence in self._sequences]
        assert all(a < b for a, b in pairwise(ranks)), ranks
