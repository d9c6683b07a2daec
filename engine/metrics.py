"""EngineMetrics: what an engine counts, served as Prometheus metrics under vLLM's names.

Counters and histograms are plain numbers here, because the engine touches them for thousands of
tokens a second: an observation, or several that are alike, is one bisection, 0.25 us.
prometheus_client is imported only when somebody scrapes: it formats, from a registry of this
engine's own. No clock: durations are arguments, in seconds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, get_args

from .request import FinishReason

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

PREFIX = "quire:"
MAX_TENANTS = 100
"""With figures of their own; those that come later are counted together,"""
OTHERS = "others"
"""under this name."""

_FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_BETWEEN_TOKENS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3),
    *(0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST_S = (
    *(0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0),
    *(40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_STEP_TOKENS = (
    1.0,
    8.0,
    16.0,
    32.0,
    64.0,
    128.0,
    256.0,
    512.0,
    1024.0,
    2048.0,
    4096.0,
    8192.0,
    16384.0,
)
_REQUEST_TOKENS = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))


class Histogram:
    """Counts of observations by upper bound (inclusive), and their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Add an observation, or several that are alike."""
        self.counts[bisect_left(self.bounds, value)] += count
        self.total += value * count

    def buckets(self) -> list[tuple[str, float]]:
        """Prometheus' cumulative buckets, the last one "+Inf"."""
        names = [*map(str, self.bounds), "+Inf"]
        return list(zip(names, accumulate(map(float, self.counts)), strict=True))


class TenantFigures:
    """What one tenant's requests came to."""

    __slots__ = ("num_generation_tokens", "num_prompt_tokens", "num_requests", "queue_s")

    def __init__(self) -> None:
        self.num_requests = self.num_prompt_tokens = self.num_generation_tokens = 0
        self.queue_s = Histogram(_REQUEST_S)


