"""Quire on a GPU, measured against what its memory and arithmetic allow, and against its peers.

`python -m quire.benchmarks.gpu`: first whether it is right (kernels against the reference, answers
against one request at a time), then speed. Writes JSON after every part, so that a run that is cut
short keeps what it had. Goals are for one H200.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import triton

from ..engine.device.check import run_checks
from ..engine.opset import choose_ops
from ..fuzz.engine_runs import ways_that_differ
from . import gpu_engine
from .gpu_guesses import measure_guesses
from .gpu_shapes import SHAPES

PARTS = ("right", "start", "8b", "guesses", "0.6b", "llama", "float32")
GOALS = {1: 0.80, 8: 0.80, 64: 0.72, 256: 0.65}
"""Shares of the floor that decode steps of an 8B model are to reach, by batch."""


class Report:
    """Figures, printed and written as they come."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._start = time.perf_counter()
        self._figures: dict[str, Any] = {
            "gpu": torch.cuda.get_device_name(),
            "versions": {
                "torch": torch.__version__,
                "triton": triton.__version__,
                "python": platform.python_version(),
            },
        }

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._start

    def add(self, name: str, measure: Callable[[], Any], goal: str = "") -> Any:
        """Measure, print and write; an exception is a figure too."""
        try:
            figure = measure()
        except Exception as error:
            figure = f"FAILED: {type(error).__name__}: {error}"
        self._figures[name] = figure
        self._path.write_text(json.dumps(self._figures, indent=1))
        shown = figure
        if isinstance(figure, dict):
            shown = {k: round(v, 4) if isinstance(v, float) else v for k, v in figure.items()}
        print(f"[{self.seconds:6.1f} s] {name}: {shown} {goal and f'(goal {goal})'}", flush=True)
        return figure


def check_kernels() -> str:
    """Compare every operation with the reference; raise where one differs."""
    device = torch.device("cuda", torch.cuda.current_device())
    verdicts = list(run_checks(choose_ops("cuda", "auto"), device))
    wrong = [str(verdict) for verdict in verdicts if verdict.fault is not None]
    if wrong:
        raise AssertionError("; ".join(wrong))
    return f"{len(verdicts)} cases equal"


def measure_8b(report: Report) -> None:
    """Decode, prefill and the whole workload with the shape of Qwen3-8B."""
    shape = SHAPES["qwen3-8b"]
    with gpu_engine.open_model(shape) as llm:
        for batch, goal in GOALS.items():
            report.add(
                f"{shape.name} decode {batch}",
                partial(gpu_engine.decode, llm, shape, batch, seed=batch),
                f"share {goal}",
            )
        report.add(
            f"{shape.name} decode 64, top_p 0.9",
            lambda: gpu_engine.decode(llm, shape, 64, seed=1064, temperature=1.0, top_p=0.9),
        )
        report.add(
            f"{shape.name} prefill 8192",
            lambda: gpu_engine.prefill(llm, shape, 8192, seed=2000),
            "share 0.55",
        )
        report.add(
            f"{shape.name} offline 256 x (1024, 1024)",
            lambda: gpu_engine.offline(llm, 256, 1024, 1024),
            "30.8 s",
        )


def measure_steps(report: Report, name: str, batches: tuple[int, ...], goal: str) -> None:
    """Decode steps of one more shape."""
    shape = SHAPES[name]
    with gpu_engine.open_model(shape) as llm:
        for batch in batches:
            report.add(
                f"{name} decode {batch}",
                partial(gpu_engine.decode, llm, shape, batch, seed=batch),
                goal if batch == 1 else "",
            )


def measure_part(report: Report, part: str) -> None:
    """Run one part."""
    match part:
        case "right":
            report.add("kernels against the reference", check_kernels)
            report.add("ways that differ, bfloat16", partial(ways_that_differ, "bfloat16"), "none")
        case "float32":
            report.add("ways that differ, float32", partial(ways_that_differ, "float32"), "none")
        case "8b":
            measure_8b(report)
        case "guesses":
            shape = SHAPES["qwen3-8b"]
            report.add(f"{shape.name} guesses, all right", lambda: measure_guesses(shape))
        case "0.6b":
            measure_steps(report, "qwen3-0.6b", (1, 8, 64, 256), "share 0.45")
        case "llama":
            measure_steps(report, "llama3-8b", (1, 8), "share 0.8")
        case "start":
            shape = SHAPES["qwen3-8b"]
            report.add(
                "seconds to the first token, 8B, kernels in Triton's cache",
                lambda: gpu_engine.seconds_to_first_token(shape),
                "15",
            )


def main() -> None:
    """Parse options and run the parts in their order."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/gpu.json"))
    parser.add_argument("--parts", default=",".join(PARTS))
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("PyTorch finds no NVIDIA GPU: this benchmark is for one.")
    report = Report(options.json)
    for part in options.parts.split(","):
        measure_part(report, part)


if __name__ == "__main__":
    main()
