"""Responses in the background: told at once, made while nobody waits, followed from any event."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from quire.api.account import Account
from quire.api.batch.endpoints import ENDPOINTS, answer_body
from quire.api.caller import Caller
from quire.api.limits import Limits

ASK: dict[str, Any] = {"model": "demo", "input": "Hello", "max_output_tokens": 24, "temperature": 0}


@pytest.fixture(scope="module")
def client(demo: Any) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def without_own(response: Any) -> dict[str, Any]:
    """A response without what each has of its own."""
    body: dict[str, Any] = response.to_dict()
    for item in body["output"]:
        item["id"] = "one of its own"
    own = ("id", "created_at", "completed_at", "usage", "seed", "background")
    return {name: value for name, value in body.items() if name not in own}


def poll(client: Any, name: str) -> Any:
    """Look until it has ended; the test's time limit is the bound."""
    while True:
        response = client.responses.retrieve(name)
        if response.status not in ("queued", "in_progress"):
            return response


def test_a_polled_response_is_what_the_client_would_have_waited_for(client: Any) -> None:
    given = client.responses.create(background=True, **ASK)
    assert given.status == "queued" and given.background and not given.output
    final = poll(client, given.id)
    assert final.status == "completed" and final.background and final.id == given.id
    assert without_own(final) == without_own(client.responses.create(**ASK))
    assert client.responses.cancel(given.id) == final
    later = client.responses.create(previous_response_id=given.id, **ASK)
    assert later.usage.input_tokens > final.usage.input_tokens
    client.responses.delete(given.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(given.id)


def test_a_stream_is_read_again_from_any_event(client: Any) -> None:
    events = list(client.responses.create(background=True, stream=True, **ASK))
    types = [event.type for event in events]
    assert types[:3] == ["response.created", "response.queued", "response.in_progress"]
    assert types[-1] == "response.completed"
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.response.status for event in events[:3]] == ["queued", "queued", "in_progress"]
    name = events[0].response.id
    assert events[-1].response == client.responses.retrieve(name)
    for start in (0, 2, len(events) - 2, len(events) - 1):
        again = list(client.responses.retrieve(name, stream=True, starting_after=start))
        assert again == events[start + 1 :]
    assert list(client.responses.retrieve(name, stream=True)) == events


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ({"stream": True}, "was not asked for with background and stream true"),
        ({"stream": True, "starting_after": "x"}, "must be the sequence_number of an event"),
        ({"extra_query": {"starting_after": 3}}, "starting_after needs stream=true"),
    ],
)
def test_what_cannot_be_read_is_said(client: Any, query: dict[str, Any], says: str) -> None:
    given = client.responses.create(background=True, **ASK)
    for _ in range(2):
        with pytest.raises(openai.BadRequestError, match=says):
            client.responses.retrieve(given.id, **query)
        poll(client, given.id)


def test_what_is_in_the_background_must_be_kept(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="store is false and background true"):
        client.responses.create(background=True, store=False, **ASK)


async def post(faked: Any, path: str = "", **body: Any) -> tuple[int, Any]:
    """Ask a server around a fake engine."""
    url = f"{faked.url}/v1/responses{path}"
    async with faked.session.post(url, json={"input": "a", **body}) as response:
        return response.status, await response.json()


async def get(faked: Any, name: str, **query: str) -> tuple[int, Any]:
    async with faked.session.get(f"{faked.url}/v1/responses/{name}", params=query) as response:
        return response.status, await response.json()


async def behind(faked: Any, name: str, status: str) -> Any:
    """Look until a status is over; return what is there then."""
    async with asyncio.timeout(10):
        while True:
            _, body = await get(faked, name)
            if body["status"] != status:
                return body


async def follow(faked: Any, name: str, **query: str) -> list[dict[str, Any]]:
    """The events of a response, until it has ended."""
    url = f"{faked.url}/v1/responses/{name}"
    async with faked.session.get(url, params={"stream": "true", **query}) as response:
        assert response.status == 200, await response.text()
        lines = (await response.text()).splitlines()
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]


