"""Distributions of times, and what a simulation gives: small, and addable across processes.

A histogram over logarithmic bins, 1% wide, holds a distribution of any size: its percentiles are
exact within 1%, its mean, count and maximum exactly so.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

_LEAST_S = 1e-6
_WIDTH = math.log(1.01)
_NUM_BINS = 2600
"""Up to 1e-6 * 1.01 ** 2600 s: days."""
_FLUSH = 4096
PERCENTILES = (50, 90, 99)

Floats = NDArray[np.float64]


class Histogram:
    """Seconds, counted by bins."""

    __slots__ = ("_bins", "_count", "_largest", "_pending", "_singles", "_total")

    def __init__(self) -> None:
        self._bins = np.zeros(_NUM_BINS, np.int64)
        self._pending: list[Floats] = []
        self._singles: list[float] = []
        self._total = 0.0
        self._count = 0
        self._largest = 0.0

    @property
    def count(self) -> int:
        """How many."""
        self._flush()
        return self._count

    @property
    def largest(self) -> float:
        """The largest, 0 where there is nothing."""
        self._flush()
        return self._largest

    def add(self, seconds: float) -> None:
        """Count one."""
        self._singles.append(seconds)
        if len(self._singles) >= _FLUSH:
            self._flush()

    def extend(self, seconds: Floats) -> None:
        """Count many: the array is kept for a while and must not change."""
        self._pending.append(seconds)
        if len(self._pending) >= _FLUSH:
            self._flush()

    def merge(self, other: Histogram) -> None:
        """Add another's counts."""
        self._flush()
        other._flush()
        self._bins += other._bins
        self._total += other._total
        self._count += other._count
        self._largest = max(self._largest, other._largest)

    def mean(self) -> float:
        """Give the mean; 0 where there is nothing."""
        return self._total / self.count if self.count else 0.0

    def percentile(self, percent: float) -> float:
        """Give the nearest-rank percentile within 1%; 0 where there is nothing."""
        if not self.count:
            return 0.0
        rank = max(1, math.ceil(self.count * percent / 100))
        index = int(np.searchsorted(self._bins.cumsum(), rank))
        if index == 0:
            return 0.0
        return min(self.largest, _LEAST_S * math.exp((index - 0.5) * _WIDTH))

    def figures(self) -> dict[str, float]:
        """Summarise in milliseconds."""
        values = {f"p{percent}_ms": 1e3 * self.percentile(percent) for percent in PERCENTILES}
        return {"mean_ms": 1e3 * self.mean(), **values, "max_ms": 1e3 * self.largest}

    def _flush(self) -> None:
        if not self._pending and not self._singles:
            return
        values = np.concatenate([*self._pending, np.array(self._singles, np.float64)])
        self._pending, self._singles = [], []
        places = np.log(np.maximum(values, _LEAST_S) / _LEAST_S) / _WIDTH
        bins = np.minimum(np.ceil(places).astype(np.int64), _NUM_BINS - 1)
        self._bins += np.bincount(bins, minlength=_NUM_BINS)
        self._total += float(values.sum())
        self._count += len(values)
        self._largest = max(self._largest, float(values.max(initial=0.0)))


class Latencies:
    """What clients feel."""

    __slots__ = ("itl", "queueing", "queueing_of", "ttft", "whole")

    def __init__(self) -> None:
        self.queueing = Histogram()
        """From the arrival to the start of the first step that computes the request,"""
        self.queueing_of: defaultdict[str, Histogram] = defaultdict(Histogram)
        """and that by tenant."""
        self.ttft = Histogram()
        self.itl = Histogram()
        """Between tokens of a request, each gap counted."""
        self.whole = Histogram()

    def merge(self, other: Latencies) -> None:
        """Add another's counts."""
        for name in ("itl", "queueing", "ttft", "whole"):
            getattr(self, name).merge(getattr(other, name))
        for tenant, histogram in other.queueing_of.items():
            self.queueing_of[tenant].merge(histogram)


class ReplicaFigures(Struct, frozen=True):
    """What one replica did."""

    requests: int
    steps: int
    tokens: int
    busy_s: float
    prefix_queries: int
    prefix_hits: int
    preemptions: int
    evictions: int
    most_waiting: int

    @property
    def hit_rate(self) -> float:
        """Prompt tokens from the cache."""
        return self.prefix_hits / self.prefix_queries if self.prefix_queries else 0.0


class Outcome(NamedTuple):
    """What a simulation gives."""

    num_requests: int
    makespan_s: float
    """Virtual time of the last answer."""
    output_tokens: int
    latencies: Latencies
    replicas: list[ReplicaFigures]
    wall_s: float

    def figures(self) -> dict[str, object]:
        """Summarise for people and for JSON."""
        replicas, span = self.replicas, self.makespan_s or 1.0
        queries = sum(one.prefix_queries for one in replicas)
        steps = sum(one.steps for one in replicas)
        return {
            "requests": self.num_requests,
            "replicas": len(replicas),
            "makespan_s": self.makespan_s,
            "output_tokens": self.output_tokens,
            "steps": steps,
            "queueing": self.latencies.queueing.figures(),
            "ttft": self.latencies.ttft.figures(),
            "itl": self.latencies.itl.figures(),
            "whole": self.latencies.whole.figures(),
            "hit_rate": sum(one.prefix_hits for one in replicas) / queries if queries else 0.0,
            "preemptions": sum(one.preemptions for one in replicas),
            "evictions": sum(one.evictions for one in replicas),
            "utilisation": sum(one.busy_s for one in replicas) / span / len(replicas),
            "by_replica": {
                "requests": _spread([one.requests for one in replicas]),
                "utilisation": _spread([one.busy_s / span for one in replicas]),
                "hit_rate": _spread([one.hit_rate for one in replicas]),
                "preemptions": _spread([one.preemptions for one in replicas]),
                "most_waiting": _spread([one.most_waiting for one in replicas]),
            },
            "wall_s": self.wall_s,
            "requests_per_wall_s": self.num_requests / self.wall_s,
            "steps_per_wall_s": steps / self.wall_s,
        }


def _spread(values: list[int] | list[float]) -> dict[str, float]:
    """Give the least, the middle and the largest."""
    low, middle, high = np.percentile(values, [0, 50, 100]).tolist()
    return {"min": low, "median": middle, "max": high}


def merged(parts: list[Outcome], wall_s: float) -> Outcome:
    """Join what processes found, each for its own replicas, in the order of `parts`."""
    latencies = Latencies()
    for part in parts:
        latencies.merge(part.latencies)
    return Outcome(
        sum(part.num_requests for part in parts),
        max(part.makespan_s for part in parts),
        sum(part.output_tokens for part in parts),
        latencies,
        [replica for part in parts for replica in part.replicas],
        wall_s,
    )
