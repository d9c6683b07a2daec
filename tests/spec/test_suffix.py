"""SuffixDrafter against brute force; who shares what with whom, and what is forgotten."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from quire.engine.request import IntArray, Request
from quire.engine.spec import suffix
from quire.engine.spec.suffix import SuffixDrafter
from quire.engine.spec.suffix_index import MARGIN
from quire.fuzz.strategies import make_request

ALL = 10**6
WORDS = st.lists(st.sampled_from((0, 1, 2, 2**31 - 1)), min_size=1, max_size=30)


def ids(tokens: list[int]) -> IntArray:
    return np.array(tokens, np.int32)


def make_drafter(
    *,
    depth: int = 24,
    cached: int = 100,
    factor: float = 1.0,
    least: float = 0.1,
    most_kept: int = ALL,
) -> SuffixDrafter:
    return SuffixDrafter(
        max_tree_depth=depth,
        max_cached_requests=cached,
        max_spec_factor=factor,
        min_token_prob=least,
        most_kept=most_kept,
        width=ALL,
    )


def asked(prompt: list[int], tenant: str = "", salt: str | None = None) -> Request:
    return make_request("r", prompt, tenant=tenant, salt=salt)


def answer(drafter: SuffixDrafter, request: Request, output: list[int], *, slot: int = 0) -> None:
    """Have a request answered whole."""
    prompt = request.prompt_token_ids
    drafter.enter(slot, request, prompt)
    drafter.pass_step()
    drafter.leave(slot, ids([*prompt.tolist(), *output]), ended=True)
    drafter.pass_step()


def guess(drafter: SuffixDrafter, request: Request, count: int, *, slot: int = 9) -> list[int]:
    """What is guessed behind a request's prompt."""
    prompt = request.prompt_token_ids
    drafter.enter(slot, request, prompt)
    drafter.pass_step()
    guesses = list(drafter.propose(slot, prompt, count))
    drafter.leave(slot, prompt, ended=False)
    return guesses


def slow_guess(
    own: list[int], kept: list[list[int]], count: int, *, depth: int, factor: float, least: float
) -> list[int]:
    """Slowly, over all places: as most go on behind the longest match; the newest of own first."""
    most = min(max(1, depth - count), len(own))
    found: list[tuple[int, list[int]]] = []
    for text, end in ((own, len(own) - 1), *((text, len(text)) for text in reversed(kept))):
        for place in range(end, 0, -1):
            length = 0
            while length < min(most, place) and text[place - length - 1] == own[-length - 1]:
                length += 1
            found.append((length, text[place:]))
    length = max((length for length, _ in found), default=0)
    rows = [row for size, row in found if size == length]
    guesses: list[int] = []
    while length and len(guesses) < min(count, depth - length, int(length * factor)):
        size = len(guesses)
        counts = Counter(row[size] for row in rows if row[:size] == guesses and len(row) > size)
        if not counts or max(counts.values()) < least * len(rows):
            break
        guesses.append(counts.most_common(1)[0][0])
    return guesses


@given(
    answers=st.lists(st.tuples(WORDS, WORDS), max_size=4),
    prompt=WORDS,
    output=WORDS,
    parts=st.lists(st.integers(1, 8), max_size=8),
    count=st.integers(1, 6),
    depth=st.sampled_from((2, 3, 6, 24)),
    factor=st.sampled_from((0.0, 0.5, 1.0, 4.0)),
    least=st.sampled_from((0.0, 0.1, 0.4, 1.0)),
)
def test_guesses_are_what_mostly_followed(
    answers: list[tuple[list[int], list[int]]],
    prompt: list[int],
    output: list[int],
    parts: list[int],
    count: int,
    depth: int,
    factor: float,
    least: float,
) -> None:
    """In the sequence itself and in kept answers, each with the end of its prompt; however many
    tokens come between two guesses, and asked once or twice."""
    drafter = make_drafter(depth=depth, factor=factor, least=least)
    kept = []
    for before, after in answers:
        answer(drafter, asked(before), after)
        if len(after) > 1:
            kept.append([*before[-depth:], *after])
    request = asked(prompt)
    drafter.enter(3, request, request.prompt_token_ids)
    drafter.pass_step()
    known = list(prompt)
    for part in [0, *parts]:
        known += output[: part and min(part, len(output))]
        wanted = slow_guess(known, kept, count, depth=depth, factor=factor, least=least)
        for _ in range(2):
            assert list(drafter.propose(3, ids(known), count)) == wanted


