"""The cost model: what a fit recovers, and how well it fits what was measured."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from quire.benchmarks.cost_model import (
    CostModel,
    StepCost,
    fit,
    h200_8b,
    h200_observations,
    read_model,
)


def observe(model: CostModel, noise: float = 0.0) -> list[StepCost]:
    rng = np.random.default_rng(0)
    observed = []
    for _ in range(200):
        rows = int(rng.integers(1, 64))
        tokens = rows + int(rng.integers(0, 2000))
        positions = tokens + int(rng.integers(0, 100_000))
        seconds = model.seconds(tokens, rows, positions) * (1 + noise * rng.standard_normal())
        observed.append(StepCost(tokens, rows, positions, seconds))
    return observed


@pytest.mark.parametrize("row_s", [0.0, 2e-5])
def test_a_fit_recovers_the_coefficients(row_s: float) -> None:
    known = CostModel("known", 4e-3, 3e-5, row_s, 2e-8)
    found = fit("found", observe(known))
    assert found.step_s == pytest.approx(known.step_s, rel=1e-6)
    assert found.token_s == pytest.approx(known.token_s, rel=1e-6)
    assert found.row_s == pytest.approx(known.row_s, rel=1e-6, abs=1e-12)
    assert found.position_s == pytest.approx(known.position_s, rel=1e-6)
    assert found.worst_error < 1e-6


def test_noise_shows_as_the_error_of_the_fit() -> None:
    found = fit("found", observe(CostModel("known", 4e-3, 3e-5, 2e-5, 2e-8), noise=0.05))
    assert found.token_s == pytest.approx(3e-5, rel=0.05)
    assert 0.02 < found.median_error < 0.06


def test_no_coefficient_is_negative() -> None:
    observed = [StepCost(n, n, n, 1.0 / n) for n in range(1, 9)]
    found = fit("falling", observed)
    assert min(found.step_s, found.token_s, found.row_s, found.position_s) >= 0


def test_the_h200_fit_is_close_to_what_was_measured() -> None:
    model = h200_8b()
    assert model.median_error < 0.02 and model.worst_error < 0.06
    for one in h200_observations():
        given = model.seconds(one.tokens, one.rows, one.positions, one.steps)
        assert given == pytest.approx(one.seconds, rel=0.06)


def test_a_model_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(msgspec.json.encode(h200_8b()))
    assert read_model(path) == h200_8b()
