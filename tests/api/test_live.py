"""GET /debug/live: who watches is told what happens, and what has changed, and no more."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import jsonschema
import pytest
import pytest_asyncio
from quire.api import viewers
from quire.api.openapi import make_document
from quire.api.routes.table import ROUTES
from quire.api.server import Server, ServerOptions, bind
from quire.engine.async_engine import AsyncEngine

PATH = "/debug/live"
BODY = {"prompt": "the cat sat on the mat and then the cat", "max_tokens": 20, "ignore_eos": True}


class Watched:
    """A server of a real engine in the loop of the test, and a client."""

    def __init__(self, engine: AsyncEngine, server: Server, session: aiohttp.ClientSession) -> None:
        self.engine, self.server, self.session = engine, server, session

    @property
    def is_told(self) -> bool:
        """Whether the core has an observer for viewers."""
        return self.engine.live in self.engine.front.core._observers

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[Any]]:
        """Events of one viewer."""
        async with self.session.get(self.server.url + PATH) as response:
            assert response.status == 200, await response.text()
            assert response.headers["Content-Type"].startswith("text/event-stream")

            async def read() -> AsyncIterator[Any]:
                while line := await response.content.readline():
                    if line.startswith(b"data: "):
                        yield json.loads(line[6:])

            yield read()

    async def complete(self) -> Any:
        async with self.session.post(f"{self.server.url}/v1/completions", json=BODY) as response:
            assert response.status == 200, await response.text()
            return await response.json()


@pytest_asyncio.fixture
async def watched(engine: AsyncEngine) -> AsyncIterator[Watched]:
    server = Server(engine, ServerOptions(port=0))
    await server.start(bind("127.0.0.1", 0))
    async with aiohttp.ClientSession() as session:
        yield Watched(engine, server, session)
    await server.stop()


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks come as fast as the loop turns, nearly."""
    monkeypatch.setattr(viewers, "EVERY_S", 0.002)


async def test_a_viewer_is_told_each_step_once_and_the_map_when_it_changes(watched: Any) -> None:
    steps: list[int] = []
    async with watched.watch() as events:
        first = await anext(events)
        assert first["about"]["num_blocks"] == 64
        cells = base64.b64decode(first["cells"])
        assert cells == bytes(64)
        answer = await watched.complete()
        maps: list[str] = []
        async for event in events:
            assert "about" not in event
            steps += [step[0] for step in event["steps"]]
            if "cells" in event:
                assert event["cells"] not in maps[-1:], "told though it has not changed"
                maps.append(event["cells"])
            if event["num_generated_tokens"] == 20 and not event["num_running"]:
                break
    usage = answer["usage"]
    assert steps == list(range(1, 1 + 20)), "a chunk of the prompt draws the first token"
    assert event["stats"]["num_scheduled_tokens"] == usage["prompt_tokens"] + 19
    assert sum(event["first_token"]["counts"]) == 1
    assert sum(event["between_tokens"]["counts"]) == 19
    last = base64.b64decode(maps[-1])
    known = usage["prompt_tokens"] + 19
    assert last.count(1) == known // event_block_size(first) == event["block_counts"][1]


def event_block_size(event: Any) -> int:
    return int(event["about"]["block_size"])


async def test_events_are_what_the_document_says(watched: Any) -> None:
    document = make_document(ROUTES, asks_key=False)
    content = document["paths"][PATH]["get"]["responses"]["200"]["content"]
    schema = {**content["text/event-stream"]["schema"], "components": document["components"]}
    async with watched.watch() as events:
        jsonschema.validate(await anext(events), schema)
        await watched.complete()
        async for event in events:
            jsonschema.validate(event, schema)
            if event["steps"]:
                break


async def test_the_engine_is_observed_from_the_first_viewer_to_the_last(watched: Any) -> None:
    assert not watched.is_told
    async with watched.watch() as one:
        await anext(one)
        assert watched.is_told
        async with watched.watch() as other:
            await anext(other)
        await until(lambda: watched.server.state.viewers._num == 1)
        assert watched.is_told
    await until(lambda: not watched.is_told)
    await until(lambda: watched.server.state.num_active == 0)


async def until(true: Any) -> None:
    """Let the loop turn until something is so."""
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - viewers go without an event
            await asyncio.sleep(0)


async def test_viewers_are_bounded_and_make_room_when_they_go(watched: Any) -> None:
    url = watched.server.url + PATH
    async with AsyncExitStack() as stack:
        for _ in range(viewers.MAX_VIEWERS):
            events = await stack.enter_async_context(watched.watch())
            await anext(events)
        async with watched.session.get(url) as response:
            assert response.status == 429
            error = (await response.json())["error"]
            assert str(viewers.MAX_VIEWERS) in error["message"]
            assert error["code"] == "too_many_viewers"
            assert int(response.headers["Retry-After"]) > 0
    await until(lambda: watched.server.state.viewers._num == 0)
    async with watched.watch() as events:
        await anext(events)


async def test_one_look_is_made_for_all_viewers(
    watched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever their number and the rate of steps: at most so many in a second."""
    monkeypatch.setattr(viewers, "EVERY_S", 0.05)
    looks, look = list[int](), watched.engine.live.look

    def counted(_: Any) -> Any:
        looks.append(1)
        return look()

    monkeypatch.setattr(type(watched.engine.live), "look", counted)
    loop = asyncio.get_running_loop()
    start_s = loop.time()
    async with watched.watch() as one, watched.watch() as other, watched.watch() as third:
        for events in (one, other, third):
            await anext(events)
        await asyncio.gather(*(watched.complete() for _ in range(4)))
        took_s = loop.time() - start_s
    assert len(looks) <= took_s / (viewers.EVERY_S / 2) + 1


async def test_who_comes_late_is_told_the_last_steps(watched: Any) -> None:
    async with watched.watch() as one:
        await anext(one)
        await watched.complete()
        async with watched.watch() as late:
            event = await anext(late)
    assert [step[0] for step in event["steps"]] == list(range(1, 21))
    assert "cells" in event


async def test_an_idle_engine_is_told_now_and_then(
    watched: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Time goes on for charts, but nothing is told that has not changed."""
    monkeypatch.setattr(viewers, "IDLE_EVERY_S", 0.05)
    async with watched.watch() as events:
        first, second = await anext(events), await anext(events)
    assert second["at_s"] - first["at_s"] >= 0.05 / 2
    assert second["steps"] == []
    assert "cells" not in second


async def test_viewers_do_not_hold_a_drain(watched: Any) -> None:
    async with watched.watch() as events:
        await anext(events)
        await asyncio.wait_for(watched.server.drain(asyncio.Event()), 5)
        rest = [event async for event in events]
    assert all(event["status"] == "ok" for event in rest)


async def test_a_sleeping_engine_is_shown(watched: Any) -> None:
    async with watched.watch() as events:
        await anext(events)
        await watched.engine.sleep()
        async for event in events:
            if event["status"] == "sleeping":
                break
    await watched.engine.wake_up()
