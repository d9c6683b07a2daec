"""What drawing tokens costs in a decode step on a CPU: 32 sequences with all kinds of parameters.

The ~125 M-parameter shape of benchmarks.offline with random weights in bfloat16. Timed inside the
engine: from the logits to the drawn tokens and their log probabilities, edits included, and the
collecting of parameters, against whole steps. Random logits are flat: little is cut off by top_p.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from ..engine.device import runner
from ..engine.device.sampler import draw
from ..engine.device.sampling_rows import SamplingTable
from ..engine.llm import LLM
from ..engine.params import SamplingParams
from ..kernels import cpu as kernels
from .offline import SHAPE

BATCH = 32
PROMPT = 128
OUTPUT = 48
PLAIN: dict[str, Any] = {"temperature": 0.0}
MIXES: dict[str, list[dict[str, Any]]] = {
    "greedy": [PLAIN],
    "temperature": [{"temperature": 0.8}],
    "top_k, top_p, min_p": [
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 1.0, "top_k": 50},
        {"temperature": 1.0, "min_p": 0.05},
        {"temperature": 0.7, "top_k": 40, "top_p": 0.95},
    ],
    "penalties": [
        {"temperature": 0.8, "repetition_penalty": 1.1},
        {"temperature": 0.8, "frequency_penalty": 0.5, "presence_penalty": 0.5},
    ],
    "mixed": [
        PLAIN,
        {"temperature": 0.8},
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 1.0, "top_k": 50},
        {"temperature": 1.0, "min_p": 0.05, "presence_penalty": 0.5},
        {"temperature": 0.7, "top_k": 40, "top_p": 0.95, "repetition_penalty": 1.1},
        {"temperature": 0.8, "logit_bias": {7: 2.0, 100: -5.0}, "frequency_penalty": 0.3},
        {"temperature": 1.0, "logprobs": 5, "allowed_token_ids": list(range(0, 32000, 2))},
    ],
}


class Timer:
    """Seconds spent in wrapped calls, one inside another counted once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._inside = False

    def wrap(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Return call, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return call(*args, **kwargs)
            self._inside, start = True, time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self._inside = False
                self.seconds += time.perf_counter() - start

        return timed


def measure(llm: LLM, mix: list[dict[str, Any]], seed: int) -> tuple[float, float]:
    """Run BATCH requests; return the medians of (seconds of sampling, seconds of a step)."""
    fixed: dict[str, Any] = {"max_tokens": OUTPUT, "ignore_eos": True, "detokenize": False}
    each = [SamplingParams(seed=i, **fixed, **mix[i % len(mix)]) for i in range(BATCH)]
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(10, 31990, (BATCH, PROMPT), generator=generator).tolist()
    timer, steps = Timer(), []
    launch = runner.ModelRunner.launch

    def step(self: runner.ModelRunner, plan: Any) -> Any:
        timer.seconds, start = 0.0, time.perf_counter()
        landing = launch(self, plan)
        if len(plan.slots) == BATCH == plan.num_scheduled_tokens:
            steps.append((timer.seconds, time.perf_counter() - start))
        return landing

    with (
        mock.patch.object(runner, "draw", timer.wrap(draw)),
        mock.patch.object(kernels, "sample", timer.wrap(kernels.sample)),
        mock.patch.object(SamplingTable, "fill", timer.wrap(SamplingTable.fill)),
        mock.patch.object(runner.ModelRunner, "launch", step),
    ):
        llm.generate(prompts, each, use_tqdm=False)
    llm.reset_prefix_cache()
    assert len(steps) > OUTPUT // 2, len(steps)
    drawing, whole = zip(*steps, strict=True)
    return statistics.median(drawing), statistics.median(whole)


def measure_all(num_threads: int, num_runs: int) -> list[dict[str, Any]]:
    """Measure all mixes; print and return the medians."""
    rows = []
    torch.set_num_threads(num_threads)
    with tempfile.TemporaryDirectory() as folder:
        config = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", **SHAPE}
        (Path(folder) / "config.json").write_text(json.dumps(config))
        llm = LLM(
            folder,
            load_format="dummy",
            dtype="bfloat16",
            skip_tokenizer_init=True,
            num_threads=num_threads,
            num_kv_blocks=1024,
        )
        for name, mix in MIXES.items():
            runs = sorted(measure(llm, mix, seed) for seed in range(num_runs + 1))[:-1]
            drawing, whole = (statistics.median(run[i] for run in runs) for i in (0, 1))
            rows.append({"mix": name, "sampling_s": drawing, "step_s": whole})
            share = drawing / whole
            print(f"{name:20} {1e3 * drawing:6.2f} of {1e3 * whole:6.2f} ms  {share:6.2%}")
        llm.close()
    return rows


def main() -> None:
    """Measure with some numbers of threads, and print the shares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[2])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = [
        {"threads": threads, "mixes": measure_all(threads, options.runs)}
        for threads in options.threads
    ]
    if options.json:
        machine = {"processor": platform.processor() or platform.machine()}
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        report = {"machine": machine, "versions": versions, "shape": SHAPE, "runs": found}
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