@given(
    prompt=WORDS,
    outputs=st.lists(WORDS, min_size=1, max_size=3),
    calls=st.lists(st.integers(0, 2), max_size=6),
)
def test_guesses_that_nobody_uses_leave_no_trace(
    prompt: list[int], outputs: list[list[int]], calls: list[int]
) -> None:
    """What is asked while a plan is made that is not carried out changes no later answer."""
    plain, asked_often = make_drafter(), make_drafter()
    found: list[list[list[int]]] = [[], []]
    for index, drafter in enumerate((plain, asked_often)):
        for output in outputs:
            request = asked(prompt)
            drafter.enter(0, request, request.prompt_token_ids)
            known = list(prompt)
            for step, token in enumerate(output):
                if index and step < len(calls):
                    for _ in range(calls[step]):
                        drafter.propose(0, ids(known), 1 + step)
                drafter.pass_step()
                known.append(token)
                if step % 3 == 2:
                    found[index].append(list(drafter.propose(0, ids(known), 4)))
            drafter.leave(0, ids(known), ended=True)
    assert found[0] == found[1]


SECRET = list(range(100, 130))


@pytest.mark.parametrize("other", [("b", None), ("", None), ("a", "salt"), ("a", "")])
def test_nobody_sees_what_others_were_told(other: tuple[str, str | None]) -> None:
    """Another tenant or another salt is another world; a sequence in its slot is, too."""
    drafter = make_drafter()
    answer(drafter, asked([1, 2], "a"), SECRET)
    running = asked([1, 2, *SECRET], "a")
    drafter.enter(1, running, running.prompt_token_ids)
    drafter.pass_step()
    assert guess(drafter, asked(SECRET[:6], "a"), 4) == SECRET[6:10]
    assert guess(drafter, asked(SECRET[:6], *other), 4) == []
    answer(drafter, asked([1, 2], *other), [7, *SECRET[:6], 8, 9])
    assert guess(drafter, asked(SECRET[:6], *other), 4) == [8, 9]
    assert guess(drafter, asked([7, *SECRET[:6]], "a"), 4) == SECRET[6:10]


def test_first_tokens_are_guessed_from_the_end_of_the_prompt() -> None:
    drafter = make_drafter()
    answer(drafter, asked([5, 6, 7, 8]), [20, 21, 22])
    assert guess(drafter, asked([9, 6, 7, 8]), 3) == [20, 21, 22]


