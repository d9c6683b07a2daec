"""Which states a scheduler has been in, coarsely: what a fuzzer reaches, not how long it runs."""

from __future__ import annotations

from hypothesis import currently_in_test_context, target

from ..engine.plan import StepPlan, StepResult
from ..engine.request import Request
from ..engine.sched.scheduler import Decision, Scheduler
from .guard import Guard


def abstract_state(scheduler: Scheduler) -> str:
    """Name the state that a scheduler is in; states that behave alike have one name."""
    state, memory = scheduler._state, scheduler._memory
    table, slots = memory.table, state.rows.slots
    decoding = int(((table.target[slots] - table.submitted[slots]) == 1).sum())
    pins = sum(len(flight.pins) for flight in scheduler._flights)
    shared = int((memory.pool.references > 1).sum())
    resumed = sum(one.num_cached is not None for one in state.waiting)
    counts = {
        "running": len(slots),
        "decoding": decoding,
        "waiting": len(state.waiting),
        "tenants": len({one.account for one in state.waiting}),
        "resumed": resumed,
        "free": memory.pool.num_free,
        "keyed": int(memory.index.keyed.sum()),
        "shared": shared,
        "flights": len(scheduler._flights),
        "draining": len(scheduler._draining),
        "holders": len(state.holders),
        "pins": pins,
    }
    return " ".join(f"{name}={_bucket(count)}" for name, count in counts.items())


def _bucket(count: int) -> int:
    """0, 1, 2, 4, 8: the greatest of them that is not above."""
    return count if count < 2 else min(8, 1 << (count.bit_length() - 1))


class Reached:
    """How far one example came, under guard. Hears a core, or is told by who drives a scheduler."""

    def __init__(self, scheduler: Scheduler, states: set[str]) -> None:
        """states: of all examples; grows."""
        self._scheduler, self._states = scheduler, states
        self._guard = Guard(scheduler)
        self.peak_queue = self.num_partial_hits = 0

    def aim(self) -> None:
        """Tell Hypothesis how far the example came, so that it goes on from the best ones."""
        if not currently_in_test_context():
            return
        stats = self._scheduler.stats
        target(float(self.peak_queue), label="peak queue")
        target(float(stats.num_preemptions), label="preemptions")
        target(float(stats.num_copies), label="copies")
        target(float(self.num_partial_hits), label="partial hits")

    def figures(self, num_requests: int) -> dict[str, int]:
        """What an example that had so many requests adds to the totals of its machine."""
        stats = self._scheduler.stats
        return {
            "steps": stats.num_steps,
            "tokens": stats.num_scheduled_tokens,
            "preemptions": stats.num_preemptions,
            "evictions": stats.num_evictions,
            "copies": stats.num_copies,
            "guesses": stats.num_draft_tokens,
            "right guesses": stats.num_accepted_tokens,
            "partial hits": self.num_partial_hits,
            "hit tokens": stats.prefix_hits + stats.resumed_hits,
            "requests": num_requests,
            "runs": 1,
        }

    def launched(self, decision: Decision, plan: StepPlan) -> None:
        """See Observer."""
        self._guard.committed(plan)
        self._states.add(abstract_state(self._scheduler))
        self.peak_queue = max(self.peak_queue, self._scheduler.num_waiting)
        sources = [admission.hit.source for admission in decision.admissions]
        self.num_partial_hits += sum(source >= 0 for source in sources)

    def added(self, request: Request, parent_id: str | None) -> None:
        """See Observer."""

    def aborted(self, request_id: str) -> None:
        """See Observer."""

    def landed(self, plan: StepPlan, result: StepResult) -> None:
        """See Observer."""

    def failed(self, plan: StepPlan, message: str) -> None:
        """See Observer."""
        self._guard.failed()

    def budgeted(self, num_tokens: int) -> None:
        """See Observer."""

    def cleared(self) -> None:
        """See Observer."""

    def closed(self) -> None:
        """See Observer."""
