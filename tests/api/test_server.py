"""Keys, health, browsers, metrics, logs, sockets, and how a server ends."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from typing import Any

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from quire import __version__
from quire.api.server import bind
from quire.engine.errors import ConfigError

BODY = {"prompt": "hi"}
PATHS = [
    *("/version", "/metrics", "/v1/models", "/v1/models/fake", "/v1/nothing"),
    *("/docs", "/debug/live", "/web/", "/web/nothing", "/web"),
]


async def status(fake: Any, path: str, **headers: str) -> int:
    async with fake.session.get(fake.url + path, headers=headers) as response:
        await response.read()
        return int(response.status)


async def test_version_and_health(serve_fake: Any) -> None:
    fake = await serve_fake()
    async with fake.session.get(f"{fake.url}/version") as response:
        assert await response.json() == {"version": __version__}
    assert await status(fake, "/health") == 200
    fake.engine.is_running = False
    assert await status(fake, "/health") == 503
    async with fake.session.post(f"{fake.url}/v1/completions", json=BODY) as response:
        assert response.status == 503
        assert (await response.json())["error"]["type"] == "server_error"


@pytest.mark.parametrize("path", PATHS)
async def test_every_path_but_health_and_the_page_asks_for_the_key(
    serve_fake: Any, path: str
) -> None:
    fake = await serve_fake(api_keys=["one", "zwölf"])
    assert await status(fake, "/health") == 200
    for header in ("", "Bearer", "Bearer two", "Basic one", "one", "Bearer one two", "Bearer on"):
        async with fake.session.get(fake.url + path, headers={"Authorization": header}) as response:
            assert response.status == 401, header
            assert (await response.json())["error"]["code"] == "invalid_api_key"
    assert await status(fake, path) == 401
    for key in ("one", "zwölf"):
        assert await status(fake, path, Authorization=f"Bearer {key}") != 401
    assert await status(fake, path, Authorization="bearer one") != 401


async def test_key_is_asked_before_the_body_is_read(serve_fake: Any) -> None:
    fake = await serve_fake(api_keys=["one"])
    async with fake.session.post(f"{fake.url}/v1/completions", data=b"{") as response:
        assert response.status == 401
    assert fake.engine.started == []


async def test_browser_of_an_allowed_page_may_call(serve_fake: Any) -> None:
    fake = await serve_fake(api_keys=["one"], allowed_origins=["http://page"])
    asks = {"Origin": "http://page", "Access-Control-Request-Method": "POST"}
    async with fake.session.options(f"{fake.url}/v1/completions", headers=asks) as response:
        assert response.status == 204
        assert response.headers["Access-Control-Allow-Origin"] == "http://page"
        assert "Authorization" in response.headers["Access-Control-Allow-Headers"]
    headers = {"Origin": "http://page", "Authorization": "Bearer one"}
    body = BODY | {"stream": True}
    async with fake.session.post(
        f"{fake.url}/v1/completions", json=body, headers=headers
    ) as response:
        assert response.headers["Access-Control-Allow-Origin"] == "http://page"
    asks["Origin"] = "http://other"
    async with fake.session.options(f"{fake.url}/v1/completions", headers=asks) as response:
        assert "Access-Control-Allow-Origin" not in response.headers


async def test_no_browser_may_call_by_default(serve_fake: Any) -> None:
    fake = await serve_fake()
    headers = {"Origin": "http://page"}
    async with fake.session.get(f"{fake.url}/version", headers=headers) as response:
        assert "Access-Control-Allow-Origin" not in response.headers


async def test_one_line_is_logged_for_a_request_when_asked(
    serve_fake: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "quire")
    fake = await serve_fake()
    await status(fake, "/version")
    assert caplog.messages == []
    fake = await serve_fake(access_log="text")
    await status(fake, "/v1/nothing%0Ax")
    (line,) = caplog.messages
    assert line.startswith("GET /v1/nothing%0Ax 404 ")


async def test_drain_lets_running_requests_end_and_refuses_new_ones(serve_fake: Any) -> None:
    gate = asyncio.Semaphore(1)
    fake = await serve_fake(serve_fake.engine(gate=gate))
    url = f"{fake.url}/v1/completions"
    async with fake.session.post(url, json=BODY | {"stream": True}) as response:
        await response.content.readuntil(b"\n")
        draining = asyncio.create_task(fake.server.drain(asyncio.Event()))
        await asyncio.sleep(0)
        assert await status(fake, "/health") == 503
        async with fake.session.post(url, json=BODY) as refused:
            assert refused.status == 503
            assert "stopping" in (await refused.json())["error"]["message"]
        assert not draining.done()
        gate.release()
        gate.release()
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
    await asyncio.wait_for(draining, 5)
    assert fake.engine.aborted == []


async def test_drain_ends_at_its_timeout(serve_fake: Any) -> None:
    fake = await serve_fake(serve_fake.engine(gate=asyncio.Semaphore(0)), drain_timeout_s=0.01)
    url = f"{fake.url}/v1/completions"
    waiting = asyncio.create_task(fake.session.post(url, json=BODY))
    await fake.engine.until(lambda: len(fake.engine.started) == 1)
    await asyncio.wait_for(fake.server.drain(asyncio.Event()), 5)
    await fake.server.stop()
    with pytest.raises(aiohttp.ClientError):
        await waiting
    assert len(fake.engine.aborted) == 1


async def test_drain_ends_at_a_second_signal(serve_fake: Any) -> None:
    fake = await serve_fake(serve_fake.engine(gate=asyncio.Semaphore(0)))
    url = f"{fake.url}/v1/completions"
    waiting = asyncio.create_task(fake.session.post(url, json=BODY))
    await fake.engine.until(lambda: len(fake.engine.started) == 1)
    hurry = asyncio.Event()
    draining = asyncio.create_task(fake.server.drain(hurry))
    await asyncio.sleep(0)
    assert not draining.done()
    hurry.set()
    await asyncio.wait_for(draining, 5)
    await fake.server.stop()
    with pytest.raises(aiohttp.ClientError):
        await waiting


def test_a_taken_port_is_told() -> None:
    with bind("127.0.0.1", 0) as first:
        first.listen()
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 cannot be used"):
            bind("127.0.0.1", port)
    with pytest.raises(ConfigError, match="host"):
        bind("256.256.256.256", 0)
    with pytest.raises(ConfigError, match="host"):
        bind("x" * 300, 0)


async def test_metrics_move(live: Any) -> None:
    async with aiohttp.ClientSession() as session:

        async def read() -> dict[tuple[str, str], float]:
            async with session.get(f"{live.url}/metrics") as response:
                assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
                text = await response.text()
            return {
                (sample.name, sample.labels.get("finished_reason", "")): sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
                if "le" not in sample.labels and sample.labels["model_name"] == "tiny"
            }

        before = await read()
        body = {"prompt": [7] * 20, "max_tokens": 5, "ignore_eos": True}
        async with session.post(f"{live.url}/v1/completions", json=body) as response:
            assert response.status == 200
        after = await read()
    moved = {name: value - before.get(name, 0.0) for name, value in after.items()}
    moved = {name: value for name, value in moved.items() if value}
    expected = {
        "prompt_tokens_total": 20,
        "generation_tokens_total": 5,
        "prefix_cache_queries_total": 20,
        "time_to_first_token_seconds_count": 1,
        "inter_token_latency_seconds_count": 4,
        "e2e_request_latency_seconds_count": 1,
        "request_prompt_tokens_sum": 20,
        "request_generation_tokens_sum": 5,
    }
    for name, change in expected.items():
        assert moved[f"quire:{name}", ""] == change, name
    assert moved["quire:request_success_total", "length"] == 1
    assert moved["quire:iteration_tokens_total_count", ""] == 5
    assert after["quire:num_requests_running", ""] == 0
    assert after["quire:kv_cache_usage_perc", ""] == 0


async def test_pipelined_requests_are_answered_in_order(serve_fake: Any) -> None:
    fake = await serve_fake()
    port = int(fake.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    one = b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n"
    writer.write(one + b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    given = await reader.read()
    writer.close()
    await writer.wait_closed()
    bodies = [json.loads(body) for body in re.findall(rb"{.*?}", given)]
    assert bodies == [{"version": __version__}, {"status": "ok"}]
