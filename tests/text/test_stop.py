"""Stop strings against a slow search of the whole text."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from quire.engine.text.stop import StopMatcher
from quire.fuzz.text_cases import Cut, cut_slowly, deltas, stop_strings


def run(stops: list[str], parts: list[str], *, include: bool, num_unarmed: int = 0) -> Cut:
    matcher = StopMatcher(stops, include=include)
    shown = ""
    for i, part in enumerate(parts):
        text, stop = matcher.feed(part, armed=i >= num_unarmed)
        shown += text
        if stop is not None:
            return Cut(shown, stop)
    return Cut(shown + matcher.flush(), None)


@example(stops=["abab", "ba"], parts=["a", "b", "ab"], include=False, num_unarmed=0)
@example(stops=["abcd", "b"], parts=["ab", "c"], include=False, num_unarmed=1)
@given(stops=stop_strings(), parts=deltas(), include=st.booleans(), num_unarmed=st.integers(0, 4))
def test_every_cut_of_a_text_ends_as_the_slow_search_says(
    stops: list[str], parts: list[str], include: bool, num_unarmed: int
) -> None:
    unarmed = sum(map(len, parts[:num_unarmed]))
    expected = cut_slowly("".join(parts), stops, include=include, unarmed=unarmed)
    assert run(stops, parts, include=include, num_unarmed=num_unarmed) == expected


@given(stops=stop_strings(), parts=deltas())
def test_only_what_may_become_a_stop_string_is_held_back(
    stops: list[str], parts: list[str]
) -> None:
    matcher = StopMatcher(stops)
    shown = text = ""
    for part in parts:
        text += part
        released, stop = matcher.feed(part)
        if stop is not None:
            return
        shown += released
        held = text[len(shown) :]
        assert text == shown + held
        assert not held or any(stop.startswith(held) for stop in stops)
        longer = [text[i:] for i in range(len(shown))]
        assert not any(stop.startswith(tail) for tail in longer for stop in stops)


@pytest.mark.parametrize(
    ("include", "expected"), [(False, Cut("one ", "</end>")), (True, Cut("one </end>", "</end>"))]
)
def test_stop_string_across_deltas(include: bool, expected: Cut) -> None:
    assert run(["</end>"], ["one <", "/e", "nd", "> two"], include=include) == expected


def test_flush_releases_an_unfinished_stop_string() -> None:
    assert run(["</end>"], ["one </en"], include=False) == Cut("one </en", None)


def test_long_stop_string_is_cheap_while_it_does_not_match() -> None:
    matcher = StopMatcher(["x" * 1_000_000])
    for _ in range(1000):
        assert matcher.feed("hello world ").text == "hello world "
