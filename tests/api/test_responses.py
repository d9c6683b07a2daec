"""/v1/responses as the openai package uses it, and what a conversation is to the model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel
from quire.engine.parsing.choose import Parsers
from quire.engine.parsing.formats import REASONING_FORMATS, TOOL_FORMATS

TOOL: Any = {
    "type": "function",
    "name": "look",
    "description": "Look somewhere.",
    "parameters": {
        "type": "object",
        "properties": {"at": {"enum": ["sky", "sea"]}},
        "required": ["at"],
        "additionalProperties": False,
    },
}
FORCED: Any = {"type": "function", "name": "look"}
LIFECYCLE = ("response.created", "response.in_progress")


@pytest.fixture(scope="module")
def client(demo: Any) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(client: Any, **fields: Any) -> Any:
    how = {"model": "demo", "input": "Hello", "max_output_tokens": 24, "temperature": 0}
    return client.responses.create(**{**how, **fields})


def body_of(response: Any) -> dict[str, Any]:
    """A response without what each has of its own, a greedy one's seed too."""
    body: dict[str, Any] = response.to_dict()
    for item in body["output"]:
        item["id"] = item["call_id"] = "one of its own"
    own = ("id", "created_at", "completed_at", "usage", "seed")
    return {name: value for name, value in body.items() if name not in own}


def test_a_text_equals_what_a_chat_answers(client: Any) -> None:
    given = ask(client, instructions="Be kind.", metadata={"a": "b"})
    chat = client.chat.completions.create(
        model="demo",
        messages=[
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "Hello"},
        ],
        max_completion_tokens=24,
        temperature=0,
    )
    assert given.output_text == chat.choices[0].message.content
    (message,) = given.output
    assert message.type == "message" and message.role == "assistant"
    assert given.object == "response" and given.id.startswith("resp_")
    assert given.metadata == {"a": "b"} and given.instructions == "Be kind."
    assert given.temperature == 0 and given.max_output_tokens == 24
    assert chat.usage is not None and given.usage is not None
    assert given.usage.input_tokens == chat.usage.prompt_tokens
    assert given.usage.output_tokens == chat.usage.completion_tokens
    assert given.usage.total_tokens == chat.usage.total_tokens
    assert given.usage.output_tokens_details.reasoning_tokens == 0


def test_the_seed_that_is_told_replays_an_answer(client: Any) -> None:
    first = ask(client, temperature=1)
    again = ask(client, temperature=1, extra_body={"seed": first.seed})
    assert again.output_text == first.output_text


def test_a_cut_answer_is_incomplete(client: Any) -> None:
    given = ask(client, max_output_tokens=2, extra_body={"ignore_eos": True})
    assert given.status == "incomplete" and given.output[0].status == "incomplete"
    assert given.incomplete_details.reason == "max_output_tokens"
    assert given.usage.output_tokens == 2
    whole = ask(client, max_output_tokens=200)
    assert whole.status == "completed" and whole.output[0].status == "completed"
    assert whole.incomplete_details is None and whole.completed_at >= whole.created_at


@pytest.mark.parametrize("fields", [{}, {"tools": [TOOL], "tool_choice": FORCED}])
def test_a_stream_tells_what_a_whole_response_says(client: Any, fields: Any) -> None:
    whole = ask(client, **fields)
    events = list(ask(client, stream=True, **fields))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    types = [event.type for event in events]
    assert tuple(types[:2]) == LIFECYCLE and types[-1] == "response.completed"
    assert all(event.response.status == "in_progress" for event in events[:2])
    final = events[-1].response
    assert body_of(final) == body_of(whole)
    pieces = "".join(event.delta for event in events if event.type.endswith(".delta"))
    if fields:
        assert pieces == final.output[0].arguments
        assert types[2] == "response.output_item.added"
        assert types[-3:-1] == ["response.function_call_arguments.done", types[-2]]
    else:
        assert pieces == final.output_text
        assert types[2:4] == ["response.output_item.added", "response.content_part.added"]
        assert types[-4:-2] == ["response.output_text.done", "response.content_part.done"]
    assert types[-2] == "response.output_item.done"
    assert events[-2].item == final.output[0]


