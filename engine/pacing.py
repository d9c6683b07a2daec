"""A step's token budget from a target time between tokens, instead of a fixed number.

An observer of a core with a clock. Steps are taken to cost a + b * tokens; a and b follow what
was measured, old steps counting ever less. Tokens do not depend on it: it decides chunks only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from .plan import StepPlan, StepResult
from .request import Request
from .sched.scheduler import Decision

DECAY = 0.98
"""Weight of a step against the one after it."""
LEAST_CHUNK = 16
"""Tokens beside those that decode, so that prompts always proceed; budgets are its multiples."""


class Pacer:
    """Chooses budgets for steps that should take target_s each."""

    def __init__(self, target_s: float, max_tokens: int, clock: Callable[[], float]) -> None:
        """max_tokens: of a step, in any case. clock: seconds, monotonic."""
        self._clock = clock
        self._target_s = target_s
        self._max_tokens = max_tokens
        self._launched: deque[float] = deque()
        self._last_landed_s = 0.0
        self._weight = self._tokens = self._seconds = self._squares = self._products = 0.0

    def budget(self, num_running: int) -> int:
        """Most tokens of the next step, beside num_running sequences of which most decode."""
        if num_running == 0:
            return self._max_tokens
        fixed_s, token_s = self.cost()
        room = self._max_tokens
        if token_s > 0:
            room = int(min(room, max(0.0, self._target_s - fixed_s) / token_s))
        rounded = max(room, num_running + LEAST_CHUNK) // LEAST_CHUNK * LEAST_CHUNK
        return max(1, min(self._max_tokens, rounded))

    def cost(self) -> tuple[float, float]:
        """Seconds of a step without tokens, and of each token; 0 and 0 before anything is known."""
        if self._weight == 0 or self._tokens == 0:
            return 0.0, 0.0
        mean, seconds = self._tokens / self._weight, self._seconds / self._weight
        variance = self._squares / self._weight - mean * mean
        # Steps of nearly one size tell no slope: all of it is taken to be by the token.
        if variance <= (0.05 * mean) ** 2:
            return 0.0, seconds / mean
        token_s = (self._products / self._weight - mean * seconds) / variance
        token_s = min(max(token_s, 0.0), seconds / mean)
        return seconds - token_s * mean, token_s

    def launched(self, decision: Decision, plan: StepPlan) -> None:
        """See Observer."""
        self._launched.append(self._clock())

    def landed(self, plan: StepPlan, result: StepResult) -> None:
        """See Observer. A step behind another begins where that one ended."""
        now_s, num_tokens = self._clock(), plan.num_scheduled_tokens
        seconds = now_s - max(self._launched.popleft(), self._last_landed_s)
        self._last_landed_s = now_s
        self._weight = self._weight * DECAY + 1
        self._tokens = self._tokens * DECAY + num_tokens
        self._seconds = self._seconds * DECAY + seconds
        self._squares = self._squares * DECAY + num_tokens * num_tokens
        self._products = self._products * DECAY + num_tokens * seconds

    def failed(self, plan: StepPlan, message: str) -> None:
        """See Observer: those steps tell nothing."""
        self._launched.clear()

    def added(self, request: Request, parent_id: str | None) -> None:
        """See Observer."""

    def aborted(self, request_id: str) -> None:
        """See Observer."""

    def budgeted(self, num_tokens: int) -> None:
        """See Observer."""

    def cleared(self) -> None:
        """See Observer."""

    def closed(self) -> None:
        """See Observer."""
