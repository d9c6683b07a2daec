"""CudaLink: pinned memory, one stream, and an event behind every step.

Owns the stream and the pinned memory. Pinned memory belongs to a step from the copy that uses it
until the step has landed; then another step may take it. So the launching thread never waits, and
no copy is overwritten before it was made, however many steps are on their way.
"""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...reference.ops import Logprobs
from ..plan import StepResult
from ..request import IntArray
from .link import Landing, Scores, joined

LEAST_WORDS = 4096
"""Pinned memory comes in powers of two of int32 words, from here on."""


class Pinned(NamedTuple):
    """Page-locked host memory, int32, which copies reach without the host's help."""

    tensor: Tensor
    array: IntArray
    """The same memory."""


def pin(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Allocate page-locked memory, which torch keeps until the copies that use it are made."""
    return torch.empty(shape, dtype=dtype, pin_memory=True)


class PinnedPool:
    """Pinned memory that is not in use, by size. `take` and `give_back` may run in two threads."""

    def __init__(self) -> None:
        self._free: dict[int, list[Pinned]] = {}

    def take(self, num_words: int) -> Pinned:
        """Return memory of at least num_words."""
        size = max(LEAST_WORDS, 1 << (num_words - 1).bit_length()) if num_words else LEAST_WORDS
        free = self._free.setdefault(size, [])
        try:
            return free.pop()
        except IndexError:
            tensor = pin((size,), torch.int32)
            return Pinned(tensor, tensor.numpy())

    def give_back(self, pinned: Pinned) -> None:
        """Let others take it."""
        self._free[len(pinned.array)].append(pinned)


class CudaLink:
    """Link to an NVIDIA GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream: Any = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch's
        self._pool = PinnedPool()
        self._held: list[Pinned] = []
        """Taken since the last landing: the next one gives it back."""

    def on_stream(self) -> AbstractContextManager[object]:
        """See Link."""
        return torch.cuda.stream(self._stream)

    def mirror(self, array: IntArray) -> Tensor:
        """See Link."""
        return torch.zeros(len(array), dtype=torch.int32, device=self.device)

    def send(self, array: IntArray, mirror: Tensor, size: int) -> None:
        """See Link."""
        pinned = self._take(size)
        pinned.array[:size] = array[:size]
        mirror[:size].copy_(pinned.tensor[:size], non_blocking=True)

    def upload(self, array: NDArray[Any]) -> Tensor:
        """See Link."""
        words = np.ascontiguousarray(array).view(np.int32)
        size = len(words)
        pinned = self._take(size)
        pinned.array[:size] = words
        target = torch.empty(size, dtype=torch.int32, device=self.device)
        target.copy_(pinned.tensor[:size], non_blocking=True)
        return target if array.dtype == np.int32 else target.view(torch.int64)

    def fetch(self, found: Logprobs) -> Logprobs:
        """See Link."""
        return Logprobs(*map(self._fetch, found))

    def land(
        self,
        step: int,
        tokens: Tensor,
        logprobs: Logprobs | None,
        scores: Scores = (),
        guesses: Tensor | None = None,
        vectors: Tensor | None = None,
    ) -> Landing:
        """See Link."""
        home = self._fetch(tokens)
        rows = None if logprobs is None else self.fetch(logprobs)
        told = None if guesses is None else self._fetch(guesses).numpy()
        states = None if vectors is None else self._fetch(vectors).numpy()
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's
        event.record(self._stream)
        held, self._held = self._held, []
        memory = (self._pool, held)
        result = StepResult(step, home.numpy(), guesses=told, vectors=states)
        return CudaLanding(result, rows, event, memory, scores)

    def settle(self) -> None:
        """See Link."""
        torch.cuda.synchronize(self.device)

    def _fetch(self, part: Tensor) -> Tensor:
        """Queue a copy of a tensor of words, into pinned memory of the pool.

        Not of torch's own allocator: freed by the thread that lands, it would record an event,
        which may fall into a capture.
        """
        home = self._take(part.numel()).tensor[: part.numel()]
        return home.view(part.dtype).view(part.shape).copy_(part, non_blocking=True)

    def _take(self, num_words: int) -> Pinned:
        pinned = self._pool.take(num_words)
        self._held.append(pinned)
        return pinned


class CudaLanding:
    """Landing of a step on a GPU; `result` is in pinned memory that fills until the event."""

    def __init__(
        self,
        result: StepResult,
        logprobs: Logprobs | None,
        event: torch.cuda.Event,
        memory: tuple[PinnedPool, list[Pinned]],
        scores: Scores = (),
    ) -> None:
        self._result = result
        self._logprobs = logprobs
        self._event = event
        self._memory = memory
        self._lock = threading.Lock()
        self._tokens: IntArray | None = None
        self._scores = scores

    @property
    def is_ready(self) -> bool:
        """See Landing."""
        return bool(self._event.query())  # type: ignore[no-untyped-call]  # torch's

    def result(self) -> StepResult:
        """See Landing."""
        tokens = self.tokens()
        # Copies, so that a result that is kept keeps no pinned memory.
        logprobs = None if self._logprobs is None else joined([self._logprobs])
        prompts = tuple(map(joined, self._scores))
        step, guesses, vectors = self._result.step, self._result.guesses, self._result.vectors
        guesses = None if guesses is None else guesses.copy()
        vectors = None if vectors is None else vectors.copy()
        result = StepResult(step, tokens, logprobs, (), prompts, guesses, vectors)
        pool, held = self._memory
        for pinned in held:
            pool.give_back(pinned)
        return result

    def tokens(self) -> IntArray:
        """See Landing: copied before pinned memory goes back."""
        with self._lock:
            if self._tokens is None:
                self._event.synchronize()
                self._tokens = self._result.token_ids.copy()
            return self._tokens
