"""What a noisy tenant does to quiet ones, simulated: python -m quire.benchmarks.fairness

One replica on virtual time (see virtual.py) with the cost of an 8B model on an H200. Quiet tenants
ask for a twentieth of its capacity each, by Poisson processes; the noisy one sends a multiple of
the whole capacity, or everything at once. Prints what the quiet ones wait for their first step:
alone, beside the noisy one in one queue, and beside it as tenants. Then two tenants that both send
too much, with weights: what each is given. Times are virtual and the same on every machine.
"""

from __future__ import annotations

import argparse
import heapq
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from msgspec import Struct, to_builtins

from ..engine.sched.scheduler import SchedulerLimits
from .cost_model import h200_8b
from .latency import Histogram
from .routing import make_router
from .traces import Arrival, Lengths, Segment, Traffic, arrivals
from .virtual import Setup, Simulation

NUM_QUIET = 8
QUIET_PART = 0.05
"""Of the capacity, each."""
SECONDS = 60.0
AT_ONCE = float("inf")
"""A rate."""
WEIGHTS = ({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 3.0}, {"a": 1.0, "b": 10.0})
NOISY = "noisy"
PROMPT, OUTPUT = Lengths(512, 0.8, 4096), Lengths(128, 0.6, 512)
SOURCES = 10**6
"""Of a tenant: no prompt begins like another's."""


class Waits(Struct, frozen=True):
    """What quiet requests wait for their first step, seconds."""

    setting: str
    requests: int
    p50: float
    p99: float
    most: float

    def line(self) -> str:
        """Format for people, in milliseconds."""
        figures = " ".join(f"{1e3 * s:10.1f}" for s in (self.p50, self.p99, self.most))
        return f"{self.setting:34s} {self.requests:6d} {figures}"


class Shares(Struct, frozen=True):
    """What two tenants got that both always wait."""

    weights: dict[str, float]
    served: dict[str, int]
    """Tokens, an output counted twice, of requests that ended."""
    ratio: float


class Load(NamedTuple):
    """One tenant's requests."""

    tenant: str
    rate: float
    """Requests a second."""
    num_requests: int

    def arrivals(self, number: int) -> Iterator[Arrival]:
        """Generate them; number: of the tenant, a seed too."""
        at_once = self.rate == AT_ONCE
        traffic = Traffic(
            kind="poisson",
            num_requests=self.num_requests,
            rate=1.0 if at_once else self.rate,
            seed=number,
            prompt=PROMPT,
            output=OUTPUT,
        )
        first = number * SOURCES
        for one in arrivals(traffic):
            prompt = tuple(Segment(s.source + first, s.length) for s in one.prompt)
            answer = Segment(one.answer.source + first, one.answer.length)
            yield Arrival(0.0 if at_once else one.arrival_s, prompt, answer, (), self.tenant)


def make_simulation(*, apart: bool = True, weights: dict[str, float] | None = None) -> Simulation:
    """Make one replica. apart: tenants are told to the scheduler."""
    limits = SchedulerLimits(
        max_num_seqs=256,
        max_num_batched_tokens=8192,
        max_model_len=8192,
        block_size=16,
        num_blocks=32768,
        tenant_weights=weights or {},
    )
    return Simulation(Setup(1, limits, h200_8b(), tenants=apart), make_router("round-robin"))


def merged(loads: Iterable[Load]) -> Iterator[Arrival]:
    """Merge the tenants' requests by their times."""
    streams = [load.arrivals(number) for number, load in enumerate(loads, 1)]
    return heapq.merge(*streams, key=lambda one: one.arrival_s)


def capacity(num_requests: int = 4000) -> float:
    """Requests a second that the replica answers when it has always enough to do."""
    outcome = make_simulation().run(merged([Load("", AT_ONCE, num_requests)]))
    return num_requests / outcome.makespan_s


def quiet_waits(name: str, noise: Load | None, per_s: float, *, apart: bool = True) -> Waits:
    """Let quiet tenants ask `per_s` requests a second each, beside a noisy one."""
    loads = [Load(f"quiet-{i}", per_s, round(per_s * SECONDS)) for i in range(NUM_QUIET)]
    simulation = make_simulation(apart=apart)
    outcome = simulation.run(merged([*loads, noise] if noise else loads))
    waits = Histogram()
    for tenant, histogram in outcome.latencies.queueing_of.items():
        if tenant != NOISY:
            waits.merge(histogram)
    return Waits(name, waits.count, waits.percentile(50), waits.percentile(99), waits.largest)


def shares(weights: dict[str, float], per_s: float) -> Shares:
    """Let two tenants ask for all of the replica each; count what ended while both waited."""
    simulation = make_simulation(weights=weights)
    loads = [Load(tenant, AT_ONCE, round(per_s * SECONDS)) for tenant in weights]
    for now_s in simulation.events(merged(loads)):
        if now_s > SECONDS / 2:
            break
    served = {tenant: simulation.served[tenant] for tenant in weights}
    first, second = served.values()
    return Shares(weights, served, second / first)


def main(arguments: list[str] | None = None) -> None:
    """Simulate all, print, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    most = capacity()
    per_s = QUIET_PART * most
    print(f"capacity {most:.1f} requests/s; {NUM_QUIET} quiet tenants ask for {per_s:.2f} each")
    print(f"{'queueing of quiet requests, ms':34s} {'number':>6s} {'p50':>10s} {'p99':>10s} most")
    waits = [quiet_waits("alone", None, per_s)]
    print(waits[-1].line(), flush=True)
    for name, rate, count in (("1x", most, 1), ("4x", 4 * most, 4), ("at once", AT_ONCE, 4)):
        noise = Load(NOISY, rate, round(count * most * SECONDS))
        for apart in (False, True):
            setting = f"noisy {name}, {'by tenant' if apart else 'one queue'}"
            waits.append(quiet_waits(setting, noise, per_s, apart=apart))
            print(waits[-1].line(), flush=True)
    given = [shares(weights, most) for weights in WEIGHTS]
    for one in given:
        print(f"weights {one.weights}: served as 1 : {one.ratio:.3f}")
    if options.json:
        figures = {
            "cost_model": to_builtins(h200_8b()),
            "capacity_per_s": most,
            "quiet_part": QUIET_PART,
            "waits": to_builtins(waits),
            "shares": to_builtins(given),
        }
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
