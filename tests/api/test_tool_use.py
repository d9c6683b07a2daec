"""The bundled model uses tools: it chooses one from the question, and answers from the result.

The questions are some that it answers rightly (tool_uses.py), with results that nobody can guess.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from .tool_uses import CHAT_TOOLS, TOOLS, USES, Use

PLAIN = "Hello"
"""What no tool is for."""


@pytest.fixture(scope="module")
def client(demo: Any) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{demo.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(params=[False, True], ids=["whole", "streamed"])
def streamed(request: Any) -> bool:
    return bool(request.param)


def chat(client: Any, messages: list[Any], *, streamed: bool) -> tuple[Any, str]:
    """Return the message that is answered, as the SDK's helper puts it together, and why it ended.

    The helper parses arguments and checks that they are whole.
    """
    how: Any = {"model": "demo", "messages": messages, "tools": CHAT_TOOLS, "temperature": 0}
    if not streamed:
        (choice,) = client.chat.completions.create(tool_choice="auto", **how).choices
        return choice.message, choice.finish_reason
    with client.chat.completions.stream(tool_choice="auto", **how) as stream:
        for _ in stream:
            pass
        (choice,) = stream.get_final_completion().choices
    return choice.message, choice.finish_reason


def respond(client: Any, given: Any, *, streamed: bool, **fields: Any) -> Any:
    """Return a response."""
    how: Any = {"model": "demo", "input": given, "tools": TOOLS, "temperature": 0, **fields}
    if not streamed:
        return client.responses.create(tool_choice="auto", **how)
    with client.responses.stream(tool_choice="auto", **how) as stream:
        for _ in stream:
            pass
        return stream.get_final_response()


@pytest.mark.parametrize("use", USES, ids=lambda use: use.result)
def test_a_chat_calls_the_tool_and_answers_from_its_result(
    client: Any, use: Use, streamed: bool
) -> None:
    messages: list[Any] = [{"role": "user", "content": use.question}]
    message, reason = chat(client, messages, streamed=streamed)
    assert reason == "tool_calls" and not message.content
    (call,) = message.tool_calls
    result = use.run(call.function.name, call.function.arguments)
    messages += [
        message.to_dict(),
        {"role": "tool", "tool_call_id": call.id, "content": result},
    ]
    message, reason = chat(client, messages, streamed=streamed)
    assert message.content == use.answer
    assert reason == "stop" and not message.tool_calls


@pytest.mark.parametrize("named", [False, True], ids=["items", "previous_response_id"])
@pytest.mark.parametrize("use", USES, ids=lambda use: use.result)
def test_a_response_calls_the_tool_and_answers_from_its_result(
    client: Any, use: Use, streamed: bool, named: bool
) -> None:
    asked = respond(client, use.question, streamed=streamed)
    (call,) = asked.output
    assert call.type == "function_call" and asked.output_text == ""
    result = use.run(call.name, call.arguments)
    output = {"type": "function_call_output", "call_id": call.call_id, "output": result}
    if named:
        given = respond(client, [output], streamed=streamed, previous_response_id=asked.id)
    else:
        question = {"role": "user", "content": use.question}
        items = [question, *(item.to_dict() for item in asked.output), output]
        given = respond(client, items, streamed=streamed, store=False)
    assert given.output_text == use.answer
    assert [item.type for item in given.output] == ["message"]


def test_two_calls_of_one_message_are_answered_together(client: Any, streamed: bool) -> None:
    """Results go back by the ids of their calls, in both forms of a conversation."""
    question = "What is the weather in Paris and Rome?"
    results = {
        "Paris": '{"temperature": 17, "sky": "foggy"}',
        "Rome": '{"temperature": 31, "sky": "sunny"}',
    }
    answer = "In Paris it is foggy and 17 degrees. In Rome it is sunny and 31 degrees."
    asked = respond(client, question, streamed=streamed)
    cities = [json.loads(call.arguments)["city"] for call in asked.output]
    assert cities == ["Paris", "Rome"]
    outputs = [
        {"type": "function_call_output", "call_id": call.call_id, "output": results[city]}
        for call, city in zip(asked.output, cities, strict=True)
    ]
    given = respond(client, outputs, streamed=streamed, previous_response_id=asked.id)
    assert given.output_text == answer

    messages: list[Any] = [{"role": "user", "content": question}]
    message, _ = chat(client, messages, streamed=streamed)
    messages.append(message.to_dict())
    for call in message.tool_calls:
        city = json.loads(call.function.arguments)["city"]
        messages.append({"role": "tool", "tool_call_id": call.id, "content": results[city]})
    assert chat(client, messages, streamed=streamed)[0].content == answer


def test_the_conversation_goes_on_behind_a_tool(client: Any, streamed: bool) -> None:
    """A second question calls another tool, with the first call and its result still in sight."""
    last: str | None = None
    for use in (USES[0], USES[2]):
        asked = respond(client, use.question, streamed=streamed, previous_response_id=last)
        (call,) = asked.output
        result = use.run(call.name, call.arguments)
        output = {"type": "function_call_output", "call_id": call.call_id, "output": result}
        given = respond(client, [output], streamed=streamed, previous_response_id=asked.id)
        assert given.output_text == use.answer
        last = given.id


def test_nothing_is_called_where_no_tool_fits(client: Any, streamed: bool) -> None:
    message, reason = chat(client, [{"role": "user", "content": PLAIN}], streamed=streamed)
    assert message.content and not message.tool_calls and reason == "stop"
    assert respond(client, PLAIN, streamed=streamed).output_text == message.content
