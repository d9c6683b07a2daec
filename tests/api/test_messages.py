"""/v1/messages as the anthropic package uses it: the answers are those of a chat."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import openai
import pytest
from pydantic import BaseModel
from quire.api.messages_input import read_messages
from quire.engine.parsing.choose import Parsers
from quire.engine.parsing.formats import REASONING_FORMATS, TOOL_FORMATS

from .tool_uses import MESSAGES_TOOLS, USES, Use

SCHEMA: Any = {
    "type": "object",
    "properties": {"at": {"enum": ["sky", "sea"]}},
    "required": ["at"],
    "additionalProperties": False,
}
TOOL: Any = {"name": "look", "description": "Look somewhere.", "input_schema": SCHEMA}
CHAT_TOOL: Any = {
    "type": "function",
    "function": {"name": "look", "parameters": SCHEMA, "description": "Look somewhere."},
}
FORCED: Any = {"type": "tool", "name": "look"}
HI: Any = {"role": "user", "content": "Hello"}


@pytest.fixture(scope="module")
def client(demo: Any) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=demo.url, api_key="none", max_retries=0) as client:
        yield client


def ask(client: anthropic.Anthropic, **fields: Any) -> Any:
    """A greedy answer. What newer clients have no parameter for goes beside."""
    beside = {"temperature": 0, **fields.pop("extra_body", {})}
    how: Any = {"model": "demo", "messages": [HI], "max_tokens": 24, **fields}
    return client.messages.create(**how, extra_body=beside)


def chat(demo: Any, messages: list[Any], **fields: Any) -> Any:
    with openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0) as client:
        return client.chat.completions.create(
            model="demo",
            messages=messages,
            **{"max_completion_tokens": 24, "temperature": 0, **fields},
        )


def num_input(usage: Any) -> int:
    return int(usage.input_tokens + usage.cache_read_input_tokens)


def test_a_text_equals_what_a_chat_answers(client: anthropic.Anthropic, demo: Any) -> None:
    given = ask(client, system=[{"type": "text", "text": "Be kind."}])
    asked = chat(demo, [{"role": "system", "content": "Be kind."}, HI])
    (block,) = given.content
    assert block.type == "text" and block.text == asked.choices[0].message.content
    assert given.type == "message" and given.role == "assistant" and given.model == "demo"
    assert given.usage.output_tokens == asked.usage.completion_tokens
    assert num_input(given.usage) == asked.usage.prompt_tokens
    counted = client.messages.count_tokens(model="demo", messages=[HI], system="Be kind.")
    assert counted.input_tokens == asked.usage.prompt_tokens


def test_why_an_answer_ended(client: anthropic.Anthropic) -> None:
    cut = ask(client, max_tokens=2)
    assert cut.stop_reason == "max_tokens" and cut.usage.output_tokens == 2
    whole = ask(client, max_tokens=200)
    assert whole.stop_reason == "end_turn" and whole.stop_sequence is None
    text = whole.content[0].text
    stopped = ask(client, max_tokens=200, stop_sequences=[text[3:5]])
    assert stopped.stop_reason == "stop_sequence" and stopped.stop_sequence == text[3:5]
    assert stopped.content[0].text == text[: text.index(text[3:5])]


def test_the_seed_that_is_told_replays_an_answer(client: anthropic.Anthropic) -> None:
    first = ask(client, extra_body={"temperature": 1})
    again = ask(client, extra_body={"temperature": 1, "seed": first.seed})
    assert again.content == first.content


def test_a_begun_answer_is_continued(client: anthropic.Anthropic, demo: Any) -> None:
    begun = [HI, {"role": "assistant", "content": "Hello, I"}]
    given = ask(client, messages=begun)
    how = {"continue_final_message": True, "add_generation_prompt": False}
    asked = chat(demo, begun, extra_body=how)
    assert given.content[0].text == asked.choices[0].message.content


@pytest.mark.parametrize("fields", [{}, {"tools": [TOOL], "tool_choice": FORCED}])
def test_a_stream_makes_the_whole(client: anthropic.Anthropic, fields: Any) -> None:
    whole = ask(client, **fields)
    how: Any = {"model": "demo", "messages": [HI], "max_tokens": 24, **fields}
    with client.messages.stream(**how, extra_body={"temperature": 0}) as stream:
        types = [event.type for event in stream]
        made = stream.get_final_message()
    assert types[0] == "message_start" and types[-1] == "message_stop"
    assert made.stop_reason == whole.stop_reason
    assert made.usage.output_tokens == whole.usage.output_tokens
    assert num_input(made.usage) == num_input(whole.usage)
    for one, other in zip(made.content, whole.content, strict=True):
        own = {"id": ""} if one.type == "tool_use" else {}
        assert {**one.to_dict(), **own} == {**other.to_dict(), **own}


def test_the_result_of_a_call_is_answered(client: anthropic.Anthropic, demo: Any) -> None:
    question = {"role": "user", "content": "Where?"}
    asked = ask(client, messages=[question], tools=[TOOL], tool_choice=FORCED)
    (call,) = asked.content
    assert asked.stop_reason == "tool_use" and call.type == "tool_use" and call.name == "look"
    assert call.input["at"] in ("sky", "sea")
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "a gull"}
    messages = [
        question,
        {"role": "assistant", "content": [call.to_dict()]},
        {"role": "user", "content": [result]},
    ]
    given = ask(client, messages=messages, tools=[TOOL])
    function = {"name": "look", "arguments": json.dumps(call.input)}
    same = chat(
        demo,
        [
            question,
            {
                "role": "assistant",
                "tool_calls": [{"id": call.id, "type": "function", "function": function}],
            },
            {"role": "tool", "tool_call_id": call.id, "content": "a gull"},
        ],
        tools=[CHAT_TOOL],
    )
    assert num_input(given.usage) == same.usage.prompt_tokens
    text = "".join(block.text for block in given.content if block.type == "text")
    assert text == (same.choices[0].message.content or "")


def test_an_answer_of_a_form(client: anthropic.Anthropic) -> None:
    form = {"format": {"type": "json_schema", "schema": SCHEMA}}
    given = ask(client, output_config=form)
    assert json.loads(given.content[0].text)["at"] in ("sky", "sea")


class Pet(BaseModel):
    kind: Literal["cat", "fox"]
    old: bool


def test_an_answer_is_parsed_into_a_class(client: anthropic.Anthropic) -> None:
    how: Any = {"model": "demo", "messages": [HI], "max_tokens": 100, "output_format": Pet}
    parsed = client.messages.parse(**how, extra_body={"temperature": 0}).parsed_output
    assert isinstance(parsed, Pet)
    with client.messages.stream(**how, extra_body={"temperature": 0}) as stream:
        assert stream.get_final_message().parsed_output == parsed


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("use", USES, ids=lambda use: use.result)
def test_the_model_calls_the_tool_and_answers_from_its_result(
    client: anthropic.Anthropic, use: Use, streamed: bool
) -> None:
    """It decides on the call; what it was told cannot be guessed."""

    def answer(messages: list[Any]) -> Any:
        how: Any = {"model": "demo", "max_tokens": 200, "tools": MESSAGES_TOOLS}
        how |= {"messages": messages, "extra_body": {"temperature": 0}}
        if not streamed:
            return client.messages.create(**how)
        with client.messages.stream(**how) as stream:
            return stream.get_final_message()

    messages: list[Any] = [{"role": "user", "content": use.question}]
    asked = answer(messages)
    (call,) = asked.content
    assert asked.stop_reason == "tool_use" and call.type == "tool_use"
    result = use.run(call.name, call.input)
    messages += [
        {"role": "assistant", "content": asked.content},
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": call.id, "content": result}],
        },
    ]
    (block,) = answer(messages).content
    assert block.text == use.answer


MANY: Any = {
    "type": "object",
    "properties": {
        "pets": {"type": "array", "items": {"enum": ["cat", "fox"]}, "minItems": 400},
    },
    "required": ["pets"],
    "additionalProperties": False,
}
LONG: Any = {
    **{"model": "demo", "messages": [HI], "max_tokens": 1900},
    "output_config": {"format": {"type": "json_schema", "schema": MANY}},
}
"""A form that is long."""


def test_a_stream_that_is_left_is_aborted(demo: Any, client: anthropic.Anthropic) -> None:
    with demo.aborts(), client.messages.stream(**LONG) as stream:
        next(iter(stream.text_stream))
        assert demo.num_unfinished() == 1


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_task_that_is_cancelled_aborts_its_request(demo: Any, streamed: bool) -> None:
    async with anthropic.AsyncAnthropic(base_url=demo.url, api_key="none", max_retries=0) as client:

        async def read() -> None:
            answer: Any = await client.messages.create(stream=streamed, **LONG)
            if streamed:
                async with answer:
                    async for _ in answer:
                        pass

        await demo.cancel(read())


def test_some_call_is_demanded(client: anthropic.Anthropic) -> None:
    choice = {"type": "any", "disable_parallel_tool_use": True}
    given = ask(client, tools=[TOOL], tool_choice=choice, max_tokens=64)
    assert [block.type for block in given.content] == ["tool_use"]
    assert given.stop_reason == "tool_use"


def test_an_image_is_refused(client: anthropic.Anthropic) -> None:
    image = {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/"}}
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\].content\[0\]"):
        ask(client, messages=[{"role": "user", "content": [image]}])


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"messages": []}, "messages is empty"),
        ({"messages": [{"role": "system", "content": "a"}]}, "user or assistant"),
        ({"messages": [{"role": "user", "content": None}]}, "list of blocks"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "x"}]}
                ]
            },
            "messages has an output",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "content": [{"type": "tool_use", "id": "x", "name": "f", "input": {}}],
                    }
                ]
            },
            "messages ends with",
        ),
        ({"messages": [{**HI, "content": "a " * 9000}]}, "messages has"),
        ({"max_tokens": 15_000}, "max_tokens is"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"extra_body": {"temperature": -1}}, "temperature is"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "input_schema"),
        ({"tool_choice": {"type": "any"}}, "no tools"),
        ({"tool_choice": {"type": "all"}}, "must be auto"),
        ({"thinking": {"type": "hard"}}, "enabled, adaptive"),
        ({"output_config": {"format": {"type": "xml"}}}, "json_schema"),
        ({"system": [{"type": "image"}]}, "system is"),
        ({"extra_body": {"best_of": 2}}, "not a known field"),
        ({"extra_body": {"thread": {"type": "create"}}}, "thread is .* not supported"),
    ],
)
def test_what_is_not_allowed_is_said(client: anthropic.Anthropic, fields: Any, says: str) -> None:
    with pytest.raises(anthropic.BadRequestError, match=says) as caught:
        ask(client, **fields)
    body: Any = caught.value.body
    assert body["type"] == "error" and body["error"]["type"] == "invalid_request_error"
    assert body["request_id"]


def test_another_model_is_not_found(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError):
        ask(client, model="other")
    with pytest.raises(anthropic.NotFoundError):
        client.messages.count_tokens(model="other", messages=[HI])


CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "sea"}}\n</tool_call>'


async def ask_fake(serve_fake: Any, text: str, **options: Any) -> tuple[Any, list[Any], list[str]]:
    """The answer to a request whole, the blocks that its stream grows, and the names of events."""
    parsers = Parsers(TOOL_FORMATS["hermes"], REASONING_FORMATS["qwen3"])
    body = {"messages": [HI], "max_tokens": 64, "tools": [TOOL]}
    pieces = [text[start : start + 5] for start in range(0, len(text), 5)]
    faked = await serve_fake(serve_fake.engine(pieces=pieces, parsers=parsers, **options))
    url = f"{faked.url}/v1/messages"
    async with faked.session.post(url, json=body) as response:
        whole = await response.json()
    async with faked.session.post(url, json={**body, "stream": True}) as response:
        lines = (await response.text()).removesuffix("\n\n").split("\n\n")
    blocks: list[Any] = []
    names = []
    for line in lines:
        name, data = line.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        names.append(event["type"])
        if event["type"] == "content_block_start":
            assert event["index"] == len(blocks)
            blocks.append(["", event["content_block"]["type"]])
        elif event["type"] == "content_block_delta":
            kind = {"text": "text", "thinking": "thinking", "tool_use": "partial_json"}
            blocks[event["index"]][0] += event["delta"][kind[blocks[event["index"]][1]]]
    return whole, blocks, names


async def test_blocks_follow_each_other_as_the_text_has_them(serve_fake: Any) -> None:
    whole, blocks, names = await ask_fake(serve_fake, f"<think>so</think>I look.{CALL}{CALL}")
    kinds = [block["type"] for block in whole["content"]]
    assert kinds == ["thinking", "text", "tool_use", "tool_use"]
    assert kinds == [kind for _, kind in blocks]
    assert blocks[0][0] == whole["content"][0]["thinking"] == "so"
    assert blocks[1][0] == whole["content"][1]["text"] == "I look."
    assert json.loads(blocks[2][0]) == whole["content"][2]["input"] == {"at": "sea"}
    assert whole["content"][2]["id"] != whole["content"][3]["id"]
    assert whole["stop_reason"] == "tool_use"
    assert names.count("content_block_stop") == len(blocks)
    assert names[0] == "message_start" and names[-2:] == ["message_delta", "message_stop"]


async def test_a_stream_that_fails_says_so_in_its_last_event(serve_fake: Any) -> None:
    _, _, names = await ask_fake(serve_fake, "so it is", failure=RuntimeError("secret"))
    assert names[0] == "message_start" and names[-1] == "error"


async def test_a_key_may_come_as_anthropic_sends_it(serve_fake: Any) -> None:
    faked = await serve_fake(api_keys=["one"])
    body = {"messages": [HI], "max_tokens": 4}
    for headers, status in (
        ({"X-Api-Key": "one"}, 200),
        ({"Authorization": "Bearer one"}, 200),
        ({"X-Api-Key": "two"}, 401),
        ({"X-Api-Key": "one", "Authorization": "Bearer two"}, 401),
        ({}, 401),
    ):
        url = f"{faked.url}/v1/messages"
        async with faked.session.post(url, json=body, headers=headers) as response:
            assert response.status == status
            if status != 200:
                assert (await response.json())["error"]["type"] == "authentication_error"


def test_texts_between_other_blocks_are_messages_in_their_order() -> None:
    text: Any = {"type": "text", "text": "a"}
    call = {"type": "tool_use", "id": "x", "name": "f", "input": {"b": 1}}
    result = {"type": "tool_result", "tool_use_id": "x", "content": [text, text]}
    thought = {"type": "thinking", "thinking": "hm", "signature": ""}
    items = read_messages(
        [
            {"role": "user", "content": [text, text]},
            {"role": "assistant", "content": [thought, text, call]},
            {"role": "user", "content": [result, text]},
        ]
    )
    kinds = [item["type"] for item in items]
    assert kinds[:2] == ["message", "reasoning"]
    assert kinds[2:] == ["message", "function_call", "function_call_output", "message"]
    assert [item["content"] for item in items if item["type"] == "message"] == ["a\na", "a", "a"]
    assert items[3]["arguments"] == '{"b":1}' and items[4]["output"] == "a\na"
