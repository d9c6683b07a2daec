"""What guessing costs, as it is measured at a start."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from quire.engine import guess_costs
from quire.engine.config import SEVERAL, GuessCosts
from quire.engine.guess_costs import measure_costs
from quire.engine.plan import StepPlan, StepResult


class TimedRunner:
    """A runner whose steps take what they cost on a clock of its own."""

    def __init__(self, costs: GuessCosts, max_positions: int) -> None:
        self.costs, self.now = costs, 0.0
        config = SimpleNamespace(max_positions=max_positions)
        self.model = SimpleNamespace(config=config, device=SimpleNamespace(type="cpu"))
        self.longest = 0

    def renewal(self, **sizes: Any) -> Callable[[], TimedRunner]:
        """See ModelRunner."""
        self.longest = sizes["max_model_len"]
        return lambda: self

    def execute(self, plan: StepPlan) -> StepResult:
        """See ModelRunner."""
        assert int((plan.starts + plan.num_tokens).max()) < self.longest <= 32
        costs, drafts = self.costs, plan.drafts
        seconds = costs.of(plan.num_scheduled_tokens)
        if drafts is not None:
            seconds += costs.step
            if drafts.token_ids is None:
                seconds += costs.next * (int(drafts.counts.max()) - 1)
        self.now += seconds * costs.unit_s
        return StepResult(plan.step, np.zeros(len(plan.sampled()[0]), np.int32))


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("max_positions", [16, 40])
def test_costs_are_found_as_they_are(
    on_device: bool, max_positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that takes few tokens tells nothing of crowds: they cost what few do."""
    costs = GuessCosts(token=0.25, crowd=0.5, step=2.0, next=1.5 if on_device else 0.0, unit_s=2.0)
    runner: Any = TimedRunner(costs, max_positions)
    clock = SimpleNamespace(process_time=lambda: runner.now, perf_counter=lambda: runner.now)
    monkeypatch.setattr(guess_costs, "time", clock)
    found = measure_costs(runner, on_device=on_device)
    assert found == (costs if max_positions == 40 else replace(costs, crowd=0.25))


def test_what_the_scheduler_does_is_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step with guesses is planned, judged and counted, which a small model's step feels."""
    runner: Any = TimedRunner(GuessCosts(step=0.0, unit_s=1.0), 40)
    spent = {0: 1.0, 1: 4.0}
    clock = SimpleNamespace(process_time=lambda: runner.now, perf_counter=lambda: runner.now)
    monkeypatch.setattr(guess_costs, "time", clock)
    monkeypatch.setattr(guess_costs, "_scheduling_seconds", spent.__getitem__)
    found = measure_costs(runner, on_device=False)
    assert (found.unit_s, found.step, found.token) == (2.0, 1.5, 0.025)


def test_a_step_of_more_tokens_takes_longer() -> None:
    costs = GuessCosts(token=0.1, crowd=0.2)
    found = [costs.of(size) for size in (1, 2, SEVERAL, SEVERAL + 1, SEVERAL + 10)]
    assert found == pytest.approx([1.0, 1.1, 1.5, 1.7, 3.5])