async def gated(serve_fake: Any, **options: Any) -> Any:
    """A server whose engine gives a piece when it is let."""
    engine = serve_fake.engine(pieces=["a", "b", "c"], gate=asyncio.Semaphore(0))
    return await serve_fake(engine, **options)


async def test_it_is_shown_as_far_as_it_is(serve_fake: Any) -> None:
    faked = await gated(serve_fake)
    status, given = await post(faked, background=True)
    assert status == 200 and given["status"] == "queued"
    name = given["id"]
    assert (await get(faked, name))[1]["status"] == "queued"
    faked.engine.gate.release()
    assert (await behind(faked, name, "queued"))["status"] == "in_progress"
    status, told = await post(faked, previous_response_id=name)
    assert status == 404 and "has not ended" in told["error"]["message"]
    async with faked.session.get(f"{faked.url}/v1/responses/{name}/input_items") as response:
        (item,) = (await response.json())["data"]
    assert item["content"][0]["text"] == "a"
    for _ in range(2):
        faked.engine.gate.release()
    final = await behind(faked, name, "in_progress")
    assert final["status"] == "completed" and final["output"][0]["content"][0]["text"] == "abc"
    assert faked.server.state.num_active == 0 and faked.server.state.admission.num_queued == 0


async def test_it_is_made_though_its_client_goes_and_others_follow_it(serve_fake: Any) -> None:
    faked = await gated(serve_fake)
    body = {"input": "a", "background": True, "stream": True}
    async with faked.session.post(f"{faked.url}/v1/responses", json=body) as response:
        name = ""
        while not name:
            line = await response.content.readline()
            if line.startswith(b"data: "):
                name = json.loads(line[6:])["response"]["id"]
    followers = [
        asyncio.create_task(follow(faked, name, **query))
        for query in ({}, {"starting_after": "1"}, {"starting_after": "1"})
    ]
    for _ in range(3):
        await asyncio.sleep(0.01)
        faked.engine.gate.release()
    whole, *rest = await asyncio.gather(*followers)
    assert rest == [whole[2:], whole[2:]] == [await follow(faked, name, starting_after="1")] * 2
    assert whole[-1]["type"] == "response.completed"
    assert faked.engine.ended and not faked.engine.aborted


@pytest.mark.parametrize("stream", [False, True])
async def test_a_cancelled_one_is_aborted_and_says_so(serve_fake: Any, stream: bool) -> None:
    faked = await gated(serve_fake)
    if stream:
        asked = asyncio.create_task(
            faked.session.post(
                f"{faked.url}/v1/responses",
                json={"input": "a", "background": True, "stream": True, "request_id": "x"},
            )
        )
        name = "resp_x"
        await faked.engine.until(lambda: bool(faked.engine.started))
    else:
        name = (await post(faked, background=True))[1]["id"]
    status, told = await post(faked, f"/{name}/cancel")
    assert status == 200 and told["status"] == "cancelled" and told["id"] == name
    assert (await get(faked, name))[1] == told == (await post(faked, f"/{name}/cancel"))[1]
    await faked.engine.until(lambda: faked.engine.num_unfinished == 0)
    assert len(faked.engine.aborted) == len(faked.engine.started)
    status, refused = await post(faked, previous_response_id=name)
    assert status == 400 and "is cancelled" in refused["error"]["message"]
    if stream:
        async with await asked as response:
            last = (await response.text()).splitlines()[-2]
        assert json.loads(last[6:])["response"] == told
    assert faked.server.state.num_active == 0 and faked.server.state.admission.num_queued == 0


async def test_a_deleted_one_is_aborted_and_forgotten(serve_fake: Any) -> None:
    faked = await gated(serve_fake)
    name = (await post(faked, background=True))[1]["id"]
    async with faked.session.delete(f"{faked.url}/v1/responses/{name}") as response:
        assert response.status == 200
    await faked.engine.until(lambda: faked.engine.num_unfinished == 0)
    assert (await get(faked, name))[0] == 404


