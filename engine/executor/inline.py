"""InlineExecutor: a runner in this process, on one worker thread of its own.

The operations release the interpreter's lock, so the caller's thread (an event loop, a scheduler)
goes on while a step computes. A device that runs behind is waited for on a second thread, while the
first one launches the next step.
"""

from __future__ import annotations

import traceback
from concurrent.futures import Future
from functools import partial

import torch

from ..device.link import Landing
from ..device.runner import ModelRunner
from ..plan import StepPlan, StepResult
from .worker import Worker


class InlineExecutor:
    """Executor over one ModelRunner, which nobody else may call until close."""

    def __init__(self, runner: ModelRunner, num_threads: int | None = None) -> None:
        """num_threads: compute threads of a step; None: torch's choice."""
        self._runner: ModelRunner | None = runner
        self._launching = Worker("quire-runner", partial(_set_num_threads, num_threads))
        self._landing = Worker("quire-landing")
        self._last: Future[StepResult] | None = None
        """The latest step that was handed to the second thread."""

    def submit(self, plan: StepPlan) -> Future[StepResult]:
        """See Executor.submit."""
        future: Future[StepResult] = Future()
        # From here on nobody can cancel it: a plan changes the device, so all of them must run.
        future.set_running_or_notify_cancel()
        self._launching.submit(partial(self._launch, plan, future))
        return future

    def abandon(self) -> None:
        """See Executor.abandon."""
        self._launching.abandon()
        self._landing.abandon()

    def close(self) -> None:
        """See Executor.close."""
        self._launching.close()
        self._landing.close()
        self._runner = self._last = None
        # Gives memory that nobody holds now back to the machine; nothing where there is no GPU.
        torch.cuda.empty_cache()

    def _launch(self, plan: StepPlan, future: Future[StepResult]) -> None:
        """Launch a step. Where nothing is on its way before it and it has landed, it is done."""
        landing: Landing | BaseException
        assert self._runner is not None, "submit after close"
        try:
            landing = self._runner.launch(plan)
            is_ready = landing.is_ready  # a device's own fault may be told here
        except BaseException as error:
            # Its frames hold the step's tensors.
            traceback.clear_frames(error.__traceback__)
            landing, is_ready = error, True
        behind = self._last is not None and not self._last.done()
        if behind or not is_ready:
            self._last = future
            self._landing.submit(partial(_land, landing, future))
        else:
            _land(landing, future)


def _land(landing: Landing | BaseException, future: Future[StepResult]) -> None:
    """Wait for a step and complete its future."""
    if isinstance(landing, BaseException):
        future.set_exception(landing)
        return
    try:
        result = landing.result()
    except BaseException as error:
        traceback.clear_frames(error.__traceback__)
        future.set_exception(error)
    else:
        future.set_result(result)


def _set_num_threads(num_threads: int | None) -> None:
    """Set torch's threads inside the worker: OpenMP keeps the number by thread."""
    if num_threads is not None:
        torch.set_num_threads(num_threads)
