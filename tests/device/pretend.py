"""CUDA as far as the engine's own code goes, on a CPU: streams, events, pinned memory and graphs.

Everything runs at once, but mirrors and pinned memory are memory of their own, and a graph replays
what was captured: a step that leans on anything of the host that changes gives other tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from quire.engine.device import cuda_link
from quire.engine.device.graphs import Graph
from torch import Tensor


class FakeStream:
    """A stream; a class, as torch's is, since others name it in their annotations."""

    def __init__(self, device: torch.device) -> None:
        self.device = device


class FakeEvent:
    """An event that has happened once it was recorded."""

    def __init__(self) -> None:
        self.recorded = False
        self.error: Exception | None = None

    def record(self, stream: object) -> None:
        self.recorded = True

    def query(self) -> bool:
        return self.recorded

    def synchronize(self) -> None:
        assert self.recorded
        if self.error is not None:
            raise self.error


class FakeCapture:
    """A graph that computes again what was captured, into the same output."""

    def __init__(self) -> None:
        self.num_captured = 0

    def __call__(self, compute: Callable[[], Tensor]) -> Graph:
        self.num_captured += 1
        output = torch.full_like(compute(), -99)
        return Graph(lambda: output.copy_(compute()), output)


def pretend_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make CudaLink and what measures memory work without a GPU."""
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Some GPU")

    def pin(shape: tuple[int, ...], dtype: torch.dtype) -> Any:
        return torch.full(shape, 77, dtype=dtype)

    monkeypatch.setattr(cuda_link, "pin", pin)
