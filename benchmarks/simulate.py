"""Many replicas under much traffic, simulated: python -m quire.benchmarks.simulate

The schedulers are the real ones and every step is theirs (see virtual.py); a cost model stands in
for the device, so that a run needs neither tensors nor a GPU. Prints queueing, latencies, hit
rate, preemptions and the spread over replicas. `--grid` runs all kinds of traffic with all
routers. `--processes` divides the replicas where the router does not look at them: round robin
and traffic without turns. Every process then reads the whole trace and simulates its own replicas,
which gives what one process gives.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import Struct, to_builtins
from msgspec.structs import replace

from ..engine.sched.scheduler import SchedulerLimits
from .cost_model import CostModel, h200_8b, read_model
from .latency import Outcome, merged
from .routing import ROUTERS, RouterName, make_router
from .simulate_plot import draw
from .traces import KINDS, Arrival, Lengths, Traffic, TrafficKind, arrivals, read_trace, write_trace
from .virtual import Setup, Simulation


class Job(Struct, frozen=True):
    """One simulation."""

    traffic: Traffic
    router: RouterName
    setup: Setup
    trace: str | None = None
    """A trace file, in place of the generated traffic."""

    @property
    def name(self) -> str:
        """What to call it."""
        source = self.trace or self.traffic.kind
        return f"{source}, {self.router}, {self.setup.num_replicas} replicas"

    def requests(self) -> Iterator[Arrival]:
        """Stream the requests."""
        return arrivals(self.traffic) if self.trace is None else read_trace(Path(self.trace))


def simulate(job: Job) -> Outcome:
    """Run one job in this process."""
    return Simulation(job.setup, make_router(job.router)).run(job.requests())


def simulate_sharded(job: Job, num_processes: int) -> Outcome:
    """Run one job with its replicas divided over processes: see the module."""
    assert job.router == "round-robin" and job.traffic.kind != "agent" and job.trace is None, job
    start = time.perf_counter()
    count = min(num_processes, job.setup.num_replicas)
    shards = [
        replace(job, setup=replace(job.setup, shard=i, num_shards=count)) for i in range(count)
    ]
    with make_pool(count) as pool:
        parts = list(pool.map(simulate, shards))
    return merged(parts, time.perf_counter() - start)


def make_pool(num_processes: int) -> ProcessPoolExecutor:
    """Start processes that inherit nothing."""
    return ProcessPoolExecutor(num_processes, multiprocessing.get_context("spawn"))


HEADER = (
    f"{'traffic':13} {'router':12} {'queue p50':>9} {'p99':>8} {'ttft p50':>9} {'p90':>8} "
    f"{'p99':>8} {'itl p50':>8} {'p99':>7} {'hits':>5} {'preempt':>7} {'busy':>5} "
    f"{'span s':>8} {'wall s':>7}"
)


def line(job: Job, outcome: Outcome) -> str:
    """Format one job for a table; times in milliseconds where nothing else is said."""
    figures: dict[str, Any] = outcome.figures()
    queue, ttft, itl = figures["queueing"], figures["ttft"], figures["itl"]
    return (
        f"{job.traffic.kind if job.trace is None else 'trace':13} {job.router:12} "
        f"{queue['p50_ms']:9.1f} {queue['p99_ms']:8.1f} {ttft['p50_ms']:9.1f} "
        f"{ttft['p90_ms']:8.1f} {ttft['p99_ms']:8.1f} {itl['p50_ms']:8.2f} {itl['p99_ms']:7.1f} "
        f"{figures['hit_rate']:5.2f} {figures['preemptions']:7d} {figures['utilisation']:5.2f} "
        f"{figures['makespan_s']:8.1f} {figures['wall_s']:7.1f}"
    )


def spread_lines(outcome: Outcome) -> Iterator[str]:
    """Format the spread over replicas."""
    figures: dict[str, Any] = outcome.figures()
    for name, spread in figures["by_replica"].items():
        values = " ".join(f"{key} {value:.4g}" for key, value in spread.items())
        yield f"  {name + ' by replica:':26} {values}"


def make_jobs(options: argparse.Namespace, cost: CostModel) -> list[Job]:
    """Make the one job that is asked for, or the grid."""
    limits = SchedulerLimits(
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_model_len=options.max_model_len,
        block_size=16,
        num_blocks=options.num_blocks,
    )
    setup = Setup(options.replicas, limits, cost)
    kinds: list[TrafficKind] = [options.traffic]
    routers: list[RouterName] = [options.router]
    if options.grid:
        kinds, routers = list(KINDS), list(ROUTERS)
    rate = options.rate or options.rate_per_replica * options.replicas
    output = Lengths(options.output_median, 0.6, max(1, round(4 * options.output_median)))
    prompt = Lengths(options.prompt_median, 0.8, max(1, round(10 * options.prompt_median)))
    return [
        Job(
            Traffic(
                kind=kind,
                num_requests=options.requests,
                rate=rate,
                seed=options.seed,
                prompt=prompt,
                output=output,
                max_len=options.max_model_len,
            ),
            router,
            setup,
            options.trace,
        )
        for kind in kinds
        for router in routers
    ]


def record(jobs: list[Job], outcomes: list[Outcome], note: str) -> dict[str, object]:
    """Gather what a results file says."""
    runs = {}
    for job, outcome in zip(jobs, outcomes, strict=True):
        source = {"trace": job.trace} if job.trace else {"traffic": to_builtins(job.traffic)}
        runs[job.name] = source | {"router": job.router} | outcome.figures()
    return {
        "machine": f"{platform.machine()} {platform.processor()}".strip(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "note": note,
        "cost_model": to_builtins(jobs[0].setup.cost),
        "limits": to_builtins(jobs[0].setup.limits),
        "runs": runs,
    }


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--traffic", choices=KINDS, default="shared-prefix")
    parser.add_argument("--router", choices=ROUTERS, default="prefix-aware")
    parser.add_argument("--grid", action="store_true", help="all traffics with all routers")
    parser.add_argument("--replicas", type=int, default=10)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--rate", type=float, help="requests a second, of all replicas")
    parser.add_argument("--rate-per-replica", type=float, default=30.0)
    parser.add_argument("--prompt-median", type=float, default=192)
    parser.add_argument("--output-median", type=float, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--max-num-batched-tokens", type=int, default=8192)
    parser.add_argument("--max-model-len", type=int, default=8192)
    parser.add_argument("--num-blocks", type=int, default=8192, help="of a replica, 16 tokens each")
    parser.add_argument("--cost", type=Path, help="a model of benchmarks.cost_model; default: H200")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--trace", help="read the requests from this file")
    parser.add_argument("--write-trace", type=Path, help="write the requests, simulate nothing")
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--note", default="", help="a remark for that file")
    parser.add_argument("--svg", type=Path, help="draw the first run into this file")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Simulate what is asked for."""
    options = make_parser().parse_args(arguments)
    cost = read_model(options.cost) if options.cost else h200_8b()
    jobs = make_jobs(options, cost)
    if options.write_trace:
        print(write_trace(options.write_trace, jobs[0].requests()), "lines")
        return
    print(f"cost: {cost.name}, fit error {cost.median_error:.1%}, worst {cost.worst_error:.1%}")
    print(HEADER, flush=True)
    outcomes = []
    for job, outcome in zip(jobs, run_all(jobs, options.processes), strict=True):
        outcomes.append(outcome)
        print(line(job, outcome), flush=True)
        if len(jobs) == 1:
            print("\n".join(spread_lines(outcome)))
    if options.json:
        text = json.dumps(record(jobs, outcomes, options.note), indent=1)
        options.json.write_text(text + "\n")
    if options.svg:
        options.svg.write_text(draw(outcomes[0], jobs[0].name))


def run_all(jobs: list[Job], num_processes: int) -> Iterator[Outcome]:
    """Run jobs side by side, or a single one divided where that is possible."""
    if num_processes == 1:
        yield from map(simulate, jobs)
    elif len(jobs) > 1:
        with make_pool(num_processes) as pool:
            yield from pool.map(simulate, jobs)
    else:
        yield simulate_sharded(jobs[0], num_processes)


if __name__ == "__main__":
    main()