async def test_one_that_fails_is_kept_and_says_why(serve_fake: Any) -> None:
    for options in ({"failure": RuntimeError("secret")}, {"error": "no memory"}):
        faked = await serve_fake(serve_fake.engine(pieces=["a", "b"], **options))
        name = (await post(faked, background=True))[1]["id"]
        await faked.server.state.idle.wait()
        _, final = await get(faked, name)
        assert final["status"] == "failed" and final["error"]["code"] == "server_error"
        assert "secret" not in json.dumps(final)


async def test_a_bounded_number_is_made_at_once(serve_fake: Any) -> None:
    faked = await gated(serve_fake, limits=Limits(max_background_responses=2))
    names = [(await post(faked, background=True))[1]["id"] for _ in range(2)]
    status, told = await post(faked, background=True)
    assert status == 429 and told["error"]["code"] == "background_full"
    await post(faked, f"/{names[0]}/cancel")
    assert (await post(faked, background=True))[0] == 200


async def test_a_server_that_keeps_nothing_makes_none(serve_fake: Any) -> None:
    faked = await serve_fake(limits=Limits(response_store_bytes=0))
    status, told = await post(faked, background=True)
    assert status == 400 and "keeps no responses" in told["error"]["message"]


async def test_the_queue_counts_them(serve_fake: Any) -> None:
    """What is refused there takes no place in the background."""
    engine = serve_fake.engine(gate=asyncio.Semaphore(0), num_waiting=1)
    faked = await serve_fake(engine, limits=Limits(max_queued_requests=1))
    status, told = await post(faked, background=True)
    assert status == 429 and told["error"]["code"] == "queue_full"
    engine.num_waiting = 0
    assert (await post(faked, background=True))[0] == 200


async def test_a_name_that_is_taken_is_refused(serve_fake: Any) -> None:
    faked = await gated(serve_fake)
    assert (await post(faked, background=True, request_id="x"))[0] == 200
    status, told = await post(faked, background=True, request_id="x")
    assert status == 400 and told["error"]["param"] == "request_id"
    assert faked.server.state.num_active == 1


async def test_a_drain_waits_for_them_and_an_end_does_not(serve_fake: Any) -> None:
    faked = await gated(serve_fake)
    name = (await post(faked, background=True))[1]["id"]
    drain = asyncio.create_task(faked.server.drain(asyncio.Event()))
    await asyncio.sleep(0.01)
    assert not drain.done()
    assert (await post(faked, background=True))[0] == 503
    for _ in range(3):
        faked.engine.gate.release()
    await drain
    assert (await get(faked, name))[1]["status"] == "completed"
    faked.server.state.draining = False
    await post(faked, background=True)
    await faked.engine.until(lambda: len(faked.engine.started) == 2)
    await faked.server.stop()
    assert faked.engine.num_unfinished == 0 and len(faked.engine.aborted) == 1


async def test_it_belongs_to_its_key(serve_fake: Any) -> None:
    engine = serve_fake.engine(pieces=["a"], gate=asyncio.Semaphore(0))
    faked = await serve_fake(engine, api_keys=["one", "two"])
    url = f"{faked.url}/v1/responses"
    one, two = ({"Authorization": f"Bearer {key}"} for key in ("one", "two"))
    body = {"input": "a", "background": True}
    async with faked.session.post(url, json=body, headers=one) as response:
        name = (await response.json())["id"]
    for method, path in (("GET", name), ("POST", f"{name}/cancel"), ("DELETE", name)):
        async with faked.session.request(method, f"{url}/{path}", headers=two) as response:
            assert response.status == 404
    async with faked.session.post(f"{url}/{name}/cancel", headers=one) as response:
        assert (await response.json())["status"] == "cancelled"


async def test_a_batch_takes_none(serve_fake: Any) -> None:
    """It is in the background itself, and its lines are answers."""
    faked = await serve_fake()
    account = Account("r", 0.0, background=True)
    body = b'{"input": "a", "background": true}'
    caller = Caller(faked.server.state, account)
    status, told = await answer_body(caller, ENDPOINTS["/v1/responses"], body)
    assert status == 400 and b"a batch is in the background" in told
