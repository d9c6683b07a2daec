"""How data crosses between the host and a device: `Link`, and what is on its way back: `Landing`.

Owns no model state. `HostLink` is the CPU's: the device's memory is the host's, so nothing is
copied and every step has landed when it is launched. `cuda_link.CudaLink` never waits for the
device while a step is launched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from msgspec.structs import replace
from numpy.typing import NDArray
from torch import Tensor

from ...reference.ops import Logprobs
from ..plan import VOID, RowFault, StepPlan, StepResult
from ..request import IntArray, LogprobRows

Scores = Sequence[Sequence[Logprobs]]
"""Of each scored range of a prompt's tokens its parts, in order; what `Link.fetch` returned."""


class Landing(Protocol):
    """A step that was launched."""

    @property
    def is_ready(self) -> bool:
        """Whether result() need not wait. May be False for a while after the device has ended."""

    def result(self) -> StepResult:
        """Wait for the device and return what the step gave; at most once, from any thread.

        Raises what the device raised.
        """

    def tokens(self) -> IntArray:
        """Wait for the drawn tokens, [samples]: from any thread, before and after result()."""


class Link(Protocol):
    """The way to one device. One thread calls it, inside `on_stream`."""

    device: torch.device

    def on_stream(self) -> AbstractContextManager[object]:
        """Queue everything inside on the link's own stream."""

    def mirror(self, array: IntArray) -> Tensor:
        """Return the device's twin of a host array that is written again for every step."""

    def send(self, array: IntArray, mirror: Tensor, size: int) -> None:
        """Queue a copy of array[:size] into its mirror. array may be written again at once."""

    def upload(self, array: NDArray[Any]) -> Tensor:
        """Return array [n] int32 or int64 as a new tensor on the device. Takes the array over."""

    def fetch(self, found: Logprobs) -> Logprobs:
        """Queue the way back of log probabilities, which the next landing brings: on the host."""

    def land(
        self,
        step: int,
        tokens: Tensor,
        logprobs: Logprobs | None,
        scores: Scores = (),
        guesses: Tensor | None = None,
        vectors: Tensor | None = None,
    ) -> Landing:
        """Queue the way back of tokens [samples] int32, of guesses [n] int32 and of vectors
        [samples, width] float32: the end of every launch."""

    def settle(self) -> None:
        """Wait until the device has done all that was queued, on any stream."""


class HostLink:
    """Link to the CPU."""

    device = torch.device("cpu")

    def on_stream(self) -> AbstractContextManager[object]:
        """See Link."""
        return nullcontext()

    def mirror(self, array: IntArray) -> Tensor:
        """See Link: the array itself."""
        return torch.from_numpy(array)

    def send(self, array: IntArray, mirror: Tensor, size: int) -> None:
        """See Link: array and mirror share their memory."""

    def upload(self, array: NDArray[Any]) -> Tensor:
        """See Link: not a copy."""
        return torch.from_numpy(array)

    def fetch(self, found: Logprobs) -> Logprobs:
        """See Link: it is there."""
        return found

    def land(
        self,
        step: int,
        tokens: Tensor,
        logprobs: Logprobs | None,
        scores: Scores = (),
        guesses: Tensor | None = None,
        vectors: Tensor | None = None,
    ) -> Landing:
        """See Link: it is there."""
        rows = None if logprobs is None else to_rows(logprobs)
        prompts = tuple(map(joined, scores))
        told = None if guesses is None else guesses.numpy()
        states = None if vectors is None else vectors.numpy()
        result = StepResult(step, tokens.numpy(), rows, (), prompts, told, states)
        return Landed(result)

    def settle(self) -> None:
        """See Link."""


class Landed:
    """Landing of a step that is over."""

    is_ready = True

    def __init__(self, result: StepResult) -> None:
        self._result = result

    def result(self) -> StepResult:
        """See Landing."""
        return self._result

    def tokens(self) -> IntArray:
        """See Landing."""
        return self._result.token_ids


class FaultedLanding:
    """Landing of a step in which some sequences cannot be computed: their tokens become -1.

    Those that are drawn behind guesses that cannot be followed become VOID.
    """

    def __init__(
        self,
        landing: Landing,
        plan: StepPlan,
        faults: Mapping[int, RowFault],
        void: Sequence[int] = (),
    ) -> None:
        """faults: by slot. void: rows among the samples."""
        self._landing = landing
        self._slots = plan.sampled()[0].tolist()
        self._faults = dict(faults)
        self._void = list(void)

    @property
    def is_ready(self) -> bool:
        """See Landing."""
        return self._landing.is_ready

    def tokens(self) -> IntArray:
        """See Landing."""
        return self._landing.tokens()

    def result(self) -> StepResult:
        """See Landing."""
        result = self._landing.result()
        rows = [row for row, slot in enumerate(self._slots) if slot in self._faults]
        if not (rows or self._void):
            return result
        tokens = result.token_ids.copy()
        tokens[self._void] = VOID
        tokens[rows] = -1
        faults = tuple(self._faults[self._slots[row]] for row in rows)
        return replace(result, token_ids=tokens, faults=faults)


def to_rows(found: Logprobs) -> LogprobRows:
    """Share host tensors as numpy arrays."""
    return LogprobRows(
        sampled=found.sampled.numpy(),
        ranks=found.ranks.numpy(),
        top_ids=found.top_ids.numpy(),
        top=found.top.numpy(),
    )


def joined(parts: Sequence[Logprobs]) -> LogprobRows:
    """Put parts on the host one behind the other, in memory of their own."""
    return to_rows(Logprobs(*map(torch.cat, zip(*parts, strict=True))))


def make_link(device: torch.device) -> Link:
    """Return the way to a device."""
    if device.type == "cpu":
        return HostLink()
    from .cuda_link import CudaLink

    return CudaLink(device)
