"""InlineExecutor: a runner in this process, on one worker thread of its own.

The operations release the interpreter's lock, so the caller's thread (an event loop, a scheduler)
goes on while a step computes.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch

from ..device.runner import ModelRunner
from ..plan import StepPlan, StepResult


class InlineExecutor:
    """Executor over one ModelRunner, which nobody else may call until close."""

    def __init__(self, runner: ModelRunner, num_threads: int | None = None) -> None:
        """num_threads: compute threads of a step; None: torch's choice."""
        self._runner = runner
        self._worker = ThreadPoolExecutor(
            max_workers=1,
            thread_name_prefix="quire-runner",
            initializer=_set_num_threads,
            initargs=(num_threads,),
        )

    def submit(self, plan: StepPlan) -> Future[StepResult]:
        """See Executor.submit."""
        return self._worker.submit(self._runner.execute, plan)

    def close(self) -> None:
        """See Executor.close."""
        self._worker.shutdown(wait=True)


def _set_num_threads(num_threads: int | None) -> None:
    """Set torch's threads inside the worker: OpenMP keeps the number by thread."""
    if num_threads is not None:
        torch.set_num_threads(num_threads)
