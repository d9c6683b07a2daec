"""Several answers of one request, and how they end."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from msgspec import UNSET
from quire.api.parsed import ParsedAnswers
from quire.engine.parsing.choose import Parsers
from quire.engine.parsing.formats import TOOL_FORMATS

CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'


def make(**options: Any) -> ParsedAnswers:
    ids = itertools.count()
    parsers = Parsers(TOOL_FORMATS["hermes"])
    return ParsedAnswers(lambda: parsers.start("calls"), lambda: str(next(ids)), **options)


def test_choices_are_read_apart() -> None:
    """Their pieces come in any order; each has its own calls and numbers."""
    answers = make()
    texts = {0: CALL + CALL, 1: "no call", 2: f"one {CALL}"}
    said: dict[int, list[tuple[int, str]]] = {choice: [] for choice in texts}
    for place in range(max(map(len, texts.values()))):
        for choice, text in texts.items():
            if place < len(text):
                told = answers.delta(choice, text[place], ends=place + 1 == len(text))
                calls = UNSET if isinstance(told, str) else told.tool_calls
                for call in calls if calls is not UNSET else ():
                    assert call.index is not UNSET
                    said[choice].append((call.index, call.function.arguments))
    joined = {
        choice: ["".join(text for number, text in pieces if number == one) for one in range(2)]
        for choice, pieces in said.items()
    }
    assert joined == {0: ['{"a": 1}'] * 2, 1: ["", ""], 2: ['{"a": 1}', ""]}
    reasons = [answers.finish_reason(choice, "stop") for choice in texts]
    assert reasons == ["tool_calls", "stop", "tool_calls"]


@pytest.mark.parametrize("reason", ["length", "abort", "repetition"])
def test_only_an_answer_that_stopped_ended_with_its_calls(reason: Any) -> None:
    answers = make()
    answers.whole(0, CALL)
    assert answers.finish_reason(0, reason) == reason
    assert answers.finish_reason(0, None) is None
    assert answers.finish_reason(0, "stop") == "tool_calls"


def test_pieces_that_hold_text_back_say_nothing() -> None:
    answers = make()
    assert answers.delta(0, "<tool_", ends=False) == ""
    assert answers.delta(0, "box>", ends=True) == "<tool_box>"
