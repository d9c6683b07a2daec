"""The engine on a GPU: decode steps, prefill, a whole workload, the start.

Random weights in the shapes of known models, the law on, as always. Steps are timed as the engine
runs them, two in flight: the time between two results. Times of the host are those of scheduling
(the calling thread) and of queueing (the launching thread) for a step.
"""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch

from ..engine.core import EngineCore
from ..engine.device.runner import ModelRunner
from ..engine.llm import LLM
from ..engine.params import SamplingParams
from ..engine.request import Request
from .gpu_shapes import (
    FLOP_PER_S,
    SHAPES,
    ModelShape,
    decode_floor_ms,
    prefill_flops,
    write_checkpoint,
)


class Step(NamedTuple):
    """One step of a run."""

    num_drawn: int
    wall_s: float
    """From the result before to this one."""
    host_s: float
    """The calling thread's, without waiting."""


def drive(core: EngineCore, requests: list[Request]) -> list[Step]:
    """Answer requests; return the steps in the order of their results."""
    for request in requests:
        core.add(request)
    steps = []
    last = time.perf_counter()
    while core.has_unfinished:
        start = time.perf_counter()
        core.launch()
        launched = time.perf_counter()
        assert core.oldest is not None
        core.oldest.result()
        landed = time.perf_counter()
        events = core.land()
        now = time.perf_counter()
        steps.append(Step(len(events.request_ids), now - last, launched - start + now - landed))
        last = now
    return steps


def make_requests(count: int, prompt: int, output: int, seed: int, **params: Any) -> list[Request]:
    """Make requests of random tokens, each for exactly output tokens."""
    rng = np.random.default_rng(seed)
    sampling = SamplingParams(
        **({"temperature": 0.0} | params), max_tokens=output, ignore_eos=True, detokenize=False
    )
    return [
        Request(
            request_id=f"{seed}-{index}",
            prompt_token_ids=rng.integers(0, 100_000, prompt).astype(np.int32),
            params=sampling,
            seed=index,
        )
        for index in range(count)
    ]


@contextmanager
def launch_times() -> Iterator[list[float]]:
    """Collect the seconds that each launch takes its thread."""
    times: list[float] = []
    launch = ModelRunner.launch

    def timed(runner: ModelRunner, plan: Any) -> Any:
        start = time.perf_counter()
        landing = launch(runner, plan)
        times.append(time.perf_counter() - start)
        return landing

    with mock.patch.object(ModelRunner, "launch", timed):
        yield times


def decode(llm: LLM, shape: ModelShape, batch: int, seed: int, **params: Any) -> dict[str, Any]:
    """Time decode steps of a full batch, around 1,024 tokens of context: the median of three runs.

    The first run of a batch captures its graph and comes out slower, by up to 2%.
    """
    runs = [_decode_once(llm, batch, seed + 10_000 * run, **params) for run in range(3)]
    run = sorted(runs, key=lambda one: one["ms"])[1]
    floor = decode_floor_ms(shape, batch, 1024)
    return run | {"floor_ms": floor, "share": floor / run["ms"], "runs": [r["ms"] for r in runs]}


def _decode_once(llm: LLM, batch: int, seed: int, **params: Any) -> dict[str, Any]:
    with launch_times() as launches:
        output = 48 + batch // 2
        steps = drive(llm.core, make_requests(batch, 1000, output, seed, **params))
    full = [step for step in steps if step.num_drawn == batch][4:]
    return {
        "ms": statistics.median(step.wall_s for step in full) * 1e3,
        "steps": len(full),
        "schedule_ms": statistics.median(step.host_s for step in full) * 1e3,
        "launch_ms": statistics.median(launches[-len(full) :]) * 1e3,
    }


def prefill(llm: LLM, shape: ModelShape, num_tokens: int, seed: int) -> dict[str, Any]:
    """Time the first token of one prompt that fits into one step."""
    seconds = []
    for run in range(4):
        steps = drive(llm.core, make_requests(1, num_tokens, 1, seed + run))
        seconds.append(sum(step.wall_s for step in steps))
    best = statistics.median(seconds[1:])
    rate = prefill_flops(shape, num_tokens) / best
    return {"ms": best * 1e3, "tflop_per_s": rate / 1e12, "share": rate / FLOP_PER_S}


def offline(llm: LLM, count: int, prompt: int, output: int) -> dict[str, Any]:
    """Time a workload through LLM.generate, from call to return."""
    rng = np.random.default_rng(5)
    prompts = [rng.integers(0, 100_000, prompt).tolist() for _ in range(count)]
    params = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True, detokenize=False)
    start = time.perf_counter()
    outputs = llm.generate(prompts, params, use_tqdm=False)
    seconds = time.perf_counter() - start
    assert all(len(one.outputs[0].token_ids) == output for one in outputs)
    return {"s": seconds, "output_tokens_per_s": count * output / seconds}


@contextmanager
def open_model(shape: ModelShape, **options: Any) -> Iterator[LLM]:
    """Fill a model of a shape with random weights; give the GPU's memory back in the end."""
    common: dict[str, Any] = {"max_model_len": 9216, "device": "cuda", "load_format": "dummy"}
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(shape, Path(folder))
        with LLM(folder, skip_tokenizer_init=True, **(common | options)) as llm:
            yield llm
        del llm
    gc.collect()
    torch.cuda.empty_cache()


def seconds_to_first_token(shape: ModelShape) -> float:
    """Start a process, load the shape, answer: seconds from its start to its first token."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "quire.benchmarks.gpu_engine", shape.name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            if line.startswith("first token"):
                seconds = time.perf_counter() - start
                process.stdout.read()
                return seconds
    raise RuntimeError(f"{' '.join(command)} ended with {process.returncode} and no token")


def main() -> None:
    """Answer one request with a model of the shape that is named: for seconds_to_first_token."""
    with open_model(SHAPES[sys.argv[1]]) as llm:
        llm.generate([[1, 2, 3]], SamplingParams(max_tokens=1, detokenize=False), use_tqdm=False)
        print("first token", flush=True)


if __name__ == "__main__":
    main()