class EngineMetrics:
    """The metrics of one engine. Written by it alone; render() may be called at any time."""

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name
        self._registry: CollectorRegistry | None = None
        self.num_running = 0
        self.num_waiting = 0
        self.kv_usage = 0.0
        self.num_prefix_queries = 0
        self.num_prefix_hits = 0
        self.num_preemptions = 0
        self.num_drafts = self.num_draft_tokens = 0
        self.accepted_at: Sequence[int] = ()
        self.guesses_saved_s = 0.0
        self.num_prompt_tokens = 0
        self.num_generation_tokens = 0
        self.num_finished: dict[str, int] = dict.fromkeys(get_args(FinishReason), 0)
        self.first_token_s = Histogram(_FIRST_TOKEN_S)
        self.between_tokens_s = Histogram(_BETWEEN_TOKENS_S)
        self.request_s = Histogram(_REQUEST_S)
        self.step_tokens = Histogram(_STEP_TOKENS)
        self.request_prompt_tokens = Histogram(_REQUEST_TOKENS)
        self.request_generation_tokens = Histogram(_REQUEST_TOKENS)
        self.tenants: dict[str, TenantFigures] = {}

    def observe_tokens(self, first: Sequence[float], before: Sequence[float], now_s: float) -> None:
        """Count the tokens of one step at now_s: seconds since arrival of each request's first
        token, and of every later token the time of the one before."""
        for seconds in first:
            self.first_token_s.observe(seconds)
        # Most of a step's had theirs in the same step.
        for last_s, count in Counter(before).items():
            self.between_tokens_s.observe(now_s - last_s, count)
        self.num_generation_tokens += len(first) + len(before)

    def observe_finished(
        self,
        reason: FinishReason,
        *,
        prompt_tokens: int,
        output_tokens: int,
        e2e_seconds: float,
        queue_seconds: float | None = None,
        tenant: str = "",
    ) -> None:
        """Count a request that ended. queue_seconds: until its first step, if it had one."""
        if tenant not in self.tenants and len(self.tenants) >= MAX_TENANTS:
            tenant = OTHERS
        figures = self.tenants.setdefault(tenant, TenantFigures())
        figures.num_requests += 1
        figures.num_prompt_tokens += prompt_tokens
        figures.num_generation_tokens += output_tokens
        if queue_seconds is not None:
            figures.queue_s.observe(queue_seconds)
        self.num_finished[reason] += 1
        self.num_prompt_tokens += prompt_tokens
        self.request_prompt_tokens.observe(prompt_tokens)
        self.request_generation_tokens.observe(output_tokens)
        self.request_s.observe(e2e_seconds)

    def observe_step(self, num_tokens: int) -> None:
        """Count one step that computed num_tokens."""
        self.step_tokens.observe(num_tokens)

    def set_state(self, *, running: int, waiting: int, kv_usage: float) -> None:
        """Say how many requests run and wait, and which part of the blocks is in use (0 to 1)."""
        self.num_running = running
        self.num_waiting = waiting
        self.kv_usage = kv_usage

    def add_prefix(self, queries: int, hits: int) -> None:
        """Add prompt tokens looked up in the prefix cache, and those found."""
        self.num_prefix_queries += queries
        self.num_prefix_hits += hits

    def add_preemptions(self, count: int) -> None:
        """Add preempted requests."""
        self.num_preemptions += count

    def set_guesses(
        self, drafts: int, tokens: int, accepted_at: Sequence[int], saved_s: float
    ) -> None:
        """Set rows that guessed, their guesses, those that were right (first ones, second ones,
        ..), and the seconds that they have saved: since the start."""
        self.num_drafts, self.num_draft_tokens = drafts, tokens
        self.accepted_at, self.guesses_saved_s = accepted_at, saved_s

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics: prometheus_client's collector protocol."""
        from prometheus_client.metrics_core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
        )

        names, values = ["model_name"], [self.model_name]
        for name, text, number in self._gauges():
            gauge = GaugeMetricFamily(PREFIX + name, text, labels=names)
            gauge.add_metric(values, number)
            yield gauge
        for name, text, number in self._counters():
            counter = CounterMetricFamily(PREFIX + name, text, labels=names)
            counter.add_metric(values, number)
            yield counter
        ended = CounterMetricFamily(
            PREFIX + "request_success", "Requests that ended.", labels=[*names, "finished_reason"]
        )
        for reason, number in self.num_finished.items():
            ended.add_metric([*values, reason], number)
        yield ended
        yield self._by_position()
        for name, text, histogram in self._histograms():
            family = HistogramMetricFamily(PREFIX + name, text, labels=names)
            family.add_metric(values, histogram.buckets(), histogram.total)
            yield family
        yield from self._by_tenant()

    def _gauges(self) -> Iterable[tuple[str, str, float]]:
        return (
            ("num_requests_running", "Requests in the running batch.", self.num_running),
            ("num_requests_waiting", "Requests that wait to be run.", self.num_waiting),
            ("kv_cache_usage_perc", "KV blocks in use; 1 is all.", self.kv_usage),
            (
                "spec_decode_mean_accepted_length",
                "Tokens that a row which guesses gives, since the start.",
                1 + sum(self.accepted_at) / max(1, self.num_drafts),
            ),
            (
                "spec_decode_saved_seconds",
                "Time that guesses have saved since the start, by their costs at the start.",
                self.guesses_saved_s,
            ),
        )

    def _counters(self) -> Iterable[tuple[str, str, float]]:
        return (
            ("prefix_cache_queries", "Prompt tokens looked up.", self.num_prefix_queries),
            ("prefix_cache_hits", "Prompt tokens found.", self.num_prefix_hits),
            ("num_preemptions", "Preempted requests.", self.num_preemptions),
            ("spec_decode_num_drafts", "Rows of steps that guessed.", self.num_drafts),
            ("spec_decode_num_draft_tokens", "Their guesses.", self.num_draft_tokens),
            ("spec_decode_num_accepted_tokens", "Right guesses.", sum(self.accepted_at)),
            ("prompt_tokens", "Prompt tokens of ended requests.", self.num_prompt_tokens),
            ("generation_tokens", "Generated tokens.", self.num_generation_tokens),
        )

    def _histograms(self) -> Iterable[tuple[str, str, Histogram]]:
        return (
            ("time_to_first_token_seconds", "From arrival to first token.", self.first_token_s),
            ("inter_token_latency_seconds", "Between two tokens.", self.between_tokens_s),
            ("e2e_request_latency_seconds", "From arrival to the end.", self.request_s),
            ("iteration_tokens_total", "Tokens computed in a step.", self.step_tokens),
            ("request_prompt_tokens", "Prompt tokens of a request.", self.request_prompt_tokens),
            (
                "request_generation_tokens",
                "Generated tokens of a request.",
                self.request_generation_tokens,
            ),
        )

    def _by_position(self) -> Metric:
        from prometheus_client.metrics_core import CounterMetricFamily

        family = CounterMetricFamily(
            PREFIX + "spec_decode_num_accepted_tokens_per_pos",
            "Right guesses, by their place in a row.",
            labels=["model_name", "position"],
        )
        for position, number in enumerate(self.accepted_at):
            family.add_metric([self.model_name, str(position)], number)
        return family

    def _by_tenant(self) -> Iterator[Metric]:
        from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily

        names = ["model_name", "tenant"]
        waits = HistogramMetricFamily(
            PREFIX + "request_queue_time_seconds", "From arrival to the first step.", labels=names
        )
        counters = [
            CounterMetricFamily(PREFIX + name, text, labels=names)
            for name, text in (
                ("tenant_requests", "Requests of a tenant that ended."),
                ("tenant_prompt_tokens", "Prompt tokens of ended requests of a tenant."),
                ("tenant_generation_tokens", "Generated tokens of ended requests of a tenant."),
            )
        ]
        for tenant, one in self.tenants.items():
            labels = [self.model_name, tenant]
            waits.add_metric(labels, one.queue_s.buckets(), one.queue_s.total)
            numbers = (one.num_requests, one.num_prompt_tokens, one.num_generation_tokens)
            for counter, number in zip(counters, numbers, strict=True):
                counter.add_metric(labels, number)
        yield from (waits, *counters)

    @property
    def registry(self) -> CollectorRegistry:
        """A registry that holds these metrics alone."""
        if self._registry is None:
            from prometheus_client import CollectorRegistry

            self._registry = CollectorRegistry()
            self._registry.register(self)
        return self._registry

    def render(self) -> bytes:
        """Prometheus' text format."""
        from prometheus_client import generate_latest

        return generate_latest(self.registry)
