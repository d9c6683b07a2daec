"""Calls of tools and thoughts, as OpenAI's clients are told them: whole, and in a stream."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest
from quire.engine.parsing.choose import Parsers
from quire.engine.parsing.formats import REASONING_FORMATS, TOOL_FORMATS
from quire.engine.structured import Thought

TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "parameters": {"type": "object", "properties": {"at": {"type": "string"}}},
        },
    },
    {"type": "function", "function": {"name": "wait"}},
]
CALL = '<tool_call>\n{"name": "look", "arguments": {"at": "näh\\n</tool_call>"}}\n</tool_call>'
OTHER = '<tool_call>\n{"name": "wait", "arguments": {}}\n</tool_call>'
ARGUMENTS = {"at": "näh\n</tool_call>"}
BODY: Any = {"messages": [{"role": "user", "content": "hi"}], "tools": TOOLS}


def make_parsers(
    tools: str | None = "hermes", reasoning: str | None = None, special: tuple[str, ...] = ()
) -> Parsers:
    return Parsers(
        None if tools is None else TOOL_FORMATS[tools],
        None if reasoning is None else REASONING_FORMATS[reasoning],
        special,
    )


async def ask(serve_fake: Any, text: str, parsers: Parsers, **fields: Any) -> dict[str, Any]:
    """The choice of a whole answer. The stream of it says the same, however it is cut."""
    whole: dict[str, Any] = {}
    for size in (1, 5, len(text) or 1):
        pieces = [text[i : i + size] for i in range(0, len(text), size)] or [""]
        faked = await serve_fake(serve_fake.engine(pieces=pieces, parsers=parsers))
        url = f"{faked.url}/v1/chat/completions"
        async with faked.session.post(url, json={**BODY, **fields}) as response:
            assert response.status == 200, await response.text()
            (whole,) = (await response.json())["choices"]
        async with faked.session.post(url, json={**BODY, **fields, "stream": True}) as response:
            lines = (await response.text()).split("\n\n")
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        streamed = put_together(chunks)
        assert streamed == {**told(whole), "content": whole["message"]["content"] or ""}
    return whole


def put_together(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """What a client makes of a stream."""
    said: dict[str, Any] = {"content": "", "reasoning": "", "calls": [], "finish_reason": None}
    for chunk in chunks:
        for choice in chunk["choices"]:
            delta = choice["delta"]
            said["content"] += delta.get("content") or ""
            said["reasoning"] += delta.get("reasoning") or ""
            assert delta.get("reasoning") == delta.get("reasoning_content")
            for piece in delta.get("tool_calls", ()):
                if piece["index"] == len(said["calls"]):
                    assert piece["id"] and piece["type"] == "function"
                    said["calls"].append([piece["function"]["name"], ""])
                else:
                    assert "id" not in piece and "name" not in piece["function"]
                said["calls"][piece["index"]][1] += piece["function"]["arguments"]
            said["finish_reason"] = choice["finish_reason"] or said["finish_reason"]
    return said


def told(choice: dict[str, Any]) -> dict[str, Any]:
    """What a whole choice says, as put_together has it."""
    message = choice["message"]
    calls = [one["function"] for one in message.get("tool_calls", ())]
    return {
        "content": message["content"] or "",
        "reasoning": message.get("reasoning") or "",
        "calls": [[one["name"], one["arguments"]] for one in calls],
        "finish_reason": choice["finish_reason"],
    }


class Watched(NamedTuple):
    """A faked engine's class, and the parameters that such engines were asked with."""

    engine: Any
    params: list[Any]


def watched(kind: Any) -> Watched:
    seen: list[Any] = []

    class Watching(kind):  # type: ignore[misc]  # a fixture has it
        async def prepare(self, prompt: Any, params: Any = None, *args: Any, **how: Any) -> Any:
            seen.append(params)
            return await super().prepare(prompt, params, *args, **how)

    return Watched(Watching, seen)


