"""Traces: one span for each request that generates, in the client's trace, without its texts."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from quire import AsyncEngine
from quire.api.access_log import GONE
from quire.api.server import Server, ServerOptions, bind
from quire.api.tracing import PHASES, RequestTracer, make_tracer, phases
from quire.engine.errors import ConfigError
from quire.engine.request import Timeline, TimelineEvent

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
BODY = {"prompt": [[10, 11, 12], [13, 14]], "max_tokens": 3, "ignore_eos": True, "user": "ann"}
BODY |= {"temperature": 0.5, "top_p": 0.9}


def make_traced() -> tuple[RequestTracer, InMemorySpanExporter]:
    """A tracer, and what it has written."""
    written, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(written))
    return RequestTracer(provider), written


@pytest_asyncio.fixture
async def traced(engine: AsyncEngine) -> AsyncIterator[tuple[str, InMemorySpanExporter]]:
    """A server around a real engine, and the spans that it has written."""
    tracer, written = make_traced()
    server = Server(engine, ServerOptions(), tracer)
    await server.start(bind("127.0.0.1", 0))
    yield server.url, written
    await server.stop()


async def post(url: str, body: Any, **headers: str) -> int:
    """Ask, read all, return the status."""
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/completions", json=body, headers=headers) as response,
    ):
        await response.read()
        return response.status


@pytest.mark.parametrize("stream", [False, True])
async def test_a_generation_is_one_span_of_the_clients_trace(traced: Any, stream: bool) -> None:
    url, written = traced
    name = "Traceparent" if stream else "traceparent"
    headers = {name: f"00-{TRACE}-{PARENT}-01", "X-Request-Id": "mine"}
    assert await post(url, BODY | {"stream": stream}, **headers) == 200
    (span,) = written.get_finished_spans()
    assert isinstance(span, ReadableSpan)
    assert span.name == "llm_request"
    assert span.kind is SpanKind.SERVER
    assert format(span.context.trace_id, "032x") == TRACE
    assert span.parent is not None
    assert format(span.parent.span_id, "016x") == PARENT
    told = dict(span.attributes or {})
    expected = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.request.max_tokens": 3,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.prompt_tokens": 5,
        "gen_ai.usage.output_tokens": 6,
        "gen_ai.usage.completion_tokens": 6,
        "gen_ai.response.finish_reasons": ("length", "length"),
        "http.response.status_code": 200,
        "http.route": "/v1/completions",
        "quire.request_id": "mine",
    }
    assert {name: told.get(name) for name in expected} == expected
    assert str(told["gen_ai.response.id"]).startswith("cmpl-")
    for name, _, _ in PHASES:
        assert 0 <= float(told[name]) <= float(told["gen_ai.latency.e2e"])  # type: ignore[arg-type]
    assert span.start_time is not None and span.end_time is not None
    took_s = (span.end_time - span.start_time) / 1e9
    assert took_s == pytest.approx(told["gen_ai.latency.e2e"], abs=1e-6)
    assert "ann" not in json.dumps(told, default=str)


async def test_what_came_from_the_cache_is_told(traced: Any) -> None:
    url, written = traced
    for _ in range(2):
        assert await post(url, BODY | {"prompt": list(range(10, 60))}) == 200
    name = "gen_ai.usage.cache_read.input_tokens"
    first, second = [dict(span.attributes or {})[name] for span in written.get_finished_spans()]
    assert first == 0
    assert second >= 32


@pytest.mark.parametrize("header", ["", "garbage", f"00-{'0' * 32}-{PARENT}-01"])
async def test_without_a_trace_of_the_client_one_begins(traced: Any, header: str) -> None:
    url, written = traced
    assert await post(url, BODY, traceparent=header) == 200
    (span,) = written.get_finished_spans()
    assert span.parent is None


async def test_a_client_that_does_not_sample_is_not_traced(traced: Any) -> None:
    url, written = traced
    assert await post(url, BODY, traceparent=f"00-{TRACE}-{PARENT}-00") == 200
    assert written.get_finished_spans() == ()


async def test_what_generates_nothing_has_no_span(traced: Any) -> None:
    url, written = traced
    assert await post(url, {"prompt": ""}) == 400
    async with aiohttp.ClientSession() as session, session.get(f"{url}/health") as response:
        assert response.status == 200
    assert written.get_finished_spans() == ()


async def test_failures_and_clients_that_go_are_told(serve_fake: Any) -> None:
    tracer, written = make_traced()
    gate = asyncio.Semaphore(0)
    for engine, status in (
        (serve_fake.engine(pieces=(), failure=KeyError("x")), 500),
        (serve_fake.engine(gate=gate), GONE),
    ):
        server = Server(engine, ServerOptions(), tracer)
        await server.start(bind("127.0.0.1", 0))
        asking = asyncio.create_task(post(server.url, {"prompt": "hi"}))
        await engine.until(lambda engine=engine: len(engine.started) == 1)
        if status == GONE:
            asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await asyncio.wait_for(server.state.idle.wait(), 10)
        await server._runner.cleanup()
        span = written.get_finished_spans()[-1]
        assert (span.attributes or {})["http.response.status_code"] == status
        assert (span.status.status_code is StatusCode.ERROR) == (status == 500)


TIMES = st.lists(st.floats(0, 1e6), min_size=4, max_size=4).map(sorted)


@given(st.lists(TIMES, min_size=1, max_size=4))
def test_phases_are_those_of_the_slowest_prompt(times: list[list[float]]) -> None:
    names = ("queued", "admitted", "first token", "ended")
    timelines = [
        Timeline(
            (
                *(TimelineEvent(at, name) for at, name in zip(ats, names, strict=True)),
                # Admitted again after a preemption: the first time counts.
                TimelineEvent(ats[-1], "admitted"),
            ),
            1,
            0,
        )
        for ats in times
    ]
    told = phases(timelines)
    assert told["gen_ai.latency.time_in_queue"] == max((b - a) / 1e3 for a, b, _, _ in times)
    assert told["gen_ai.latency.time_in_model_prefill"] == max(
        (c - b) / 1e3 for _, b, c, _ in times
    )
    assert told["gen_ai.latency.time_in_model_decode"] == max((d - c) / 1e3 for _, _, c, d in times)
    assert told["gen_ai.latency.time_to_first_token"] == max((c - a) / 1e3 for a, _, c, _ in times)
    never = Timeline((TimelineEvent(0, "queued"), TimelineEvent(5, "ended")), 0, 0)
    assert phases([never]) == {}


async def test_spans_reach_a_collector(engine: AsyncEngine) -> None:
    """By OTLP over HTTP, at the latest when the server stops."""
    received: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            size = int(self.headers["Content-Length"])
            received.append((self.path, self.rfile.read(size)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *given: Any) -> None:
            pass

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    thread = Thread(target=collector.serve_forever)
    thread.start()
    try:
        endpoint = f"http://127.0.0.1:{collector.server_port}/v1/traces"
        server = Server(engine, ServerOptions(otlp_traces_endpoint=endpoint))
        await server.start(bind("127.0.0.1", 0))
        assert await post(server.url, BODY) == 200
        await server.stop()
    finally:
        collector.shutdown()
        thread.join()
        collector.server_close()
    ((path, data),) = received
    assert path == "/v1/traces"
    assert b"llm_request" in data
    assert b"gen_ai.usage.input_tokens" in data


def test_an_endpoint_that_is_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="must be a URL"):
        make_tracer("localhost:4317")
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"quire\[tracing\]"):
        make_tracer("http://localhost:4318")
