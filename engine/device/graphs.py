"""StepGraphs: padded steps as CUDA graphs, one for each size and kind of step.

A graph replays the kernels of a step by one call, without Python. Everything that it reads stays
where it is: weights, KV memory, the device table and the mirror of StepInputs. Graphs share one
pool of memory, since only one of them runs at a time; what one leaves behind is used before the
next one runs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

logger = logging.getLogger("quire")


class GraphKey(NamedTuple):
    """Which graph."""

    kind: str
    num_rows: int
    num_tokens: int
    has_tail: bool
    """Whether some of the tokens yield no sample."""


class Graph(NamedTuple):
    """A step that was captured."""

    replay: Callable[[], object]
    output: Tensor
    """What replay() writes."""


class Capture(Protocol):
    """How a step becomes a graph; it does not run meanwhile."""

    def __call__(self, compute: Callable[[], Tensor]) -> Graph: ...


class StepGraphs:
    """All graphs of a runner. One thread calls it, on the runner's stream."""

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._graphs: dict[GraphKey, Graph | None] = {}
        """None: computed once, so that its kernels are compiled and loaded, which no capture may
        do."""
        self._refused: set[GraphKey] = set()

    def run(self, key: GraphKey, compute: Callable[[], Tensor]) -> Tensor:
        """Compute a step, the first time as it is, from the second on by its graph.

        The result is valid until the next run.
        """
        if key not in self._graphs or key in self._refused:
            self._graphs[key] = None
            return compute()
        graph = self._graphs[key]
        if graph is None:
            try:
                graph = self._graphs[key] = self._capture(compute)
            except RuntimeError as error:
                logger.warning("steps of %s run without a graph: %s", key, error)
                self._refused.add(key)
        if graph is None:  # the step itself may well run: a graph is only about speed
            return compute()
        graph.replay()
        return graph.output

    def has(self, key: GraphKey) -> bool:
        """Whether a step has its graph."""
        return self._graphs.get(key) is not None


class CudaCapture:
    """Capture by CUDA, on the current stream."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, compute: Callable[[], Tensor]) -> Graph:
        """See Capture."""
        graph = torch.cuda.CUDAGraph()
        # thread_local: another thread may wait for an earlier step's event meanwhile.
        with torch.cuda.graph(
            graph,
            pool=self._pool,
            stream=torch.cuda.current_stream(),
            capture_error_mode="thread_local",
        ):
            output = compute()
        return Graph(graph.replay, output)