async def test_calls_that_the_model_decides_on(serve_fake: Any) -> None:
    choice = await ask(serve_fake, f"Let me look.\n{CALL}\n{OTHER}", make_parsers())
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "Let me look."
    first, second = choice["message"]["tool_calls"]
    assert first["type"] == "function" and first["function"]["name"] == "look"
    assert json.loads(first["function"]["arguments"]) == ARGUMENTS
    assert second["function"] == {"name": "wait", "arguments": "{}"}
    assert first["id"] != second["id"] and first["id"].startswith("call_")
    assert "index" not in first


async def test_a_call_without_text_has_no_content(serve_fake: Any) -> None:
    choice = await ask(serve_fake, CALL, make_parsers())
    assert choice["message"]["content"] is None


async def test_text_stays_text_where_nothing_is_called(serve_fake: Any) -> None:
    choice = await ask(serve_fake, "Hello <tool_", make_parsers())
    assert choice["message"] == {"role": "assistant", "content": "Hello <tool_"}
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize("fields", [{"tool_choice": "none"}, {"tools": None}])
async def test_without_tools_calls_are_text(serve_fake: Any, fields: Any) -> None:
    choice = await ask(serve_fake, CALL, make_parsers(), **fields)
    assert choice["message"]["content"] == CALL and choice["finish_reason"] == "stop"


async def test_the_server_may_leave_calls_alone(serve_fake: Any) -> None:
    engine = serve_fake.engine(pieces=[CALL], parsers=make_parsers(), auto_tools=False)
    faked = await serve_fake(engine)
    async with faked.session.post(f"{faked.url}/v1/chat/completions", json=BODY) as response:
        (choice,) = (await response.json())["choices"]
    assert choice["message"]["content"] == CALL


async def test_of_parallel_calls_the_first_where_one_is_wanted(serve_fake: Any) -> None:
    text = f"{OTHER}\n{CALL} and so on"
    choice = await ask(serve_fake, text, make_parsers(), parallel_tool_calls=False)
    (call,) = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "wait", "arguments": "{}"}
    assert choice["message"]["content"] == "and so on"


FORCED = '[{"name": "look", "parameters": {"at": "a]}"}}, {"name": "wait", "parameters": {}}]'


async def test_a_demanded_call_is_read_from_what_the_grammar_allows(serve_fake: Any) -> None:
    choice = await ask(serve_fake, FORCED, make_parsers(), tool_choice="required")
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] is None
    assert told(choice)["calls"] == [["look", '{"at": "a]}"}'], ["wait", "{}"]]


async def test_the_named_tool_gets_the_whole_answer(serve_fake: Any) -> None:
    named = {"type": "function", "function": {"name": "look"}}
    choice = await ask(serve_fake, ' {"at": "x', make_parsers(), tool_choice=named)
    assert told(choice)["calls"] == [["look", ' {"at": "x']]
    assert choice["finish_reason"] == "stop"


async def test_thoughts_are_told_beside_the_content(serve_fake: Any) -> None:
    text = f"<think>\nhm <b>\n</think>\n\nYes.{CALL}"
    parsers = make_parsers("hermes", "qwen3")
    message = (await ask(serve_fake, text, parsers))["message"]
    assert message["reasoning"] == message["reasoning_content"] == "hm <b>"
    assert message["content"] == "Yes." and len(message["tool_calls"]) == 1
    hidden = (await ask(serve_fake, text, parsers, include_reasoning=False))["message"]
    assert "reasoning" not in hidden and hidden["content"] == "Yes."
    none = (await ask(serve_fake, "Yes.", parsers))["message"]
    assert none["reasoning"] is None and none["content"] == "Yes."


@pytest.mark.parametrize(
    ("reasoning", "prompt", "thinks"),
    [
        ("qwen3", "hi<think>\n", True),
        ("qwen3", "hi<think>\n\n</think>\n\n", False),
        ("qwen3", "<think> and so on", False),
        ("deepseek_r1", "hi", True),
        ("deepseek_r1", "hi</think>", False),
    ],
)
async def test_the_prompt_says_whether_a_thought_is_open(
    serve_fake: Any, reasoning: str, prompt: str, thinks: bool
) -> None:
    messages = [{"role": "user", "content": prompt}]
    parsers = make_parsers("hermes", reasoning)
    message = (await ask(serve_fake, "so it is", parsers, messages=messages))["message"]
    assert message["content"] == ("" if thinks else "so it is")
    assert message["reasoning"] == ("so it is" if thinks else None)


