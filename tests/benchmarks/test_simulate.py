"""The simulator: what goes in comes out once, times that can be worked out by hand, M/D/1."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from quire.benchmarks.cost_model import CostModel
from quire.benchmarks.latency import Outcome, merged
from quire.benchmarks.routing import ROUTERS, make_router
from quire.benchmarks.simulate import main
from quire.benchmarks.traces import KINDS, Arrival, Lengths, Segment, Traffic, Turn, arrivals
from quire.benchmarks.virtual import Setup, Simulation
from quire.engine.errors import ParamsError
from quire.engine.sched.scheduler import SchedulerLimits

LIMITS = SchedulerLimits(
    max_num_seqs=8,
    max_num_batched_tokens=64,
    max_model_len=400,
    block_size=16,
    num_blocks=28,
)
SECOND = CostModel("a second a step", 1.0, 0.0, 0.0, 0.0)
COST = CostModel("some of each", 4e-3, 3e-5, 1e-5, 2e-8)


def make_traffic(kind: str, num_requests: int, *, rate: float, seed: int = 0) -> Traffic:
    return Traffic(
        kind=kind,  # type: ignore[arg-type]
        num_requests=num_requests,
        rate=rate,
        seed=seed,
        prompt=Lengths(20, 0.8, 100),
        output=Lengths(20, 0.8, 80),
        prefix=Lengths(30, 0.5, 100),
        num_prefixes=3,
        think_s=0.5,
        max_len=400,
    )


def run(
    trace: list[Arrival], cost: CostModel = SECOND, limits: SchedulerLimits = LIMITS
) -> Outcome:
    return Simulation(Setup(1, limits, cost), make_router("round-robin")).run(trace)


def without_clock(outcome: Outcome) -> dict[str, Any]:
    return {key: value for key, value in outcome.figures().items() if "wall" not in key}


def flat(figures: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Write nested figures as one dictionary."""
    found: dict[str, float] = {}
    for key, value in figures.items():
        found |= (
            flat(value, f"{prefix}{key} ") if isinstance(value, dict) else {prefix + key: value}
        )
    return found


@settings(max_examples=15)
@given(
    kind=st.sampled_from(KINDS),
    router=st.sampled_from(ROUTERS),
    seed=st.integers(0, 1000),
    rate=st.sampled_from([5.0, 100.0, 5000.0]),
    num_replicas=st.integers(1, 3),
)
@example(kind="shared-prefix", router="round-robin", seed=3, rate=5000.0, num_replicas=3)
def test_every_request_ends_once_and_gives_all_its_tokens(
    kind: str, router: str, seed: int, rate: float, num_replicas: int
) -> None:
    """The example preempts a request before its first token: it starts only once."""
    traffic = make_traffic(kind, 40, rate=rate, seed=seed)
    chosen = make_router(router)  # type: ignore[arg-type]
    outcome = Simulation(Setup(num_replicas, LIMITS, COST), chosen).run(arrivals(traffic))
    wanted = [one.answer.length for one in arrivals(traffic)]
    wanted += [turn.answer.length for one in arrivals(traffic) for turn in one.turns]
    assert outcome.num_requests == 40 == outcome.latencies.whole.count
    assert outcome.output_tokens == sum(wanted)
    assert outcome.latencies.queueing.mean() <= outcome.latencies.ttft.mean()
    assert outcome.latencies.ttft.count == outcome.latencies.queueing.count == 40
    assert outcome.latencies.itl.count == sum(wanted) - 40
    assert all(one.busy_s <= outcome.makespan_s * (1 + 1e-9) for one in outcome.replicas)


def test_tight_memory_preempts_and_still_conserves() -> None:
    outcome = run(list(arrivals(make_traffic("poisson", 60, rate=5000.0))), COST)
    assert sum(one.preemptions for one in outcome.replicas) > 0
    assert outcome.num_requests == 60


@pytest.mark.parametrize("kind", KINDS)
def test_the_clock_never_goes_back(kind: str) -> None:
    simulation = Simulation(Setup(3, LIMITS, COST), make_router("least-loaded"))
    times = list(simulation.events(arrivals(make_traffic(kind, 60, rate=50.0))))
    assert all(a <= b for a, b in pairwise(times))
    assert simulation.now_s == times[-1]


def test_times_are_those_worked_out_by_hand() -> None:
    """Steps of a second: A's from 0, B waits for the step in flight and runs beside A."""
    trace = [
        Arrival(0.0, (Segment(0, 10),), Segment(1, 3)),
        Arrival(0.5, (Segment(2, 10),), Segment(3, 2)),
    ]
    outcome = run(trace)
    latencies = outcome.latencies
    assert outcome.makespan_s == 3.0
    assert latencies.queueing.mean() == pytest.approx((0.0 + 0.5) / 2)
    assert latencies.ttft.mean() == pytest.approx((1.0 + 1.5) / 2)
    assert latencies.ttft.largest == pytest.approx(1.5)
    assert latencies.itl.count == 3 and latencies.itl.mean() == latencies.itl.largest == 1.0
    assert latencies.whole.mean() == pytest.approx((3.0 + 2.5) / 2)
    (replica,) = outcome.replicas
    assert replica.busy_s == 3.0 and replica.steps == 3


