"""What is cast in a mould is what would have been written: byte for byte, whatever the text."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct
from quire.api.choices import ChatChoices, CompletionChoices
from quire.api.mould import Mould
from quire.api.parsed import ParsedAnswers
from quire.api.reply import Reply
from quire.api.sse import EVENTS
from quire.engine.parsing.choose import Parsers
from quire.engine.parsing.formats import REASONING_FORMATS
from quire.engine.request import CompletionOutput, MoreText, RequestOutput

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
NAMES = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
"""Of responses and models: clients and operators choose them, also 0 and 1."""


class Said(Struct):
    """Texts in the place of others."""

    before: str
    text: str
    behind: list[str]


def make_reply(name: str, chat: bool, **options: Any) -> Reply:
    options.setdefault("choices", ChatChoices() if chat else CompletionChoices())
    names: dict[str, Any] = {"response_id": name, "model": name, "chunk_object": name}
    return Reply(created=1, object="whole", **names, **options)


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
@given(texts=st.lists(TEXTS, min_size=2), name=NAMES)
def test_more_text_is_told_as_outputs_are(
    chat: bool, include_usage: bool, texts: list[str], name: str
) -> None:
    """Byte for byte, and counted: a client cannot see which of the two it was told."""
    one, other = (make_reply(name, chat, include_usage=include_usage) for _ in range(2))
    assert one.chunks(0, make_output("a")) == other.chunks(0, make_output("a"))
    assert one.more is not None
    for text in texts:
        cast = one.more(0, MoreText(text, 2))
        made = other.chunks(0, make_output(text))
        assert cast == b"".join(map(EVENTS.write, made))
    assert one.end() == other.end()


@pytest.mark.parametrize(
    "reply",
    [
        make_reply("m", True, running_usage=True),
        make_reply("m", False, prompt_alone=True),
        make_reply("m", True, choices=ChatChoices(return_ids=True)),
        make_reply("m", False, choices=CompletionChoices(return_ids=True)),
    ],
    ids=["usage in every chunk", "no answer", "token ids of a chat", "token ids"],
)
def test_who_wants_more_than_text_is_told_outputs(reply: Reply) -> None:
    assert reply.more is None


def test_thoughts_are_no_content() -> None:
    """What a parser finds in more text is told as in an output; content is cast."""
    ids = iter(range(9))

    def make() -> Reply:
        parsers = Parsers(reasoning=REASONING_FORMATS["qwen3"])
        start = partial(parsers.start, "text")
        parsed = ParsedAnswers(start, lambda: str(next(ids)), has_reasoning=True)
        return make_reply("m", True, choices=ChatChoices(parsed=parsed))

    one, other = make(), make()
    assert one.more is not None
    assert one.chunks(0, make_output("<think>")) == other.chunks(0, make_output("<think>"))
    for text in ("a", "", "b</think>", "c", "d"):
        made = other.chunks(0, make_output(text))
        assert one.more(0, MoreText(text, 2)) == b"".join(map(EVENTS.write, made))