def test_the_result_of_a_call_is_answered_by_naming_its_response(client: Any) -> None:
    asked = ask(client, input="Where?", tools=[TOOL], tool_choice=FORCED)
    (call,) = asked.output
    assert call.type == "function_call" and call.name == "look" and call.status == "completed"
    assert json.loads(call.arguments)["at"] in ("sky", "sea")
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "a gull"}
    given = ask(client, input=[result], tools=[TOOL], previous_response_id=asked.id)
    assert given.previous_response_id == asked.id
    chat = client.chat.completions.create(
        model="demo",
        messages=[
            {"role": "user", "content": "Where?"},
            {
                "role": "assistant",
                "tool_calls": [
                    {
                        "id": call.call_id,
                        "type": "function",
                        "function": {"name": "look", "arguments": call.arguments},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": call.call_id, "content": "a gull"},
        ],
        tools=[{"type": "function", "function": {k: TOOL[k] for k in TOOL if k != "type"}}],
        max_completion_tokens=24,
        temperature=0,
    )
    assert chat.usage is not None
    assert given.usage.input_tokens == chat.usage.prompt_tokens
    assert given.output_text == (chat.choices[0].message.content or "")
    by_hand = [{"role": "user", "content": "Where?"}, call.to_dict(), result]
    alone = ask(client, input=by_hand, tools=[TOOL], store=False)
    assert alone.output_text == given.output_text
    listed = client.responses.input_items.list(given.id, order="asc").data
    kinds = [item.type for item in listed]
    assert kinds == ["message", "function_call", "function_call_output"]


class Pet(BaseModel):
    kind: Literal["cat", "dog"]
    age: Literal[1, 2, 3]


def test_an_answer_is_parsed_into_a_form(client: Any) -> None:
    given = client.responses.parse(model="demo", input="A pet", text_format=Pet, temperature=0)
    assert isinstance(given.output_parsed, Pet)
    with client.responses.stream(
        model="demo", input="A pet", text_format=Pet, temperature=0
    ) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_parsed == given.output_parsed


def test_a_kept_response_is_shown_until_it_is_deleted(client: Any) -> None:
    given = ask(client)
    assert client.responses.retrieve(given.id) == given
    streamed = list(ask(client, stream=True))[-1].response
    assert client.responses.retrieve(streamed.id) == streamed
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(given.id)
    client.responses.delete(given.id)
    for look in (
        client.responses.retrieve,
        client.responses.delete,
        client.responses.cancel,
        client.responses.input_items.list,
    ):
        with pytest.raises(openai.NotFoundError, match="not kept"):
            look(given.id)
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, previous_response_id=given.id)
    assert caught.value.param == "previous_response_id"
    unkept = ask(client, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(unkept.id)


def test_input_items_come_in_pages(client: Any) -> None:
    given = ask(client, input=[{"role": "user", "content": f"{i}"} for i in range(5)])
    whole = client.responses.input_items.list(given.id, limit=100, order="asc").data
    assert [item.content for item in whole] == [f"{i}" for i in range(5)]
    assert len({item.id for item in whole}) == 5
    for order in ("asc", "desc"):
        paged = list(client.responses.input_items.list(given.id, limit=2, order=order))
        assert paged == (whole if order == "asc" else whole[::-1])
    assert len(client.responses.input_items.list(given.id).data) == 5
    for query in ({"limit": 0}, {"limit": 101}, {"after": "x"}, {"order": "up"}):
        with pytest.raises(openai.BadRequestError, match=next(iter(query))):
            client.responses.input_items.list(given.id, extra_query=query)


MESSAGE = {"role": "user", "content": "a"}


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"input": []}, "input", "empty"),
        ({"input": [{"role": "judge", "content": "a"}]}, "input", "user, assistant"),
        ({"input": [{"type": "computer_call"}]}, "input", r"input\[0\].type"),
        ({"input": [MESSAGE, {"role": "user"}]}, "input", r"input\[1\].content"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input", "no images"),
        ({"input": [{"type": "function_call", "call_id": "a"}]}, "input", "name is null"),
        (
            {"input": [{"type": "function_call_output", "call_id": "a", "output": ""}]},
            "input",
            "no function_call before",
        ),
        ({"input": [{"type": "reasoning", "encrypted_content": "x"}]}, "input", "cannot read"),
        ({"input": "a " * 9000}, "input", "input has"),
        ({"max_output_tokens": 10**6}, "max_output_tokens", "max_output_tokens is"),
        ({"max_output_tokens": 0}, "max_output_tokens", "max_output_tokens is 0"),
        ({"temperature": -1}, "temperature", "temperature is"),
        ({"tools": [{"type": "web_search"}]}, "tools", "only function"),
        ({"tools": [{"type": "function"}]}, "tools", "name is null"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        ({"tool_choice": FORCED}, "tool_choice", "look"),
        ({"tool_choice": {"type": "mcp"}}, "tool_choice", "must be none"),
        ({"text": {"format": {"type": "xml"}}}, "text.format", "json_object"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format", "schema"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "only"),
        ({"conversation": "c"}, "conversation", "not supported"),
        ({"truncation": "auto"}, "truncation", "disabled"),
        ({"include": ["message.output_text.logprobs"]}, "include", "encrypted_content"),
        ({"extra_body": {"max_tokens": 3}}, "max_tokens", "not a known field"),
    ],
)
def test_what_is_not_allowed_is_said(client: Any, fields: Any, param: str, says: str) -> None:
    with pytest.raises(openai.BadRequestError, match=says) as caught:
        ask(client, **fields)
    assert caught.value.param == param


def test_allowed_tools_are_those_that_are_seen(client: Any) -> None:
    other = {**TOOL, "name": "wait"}
    for mode in ("auto", "required"):
        allowed = {"type": "allowed_tools", "mode": mode, "tools": [FORCED]}
        given = ask(client, tools=[other, TOOL], tool_choice=allowed)
        alone = ask(client, tools=[TOOL], tool_choice=mode)
        assert given.usage.input_tokens == alone.usage.input_tokens
        calls = [[one.name, one.arguments] for one in given.output if one.type == "function_call"]
        assert calls == [
            [one.name, one.arguments] for one in alone.output if one.type == "function_call"
        ]
        assert mode == "auto" or {name for name, _ in calls} == {"look"}


CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "sea"}}\n</tool_call>'