def test_a_step_costs_what_its_plan_reads() -> None:
    """A prompt of 100 in chunks of 64 and 36, then a token that sees 101 positions."""
    cost = CostModel("each", 1.0, 0.01, 0.1, 0.001)
    outcome = run([Arrival(0.0, (Segment(0, 100),), Segment(1, 2))], cost)
    chunks = (1 + 0.64 + 0.1 + 0.064) + (1 + 0.36 + 0.1 + 0.1)
    assert outcome.latencies.ttft.mean() == pytest.approx(chunks)
    assert outcome.latencies.itl.mean() == pytest.approx(1 + 0.01 + 0.1 + 0.101)


def test_requests_of_one_moment_share_a_step() -> None:
    trace = [Arrival(1.0, (Segment(i, 5),), Segment(10 + i, 1)) for i in range(4)]
    outcome = run(trace)
    assert outcome.makespan_s == 2.0
    assert outcome.latencies.ttft.mean() == 1.0


def test_a_turn_waits_for_its_answer_and_finds_it_in_the_cache() -> None:
    turn = Turn(5.0, Segment(2, 10), Segment(3, 2))
    outcome = run([Arrival(0.0, (Segment(0, 64),), Segment(1, 33), (turn,))])
    (replica,) = outcome.replicas
    assert replica.requests == 2
    # The last token of an answer is not computed: 64 + 32 are.
    assert replica.prefix_hits == 96
    assert outcome.makespan_s == 33 + 5 + 2


def test_queueing_of_one_server_is_that_of_m_d_1() -> None:
    """Mean wait = load * service / (2 * (1 - load)): Pollaczek and Khinchine, constant service."""
    limits = replace(LIMITS, max_num_seqs=1, enable_prefix_caching=False)
    for load, tolerance in ((0.3, 0.08), (0.7, 0.1)):
        traffic = Traffic(
            kind="poisson",
            num_requests=8_000,
            rate=load,
            seed=2,
            prompt=Lengths(4, 0.0, 4),
            output=Lengths(1, 0.0, 1),
        )
        outcome = run(list(arrivals(traffic)), limits=limits)
        wanted = load / (2 * (1 - load))
        assert outcome.latencies.queueing.mean() == pytest.approx(wanted, rel=tolerance)
        assert outcome.replicas[0].busy_s / outcome.makespan_s == pytest.approx(load, rel=0.03)


@pytest.mark.parametrize("kind", KINDS)
def test_a_simulation_follows_from_its_seed(kind: str) -> None:
    def figures(seed: int) -> dict[str, Any]:
        simulation = Simulation(Setup(2, LIMITS, COST), make_router("prefix-aware"))
        return without_clock(simulation.run(arrivals(make_traffic(kind, 50, rate=80.0, seed=seed))))

    assert figures(1) == figures(1)
    assert figures(1) != figures(2)


def test_shards_give_what_one_process_gives() -> None:
    traffic = make_traffic("shared-prefix", 200, rate=200.0)

    def shard(index: int, count: int) -> Outcome:
        setup = Setup(5, LIMITS, COST, index, count)
        return Simulation(setup, make_router("round-robin")).run(arrivals(traffic))

    whole = without_clock(shard(0, 1))
    parts = without_clock(merged([shard(0, 2), shard(1, 2)], 1.0))
    assert flat(parts) == pytest.approx(flat(whole))


def test_a_request_that_cannot_fit_is_an_error() -> None:
    with pytest.raises(ParamsError):
        run(
            [Arrival(0.0, (Segment(0, 399),), Segment(1, 100))],
            limits=replace(LIMITS, num_blocks=20),
        )


def test_the_command_writes_figures_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ["--json", str(tmp_path / "a.json"), "--svg", str(tmp_path / "a.svg")]
    main(["--requests", "200", "--replicas", "3", *files])
    assert "preemptions by replica" in capsys.readouterr().out
    (figures,) = json.loads((tmp_path / "a.json").read_text())["runs"].values()
    assert figures["requests"] == 200 and figures["replicas"] == 3
    assert ElementTree.parse(tmp_path / "a.svg").getroot().tag.endswith("svg")


def test_the_command_reads_the_trace_that_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = str(tmp_path / "trace.jsonl")
    asked = ["--requests", "60", "--replicas", "2", "--traffic", "agent"]
    main([*asked, "--write-trace", trace])
    assert capsys.readouterr().out.endswith("lines\n")
    main([*asked, "--json", str(tmp_path / "made.json")])
    main([*asked, "--trace", trace, "--json", str(tmp_path / "read.json")])
    made, read = (
        next(iter(json.loads((tmp_path / name).read_text())["runs"].values()))
        for name in ("made.json", "read.json")
    )
    for key in ("requests", "makespan_s", "ttft", "by_replica"):
        assert made[key] == read[key]
