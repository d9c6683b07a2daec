"""The openai package drives the bundled model: forms and calls that it parses, errors, leaving."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Literal

import openai
import pytest
import pytest_asyncio
from pydantic import BaseModel

from .tool_uses import USES

MESSAGES: Any = [{"role": "user", "content": "Tell me of a pet."}]
LONG: Any = {"model": "demo", "temperature": 1, "extra_body": {"ignore_eos": True}}
MAX_TOKENS = 1900
"""It takes a second or more to make so many."""


class Pet(BaseModel):
    kind: Literal["cat", "fox"]
    old: bool


class Weather(BaseModel):
    """The arguments of a tool."""

    city: str


@pytest.fixture(scope="module")
def client(demo: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest_asyncio.fixture
async def waiting(demo: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{demo.url}/v1", api_key="none", max_retries=0
    ) as client:
        yield client


def test_a_form_is_parsed_whole_and_streamed(client: openai.OpenAI) -> None:
    how: Any = {"model": "demo", "messages": MESSAGES, "temperature": 0, "response_format": Pet}
    message = client.chat.completions.parse(**how).choices[0].message
    assert isinstance(message.parsed, Pet)
    with client.chat.completions.stream(**how) as stream:
        kinds = {event.type for event in stream}
        (choice,) = stream.get_final_completion().choices
    assert {"content.delta", "content.done"} <= kinds
    assert choice.message.parsed == message.parsed and choice.message.content == message.content


def test_the_arguments_of_a_call_are_parsed(client: openai.OpenAI) -> None:
    """The model decides on the call, and answers from what the tool said."""
    use = USES[1]
    tool = openai.pydantic_function_tool(Weather, name=use.name)
    messages: list[Any] = [{"role": "user", "content": use.question}]
    how: Any = {"model": "demo", "tools": [tool], "temperature": 0}
    message = client.chat.completions.parse(messages=messages, **how).choices[0].message
    assert message.tool_calls is not None
    (call,) = message.tool_calls
    assert call.function.parsed_arguments == Weather(**use.arguments)
    messages += [
        message,
        {"role": "tool", "tool_call_id": call.id, "content": use.result},
    ]
    answer = client.chat.completions.parse(messages=messages, **how).choices[0].message
    assert answer.content == use.answer


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize(
    ("fields", "kind", "param"),
    [
        ({"model": "gpt"}, openai.NotFoundError, "model"),
        ({"temperature": 1e300}, openai.BadRequestError, "temperature"),
        ({"max_tokens": 10**6}, openai.BadRequestError, "max_tokens"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"tool_choice": "required"}, openai.BadRequestError, "tool_choice"),
        ({"extra_body": {"nothing": 1}}, openai.BadRequestError, "nothing"),
    ],
)
def test_errors_have_the_packages_types(
    client: openai.OpenAI,
    fields: Any,
    kind: type[openai.APIStatusError],
    param: str,
    streamed: bool,
) -> None:
    how: Any = {"model": "demo", "messages": MESSAGES, **fields}
    with pytest.raises(kind) as caught:
        client.chat.completions.create(stream=streamed, **how)
    assert caught.value.param == param and caught.value.request_id


def chat(client: Any, **how: Any) -> Any:
    return client.chat.completions.create(messages=MESSAGES, max_tokens=MAX_TOKENS, **LONG, **how)


def complete(client: Any, **how: Any) -> Any:
    return client.completions.create(prompt="Once", max_tokens=MAX_TOKENS, **LONG, **how)


def respond(client: Any, **how: Any) -> Any:
    """It knows no ignore_eos, and so it asks for a form that is long."""
    item = {"enum": ["cat", "fox"]}
    many = {"type": "array", "items": item, "minItems": 400, "maxItems": 400}
    form = {
        "type": "object",
        "properties": {"pets": many},
        "required": ["pets"],
        "additionalProperties": False,
    }
    text: Any = {"format": {"type": "json_schema", "name": "pets", "schema": form}}
    return client.responses.create(
        model="demo", input="Pets?", text=text, max_output_tokens=MAX_TOKENS, **how
    )


ASKED = pytest.mark.parametrize("ask", [chat, complete, respond])


@ASKED
def test_a_stream_that_is_left_is_aborted(
    demo: Any, client: openai.OpenAI, ask: Callable[..., Any]
) -> None:
    with demo.aborts(), ask(client, stream=True) as stream:
        next(stream)
        assert demo.num_unfinished() == 1


@ASKED
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
async def test_a_task_that_is_cancelled_aborts_its_request(
    demo: Any, waiting: openai.AsyncOpenAI, ask: Callable[..., Any], streamed: bool
) -> None:
    """Whether it waits for a whole answer or for more of a stream."""

    async def read() -> None:
        answer = await ask(waiting, stream=streamed)
        if streamed:
            async with answer:
                async for _ in answer:
                    pass

    await demo.cancel(read())