async def told(serve_fake: Any, text: str, **fields: Any) -> dict[str, Any]:
    """The response to an answer. The stream of it says the same, however it is cut."""
    parsers = Parsers(TOOL_FORMATS["hermes"], REASONING_FORMATS["qwen3"])
    bodies: list[dict[str, Any]] = []
    for size in (1, 7, len(text)):
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        faked = await serve_fake(serve_fake.engine(pieces=pieces, parsers=parsers))
        url = f"{faked.url}/v1/responses"
        asked = {"input": "hi", "tools": [TOOL], "include_reasoning": True, **fields}
        async with faked.session.post(url, json=asked) as response:
            assert response.status == 200, await response.text()
            bodies.append(await response.json())
        async with faked.session.post(url, json={**asked, "stream": True}) as response:
            lines = (await response.text()).split("\n\n")
        assert lines.pop() == ""
        events = []
        for line in lines:
            name, data = line.split("\n")
            events.append(json.loads(data.removeprefix("data: ")))
            assert name == f"event: {events[-1]['type']}"
        bodies.append(events[-1]["response"])
        done = [one["item"] for one in events if one["type"] == "response.output_item.done"]
        assert done == bodies[-1]["output"]
        grown = put_together(events)
        assert grown == done
    first, *others = map(without_ids, bodies)
    assert all(other == first for other in others)
    return bodies[0]


