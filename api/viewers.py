"""Who watches the engine, and what each of them is told: looks, a few in a second, as events.

One look is made for all viewers. A viewer is told what it does not know yet: steps that have ended
since, and the map of blocks where that has changed. One that reads slowly is told less often, never
more at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import TYPE_CHECKING

from msgspec import UNSET, Struct, UnsetType

from ..engine.live import About, Look, Spread, Step
from ..engine.sched.stats import SchedulerStats
from .errors import ApiError

if TYPE_CHECKING:
    from .state import Engine

EVERY_S = 0.2
"""Between two looks."""
IDLE_EVERY_S = 1.0
"""Where nothing happens."""
MAX_VIEWERS = 8


class LiveEvent(Struct, frozen=True, kw_only=True):
    """An engine at one time; counters since the start."""

    about: About | UnsetType = UNSET
    """With the first event."""
    status: str
    """As /health says it."""
    at_s: float
    num_running: int
    num_waiting: int
    num_generated_tokens: int
    first_token: Spread
    between_tokens: Spread
    stats: SchedulerStats
    block_counts: tuple[int, ...]
    """Free, cached, owned, shared."""
    cells: bytes | UnsetType = UNSET
    """A byte for each cell of the map, where it has changed: 0 free, 1 cached, 2 owned, 3 shared,
    4 copied. A cell is `about.blocks_per_cell` blocks: what most of them are."""
    steps: tuple[Step, ...]
    """That ended since the last event: step, ended_s, took_s, rows, tokens of prompts, tokens of
    outputs, guesses, right guesses, admitted and preempted sequences, copied blocks."""


class Viewers:
    """Those who watch one engine."""

    def __init__(
        self, engine: Engine, status: Callable[[], str], timer: Callable[[], float]
    ) -> None:
        """status: of the server; nobody is told more once that is "draining"."""
        self._engine = engine
        self._status = status
        self._timer = timer
        self._num = 0
        self._latest: Look | None = None
        self._looked_s = 0.0

    async def events(self) -> AsyncGenerator[LiveEvent, None]:
        """Watch until the server drains. ApiError where too many do."""
        if self._num >= MAX_VIEWERS:
            raise ApiError(
                f"{MAX_VIEWERS} watch this engine already, which is the most: close one of them.",
                status=429,
                code="too_many_viewers",
                headers={"Retry-After": "5"},
            )
        live = self._engine.live
        self._num += 1
        live.open()
        try:
            about: About | UnsetType = live.about
            before: Look | None = None
            told_s = 0.0
            while (status := self._status()) != "draining":
                look = self._look()
                now_s = self._timer()
                if before is None or now_s - told_s >= IDLE_EVERY_S or _differ(before, look):
                    yield make_event(about, status, before, look)
                    about, before, told_s = UNSET, look, now_s
                await asyncio.sleep(EVERY_S)
        finally:
            live.close()
            self._num -= 1
            if self._num == 0:
                self._latest = None

    def _look(self) -> Look:
        now_s = self._timer()
        if self._latest is None or now_s - self._looked_s >= EVERY_S / 2:
            self._latest, self._looked_s = self._engine.live.look(), now_s
        return self._latest


def _differ(before: Look, look: Look) -> bool:
    """Whether something has happened between two looks."""
    return (
        before.stats != look.stats
        or before.steps[-1:] != look.steps[-1:]
        or before.cells != look.cells
        or (before.num_running, before.num_waiting) != (look.num_running, look.num_waiting)
    )


def make_event(about: About | UnsetType, status: str, before: Look | None, look: Look) -> LiveEvent:
    """Tell a look to who was told `before` last."""
    last = before.steps[-1].step if before is not None and before.steps else 0
    changed = before is None or before.cells != look.cells
    return LiveEvent(
        about=about,
        status=status,
        at_s=look.at_s,
        num_running=look.num_running,
        num_waiting=look.num_waiting,
        num_generated_tokens=look.num_generated_tokens,
        first_token=look.first_token,
        between_tokens=look.between_tokens,
        stats=look.stats,
        block_counts=look.block_counts,
        cells=look.cells if changed else UNSET,
        steps=tuple(step for step in look.steps if step.step > last),
    )
