"""Formats: what is written in one, as chat templates write it, is read as it was."""

from __future__ import annotations

import ast
import json
import warnings
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from quire.engine.parsing.choose import Parsers
from quire.engine.parsing.events import CallBegin, Event
from quire.engine.parsing.formats import REASONING_FORMATS, TOOL_FORMATS
from quire.fuzz.answers import (
    FORMATS,
    Call,
    calls,
    collect,
    consistent,
    cuts,
    parser_name,
    schemas,
    thought,
)

PLAIN = st.text("abc é😀\n", max_size=12)


def read(
    parsers: Parsers, pieces: list[str], tools: dict[str, Any] | None = None, **how: Any
) -> list[Event]:
    """All events of an answer that comes in pieces."""
    parser = parsers.start("calls", tools, **how)
    events = [event for piece in pieces for event in parser.push(piece)]
    return events + parser.finish()


def make(name: str | None = None, reasoning: str | None = None, **options: Any) -> Parsers:
    return Parsers(
        None if name is None else TOOL_FORMATS[parser_name(name)],
        None if reasoning is None else REASONING_FORMATS[reasoning],
        **options,
    )


def test_every_parser_has_a_writer() -> None:
    written = [TOOL_FORMATS[parser_name(name)] for name in FORMATS]
    assert all(form in written for form in TOOL_FORMATS.values())


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25)
@given(st.data())
def test_calls_are_read_as_they_were_written(name: str, data: st.DataObject) -> None:
    form = FORMATS[name]
    made = data.draw(calls(form))
    assume(not form.typed or consistent(made))
    content = data.draw(PLAIN) if form.after_content else ""
    if name == "openai" and content.strip():
        content = f"<|channel|>final<|message|>{content}<|end|>"
    text = content + form.write(made)
    pieces = data.draw(cuts(text))
    found = collect(read(make(name), pieces, schemas(made)))
    assert [Call(one, json.loads(args)) for one, args in found.calls] == made
    said = content.removeprefix("<|channel|>final<|message|>").removesuffix("<|end|>")
    assert found.content == (said.rstrip(" \t\r\n") if name != "openai" else said.strip(" \n"))
    assert found.reasoning == ""


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=25)
@given(st.data())
def test_a_cut_answer_is_told_as_far_as_it_came(name: str, data: st.DataObject) -> None:
    """Names are whole, arguments a beginning of what they would have been."""
    form = FORMATS[name]
    made = data.draw(calls(form))
    assume(not form.typed or consistent(made))
    tools = schemas(made)
    text = form.write(made)
    whole = collect(read(make(name), [text], tools)).calls
    cut = collect(read(make(name), [text[: data.draw(st.integers(0, len(text)))]], tools)).calls
    assert len(cut) <= len(whole)
    for (name_cut, args_cut), (name_whole, args_whole) in zip(cut, whole, strict=False):
        assert name_cut == name_whole
        assert args_whole.startswith(args_cut)


@pytest.mark.parametrize(
    "value", ["-0.5", "1.25", "1e20", "True", "'''it's'''", '"a\\n"', "[None]"]
)
def test_a_value_of_python_is_told_where_nothing_can_change_it(value: str) -> None:
    """A beginning of a number is a number, and two quotes may be a text or a third's beginning."""
    text = f"[f(a={value}, b=1)]"
    ((_, whole),) = collect(read(make("pythonic"), [text])).calls
    for size in range(len(text)):
        for _, told in collect(read(make("pythonic"), [text[:size]])).calls:
            assert whole.startswith(told), text[:size]


THINKERS = sorted(set(REASONING_FORMATS) - {"openai_gptoss"})


@pytest.mark.parametrize("reasoning", THINKERS)
@pytest.mark.parametrize("opened", [False, True])
@settings(max_examples=25)
@given(st.data())
def test_thoughts_are_read_as_they_were_written(
    reasoning: str, opened: bool, data: st.DataObject
) -> None:
    form = REASONING_FORMATS[reasoning]
    text = data.draw(st.text("ab <>/[]é\n", max_size=20)).strip()
    assume(form.end not in text)
    made = data.draw(calls(FORMATS["hermes"]))
    said = "Well.\n\n" if data.draw(st.booleans()) else ""
    whole = thought(reasoning, text, opened=opened) + said + FORMATS["hermes"].write(made)
    found = collect(
        read(make("hermes", reasoning), data.draw(cuts(whole)), schemas(made), opened=opened)
    )
    assert found.reasoning == text
    assert found.content == said.strip()
    assert [Call(one, json.loads(args)) for one, args in found.calls] == made