def test_the_oldest_answers_are_forgotten() -> None:
    """Whoever's they are: as many are kept as is said, and no more tokens than is said."""
    for drafter in (make_drafter(cached=2), make_drafter(most_kept=2 * 34)):
        for number, tenant in enumerate("abb"):
            answer(drafter, asked([1, 2, 3], tenant), [number + 50, *SECRET[:29]])
        found = [guess(drafter, asked([3, n + 50], t), 2) for n, t in enumerate("abb")]
        assert found == [[], SECRET[:2], SECRET[:2]]
        assert list(drafter._shelves) == [("b", None)]
    drafter = make_drafter(cached=0)
    answer(drafter, asked([1, 2, 3]), SECRET)
    assert guess(drafter, asked(SECRET[:6]), 2) == []


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the answers that are kept and by what runs, whatever has come and gone."""
    monkeypatch.setattr(suffix, "MOST_PROMPT", 1000)
    monkeypatch.setattr(suffix, "MOST_OUTPUT", 500)
    drafter = make_drafter(most_kept=2000)
    for number in range(60):
        request = asked([number] * 3000, tenant=str(number % 7))
        drafter.enter(number % 4, request, request.prompt_token_ids)
        drafter.pass_step()
        tokens = ids([number] * 3000 + [number, 1] * 2000)
        drafter.leave(number % 4, tokens, ended=number % 5 != 0)
        assert drafter.num_bytes < 170 * 2000 + 7 * 2000, number
        assert sum(num for _, num in drafter._ages) == drafter._num_kept <= 2000
        assert {key for key, _ in drafter._ages} == set(drafter._shelves)
        assert len(drafter._pending) <= 8
    drafter.pass_step()
    assert not drafter._seats and not drafter._pending


def test_long_prompts_are_indexed_in_slices() -> None:
    """A step indexes so many tokens and no more, of all texts; what is there is used meanwhile."""
    drafter = make_drafter()
    long = [*SECRET, *range(1000, 1000 + 2 * suffix.SLICE)]
    requests = [asked([*long, *SECRET[:5]]), asked([1, 2, 3, 1, 2])]
    for slot, request in enumerate(requests):
        drafter.enter(slot, request, request.prompt_token_ids)

    def found() -> list[list[int]]:
        return [
            list(drafter.propose(slot, request.prompt_token_ids, 2))
            for slot, request in enumerate(requests)
        ]

    first = drafter._seats[0].index
    assert found() == [[], []]
    drafter.pass_step()
    assert first.linked < suffix.SLICE + 20
    assert found() == [SECRET[5:7], []]
    drafter.pass_step()
    assert found() == [SECRET[5:7], []]
    drafter.pass_step()
    assert found() == [SECRET[5:7], [3, 1]]
    assert first.linked == len(first.text)


def test_only_the_end_of_a_very_long_prompt_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suffix, "MOST_PROMPT", 8)
    drafter = make_drafter()
    request = asked([5, 6, 7, 8, 9, 5, 6, 1, 2, 3, 4])
    drafter.enter(0, request, request.prompt_token_ids)
    drafter.pass_step()
    known = request.prompt_token_ids.tolist()
    assert drafter.propose(0, ids([*known, 8]), 1) == [9]
    assert drafter.propose(0, ids([*known, 8, 7]), 1) == []
    assert drafter.propose(0, ids([*known, 8, 7, 8]), 1) == [7]


def test_what_was_preempted_is_not_kept_and_goes_on_elsewhere() -> None:
    """Only its end makes it an answer: once, with all that it said."""
    drafter = make_drafter()
    request = asked([1, 2, 3])
    known = ids([1, 2, 3, *SECRET[:10]])
    drafter.enter(0, request, request.prompt_token_ids)
    drafter.pass_step()
    drafter.leave(0, known, ended=False)
    assert not drafter._ages and guess(drafter, asked(SECRET[:4]), 2) == []
    drafter.enter(5, request, known)
    drafter.pass_step()
    again = ids([*known.tolist(), *SECRET[:5]])
    assert drafter.propose(5, again, 2) == SECRET[5:7]
    drafter.leave(5, again, ended=True)
    drafter.pass_step()
    assert len(drafter._ages) == 1
    assert guess(drafter, asked([2, 3, SECRET[0]]), 2) == SECRET[1:3]


def test_forks_share_what_they_said_once_they_have_ended() -> None:
    """n answers to one prompt: each looks at its own text, and at those that are done."""
    drafter = make_drafter()
    forks = [replace(asked([1, 2, 3, 40 + n]), request_id=f"f{n}") for n in range(2)]
    for slot, fork in enumerate(forks):
        drafter.enter(slot, fork, fork.prompt_token_ids)
    drafter.pass_step()
    said = [ids([*fork.prompt_token_ids.tolist(), 60, 61, 62, 63]) for fork in forks]
    assert drafter.propose(1, said[1][:5], 3) == []
    drafter.leave(0, said[0], ended=True)
    drafter.pass_step()
    assert drafter.propose(1, said[1][:6], 3) == [62, 63]


def test_a_single_token_is_no_answer_to_keep() -> None:
    """Beams are requests of one token, each: they would push out what is of use."""
    drafter = make_drafter(cached=1)
    answer(drafter, asked([1, 2, 3]), SECRET)
    answer(drafter, asked([1, 2, 3]), [4])
    assert guess(drafter, asked([1, 2, 3]), 2) == SECRET[:2]


def linked(drafter: SuffixDrafter, slot: int) -> int:
    """Tokens of a slot that are in its index."""
    return drafter._seats[slot].index.linked - MARGIN - 1


def test_a_step_has_one_slice_for_all_texts_and_none_for_those_that_left() -> None:
    drafter = make_drafter()
    part = suffix.SLICE * 3 // 4
    for slot in range(4):
        request = asked(list(range(part + 1)))
        drafter.enter(slot, request, request.prompt_token_ids)
    drafter.pass_step()
    assert [linked(drafter, slot) for slot in range(3)] == [part, suffix.SLICE - part, 0]
    drafter.leave(1, ids(list(range(part + 1))), ended=False)
    drafter.pass_step()
    assert [linked(drafter, slot) for slot in (0, 2, 3)] == [part, part, suffix.SLICE - part]


def test_what_stays_of_many_tokens_is_found_in_a_smaller_table() -> None:
    """Forgetting most of a table makes the rest due again, which the next steps see to; whoever's
    answer has pushed the rest out."""
    drafter = make_drafter(cached=2)
    answer(drafter, asked([1, 2]), list(range(1000, 1000 + suffix.SLICE - 10)))
    answer(drafter, asked([1, 2]), SECRET)
    full = drafter.num_bytes
    answer(drafter, asked([1, 2], "b"), [7, 8, 9])
    assert drafter.num_bytes < full / 8
    assert guess(drafter, asked(SECRET[:6]), 4) == SECRET[6:10]
