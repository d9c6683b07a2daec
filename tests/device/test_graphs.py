"""When a step becomes a graph, and what happens where it cannot."""

from __future__ import annotations

from collections.abc import Callable

import torch
from quire.engine.device.graphs import Graph, GraphKey, StepGraphs
from torch import Tensor

from .pretend import FakeCapture

KEY, OTHER = GraphKey("tokens", 4, 4, False), GraphKey("hidden", 4, 4, False)


class Counter:
    """A step that counts how often it was computed."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Tensor:
        self.calls += 1
        return torch.tensor([self.calls])


def test_the_first_run_is_plain_the_second_captures_and_all_later_ones_replay() -> None:
    capture = FakeCapture()
    graphs = StepGraphs(capture)
    first, later = Counter(), Counter()
    assert graphs.run(KEY, first).tolist() == [1]
    assert (capture.num_captured, graphs.has(KEY)) == (0, False)
    assert graphs.run(KEY, first).tolist() == [3]
    assert (capture.num_captured, graphs.has(KEY)) == (1, True)
    assert graphs.run(KEY, later).tolist() == [4]
    assert (first.calls, later.calls) == (4, 0)


def test_each_kind_and_size_has_a_graph_of_its_own() -> None:
    capture = FakeCapture()
    graphs = StepGraphs(capture)
    for key in (KEY, OTHER, KEY):
        graphs.run(key, Counter())
    assert (graphs.has(KEY), graphs.has(OTHER), capture.num_captured) == (True, False, 1)


def test_a_step_that_cannot_be_captured_runs_without() -> None:
    attempts = []

    def refuse(compute: Callable[[], Tensor]) -> Graph:
        attempts.append(compute)
        raise RuntimeError("operation not permitted when stream is capturing")

    graphs = StepGraphs(refuse)
    step = Counter()
    assert [graphs.run(KEY, step).item() for _ in range(4)] == [1, 2, 3, 4]
    assert len(attempts) == 1
    assert not graphs.has(KEY)