def test_harmony_has_thoughts_preambles_and_a_final_message() -> None:
    text = (
        "<|channel|>analysis<|message|>First.<|end|>"
        "<|start|>assistant<|channel|>analysis<|message|>Second.<|end|>"
        "<|start|>assistant<|channel|>commentary<|message|>Looking.<|end|>"
        "<|start|>assistant to=functions.f<|channel|>commentary json<|message|>{}<|call|>"
        "<|start|>assistant<|channel|>commentary to=python<|message|>inner<|end|>"
        "<|start|>assistant<|channel|>final<|message|>Done: <b>.<|return|>"
    )
    for parsers in (make("openai"), make("openai", "openai_gptoss"), make(None, "openai_gptoss")):
        assert collect(read(parsers, list(text))) == (
            "First.\nSecond.\ninner",
            "Looking.Done: <b>.",
            (("f", "{}"),),
        )
    # Where the request has no tools, nothing is a call.
    found = collect(read(make("openai", "openai_gptoss"), [text], {}))
    assert found.calls == () and "{}" in found.content


MADE = [Call("f", {"a": 1}), Call("g", {})]
EXAMPLES: list[tuple[str, str, str]] = [
    ("mistral", 'Hi[TOOL_CALLS]f{"a": 1}[TOOL_CALLS]g{}', "Hi"),
    ("mistral", '[TOOL_CALLS]f[CALL_ID]0123[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}', ""),
    ("mistral", ' [TOOL_CALLS] [{"arguments": {"a": 1}, "name": "f"}, {"name": "g"}]', ""),
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "f", "id": 7}</tool_call>\n'
     '<tool_call>{"name": "g", "arguments": null}</tool_call>', ""),
    ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}<tool_call>'
     '{"name": "g", "arguments": {}', ""),
    ("llama3_json", '<|python_tag|>{"name": "f", "parameters": {"a": 1}};'
     '{"type": "function", "name": "g", "parameters": {}}', ""),
    ("llama4_pythonic", " [ f( a = 1 , ) , g() ] ", ""),
    ("glm45", "<tool_call>f<arg_key> a </arg_key><arg_value>1</arg_value></tool_call>"
     "<tool_call>g</tool_call>", ""),
    ("qwen3_coder", "<function=f><parameter=a>1</parameter></function></tool_call>"
     "<tool_call><function=g></tool_call>", ""),
    ("qwen3_coder", "<tool_call><function=f><parameter=a>\n1</function>\n</tool_call>\n"
     "<tool_call>\n<function=g>\n</function>", ""),
    ("deepseek_v3", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n"
     '{"a": 1}<｜tool▁call▁end｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>g\n```json{}\n```', ""),
    ("deepseek_v31", "<｜tool▁call▁begin｜>f<｜tool▁sep｜>" ' {"a": 1}\n'
     "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>g<｜tool▁sep｜><｜tool▁call▁end｜>", ""),
    ("kimi_k2", 'x <|tool_call_begin|>f:0 <|tool_call_argument_begin|> {"a": 1} <|tool_call_end|>'
     "<|tool_call_begin|>functions.g:12<|tool_call_argument_begin|>{}<|tool_call_end|>", "x"),
    ("openai", ' to=functions.f<|channel|>commentary<|message|>{"a": 1}'
     "<|start|>assistant to=g<|channel|>commentary<|message|>{}", ""),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "content"), EXAMPLES)
def test_variants_that_models_write(name: str, text: str, content: str) -> None:
    tools = {"f": {"properties": {"a": {"type": "integer"}}}, "g": {}}
    for pieces in ([text], list(text)):
        found = collect(read(make(name), pieces, tools))
        assert [Call(one, json.loads(args or "{}")) for one, args in found.calls] == MADE
        assert found.content == content