async def test_a_continued_message_may_be_inside_of_a_thought(serve_fake: Any) -> None:
    parsers = make_parsers("hermes", "qwen3")
    for content, reasoning in (("<think>so", "it is"), ("<think>so</think>then", None)):
        messages = [{"role": "assistant", "content": content}]
        how = {"continue_final_message": True, "add_generation_prompt": False}
        choice = await ask(serve_fake, "it is", parsers, messages=messages, **how)
        assert choice["message"]["reasoning"] == reasoning


@pytest.mark.parametrize(
    ("prompt", "text", "start"),
    [
        ("hi", "<think>so</think>\n\n", "<think>"),
        ("hi", "", "<think>"),
        ("hi<think>\n", "so</think>\n", ""),
        ("hi</think>\n", "", None),
    ],
)
async def test_a_form_begins_behind_the_thought(
    serve_fake: Any, prompt: str, text: str, start: str | None
) -> None:
    parsers = make_parsers(None, "qwen3")
    seen = watched(serve_fake.engine)
    messages = [{"role": "user", "content": prompt}]
    named = {"type": "function", "function": {"name": "look"}}
    for fields, answer in (
        ({"response_format": {"type": "json_object"}, "tools": None}, "{}"),
        ({"tool_choice": "required"}, FORCED),
        ({"tool_choice": named}, "{}"),
    ):
        faked = await serve_fake(seen.engine(pieces=[text, answer], parsers=parsers))
        body = {**BODY, "messages": messages, **fields}
        async with faked.session.post(f"{faked.url}/v1/chat/completions", json=body) as response:
            (choice,) = (await response.json())["choices"]
        thought = seen.params[-1].structured_outputs.thought
        assert thought == (None if start is None else Thought(start, "</think>"))
        said = told(choice)
        assert said["reasoning"] == ("so" if "so" in text else "")
        calls = [name for name, _ in said["calls"]]
        if "tool_choice" not in fields:
            assert said["content"] == answer and not calls
        else:
            assert calls == (["look"] if answer == "{}" else ["look", "wait"])
            assert said["content"] == ""


async def test_tags_that_are_special_tokens_are_seen_and_no_others(serve_fake: Any) -> None:
    special = ("[TOOL_CALLS]", "</s>")
    parsers = make_parsers("mistral", special=special)
    seen = watched(serve_fake.engine)
    text = 'So.</s>[TOOL_CALLS]look[ARGS]{"at": "x"}'
    choice = await ask(serve_fake, text, parsers)
    assert choice["message"]["content"] == "So."
    (call,) = choice["message"]["tool_calls"]
    assert len(call["id"]) == 9 and call["id"].isalnum()
    shown = (await ask(serve_fake, text, parsers, skip_special_tokens=False))["message"]
    assert shown["content"] == "So.</s>"

    faked = await serve_fake(seen.engine(pieces=["a"], parsers=parsers))
    for tools in (TOOLS, None):
        body = {**BODY, "tools": tools}
        async with faked.session.post(f"{faked.url}/v1/chat/completions", json=body) as response:
            assert response.status == 200
    assert [one.skip_special_tokens for one in seen.params] == [False, True]


async def test_ids_of_kimi_are_its_own(serve_fake: Any) -> None:
    text = "<|tool_call_begin|>functions.look:3<|tool_call_argument_begin|>{}<|tool_call_end|>"
    choice = await ask(serve_fake, text, make_parsers("kimi_k2"))
    assert choice["message"]["tool_calls"][0]["id"] == "functions.look:3"


async def test_a_cut_call_is_told_as_far_as_it_came(serve_fake: Any) -> None:
    choice = await ask(serve_fake, CALL[: CALL.index('_call>"}')], make_parsers())
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["arguments"] == '{"at": "näh\\n</tool'
