"""How many answers may wait: the bound of the queue, checked before anything is done for a request.

An answer waits from when its request is let in until the engine runs it. Until the engine has it,
its Ticket counts; from then on the engine does. One changes with the other, without a pause in
between, so that no answer is counted twice or missed, however many come at once. n answers are n.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Protocol

from .errors import ApiError

NUM_REMEMBERED = 32
"""Answers that tell how fast the queue moves."""
MAX_RETRY_S = 60


class Queue(Protocol):
    """Who runs what was let in."""

    @property
    def num_waiting(self) -> int:
        """Answers that the engine has and does not run, but for the background's."""


class Admission:
    """The bound of one server's queue."""

    def __init__(self, queue: Queue, max_queued: int | None, timer: Callable[[], float]) -> None:
        """max_queued: None for no bound; timer: seconds, monotonic."""
        self._queue = queue
        self._most = max_queued
        self._timer = timer
        self._num_reserved = 0
        self._left: deque[tuple[float, int]] = deque(maxlen=NUM_REMEMBERED)

    @property
    def num_queued(self) -> int:
        """Answers that wait, here or in the engine."""
        return self._num_reserved + self._queue.num_waiting

    def admit(self, num: int) -> Ticket:
        """Let in a request of num answers. ApiError 429 where the queue has no room for them."""
        most = self._most
        if most is not None and num > most:
            raise ApiError(
                f"The request asks for {num} answers: at most {most} may wait here.",
                param="n",
            )
        if most is not None and self.num_queued + num > most:
            wait_s = self._retry_s()
            raise ApiError(
                f"The queue is full: {self.num_queued} of at most {most} answers wait, and this "
                f"request asks for {num}. Try again in {wait_s} s.",
                status=429,
                kind="rate_limit_error",
                code="queue_full",
                headers={"Retry-After": str(wait_s)},
            )
        self._num_reserved += num
        return Ticket(self, num)

    def pass_by(self) -> Ticket:
        """Let in what waits behind the queue, and so takes no place in it."""
        return Ticket(self, 0)

    def _retry_s(self) -> int:
        """Seconds until half of those that wait have gone, as fast as the last ones went."""
        if not self._left:
            return 1
        took_s = self._timer() - self._left[0][0]
        num_left = sum(num for _, num in self._left)
        wait_s = took_s / num_left * self.num_queued / 2
        return max(1, min(MAX_RETRY_S, math.ceil(wait_s)))

    def give_back(self, num: int) -> None:
        """Count reserved answers no more: the engine does, or nobody has to."""
        assert 0 <= num <= self._num_reserved, (num, self._num_reserved)
        self._num_reserved -= num

    def note_left(self, num: int) -> None:
        """Remember when num answers were done with."""
        self._left.append((self._timer(), num))


class Ticket:
    """The places of one request in the queue."""

    def __init__(self, admission: Admission, num: int) -> None:
        self._admission = admission
        self._num = num
        self._num_reserved = num

    def hand_over(self, num: int) -> None:
        """The engine has num answers of the request, as of now."""
        num = min(num, self._num_reserved)
        self._num_reserved -= num
        self._admission.give_back(num)

    def release(self) -> None:
        """The request is over, however it ended."""
        self.hand_over(self._num_reserved)
        if self._num:
            self._admission.note_left(self._num)