def test_ids_that_models_write_are_kept() -> None:
    kimi = FORMATS["kimi_k2"].write(MADE)
    events = read(make("kimi_k2"), [kimi])
    ids = [event.id for event in events if isinstance(event, CallBegin)]
    assert ids == ["functions.f:0", "functions.g:1"]
    events = read(make("mistral"), ["[TOOL_CALLS]f[CALL_ID]0123[ARGS]{}"])
    assert events[0] == CallBegin("f", "0123")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("hermes", "Write <tool_call> to call."),
        ("hermes", '<tool_call>{"nam": "f", "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>\n{"name": 5}\n</tool_call>'),
        ("hermes", "<tool_call>"),
        ("hermes", '<tool_call>{"name": "f"'),
        ("glm45", "<tool_call>not a name</tool_call>"),
        ("qwen3_coder", "<tool_call>\n<function=f"),
        ("mistral", "[TOOL_CALLS][TOOL_CALLS]"),
        ("llama3_json", '{"name": "Bob", "age": 3}'),
        ("llama3_json", '{"name": "f"}'),
        ("llama3_json", '{"name": "unknown", "parameters": {}}'),
        ("llama3_json", ' Text {"name": "f", "parameters": {}}'),
        ("pythonic", "[1] A note."),
        ("pythonic", "[unknown(a=1)]"),
        ("pythonic", "[f(1)]"),
        ("pythonic", "[f(a)]"),
        ("pythonic", "[f"),
        ("llama4_pythonic", "<|python_start|>print(1)"),
        ("deepseek_v31", "<｜tool▁call▁begin｜>no name<｜tool▁sep｜>{}"),
        ("kimi_k2", "<|tool_call_begin|><|tool_call_argument_begin|>{}"),
        ("openai", "Just text."),
        ("openai", "<|channel|>analysis\n<|message|>"),
    ],
)
def test_what_is_no_call_is_content_as_it_was(name: str, text: str) -> None:
    for pieces in ([text], list(text)):
        assert collect(read(make(name), pieces, {"f": {}})) == ("", text, ())


@pytest.mark.parametrize(
    ("schema", "text", "value"),
    [
        ({"type": "string"}, "12", "12"),
        ({"type": "string"}, "null", "null"),
        ({"type": ["string", "null"]}, "null", None),
        ({"type": "integer"}, "12", 12),
        ({"type": "integer"}, "twelve", "twelve"),
        ({"type": "number"}, "12", 12),
        ({"type": "boolean"}, "True", True),
        ({"type": "boolean"}, "1", "1"),
        ({"type": "array"}, '[1, "a"]', [1, "a"]),
        ({"type": "object"}, '{"a": 1}', {"a": 1}),
        ({"enum": ["1", "2"]}, "1", "1"),
        ({"enum": [1, 2]}, "1", 1),
        ({"const": "1"}, "1", "1"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "None", None),
        ({"$ref": "#/$defs/n"}, "1", "1"),
        ({}, "1", 1),
        ({}, "one", "one"),
        (True, "[1", "[1"),
        ({"$ref": "#/properties/a"}, "1", 1),
    ],
)
def test_values_are_of_the_kind_that_the_schema_says(schema: Any, text: str, value: Any) -> None:
    tools = {"f": {"properties": {"a": schema}, "$defs": {"n": {"type": "string"}}}}
    for name in ("glm45", "qwen3_coder"):
        written = FORMATS[name].write([Call("f", {"a": text})])
        ((_, arguments),) = collect(read(make(name), [written], tools)).calls
        assert json.loads(arguments) == {"a": value}
        assert type(json.loads(arguments)["a"]) is type(value)


@pytest.mark.parametrize(
    "value",
    [r"'\x41\u00e9\U0001F600\101\0'", r'"\q\'\""', "'''a'b\nc'''", '"" ', r"'\\'", "'a\\\nb'"],
)
def test_python_texts_mean_what_python_says(value: str) -> None:
    text = f"[f(a={value})]"
    for pieces in ([text], list(text)):
        ((_, arguments),) = collect(read(make("pythonic"), pieces)).calls
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            meant = ast.literal_eval(value.strip())
        assert json.loads(arguments)["a"] == meant


@pytest.mark.parametrize("name", FORMATS)
def test_of_a_cut_tag_that_would_end_a_call_nothing_is_told(name: str) -> None:
    made = [Call("f", {"a": "x"})]
    text = FORMATS[name].write(made)
    for size in range(len(text)):
        found = collect(read(make(name), [text[:size]], schemas(made)))
        assert found.content == "" or not found.calls, text[:size]


def test_half_of_a_surrogate_pair_stays_as_it_was_written() -> None:
    ((_, arguments),) = collect(read(make("pythonic"), ['[f(a="\\ud83d!")]'])).calls
    assert json.loads(arguments.encode()) == {"a": "\\ud83d!"}


def test_only_tools_get_messages_that_are_calls() -> None:
    """Others are the model's own: a call of the namespace of functions is one in any case."""
    message = "<|channel|>commentary to={}<|message|>{{}}<|call|>"
    for recipient, is_call in (("functions.x", True), ("f", True), ("browser.find", False)):
        found = collect(read(make("openai"), [message.format(recipient)], {"f": {}}))
        assert bool(found.calls) is is_call and bool(found.reasoning) is not is_call
