"""Traffic: order, rates, lengths, files, and tokens that later prompts repeat."""

from __future__ import annotations

from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest
from quire.benchmarks.traces import (
    KINDS,
    Arrival,
    Lengths,
    Segment,
    Traffic,
    TrafficKind,
    Turn,
    answer_base,
    answer_tokens,
    arrivals,
    read_trace,
    tokens_of,
    write_trace,
)


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_is_sorted_sized_and_follows_from_its_seed(kind: TrafficKind) -> None:
    traffic = Traffic(kind=kind, num_requests=500, rate=20.0, seed=3)
    trace = list(arrivals(traffic))
    assert trace == list(arrivals(traffic))
    assert trace != list(arrivals(Traffic(kind=kind, num_requests=500, rate=20.0, seed=4)))
    assert all(a.arrival_s <= b.arrival_s for a, b in pairwise(trace))
    assert sum(1 + len(one.turns) for one in trace) == 500
    answers = [one.answer.source for one in trace]
    answers += [turn.answer.source for one in trace for turn in one.turns]
    assert len(set(answers)) == 500


@pytest.mark.parametrize("kind", ["poisson", "bursty", "shared-prefix"])
def test_the_mean_rate_is_what_was_asked_for(kind: TrafficKind) -> None:
    traffic = Traffic(kind=kind, num_requests=40_000, rate=50.0)
    *_, last = arrivals(traffic)
    assert last.arrival_s == pytest.approx(40_000 / 50.0, rel=0.15)


def test_bursts_come_closer_than_poisson() -> None:
    def variation(kind: TrafficKind) -> float:
        times = [one.arrival_s for one in arrivals(Traffic(kind=kind, num_requests=5000, rate=9.0))]
        gaps = np.diff(times)
        return float(gaps.std() / gaps.mean())

    assert variation("poisson") == pytest.approx(1.0, abs=0.1)
    assert variation("bursty") > 2.0


def test_popular_prefixes_follow_zipf() -> None:
    traffic = Traffic(kind="shared-prefix", num_requests=20_000, rate=1.0, num_prefixes=10)
    counts = np.bincount([one.prompt[0].source for one in arrivals(traffic)])
    assert counts[0] / counts[1] == pytest.approx(2.0, rel=0.1)
    assert counts[0] / counts[9] == pytest.approx(10.0, rel=0.2)


def test_streams_are_lazy() -> None:
    endless = Traffic(kind="poisson", num_requests=10**12, rate=1.0)
    assert len(list(islice(arrivals(endless), 5))) == 5


def test_a_turn_repeats_all_that_came_before() -> None:
    turn = Turn(2.0, Segment(8, 3), Segment(9, 4))
    first = Arrival(1.0, (Segment(5, 6),), Segment(7, 5), (turn,))
    second = first.following(10.0)
    assert second == Arrival(12.0, (Segment(5, 6), Segment(7, 5), Segment(8, 3)), Segment(9, 4))
    assert second.following(20.0) is None
    whole = tokens_of(second.prompt)
    bases = np.full(5, answer_base(7), np.int64)
    np.testing.assert_array_equal(whole[6:11], answer_tokens(bases, np.arange(5)))
    np.testing.assert_array_equal(whole[:6], tokens_of(first.prompt))


def test_conversations_stay_inside_the_model_length() -> None:
    traffic = Traffic(
        kind="agent", num_requests=3000, rate=10.0, num_turns=40.0, max_len=4000, seed=1
    )
    for one in arrivals(traffic):
        last: Arrival | None = one
        while last is not None:
            length = sum(segment.length for segment in last.prompt) + last.answer.length
            assert length <= 4000 or last is one
            last = last.following(0.0)


def test_lengths_keep_their_cap_and_median() -> None:
    traffic = Traffic(
        kind="poisson", num_requests=5000, rate=1.0, prompt=Lengths(100, 1.0, 300), num_prefixes=0
    )
    lengths = [one.prompt[0].length for one in arrivals(traffic)]
    assert max(lengths) == 300 and min(lengths) >= 1
    assert float(np.median(lengths)) == pytest.approx(100, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_a_trace_file_gives_back_what_was_written(kind: TrafficKind, tmp_path: Path) -> None:
    trace = list(arrivals(Traffic(kind=kind, num_requests=60, rate=5.0)))
    assert write_trace(tmp_path / "trace.jsonl", trace) == len(trace)
    assert list(read_trace(tmp_path / "trace.jsonl")) == trace


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        (
            [Arrival(2.0, (Segment(0, 1),), Segment(1, 1)), Arrival(1.0, (), Segment(2, 1))],
            "line 2",
        ),
        ([Arrival(0.0, (Segment(0, 0),), Segment(1, 1))], "line 1"),
    ],
)
def test_an_impossible_trace_file_names_its_line(
    trace: list[Arrival], message: str, tmp_path: Path
) -> None:
    write_trace(tmp_path / "trace.jsonl", trace)
    with pytest.raises(ValueError, match=message):
        list(read_trace(tmp_path / "trace.jsonl"))
