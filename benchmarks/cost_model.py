"""What a step costs: a + b * tokens + c * rows + d * (positions read), fitted to measured steps.

`python -m quire.benchmarks.cost_model --json FILE` times real steps of the demo model on this CPU,
fits them and writes the model. The fit is least squares of relative errors with no coefficient
below zero, found by trying every subset of the four. It is additive where a device is a roofline:
an H200 multiplies a small batch's tokens while it reads the weights, so that decode and prefill
do not share one price a token; the errors of the fit below say how much that matters.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from unittest import mock

import msgspec
import numpy as np
from msgspec import Struct

from ..engine.params import SamplingParams
from ..engine.request import Request

if TYPE_CHECKING:
    from ..engine.core import EngineCore
    from ..engine.plan import StepPlan

GPU_RESULTS = Path(__file__).parent / "results" / "gpu-h200.json"


class StepCost(NamedTuple):
    """One observation. Sums of several steps are one too, with their number in `steps`."""

    tokens: float
    rows: float
    positions: float
    """Sum over rows of the keys that their last token sees."""
    seconds: float
    steps: float = 1.0


class CostModel(Struct, frozen=True):
    """Seconds of a step, by its plan."""

    name: str
    step_s: float
    token_s: float
    row_s: float
    position_s: float
    median_error: float = 0.0
    """Relative, over the observations that it was fitted to,"""
    worst_error: float = 0.0
    """and the largest."""

    def seconds(self, tokens: float, rows: float, positions: float, steps: float = 1.0) -> float:
        """Price a step, or the sums over several."""
        return (
            self.step_s * steps
            + self.token_s * tokens
            + self.row_s * rows
            + self.position_s * positions
        )


def fit(name: str, observed: Sequence[StepCost]) -> CostModel:
    """Fit the four coefficients, none below zero, to the least squares of relative errors."""
    costs = np.array([(o.steps, o.tokens, o.rows, o.positions) for o in observed], np.float64)
    seconds = np.array([o.seconds for o in observed], np.float64)
    assert len(observed) and (seconds > 0).all(), "times must be positive"
    scaled = costs / seconds[:, None]
    best, least = np.zeros(4), float("inf")
    for size in range(1, 5):
        for chosen in combinations(range(4), size):
            columns = scaled[:, chosen]
            norms = np.linalg.norm(columns, axis=0)
            norms[norms == 0] = 1.0
            solved = np.linalg.lstsq(columns / norms, np.ones(len(observed)), rcond=None)[0] / norms
            error = float(np.square(columns @ solved - 1).sum())
            if (solved >= 0).all() and error < least * (1 - 1e-9):
                best, least = np.zeros(4), error
                best[list(chosen)] = solved
    errors = np.abs(scaled @ best - 1)
    a, b, c, d = best.tolist()
    return CostModel(name, a, b, c, d, float(np.median(errors)), float(errors.max()))


def h200_observations(path: Path = GPU_RESULTS) -> list[StepCost]:
    """Give what gpu-h200.json says of Qwen3-8B.

    Decode is measured around 1,024 positions a row. The offline run (256 prompts of 1,024 tokens
    for 1,024 tokens each) is one observation of many steps: 32 full prefill steps of 8,192 tokens,
    then 1,023 decode steps.
    """
    figures = json.loads(path.read_text())
    observed = []
    for rows in (1, 8, 64, 256):
        seconds = figures[f"qwen3-8b decode {rows}"]["ms"] / 1e3
        observed.append(StepCost(rows, rows, rows * 1024, seconds))
    seconds = figures["qwen3-8b prefill 8192"]["ms"] / 1e3
    observed.append(StepCost(8192, 1, 8192, seconds))
    seconds = figures["qwen3-8b offline 256 x (1024, 1024)"]["s"]
    decoded = 256 * 1023
    positions = 256 * 1024 + sum(256 * (1024 + i) for i in range(1, 1024))
    observed.append(StepCost(256 * 1024 + decoded, 256 + decoded, positions, seconds, 32 + 1023))
    return observed


def h200_8b() -> CostModel:
    """Fit an H200 with an 8B model in bfloat16."""
    return fit("H200, Qwen3-8B", h200_observations())


def read_model(path: Path) -> CostModel:
    """Read a model that `main` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=CostModel)


def measure(core: EngineCore, *, vocab: int, max_len: int, seed: int = 0) -> list[StepCost]:
    """Time steps of a real engine on the CPU, one in flight: chunks, decodes and mixtures.

    Counts the CPU time of the process, which others on the machine disturb less.
    """
    from ..engine.device.runner import ModelRunner

    plans: list[StepPlan] = []
    launch = ModelRunner.launch

    def noted(runner: ModelRunner, plan: StepPlan) -> Any:
        plans.append(plan)
        return launch(runner, plan)

    rng = np.random.default_rng(seed)
    observed: list[StepCost] = []
    with mock.patch.object(ModelRunner, "launch", noted):
        for wave in range(40):
            for index in range(int(rng.choice([1, 2, 4, 8, 16, 32]))):
                length = int(rng.integers(4, max_len - 20))
                request = Request(
                    request_id=f"{wave}-{index}",
                    prompt_token_ids=rng.integers(0, vocab, length).astype(np.int32),
                    params=SamplingParams(
                        temperature=0.0, max_tokens=int(rng.integers(2, 16)), ignore_eos=True
                    ),
                    seed=index,
                )
                core.add(request)
            for _ in range(int(rng.integers(6, 24)) if wave < 39 else 10_000):
                if not core.has_unfinished:
                    break
                observed.append(_timed_step(core, plans))
    return observed[len(observed) // 10 :]


def _timed_step(core: EngineCore, plans: list[StepPlan]) -> StepCost:
    start = time.process_time()
    core.launch()
    core.land()
    seconds = time.process_time() - start
    plan = plans[-1]
    positions = int(plan.starts.sum()) + plan.num_scheduled_tokens
    return StepCost(plan.num_scheduled_tokens, len(plan.slots), positions, seconds)


def main() -> None:
    """Measure the demo model on this CPU, fit, print and write."""
    from ..engine.llm import LLM

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the fitted model to this file")
    parser.add_argument("--max-len", type=int, default=400, help="longest prompt")
    options = parser.parse_args()
    with LLM(
        device="cpu",
        overlap=1,
        num_threads=1,
        max_num_batched_tokens=512,
        max_num_seqs=64,
        enable_prefix_caching=False,
    ) as llm:
        observed = measure(llm.core, vocab=256, max_len=options.max_len)
    machine = platform.processor() or platform.machine()
    model = fit(f"demo model, one thread of {machine}", observed)
    print(f"{len(observed)} steps")
    for one in (model, h200_8b()):
        print(one)
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(model), indent=1) + b"\n")


if __name__ == "__main__":
    main()
