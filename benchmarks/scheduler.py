"""Cost of the control plane: steady decode, admission, hashing; no model behind it.

Run as `python -m quire.benchmarks.scheduler [--json FILE]`. Every figure is also given in loops:
the time of an empty 100,000-iteration Python loop, timed before and after each measurement in the
same process, so that figures from machines and moments of different speed compare. All times are
CPU time of the thread, which others on the machine disturb less than the wall clock's.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from msgspec import Struct, to_builtins

from ..engine.kv.hashing import BlockHasher
from ..engine.params import SamplingParams
from ..engine.plan import StepResult
from ..engine.request import IntArray, Request
from ..engine.sched.scheduler import Scheduler, SchedulerLimits

BLOCK_SIZE = 16
VOCAB = 32_000
ROUNDS = 7
DECODE_LOOPS = {16: 0.02, 256: None, 1024: 0.14, 4096: None}
ADMISSION_LOOPS = 10_000 / 5_000 / 1.8e-3
HASHING_LOOPS = 1.7
STEPS = 8 * BLOCK_SIZE
NUM_TENANTS = 16


class Figure(Struct):
    """One measurement: medians over ROUNDS."""

    name: str
    time_us: float
    loops: float
    budget_loops: float | None

    def line(self) -> str:
        """Format for people."""
        budget = "" if self.budget_loops is None else f"  (budget {self.budget_loops:.4g})"
        verdict = "" if self.budget_loops is None else ("  ok" if self.met else "  OVER")
        return f"{self.name:46s} {self.time_us:12.1f} us {self.loops:10.4f} loops{budget}{verdict}"

    @property
    def met(self) -> bool:
        """Whether the budget holds."""
        return self.budget_loops is None or self.loops <= self.budget_loops


def loop_s() -> float:
    """Time the yardstick once."""
    start = time.thread_time()
    for _ in range(100_000):
        pass
    return time.thread_time() - start


def measure(name: str, run: Callable[[], float], budget: float | None) -> Figure:
    """Take the medians of `run` (which returns seconds) and of its quotients by the yardstick."""
    times, loops = [], []
    for _ in range(ROUNDS):
        before = min(loop_s() for _ in range(3))
        seconds = run()
        after = min(loop_s() for _ in range(3))
        times.append(seconds)
        loops.append(seconds / ((before + after) / 2))
    return Figure(name, statistics.median(times) * 1e6, statistics.median(loops), budget)


def make_request(
    request_id: str, prompt: IntArray, *, max_tokens: int | None = None, tenant: str = ""
) -> Request:
    """Make a request that ends by length: its end-of-sequence id is never drawn."""
    params = SamplingParams(max_tokens=max_tokens)
    return Request(
        request_id=request_id,
        prompt_token_ids=prompt,
        params=params,
        seed=0,
        eos_token_ids=(VOCAB + 1,),
        tenant=tenant,
    )


class Decode:
    """Sequences in steady decode whose blocks open evenly over the steps."""

    def __init__(self, num_seqs: int, num_tenants: int = 0, seed: int = 0) -> None:
        """num_tenants: of whom each has its share of the sequences, and a request that waits."""
        self._rng = np.random.default_rng(seed)
        self._num_seqs = num_seqs
        length = 64 + BLOCK_SIZE + (ROUNDS + 2) * STEPS
        limits = SchedulerLimits(
            max_num_seqs=num_seqs,
            max_num_batched_tokens=num_seqs * 128,
            max_model_len=length + BLOCK_SIZE,
            block_size=BLOCK_SIZE,
            num_blocks=num_seqs * (length // BLOCK_SIZE + 2),
        )
        self._scheduler = Scheduler(limits)
        for i in range(num_seqs):
            prompt = self._rng.integers(0, VOCAB, 64 + i % BLOCK_SIZE, dtype=np.int32)
            tenant = str(i % num_tenants) if num_tenants else ""
            self._scheduler.add(make_request(f"request-{i}", prompt, tenant=tenant))
        for i in range(num_tenants):
            prompt = self._rng.integers(0, VOCAB, 64, dtype=np.int32)
            self._scheduler.add(make_request(f"waiting-{i}", prompt, tenant=str(i)))
        self.run()

    def run(self) -> float:
        """Give the mean seconds of plan + commit + retire over all phases of a block."""
        scheduler, num_seqs = self._scheduler, self._num_seqs
        drawn = self._rng.integers(0, VOCAB, (STEPS, num_seqs), dtype=np.int32)
        start = time.thread_time()
        for token_ids in drawn:
            decision = scheduler.plan()
            assert decision is not None
            plan = scheduler.commit(decision)
            events = scheduler.retire(plan, StepResult(plan.step, token_ids))
            assert len(events.request_ids) == num_seqs
        return (time.thread_time() - start) / STEPS


def admission_s(num_tenants: int = 1, num_requests: int = 10_000) -> float:
    """Give the seconds to add, admit, prefill and finish requests of 1,000 tokens.

    Every other one shares its first 800 tokens. The pool is smaller than all of them need, so that
    the cache evicts as it does in service.
    """
    rng = np.random.default_rng(1)
    limits = SchedulerLimits(
        max_num_seqs=256,
        max_num_batched_tokens=8192,
        max_model_len=4096,
        block_size=BLOCK_SIZE,
        num_blocks=50_000,
    )
    scheduler = Scheduler(limits)
    prompts = rng.integers(0, VOCAB, (num_requests, 1000), dtype=np.int32)
    prompts[::2, :800] = prompts[0, :800]
    requests = [
        make_request(f"request-{i}", prompt, max_tokens=1, tenant=str(i % num_tenants))
        for i, prompt in enumerate(prompts)
    ]
    drawn = rng.integers(0, VOCAB, limits.max_num_seqs, dtype=np.int32)
    start = time.thread_time()
    for request in requests:
        scheduler.add(request)
    while scheduler.has_unfinished:
        decision = scheduler.plan()
        assert decision is not None
        plan = scheduler.commit(decision)
        count = np.count_nonzero(plan.samples)
        scheduler.retire(plan, StepResult(plan.step, drawn[:count]))
    seconds = time.thread_time() - start
    stats = scheduler.stats
    assert stats.prefix_hits >= (num_requests // 2 - 1) * 800, stats
    return seconds


def hashing_s(num_tokens: int = 100_000) -> float:
    """Give the seconds to key the blocks of one long prompt."""
    tokens = np.random.default_rng(2).integers(0, VOCAB, num_tokens, dtype=np.int32)
    hasher = BlockHasher(BLOCK_SIZE, bytes(16))
    start = time.thread_time()
    keys: list[bytes] = []
    hasher.extend(keys, hasher.root(None), tokens)
    seconds = time.thread_time() - start
    assert len(keys) == num_tokens // BLOCK_SIZE
    return seconds


def main(arguments: list[str] | None = None) -> int:
    """Measure all, print, and tell by the exit status whether the budgets hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    figures = []
    for num_seqs, budget in DECODE_LOOPS.items():
        decode = Decode(num_seqs)
        figures.append(measure(f"decode step, {num_seqs} sequences", decode.run, budget))
        print(figures[-1].line(), flush=True)
    decode = Decode(1024, NUM_TENANTS)
    name = f"decode step, 1024 of {NUM_TENANTS} tenants, all waiting"
    figures.append(measure(name, decode.run, DECODE_LOOPS[1024]))
    print(figures[-1].line(), flush=True)
    for num_tenants in (1, NUM_TENANTS):
        name = f"admission of 10,000 requests, {num_tenants} tenants"
        figures.append(measure(name, partial(admission_s, num_tenants), ADMISSION_LOOPS))
        print(figures[-1].line(), flush=True)
    figures.append(measure("keys of 100,000 tokens", hashing_s, HASHING_LOOPS))
    print(figures[-1].line(), flush=True)
    if options.json:
        record = {
            "machine": f"{platform.machine()} {platform.processor()}".strip(),
            "python": platform.python_version(),
            "numpy": np.__version__,
            "figures": [to_builtins(figure) for figure in figures],
        }
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(figure.met for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
