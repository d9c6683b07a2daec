"""What happened to each request, and when: one story a request, written as the engine goes.

An observer of a core with a clock. A step costs what changes in it: admissions, chunks and
preemptions are noted one by one, steps of one token are only counted. Stories of requests that have
ended are kept for a while.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from .plan import StepPlan, StepResult
from .request import Request, Timeline, TimelineEvent
from .sched.scheduler import Decision

MAX_EVENTS = 256
"""Of one request; what comes later is counted."""
NUM_ENDED = 100


@dataclass(slots=True, eq=False)
class Story:
    """One request's story so far."""

    request: Request
    queued_s: float
    events: list[TimelineEvent] = field(default_factory=list)
    num_dropped: int = 0
    num_chunks: int = 0
    """Steps that computed known tokens of it,"""
    num_sampled: int = 0
    """outputs that took no other step: drawn in one of these, or behind a guess,"""
    first_step: int = 0
    """the step that admitted it first,"""
    last_step: int = 0
    """and the newest when it ended."""
    num_outputs: int = 0
    num_guesses: int = 0
    num_right_guesses: int = 0
    admitted_s: float | None = None
    """First admission."""
    slot: int = -1

    @property
    def state(self) -> str:
        """Whether it waits, runs or has ended."""
        if self.events[-1].name == "ended":
            return "ended"
        return "waiting" if self.slot < 0 else "running"

    def tell(self) -> Timeline:
        """Freeze what is known."""
        counted = self.num_chunks + max(0, self.num_outputs - self.num_sampled)
        spanned = self.last_step - self.first_step + 1 if self.last_step else 0
        return Timeline(
            events=tuple(self.events),
            num_steps=counted,
            num_stalled_steps=max(0, spanned - counted),
            num_dropped_events=self.num_dropped,
            num_guesses=self.num_guesses,
            num_right_guesses=self.num_right_guesses,
        )


class Timelines:
    """Stories of all living requests and of some that have ended. Not thread-safe."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """clock: seconds, monotonic."""
        self._clock = clock
        self._living: dict[str, Story] = {}
        self._slots: dict[int, Story] = {}
        self._ended: deque[Story] = deque(maxlen=NUM_ENDED)
        self._step = 0

    @property
    def living(self) -> list[Story]:
        """Stories without an end, oldest first."""
        return list(self._living.values())

    @property
    def ended(self) -> list[Story]:
        """Stories with an end, oldest first."""
        return list(self._ended)

    def story(self, request_id: str) -> Story | None:
        """Give the story of a living request; None for one that the core has not seen."""
        return self._living.get(request_id)

    def added(self, request: Request, parent_id: str | None) -> None:
        """See Observer. What goes on with a kept request belongs to the story of that."""
        if request.keep and parent_id is not None:
            return
        story = Story(request, self._clock())
        self._living[request.request_id] = story
        self._note(story, "queued", detail=parent_id and f"fork of {parent_id}")

    def aborted(self, request_id: str) -> None:
        """See Observer."""

    def launched(self, decision: Decision, plan: StepPlan) -> None:
        """See Observer."""
        self._step = plan.step
        for slot in decision.victims:
            story = self._slots.pop(slot, None)
            if story is not None:
                story.slot = -1
                self._note(story, "preempted", step=plan.step)
        for admission, admitted in zip(decision.admissions, plan.admitted, strict=True):
            self._admit(admission.sequence.request_id, admitted.slot, admission.hit.num_tokens)
        new = {one.slot for one in plan.admitted}
        if not new and plan.num_scheduled_tokens == len(plan.slots) and plan.samples.all():
            return
        known = plan.num_tokens if plan.drafts is None else plan.num_tokens - plan.drafts.counts
        columns = (plan.slots.tolist(), known.tolist(), plan.samples.tolist())
        for slot, count, samples in zip(*columns, strict=True):
            story = self._slots.get(slot)
            if story is not None and (count > 1 or slot in new or not samples):
                story.num_chunks += 1
                story.num_sampled += samples
                self._note(story, "computed", step=plan.step, num_tokens=count)

    def _admit(self, request_id: str, slot: int, num_cached: int) -> None:
        story = self._living.get(request_id)
        if story is None:
            self._slots.pop(slot, None)
            return
        story.slot = slot
        self._slots[slot] = story
        if story.admitted_s is None:
            story.admitted_s, story.first_step = self._clock(), self._step
        self._note(story, "admitted", step=self._step, num_tokens=num_cached)

    def landed(self, plan: StepPlan, result: StepResult) -> None:
        """See Observer."""
        guesses = plan.guesses()
        if guesses is None:
            return
        behind = guesses >= 0
        right = plan.right(result.token_ids)[behind].tolist()
        for slot, is_right in zip(plan.sampled()[0][behind].tolist(), right, strict=True):
            story = self._slots.get(slot)
            if story is not None:
                story.num_guesses += 1
                story.num_right_guesses += is_right
                story.num_sampled += is_right

    def failed(self, plan: StepPlan, message: str) -> None:
        """See Observer."""
        for story in self._slots.values():
            story.slot = -1
            self._note(story, "step failed", step=plan.step, detail=message)
        self._slots.clear()

    def budgeted(self, num_tokens: int) -> None:
        """See Observer."""

    def cleared(self) -> None:
        """See Observer."""

    def closed(self) -> None:
        """See Observer."""

    def first_token(self, request_id: str) -> None:
        """A request has its first token."""
        story = self._living.get(request_id)
        if story is not None:
            self._note(story, "first token")

    def end(self, request_id: str, reason: str, num_outputs: int) -> None:
        """A request was told its end."""
        story = self._living.pop(request_id, None)
        if story is None:
            return
        if self._slots.get(story.slot) is story:
            del self._slots[story.slot]
        story.num_outputs = num_outputs
        story.last_step = self._step if story.first_step else 0
        self._note(story, "ended", num_tokens=num_outputs, detail=reason)
        self._ended.append(story)

    def _note(
        self,
        story: Story,
        name: str,
        *,
        step: int | None = None,
        num_tokens: int | None = None,
        detail: str | None = None,
    ) -> None:
        if len(story.events) >= MAX_EVENTS and name != "ended":
            story.num_dropped += 1
            return
        at_ms = round((self._clock() - story.queued_s) * 1e3, 3)
        story.events.append(TimelineEvent(at_ms, name, step, num_tokens, detail))
