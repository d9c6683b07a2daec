"""What an engine is doing now, for those who watch it: its last steps, its blocks, its numbers.

An observer of a core with a clock, which hears of steps only while somebody watches. It is read
between two calls of the core, by whom the core belongs to, and copies what it tells.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from .config import EngineConfig
from .core import EngineCore
from .metrics import EngineMetrics, Histogram
from .plan import StepPlan, StepResult
from .request import Request
from .sched.memory import SlotMemory
from .sched.scheduler import Decision
from .sched.stats import SchedulerStats

NUM_STEPS = 256
"""Steps that are kept: the newest ones."""
MAX_CELLS = 4096
"""Of the map of blocks: where there are more, a cell stands for several."""

States = NDArray[np.uint8]


class BlockState(IntEnum):
    """What a block is used for."""

    FREE = 0
    CACHED = 1
    """Nobody holds it, and a prompt may find it;"""
    OWNED = 2
    """one sequence does;"""
    SHARED = 3
    """several do, or one and a copy that is still to be made of it."""
    COPIED = 4
    """It was written as a copy of another since the last look."""


class Step(Struct, frozen=True, array_like=True):
    """One step that has ended."""

    step: int
    ended_s: float
    took_s: float
    """Since it was launched, or since the one before it ended."""
    num_rows: int
    num_prefill_tokens: int
    """Computed of prompts, and again of sequences that were preempted;"""
    num_decode_tokens: int
    """computed of outputs, one a row,"""
    num_guesses: int
    """and behind them."""
    num_right_guesses: int
    num_admitted: int
    num_preempted: int
    num_copies: int
    """Blocks."""


class Spread(Struct, frozen=True):
    """Durations since the start, by the bounds that About tells."""

    counts: tuple[int, ...]
    total_s: float


class About(Struct, frozen=True):
    """What does not change while an engine lives."""

    num_blocks: int
    block_size: int
    """Tokens."""
    blocks_per_cell: int
    max_num_seqs: int
    max_num_batched_tokens: int
    first_token_bounds_s: tuple[float, ...]
    between_tokens_bounds_s: tuple[float, ...]


class Look(Struct, frozen=True):
    """An engine at one time; counters since the start."""

    at_s: float
    """In the time of Step.ended_s."""
    num_running: int
    num_waiting: int
    num_generated_tokens: int
    first_token: Spread
    between_tokens: Spread
    stats: SchedulerStats
    block_counts: tuple[int, ...]
    """Free, cached, owned and shared blocks; copies are one of the latter."""
    cells: bytes
    """A BlockState for each cell of the map."""
    steps: tuple[Step, ...]
    """The last ones, oldest first."""


class _Launch(NamedTuple):
    at_s: float
    num_admitted: int
    num_preempted: int
    num_prefill_tokens: int
    num_decode_tokens: int


class LiveView:
    """Looks at one engine. Not thread-safe: it belongs where the core does."""

    def __init__(
        self,
        core: EngineCore,
        config: EngineConfig,
        metrics: EngineMetrics,
        clock: Callable[[], float],
    ) -> None:
        """config: with numbers where the machine decided. clock: seconds, monotonic."""
        assert config.max_num_batched_tokens is not None, config
        self._core = core
        self._metrics = metrics
        self._clock = clock
        num_blocks = core.scheduler.num_blocks
        self.about = About(
            num_blocks,
            config.block_size,
            -(-num_blocks // MAX_CELLS),
            config.max_num_seqs,
            config.max_num_batched_tokens,
            metrics.first_token_s.bounds,
            metrics.between_tokens_s.bounds,
        )
        self._num_viewers = 0
        self._launches: dict[int, _Launch] = {}
        self._last_landed_s = 0.0
        self._steps: deque[Step] = deque(maxlen=NUM_STEPS)
        self._copied = np.zeros(num_blocks, np.bool_)
        """Since the last look."""

    def open(self) -> None:
        """Somebody watches from now on: the first makes the core tell its steps."""
        self._num_viewers += 1
        if self._num_viewers == 1:
            self._core.watch(self)

    def close(self) -> None:
        """Somebody watches no more; with the last, everything is forgotten."""
        assert self._num_viewers > 0, "close without open"
        self._num_viewers -= 1
        if self._num_viewers == 0:
            self._core.unwatch(self)
            self._launches.clear()
            self._steps.clear()
            self._copied[:] = False

    def look(self) -> Look:
        """Tell what is there now. Copies are told by one look."""
        scheduler, metrics = self._core.scheduler, self._metrics
        states = block_states(scheduler.memory)
        counts = np.bincount(states, minlength=BlockState.COPIED)
        states[self._copied & (states >= BlockState.OWNED)] = BlockState.COPIED
        self._copied[:] = False
        return Look(
            self._clock(),
            scheduler.num_running,
            scheduler.num_waiting,
            metrics.num_generation_tokens,
            _spread(metrics.first_token_s),
            _spread(metrics.between_tokens_s),
            scheduler.stats,
            tuple(counts.tolist()),
            cells(states, self.about.blocks_per_cell).tobytes(),
            tuple(self._steps),
        )

    def launched(self, decision: Decision, plan: StepPlan) -> None:
        """See Observer."""
        known = plan.num_tokens if plan.drafts is None else plan.num_tokens - plan.drafts.counts
        decodes = (known == 1) & plan.samples
        if plan.admitted:
            decodes &= ~np.isin(plan.slots, [one.slot for one in plan.admitted])
        num_decode = int(np.count_nonzero(decodes))
        self._launches[plan.step] = _Launch(
            self._clock(),
            len(plan.admitted),
            len(decision.victims),
            int(known.sum()) - num_decode,
            num_decode,
        )
        self._copied[plan.copy_targets] = True

    def landed(self, plan: StepPlan, result: StepResult) -> None:
        """See Observer. A step behind another begins where that one ended."""
        now_s, launch = self._clock(), self._launches.pop(plan.step, None)
        if launch is not None:
            guesses, num_right = plan.guesses(), 0
            if guesses is not None:
                num_right = int(np.count_nonzero(plan.right(result.token_ids) & (guesses >= 0)))
            step = Step(
                plan.step,
                now_s,
                now_s - max(launch.at_s, self._last_landed_s),
                len(plan.slots),
                launch.num_prefill_tokens,
                launch.num_decode_tokens,
                0 if plan.drafts is None else int(plan.drafts.counts.sum()),
                num_right,
                launch.num_admitted,
                launch.num_preempted,
                len(plan.copy_targets),
            )
            self._steps.append(step)
        self._last_landed_s = now_s

    def failed(self, plan: StepPlan, message: str) -> None:
        """See Observer."""
        self._launches.clear()

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


def block_states(memory: SlotMemory) -> States:
    """Tell of every block whether it is free, cached, owned or shared: [blocks] BlockState."""
    references = memory.pool.references
    held = np.minimum(references, 2) + (BlockState.OWNED - 1)
    states: States = np.where(references > 0, held, memory.index.keyed).astype(np.uint8)
    return states


def cells(states: States, size: int) -> States:
    """Gather blocks by `size` into cells: each is what most of its blocks are, COPIED if one is.

    Of states that are equally many, the one with most use.
    """
    if size == 1:
        return states
    starts = np.arange(0, len(states), size)
    counts = np.stack(
        [np.add.reduceat(states == state, starts, dtype=np.intp) for state in BlockState]
    )
    most = BlockState.SHARED - counts[BlockState.SHARED :: -1].argmax(axis=0)
    most[counts[BlockState.COPIED] > 0] = BlockState.COPIED
    found: States = most.astype(np.uint8)
    return found


def _spread(histogram: Histogram) -> Spread:
    return Spread(tuple(histogram.counts), histogram.total)
