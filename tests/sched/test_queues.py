"""The order of sequences."""

from __future__ import annotations

import numpy as np
import pytest
from quire.engine.sched.queues import RankedQueue
from quire.engine.sched.sequence import Sequence
from quire.fuzz.strategies import make_request


def make(priority: int, arrival: int) -> Sequence:
    tokens = np.array([1], np.int32)
    request = make_request(f"{priority}/{arrival}", [1])
    return Sequence(request, (priority, arrival, arrival), b"", 10, tokens, ())


def test_lower_priority_numbers_come_first_then_earlier_arrivals() -> None:
    queue = RankedQueue()
    ranks = [(0, 3), (1, 1), (0, 2), (-1, 9), (1, 0)]
    for rank in ranks:
        queue.add(make(*rank))
    queue.check()
    assert [sequence.rank[:2] for sequence in queue] == sorted(ranks)
    assert [sequence.rank[:2] for sequence in queue.first(2)] == [(-1, 9), (0, 2)]
    assert [queue.num_from(priority) for priority in (-2, -1, 0, 1, 2)] == [5, 5, 4, 2, 0]


def test_removal_by_identity_and_of_the_first_few() -> None:
    queue = RankedQueue()
    sequences = [make(0, arrival) for arrival in range(5)]
    for sequence in sequences:
        queue.add(sequence)
    queue.remove(sequences[2])
    queue.remove_first(2)
    assert list(queue) == sequences[3:]
    with pytest.raises((AssertionError, IndexError)):
        queue.remove(make(0, 3))
