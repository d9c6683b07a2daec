"""Outputs of a form, asked as OpenAI's and vLLM's clients ask: what comes always has it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import aiohttp
import jsonschema
import openai
import pytest
from pydantic import BaseModel, Field

MESSAGES: Any = [{"role": "user", "content": "the cat"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["cat", "dog"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 30},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "maxItems": 2},
    },
    "required": ["kind", "age", "tags"],
    "additionalProperties": False,
}
SEEDS = range(4)
BAD_REQUEST = 400


@pytest.fixture(scope="module")
def client(live: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.mark.parametrize("seed", SEEDS)
def test_a_schema_as_response_format(client: openai.OpenAI, seed: int) -> None:
    given = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        seed=seed,
        n=2,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "pet", "schema": SCHEMA, "strict": True},
        },
    )
    for choice in given.choices:
        assert choice.finish_reason == "stop" and choice.message.content is not None
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)


class Owner(BaseModel):
    """Nested, so that the schema has definitions."""

    name: str = Field(max_length=4)


class Pet(BaseModel):
    """What the SDK is asked to parse."""

    kind: Literal["cat", "dog"]
    owner: Owner | None


@pytest.mark.parametrize("seed", SEEDS)
def test_the_sdk_parses_into_a_model(client: openai.OpenAI, seed: int) -> None:
    given = client.chat.completions.parse(
        model="tiny", messages=MESSAGES, seed=seed, response_format=Pet
    )
    assert isinstance(given.choices[0].message.parsed, Pet)


def test_an_answer_that_its_length_ends_early_says_so(client: openai.OpenAI) -> None:
    for seed in SEEDS:
        (choice,) = client.chat.completions.create(
            model="tiny",
            messages=MESSAGES,
            seed=seed,
            max_tokens=20,
            response_format={"type": "json_object"},
        ).choices
        assert choice.message.content is not None and choice.message.content.startswith("{")
        if choice.finish_reason == "stop":
            assert isinstance(json.loads(choice.message.content), dict)
        else:
            assert choice.finish_reason == "length"


FORMS: list[tuple[dict[str, Any], str]] = [
    ({"regex": "(the|a) (cat|dog)s?"}, "(the|a) (cat|dog)s?"),
    ({"choice": ["the cat", 'a "dog"', "käse\n"]}, 'the cat|a "dog"|käse\n'),
    ({"grammar": 'start: "<" word ">"\nword: /[a-c]{1,4}/'}, "<[a-c]{1,4}>"),
    ({"grammar": 'root ::= "<" [a-c] [a-c]? ">"'}, "<[a-c]{1,2}>"),
    ({"json": '{"enum": ["cat", 7]}'}, '"cat"|7'),
    ({"json": {"const": {"a": [1, 2]}}, "disable_any_whitespace": True}, r'\{"a":\[1,2\]\}'),
    (
        {
            "structural_tag": {
                "type": "structural_tag",
                "format": {
                    "type": "tag",
                    "begin": "<n>",
                    "content": {"type": "json_schema", "json_schema": {"enum": [1, 23]}},
                    "end": "</n>",
                },
            }
        },
        "<n>(1|23)</n>",
    ),
]


@pytest.mark.parametrize(("form", "pattern"), FORMS)
@pytest.mark.parametrize("streamed", [False, True])
def test_structured_outputs(
    client: openai.OpenAI, form: dict[str, Any], pattern: str, streamed: bool
) -> None:
    for seed in SEEDS:
        options: dict[str, Any] = {"model": "tiny", "prompt": "the", "seed": seed, "max_tokens": 60}
        extra = {"structured_outputs": form}
        if streamed:
            chunks = list(client.completions.create(**options, stream=True, extra_body=extra))
            text = "".join(chunk.choices[0].text for chunk in chunks)
            reason = chunks[-1].choices[0].finish_reason
        else:
            (choice,) = client.completions.create(**options, extra_body=extra).choices
            text, reason = choice.text, choice.finish_reason
        assert reason == "stop", text
        assert re.fullmatch(pattern, text), text


@pytest.fixture(scope="module")
def talker(demo: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0) as client:
        yield client


TOOLS: Any = [
    {
        "type": "function",
        "function": {"name": "find", "description": "Find a pet.", "parameters": SCHEMA},
    },
    {
        "type": "function",
        "function": {
            "name": 'odd "name"',
            "parameters": {"properties": {}, "additionalProperties": False},
        },
    },
]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_named_tool_is_called(talker: openai.OpenAI, seed: int) -> None:
    options: Any = {
        "model": "demo",
        "messages": MESSAGES,
        "tools": TOOLS,
        "tool_choice": {"type": "function", "function": {"name": "find"}},
        "seed": seed,
    }
    (choice,) = talker.chat.completions.create(**options).choices
    assert choice.message.content is None and choice.finish_reason == "stop"
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function" and call.function.name == "find" and call.id
    jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
    assert _streamed_calls(talker, options) == [("find", call.function.arguments)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("parallel", [True, False])
def test_some_tool_is_called(talker: openai.OpenAI, seed: int, parallel: bool) -> None:
    options: Any = {
        "model": "demo",
        "messages": MESSAGES,
        "tools": TOOLS,
        "tool_choice": "required",
        "parallel_tool_calls": parallel,
        "seed": seed,
        "max_tokens": 200,
    }
    (choice,) = talker.chat.completions.create(**options).choices
    calls = [one.function for one in choice.message.tool_calls or () if one.type == "function"]
    assert calls and (parallel or len(calls) == 1)
    if choice.finish_reason == "tool_calls":
        for call in calls:
            schema = {"find": SCHEMA, 'odd "name"': {"type": "object"}}[call.name]
            jsonschema.validate(json.loads(call.arguments), schema)
    else:
        assert choice.finish_reason == "length" and parallel
    assert _streamed_calls(talker, options) == [(one.name, one.arguments) for one in calls]


def _streamed_calls(talker: openai.OpenAI, options: Any) -> list[tuple[str, str]]:
    """Put the pieces of a stream's calls together, as clients do."""
    calls: list[list[str]] = []
    for chunk in talker.chat.completions.create(**options, stream=True):
        for piece in chunk.choices[0].delta.tool_calls or ():
            assert piece.function is not None
            if piece.index == len(calls):
                assert piece.id and piece.type == "function" and piece.function.name
                calls.append([piece.function.name, ""])
            calls[piece.index][1] += piece.function.arguments or ""
    return [(name, arguments) for name, arguments in calls]


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"response_format": {"type": "xml"}}, "response_format", "json_schema"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "wat"}}}},
        "response_format",
        "wat",
    ),
    ({"structured_outputs": {}}, "structured_outputs", "give one of"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs", "regex and"),
    ({"structured_outputs": {"regexp": "a"}}, "structured_outputs", "regexp is not a known"),
    ({"structured_outputs": {"regex": "(("}}, "structured_outputs", "unclosed group"),
    ({"structured_outputs": {"regex": "(a+)\\1"}}, "structured_outputs", "backreferences"),
    ({"structured_outputs": {"json": '{"type"'}}, "structured_outputs", "not JSON"),
    ({"structured_outputs": {"json": {"not": {}}}}, "structured_outputs", "not"),
    ({"structured_outputs": {"json": {"$ref": "#"}}}, "structured_outputs", "followed"),
    ({"structured_outputs": {"json": {"$ref": "file:///etc/passwd"}}}, "structured_outputs", "not"),
    ({"structured_outputs": {"grammar": "start: x"}}, "structured_outputs", "unknown name"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs", "1 to"),
    ({"structured_outputs": {"structural_tag": {}}}, "structured_outputs", "structures"),
    (
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
        "response_format",
        "leave one out",
    ),
]


async def post(live: Any, path: str, body: dict[str, Any]) -> tuple[int, Any]:
    async with aiohttp.ClientSession() as session, session.post(live.url + path, json=body) as got:
        return got.status, await got.json()


@pytest.mark.parametrize(("fields", "param", "words"), BAD)
async def test_what_cannot_be_followed_is_refused(
    live: Any, fields: dict[str, Any], param: str, words: str
) -> None:
    status, body = await post(live, "/v1/completions", {"prompt": "the", **fields})
    assert status == BAD_REQUEST, body
    assert body["error"]["param"] == param and words in body["error"]["message"], body


async def test_a_tool_whose_schema_is_wrong_is_refused(live: Any) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "wat"}}}
    body = {"messages": MESSAGES, "tools": [tool], "tool_choice": "required"}
    status, answer = await post(live, "/v1/chat/completions", body)
    assert status == BAD_REQUEST and answer["error"]["param"] == "tools", answer
