"""Traces: one OpenTelemetry span for each request that generates, written when it is over.

opentelemetry is imported where an endpoint was given and nowhere else. A span tells counts, times
and parameters, never a prompt, an answer or a key. Names are OpenTelemetry's for generative AI,
and vLLM's where it has others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from aiohttp import web

from ..engine.errors import ConfigError
from ..engine.request import Timeline
from .account import Account

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

SPAN_NAME = "llm_request"
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/api/chat": "chat",
    "/api/generate": "text_completion",
}
PHASES = (
    ("gen_ai.latency.time_in_queue", "queued", "admitted"),
    ("gen_ai.latency.time_in_model_prefill", "admitted", "first token"),
    ("gen_ai.latency.time_in_model_decode", "first token", "ended"),
    ("gen_ai.latency.time_to_first_token", "queued", "first token"),
)
"""Attribute, and the events of a timeline that it lies between; of several prompts the longest."""


class RequestTracer:
    """Writes spans to one provider."""

    def __init__(
        self, provider: TracerProvider, clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        """clock_ns: nanoseconds since 1970."""
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("quire")
        self._propagator = TraceContextTextMapPropagator()
        self._clock_ns = clock_ns

    def tell(self, request: web.Request, account: Account, status: int, took_s: float) -> None:
        """Write the span of a request that is over; of the client's trace, where it named one."""
        from opentelemetry.trace import SpanKind, Status, StatusCode

        ended_ns = self._clock_ns()
        carrier = {name.lower(): value for name, value in request.headers.items()}
        span = self._tracer.start_span(
            SPAN_NAME,
            context=self._propagator.extract(carrier),
            kind=SpanKind.SERVER,
            start_time=ended_ns - int(took_s * 1e9),
        )
        for name, value in attributes(request.path, account, status, took_s).items():
            if value is not None:
                span.set_attribute(name, value)
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end_time=ended_ns)

    def close(self) -> None:
        """Send what has not been sent."""
        self._provider.shutdown()


def make_tracer(endpoint: str) -> RequestTracer:
    """Return a tracer that sends to a collector in the background. ConfigError if it cannot."""
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ConfigError(
            "otlp_traces_endpoint needs opentelemetry: pip install 'quire[tracing]'."
        ) from error
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigError(
            f"otlp_traces_endpoint is {endpoint!r}: it must be a URL, as "
            "http://localhost:4318/v1/traces."
        )
    provider = TracerProvider(resource=Resource.create({"service.name": "quire"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return RequestTracer(provider)


def attributes(
    path: str, account: Account, status: int, took_s: float
) -> dict[str, str | int | float | list[str] | None]:
    """Return what a span tells of a request; None for what is not known."""
    return {
        "gen_ai.operation.name": OPERATIONS.get(path),
        "gen_ai.provider.name": "quire",
        "gen_ai.request.id": account.response_id,
        "gen_ai.response.id": account.response_id,
        "gen_ai.request.model": account.model,
        "gen_ai.response.model": account.model,
        "gen_ai.request.temperature": account.temperature,
        "gen_ai.request.top_p": account.top_p,
        "gen_ai.request.max_tokens": account.max_tokens,
        "gen_ai.response.finish_reasons": account.finish_reasons,
        "gen_ai.usage.input_tokens": account.num_prompt_tokens,
        "gen_ai.usage.prompt_tokens": account.num_prompt_tokens,
        "gen_ai.usage.output_tokens": account.num_output_tokens,
        "gen_ai.usage.completion_tokens": account.num_output_tokens,
        "gen_ai.usage.cache_read.input_tokens": account.num_cached_tokens,
        "gen_ai.latency.e2e": took_s,
        "http.route": path,
        "http.response.status_code": status,
        "quire.request_id": account.request_id,
        "quire.tenant": account.tenant or None,
        **phases(account.timelines.values()),
    }


def phases(timelines: Iterable[Timeline]) -> dict[str, float]:
    """Return how long each phase took, in seconds; without those that a request did not reach."""
    found: dict[str, float] = {}
    for timeline in timelines:
        at_ms: dict[str, float] = {}
        for event in timeline.events:
            at_ms.setdefault(event.name, event.at_ms)
        for name, begins, ends in PHASES:
            if begins in at_ms and ends in at_ms:
                took_s = (at_ms[ends] - at_ms[begins]) / 1e3
                found[name] = max(found.get(name, 0.0), took_s)
    return found
