"""Chains of places against brute force: which ends of texts stood before, where, and what then."""

from __future__ import annotations

from array import array
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from quire.engine.spec import suffix_index
from quire.engine.spec.suffix_index import (
    END,
    LEAST_BUCKETS,
    MARGIN,
    SuffixIndex,
    few_hashes,
    hashes,
    most_frequent,
)

ALL = 10**6
"""A width that leaves nothing out."""
IDS = st.sampled_from((0, 1, 2, 65536, 2**31 - 1))
TEXTS = st.lists(IDS, max_size=40) | st.lists(st.sampled_from((0, 1)), max_size=40)


class Flat:
    """An index beside the same texts as one list, of which nothing is ever taken away."""

    def __init__(self, width: int) -> None:
        self.index = SuffixIndex(width)
        self.flat: list[int] = []
        self.sizes: list[int] = []

    def write(self, tokens: list[int]) -> None:
        self.index.write(np.array([*tokens, END], np.int32))
        self.index.due = len(self.index.text)
        self.flat += [*tokens, END]
        self.sizes.append(len(tokens) + 1)

    def forget(self) -> None:
        if self.sizes:
            self.index.forget(self.sizes.pop(0))

    @property
    def moved(self) -> int:
        """What to add to a place of the index."""
        return len(self.flat) - len(self.index.text)

    def lengths(self, tail: list[int]) -> dict[int, int]:
        """Slowly: place -> how far what stands before it is the end of tail, the newest first."""
        oldest = len(self.flat) - sum(self.sizes)
        found = {}
        for place in range(self.index.linked + self.moved - 1, oldest, -1):
            length = 0
            while length < min(len(tail), place - oldest):
                if self.flat[place - length - 1] != tail[-length - 1]:
                    break
                length += 1
            if length:
                found[place] = length
        return found

    def find(self, tail: list[int]) -> tuple[int, list[int]]:
        text = array("i", [END] * MARGIN + tail)
        values = [one[0] for one in few_hashes(text, len(text), len(text) + 1)]
        length, places = self.index.find(values, text[MARGIN:])
        return length, [place + self.moved for place in places]


STEPS = st.lists(
    st.tuples(st.just("write"), TEXTS)
    | st.tuples(st.just("link"), st.integers(1, 60))
    | st.tuples(st.just("forget"), st.just(0))
    | st.tuples(st.just("find"), st.lists(IDS, min_size=1, max_size=20)),
    max_size=40,
)


MOVED: list[tuple[str, object]] = [
    ("write", [0, 1] * 20),
    ("write", [2, 3, 4, 2, 3, 5]),
    ("link", ALL),
    ("forget", 0),
    ("find", [2, 3]),
    ("write", [2, 3]),
]
"""Places that move while they are linked, and those that follow them."""


def longest(found: dict[int, int]) -> tuple[int, list[int]]:
    """The longest match and all places that have it, the newest first."""
    most = max(found.values(), default=0)
    return most, [place for place, length in found.items() if length == most]


@given(steps=STEPS, most_base=st.sampled_from((0, 50, 2**30)))
@example(
    steps=[
        ("write", [0] * 300),
        ("link", 400),
        ("write", [1, 2] * 4),
        ("forget", 0),
        ("find", [1]),
        ("link", 5),
        ("find", [2, 1]),
    ],
    most_base=0,
)
@example(steps=MOVED, most_base=0)
@example(steps=MOVED, most_base=2**30)
def test_the_longest_match_is_found_with_all_its_places(
    steps: list[tuple[str, object]], most_base: int
) -> None:
    """In any order of writing, linking a part, and forgetting; ends of texts end a match."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(suffix_index, "MOST_BASE", most_base)
        take(steps)


def take(steps: list[tuple[str, object]]) -> None:
    state = Flat(ALL)
    for name, given_ in steps:
        match name, given_:
            case "write", list() as tokens:
                state.write(tokens)
            case "link", int() as most:
                before = state.index.linked
                assert state.index.link(most) <= most
                assert state.index.linked >= before
            case "forget", _:
                state.forget()
            case _, list() as tail:
                assert state.find(tail) == longest(state.lengths(tail))
    state.index.link(ALL)
    assert state.index.linked >= len(state.index.text)
    for end in range(1, len(state.flat)):
        tail = state.flat[max(0, end - 12) : end]
        if END not in tail:
            assert state.find(tail) == longest(state.lengths(tail)), tail


@given(text=st.lists(st.sampled_from((0, 0, 1)), min_size=1, max_size=120), width=st.integers(1, 9))
def test_a_narrow_search_visits_the_newest_places(text: list[int], width: int) -> None:
    """No more than `width`, and each of them has what is said of it."""
    state = Flat(width)
    state.write(text)
    state.index.link(ALL)
    tail = text[-20:]
    length, places = state.find(tail)
    assert length and len(places) <= width
    assert places == sorted(places, reverse=True)
    found = state.lengths(tail)
    assert all(found[place] == length for place in places)


@given(text=st.lists(IDS, min_size=1, max_size=300), parts=st.lists(st.integers(1, 90)))
def test_slices_and_single_tokens_make_the_same_chains(text: list[int], parts: list[int]) -> None:
    """`chain` and `link` are two ways to one index, whatever the sizes of its parts."""
    tokens = np.array(text, np.int32)
    one, other = SuffixIndex(), SuffixIndex()
    for index in (one, other):
        index.write(tokens)
        index.due = len(index.text)
    for part in (*parts, ALL):
        one.link(part)
    for place in range(other.linked, len(other.text)):
        other.chain(few_hashes(other.text, place, place + 1))
    assert [list(heads) for heads in one._heads] == [list(heads) for heads in other._heads]
    assert [list(row) for row in one._before] == [list(row) for row in other._before]
    end = len(one.text)
    columns = hashes(one.text, MARGIN, end + 1).tolist()
    assert columns == few_hashes(one.text, MARGIN, end + 1)
    assert max(map(max, columns)) < 2**31


@given(
    rows=st.lists(st.lists(st.sampled_from((0, 1, 2, END)), max_size=6), min_size=1, max_size=12),
    most=st.integers(1, 7),
    least=st.sampled_from((0.0, 0.1, 0.3, 0.5, 0.51, 1.0)),
)
def test_guesses_go_on_as_most_do(rows: list[list[int]], most: int, least: float) -> None:
    """Counted anew for every token; of equally many the first row's counts."""
    guesses: list[int] = []
    while len(guesses) < most:
        size = len(guesses)
        alike = [row[size] for row in rows if row[:size] == guesses and len(row) > size]
        counts = Counter(token for token in alike if token != END)
        if not counts or max(counts.values()) < least * len(rows):
            break
        guesses.append(counts.most_common(1)[0][0])
    assert most_frequent([array("i", row) for row in rows], most, least) == guesses


def test_memory_follows_what_is_not_forgotten() -> None:
    """However much was written before, and however much at a time."""
    state = Flat(ALL)
    state.write([7] * 50_000)
    state.index.link(ALL)
    full = state.index.num_bytes
    assert full < 55 * 50_000
    for number in range(200):
        state.write([number] * 100)
        if number > 5:
            state.forget()
        state.index.link(ALL)
        least = 16 * LEAST_BUCKETS
        assert number < 7 or state.index.num_bytes < 170 * state.index.num_tokens + least, number
    assert state.find([199] * 12)[0] == 12 and state.find([3])[0] == 0
