"""Executor: who runs plans, and how their results come back.

A seam only. `submit` never blocks on the step and results come in the order of submission.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol

from ..plan import StepPlan, StepResult


class Executor(Protocol):
    """Executes StepPlans one after another."""

    def submit(self, plan: StepPlan) -> Future[StepResult]:
        """Queue a plan; plans run in the order of submission. An exception of the step travels in
        the Future. Raises RuntimeError after close."""

    def abandon(self) -> None:
        """Give up on what is queued and on a step that does not end. Does not wait; nothing may be
        submitted afterwards, and futures may never complete."""

    def close(self) -> None:
        """Finish what is queued, then release everything. May be called twice."""
