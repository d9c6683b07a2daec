"""What is cast in a mould is what would have been written: byte for byte, whatever the text."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET, Struct
from msgspec.structs import replace
from quire.api.mould import Mould
from quire.api.reply import ChatChoices, CompletionChoices, Reply
from quire.api.sse import EVENTS
from quire.engine.request import CompletionOutput, RequestOutput

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
"""Of responses and models: clients and operators choose them, also 0 and 1."""


class Said(Struct):
    """Texts in the place of others."""

    before: str
    text: str
    behind: list[str]


def make_reply(name: str, chat: bool, **options: Any) -> Reply:
    return Reply(
        response_id=name,
        model=name,
        created=1,
        choices=ChatChoices() if chat else CompletionChoices(),
        object="whole",
        chunk_object=name,
        **options,
    )


def make_output(text: str, **fields: Any) -> RequestOutput:
    one = CompletionOutput(index=0, text=text, token_ids=(1, 2), seed=7, **fields)
    return RequestOutput(
        request_id="", prompt=None, prompt_token_ids=(1,), outputs=(one,), finished=False
    )


@given(TEXTS, NAMES)
def test_a_mould_says_any_text(text: str, name: str) -> None:
    def say(text: str) -> Said:
        return Said(name, text, [name, "0", "1"])

    assert Mould(say, EVENTS.write).cast(text) == EVENTS.write(say(text))


def test_a_text_that_is_told_twice_has_no_mould() -> None:
    with pytest.raises(ValueError, match="too many values"):
        Mould(lambda text: Said(text, text, []), EVENTS.write)


@pytest.mark.parametrize("chat", [True, False])
@pytest.mark.parametrize("include_usage", [True, False])
@given(texts=st.lists(TEXTS.filter(bool), min_size=2), name=NAMES)
def test_chunks_of_text_are_those_of_structs(
    chat: bool, include_usage: bool, texts: list[str], name: str
) -> None:
    """A reply that tells usage in every chunk makes them all of structs."""
    cast = make_reply(name, chat, include_usage=include_usage)
    made = make_reply(name, chat, include_usage=include_usage, running_usage=True)
    for number, text in enumerate(texts):
        output = make_output(text)
        events, structs = cast.chunks(0, output), made.chunks(0, output)
        assert [isinstance(one, bytes) for one in events[-1:]] == [chat or number > 0]
        for event, struct in zip(events, structs, strict=True):
            assert not isinstance(struct, bytes)
            usage = None if include_usage else UNSET
            written = event if isinstance(event, bytes) else EVENTS.write(event)
            assert written == EVENTS.write(replace(struct, usage=usage))
    assert cast.end() == [] if not include_usage else cast.end()[0].usage == made.end()[0].usage


@pytest.mark.parametrize("chat", [True, False])
def test_what_is_more_than_text_is_no_cast(chat: bool) -> None:
    """The last chunk says why it is that."""
    reply = make_reply("m", chat)
    reply.chunks(0, make_output("a"))
    (event,) = reply.chunks(0, make_output("b"))
    assert isinstance(event, bytes) and json.loads(event[6:])["choices"][0]["finish_reason"] is None
    (last,) = reply.chunks(0, make_output("c", finish_reason="stop"))
    assert not isinstance(last, bytes)
    assert last.choices[0].finish_reason == "stop" and last.choices[0].seed == 7