def put_together(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items that a client makes of the deltas alone, with the status that they end in."""
    items: list[dict[str, Any]] = []
    for event in events:
        kind = event["type"]
        if kind == "response.output_item.added":
            assert event["output_index"] == len(items)
            items.append({**event["item"]})
        elif kind == "response.content_part.added":
            items[-1]["content"] = [{**event["part"]}]
        elif kind == "response.function_call_arguments.delta":
            items[-1]["arguments"] += event["delta"]
        elif kind.endswith("text.delta"):
            items[-1]["content"][0]["text"] += event["delta"]
        elif kind == "response.output_item.done":
            items[-1]["status"] = event["item"]["status"]
        if "item_id" in event:
            assert event["item_id"] == items[-1]["id"]
            assert event["output_index"] == len(items) - 1
    return items


def without_ids(body: dict[str, Any]) -> Any:
    output = [{**item, "id": "", "call_id": ""} for item in body["output"]]
    return {**body, "output": output, "id": "", "created_at": 0, "completed_at": 0}


async def test_items_follow_each_other_as_the_text_has_them(serve_fake: Any) -> None:
    text = f"<think>so</think>I look.{CALL}{CALL}And then."
    body = await told(serve_fake, text)
    items = body["output"]
    kinds = [item["type"] for item in items]
    assert kinds == ["reasoning", "message", "function_call", "function_call", "message"]
    assert items[0]["content"] == [{"type": "reasoning_text", "text": "so"}]
    assert items[1]["content"][0]["text"] == "I look."
    assert items[2]["arguments"] == '{"at": "sea"}' and items[2]["name"] == "look"
    assert items[2]["call_id"] != items[3]["call_id"]
    assert len({item["id"] for item in items}) == len(items)
    assert body["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}
    assert {item["status"] for item in items} == {"completed"}


async def test_what_is_not_wanted_is_not_told(serve_fake: Any) -> None:
    text = f"<think>so</think>{CALL}{CALL}"
    body = await told(serve_fake, text, include_reasoning=False, parallel_tool_calls=False)
    assert [item["type"] for item in body["output"]] == ["function_call"]


async def test_an_answer_of_nothing_is_an_empty_message(serve_fake: Any) -> None:
    faked = await serve_fake(serve_fake.engine(pieces=[""]))
    async with faked.session.post(f"{faked.url}/v1/responses", json={"input": "a"}) as response:
        (item,) = (await response.json())["output"]
    assert item["type"] == "message" and item["content"][0]["text"] == ""


async def test_a_stream_that_fails_says_so_in_its_last_event(serve_fake: Any) -> None:
    for options in ({"failure": RuntimeError("secret")}, {"error": "no memory"}):
        faked = await serve_fake(serve_fake.engine(pieces=["a", "b"], **options))
        body = {"input": "a", "stream": True}
        async with faked.session.post(f"{faked.url}/v1/responses", json=body) as response:
            text = await response.text()
        last = json.loads(text.rstrip().rpartition("\n")[2].removeprefix("data: "))
        assert last["type"] == "response.failed" and "secret" not in text
        assert last["response"]["status"] == "failed"
        assert last["response"]["error"]["code"] == "server_error"
        name = last["response"]["id"]
        async with faked.session.get(f"{faked.url}/v1/responses/{name}") as response:
            assert response.status == 404


async def test_a_response_belongs_to_the_key_that_asked_for_it(serve_fake: Any) -> None:
    """Nor can one key take the place of another's response by its id."""
    faked = await serve_fake(api_keys=["one", "two"])
    url = f"{faked.url}/v1/responses"
    answers = {}
    for key in ("one", "two"):
        body = {"input": key, "request_id": "x"}
        headers = {"Authorization": f"Bearer {key}"}
        async with faked.session.post(url, json=body, headers=headers) as response:
            answers[key] = await response.json()
    for key, asked in answers.items():
        headers = {"Authorization": f"Bearer {key}"}
        async with faked.session.get(f"{url}/resp_x/input_items", headers=headers) as response:
            (item,) = (await response.json())["data"]
        assert item["content"][0]["text"] == key and asked["id"] == "resp_x"
    async with faked.session.delete(f"{url}/resp_x", headers=headers) as response:
        assert response.status == 200
    for key, status in (("one", 200), ("two", 404)):
        headers = {"Authorization": f"Bearer {key}"}
        async with faked.session.get(f"{url}/resp_x", headers=headers) as response:
            assert response.status == status
