"""The machine: whatever comes, in whatever pieces, nothing raises and nothing is lost."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quire.engine.parsing.choose import Expects, Parsers
from quire.engine.parsing.events import Arguments, CallBegin, CallEnd, Content, Event, Reasoning
from quire.engine.parsing.formats import REASONING_FORMATS, TOOL_FORMATS
from quire.fuzz.answers import TAGS, all_schemas, collect, cuts, garbage

REASONERS = {
    "openai": "openai_gptoss",
    "mistral": "mistral",
    "kimi_k2": "kimi_k2",
    "llama3_json": "granite",
    "seed_oss": "seed_oss",
}


def merged(events: Sequence[Event]) -> list[Event]:
    """Neighbours of one kind as one."""
    whole: list[Event] = []
    for event in events:
        last = whole[-1] if whole else None
        if isinstance(event, Content | Reasoning | Arguments) and type(last) is type(event):
            whole[-1] = type(event)(last.text + event.text)
        else:
            whole.append(event)
    return whole


def run(parsers: Parsers, pieces: Sequence[str], expects: Expects = "calls", **how: Any) -> Any:
    named = "f" if expects == "named call" else None
    parser = parsers.start(expects, all_schemas(), named=named, **how)
    events = [event for piece in pieces for event in parser.push(piece)]
    return merged(events + parser.finish())


FORMATS = sorted({id(form): name for name, form in TOOL_FORMATS.items()}.values())


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("hides", [False, True])
@settings(max_examples=50)
@given(data=st.data())
def test_pieces_do_not_matter_and_nothing_is_lost(
    name: str, hides: bool, data: st.DataObject
) -> None:
    pieces = data.draw(garbage())
    text = "".join(pieces)
    opened = data.draw(st.booleans())
    expects: Expects = data.draw(st.sampled_from(["calls", "calls", "some call", "named call"]))
    parsers = Parsers(
        TOOL_FORMATS[name],
        REASONING_FORMATS[REASONERS.get(name, "qwen3")],
        [*TAGS, "<|other|>"] if hides else (),
    )
    whole = run(parsers, [text], expects, opened=opened, hides=hides)
    assert run(parsers, data.draw(cuts(text)), expects, opened=opened, hides=hides) == whole
    check_order(whole)
    said = "".join(str(tuple(event)) for event in whole)
    for word in pieces:
        if re.fullmatch(r"w\d+w", word) and not is_dropped(word, text, name):
            assert word in said, (word, text, whole)


def is_dropped(word: str, text: str, name: str) -> bool:
    """Tell whether a word may be a part of a format that says nothing to anybody.

    These are the heads of messages, the word before a name, and members of a call's object
    that are neither name nor arguments.
    """
    before = text.partition(word)[0]
    in_head = name == "openai" and any(tag in before for tag in ("<|start", "<|channel", "to="))
    is_kind = before.rstrip().endswith("<｜tool▁call▁begin｜>")
    is_member = '"' in before and "{" in before
    return in_head or is_kind or is_member


def check_order(events: Sequence[Event]) -> None:
    """Each call begins, has its arguments and ends before anything else is said."""
    is_open = False
    for event in events:
        match event:
            case CallBegin(name):
                assert name and not is_open
                is_open = True
            case CallEnd():
                assert is_open
                is_open = False
            case Arguments(text):
                assert is_open and text
            case Content(text) | Reasoning(text):
                assert text and not is_open
    assert not is_open


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=15)
@given(text=st.text("ab. é\n", max_size=20), data=st.data())
def test_text_without_tags_comes_at_once(name: str, text: str, data: st.DataObject) -> None:
    """Only space at its end waits: it may be beside a tag."""
    parser = Parsers(TOOL_FORMATS[name], REASONING_FORMATS["qwen3"]).start("calls", {})
    said = ""
    given_so_far = ""
    for piece in data.draw(cuts(text)):
        said += collect(parser.push(piece)).content
        given_so_far += piece
        assert said == given_so_far.rstrip(" \n")
    assert said + collect(parser.finish()).content == text


def test_what_may_become_a_tag_waits_and_no_more() -> None:
    parser = Parsers(TOOL_FORMATS["hermes"]).start("calls", {})
    assert parser.push("a < b <tool") == [Content("a < b")]
    assert parser.push("box> c") == [Content(" <toolbox> c")]
    assert parser.push(' <tool_call>{"name": "f", "arguments": ') == []
    assert parser.push('{"a"') == [CallBegin("f"), Arguments('{"a"')]
    assert parser.push(": 1}") == [Arguments(": 1}")]
    assert parser.push("}</tool_ca") == [CallEnd()]
    assert parser.push("ll> d") == [Content(" d")]
    assert parser.finish() == []


def test_text_values_come_at_once() -> None:
    parser = Parsers(TOOL_FORMATS["qwen3_coder"]).start("calls", all_schemas())
    parser.push("<tool_call><function=f><parameter=a>\n")
    assert parser.push("line 1\nline") == [Arguments("line 1\\nline")]


def test_special_tokens_are_hidden_unless_they_are_tags() -> None:
    parsers = Parsers(TOOL_FORMATS["mistral"], None, ["[TOOL_CALLS]", "</s>", "[INST]"])
    assert parsers.needs_special("calls") and not parsers.needs_special("text")
    text = 'a</s>b[INST][TOOL_CALLS]f[ARGS]{"a": "</s>"}[TOOL_CALLS]!'
    for pieces in ([text], list(text)):
        assert run(parsers, pieces, hides=True) == [
            Content("ab"),
            CallBegin("f"),
            Arguments('{"a": ""}'),
            CallEnd(),
            Content("!"),
        ]
        assert run(parsers, pieces)[0] == Content("a</s>b[INST]")


def test_space_between_pieces_of_content_stays_once() -> None:
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    parsers = Parsers(TOOL_FORMATS["hermes"])
    for text, content in (
        (f"a \n{call}\n b", "a \nb"),
        (f"a{call}\n b", "a\n b"),
        (f" {call} ", ""),
        (f" \n{call} b ", "b "),
        ("  a  ", "  a  "),
    ):
        for pieces in ([text], list(text)):
            assert collect(run(parsers, pieces)).content == content
