"""Followers: a mask is a function of the grammar and the output's tokens, and of nothing else."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import llguidance
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quire.engine.grammar.checker import read_tokenizer
from quire.engine.grammar.follower import Follower
from quire.engine.grammar.grammars import Compiled, _pack
from quire.engine.structured import StructuredOutputsParams
from quire.fuzz.checkpoints import VOCAB_SIZE
from quire.fuzz.grammar_cases import (
    EOS_TOKEN_IDS,
    FORMS,
    SCHEMA,
    make_vocabulary,
    source_of,
    tiny_grammars,
)

MORE: tuple[StructuredOutputsParams, ...] = (
    StructuredOutputsParams(json=SCHEMA, disable_any_whitespace=True),
    StructuredOutputsParams(regex="[ab]+([0-9]{2}|é)*"),
    StructuredOutputsParams(grammar='start: "(" start? ")" | /[abc]+/'),
)
ALL_FORMS = FORMS + MORE
NUM_WORDS = -(-VOCAB_SIZE // 32)
TOKENS = make_vocabulary().tokens
GARBAGE = 0xA5A5A5A5

picks = st.lists(st.integers(0, 2**16), max_size=24)
"""Which of the tokens that may come is taken, step by step."""


def compiled(form: StructuredOutputsParams) -> Compiled:
    return tiny_grammars().resume(source_of(form))


def bits_of(mask: np.ndarray) -> list[int]:
    return [int(i) for i in np.unpackbits(mask.view(np.uint8), bitorder="little").nonzero()[0]]


def allowed(follower: Follower) -> list[int]:
    """Ask what may come, into memory that is not clean."""
    mask = np.full(NUM_WORDS, GARBAGE, np.uint32)
    follower.fill(mask)
    return bits_of(mask)


@cache
def bare_tokenizer() -> llguidance.LLTokenizer:
    return read_tokenizer(*_pack(make_vocabulary()))


def allowed_anew(source: str, outputs: Sequence[int]) -> list[int]:
    """Ask a matcher of llguidance's that has read the whole output and given no mask before."""
    matcher = llguidance.LLMatcher(bare_tokenizer(), source, log_level=0)
    for token in outputs:
        assert matcher.is_stopped() or matcher.consume_token(token)
    return bits_of(np.frombuffer(matcher.compute_bitmask(), np.uint32))


def walk(form: StructuredOutputsParams, steps: Sequence[int]) -> list[int]:
    """Take a token of those that may come, for each step; return them all."""
    follower, outputs = Follower(compiled(form)), list[int]()
    for step in steps:
        choices = allowed(follower)
        outputs.append(choices[step % len(choices)])
        follower.read(outputs[-1:])
    return outputs


@settings(max_examples=100, deadline=None)
@given(form=st.sampled_from(ALL_FORMS), steps=picks)
def test_masks_are_those_of_a_matcher_made_anew(
    form: StructuredOutputsParams, steps: list[int]
) -> None:
    """After every token, also behind the end, and in words that were not clean."""
    follower, outputs, source = Follower(compiled(form)), walk(form, steps), source_of(form)
    for index in range(len(outputs) + 1):
        mine = allowed(follower)
        assert mine == allowed_anew(source, outputs[:index])
        assert mine and all(token < VOCAB_SIZE for token in mine)
        assert mine == allowed(follower), "asking changes nothing"
        follower.read(outputs[index : index + 1])
    assert follower.fault is None


@settings(max_examples=100, deadline=None)
@given(form=st.sampled_from(ALL_FORMS), steps=picks, data=st.data())
def test_how_an_output_was_read_does_not_matter(
    form: StructuredOutputsParams, steps: list[int], data: st.DataObject
) -> None:
    """All at once (a preempted sequence that comes back), in pieces, with or without masks between
    them, or from where another one was (a fork): and each goes on alike."""
    outputs = walk(form, steps)
    at = sorted(data.draw(st.lists(st.integers(0, len(outputs)), max_size=4)))
    in_pieces = Follower(compiled(form))
    for start, end in zip([0, *at], [*at, len(outputs)], strict=True):
        if data.draw(st.booleans()):
            allowed(in_pieces)
        in_pieces.read(outputs[start:end])
    at_once = Follower(compiled(form), outputs)
    begun = at[0] if at else 0
    fork = Follower(compiled(form), outputs[:begun])
    fork.read(np.array(outputs[begun:], np.int32).tolist())
    expected = allowed(in_pieces)
    assert allowed(at_once) == allowed(fork) == expected
    for follower in (in_pieces, at_once, fork):
        follower.read(expected[:1])
    assert allowed(in_pieces) == allowed(at_once) == allowed(fork)


@settings(max_examples=60, deadline=None)
@given(steps=picks, other=picks)
def test_followers_of_one_grammar_share_no_place(steps: list[int], other: list[int]) -> None:
    one, two = Follower(compiled(FORMS[1])), Follower(compiled(FORMS[1]))
    mine, theirs = walk(FORMS[1], steps), walk(FORMS[1], other)
    for index in range(max(len(mine), len(theirs))):
        one.read(mine[index : index + 1])
        two.read(theirs[index : index + 1])
    assert allowed(one) == allowed_anew(source_of(FORMS[1]), mine)
    assert allowed(two) == allowed_anew(source_of(FORMS[1]), theirs)


def test_followers_of_one_grammar_in_threads() -> None:
    """The device's thread admits a sequence while another computes masks."""

    def masks(seed: int) -> list[list[int]]:
        rng, follower, seen = random.Random(seed), Follower(compiled(FORMS[1])), []
        for _ in range(30):
            seen.append(allowed(follower))
            follower.read([rng.choice(seen[-1])])
        return seen

    expected = [masks(seed) for seed in range(12)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(masks, range(12))) == expected


class Defined(NamedTuple):
    """A form, and by bytes: what begins an output of it, and what is one."""

    form: StructuredOutputsParams
    begins: Callable[[bytes], bool]
    is_whole: Callable[[bytes], bool]


CHOICES = ("yes", "no", "yes no", "é", "12 abc", "")
DEFINED = (
    Defined(
        StructuredOutputsParams(choice=CHOICES),
        lambda text: any(one.encode().startswith(text) for one in CHOICES),
        lambda text: text in [one.encode() for one in CHOICES],
    ),
    Defined(
        StructuredOutputsParams(regex="(ab|a|b)*c"),
        lambda text: re.fullmatch(b"[ab]*c?", text) is not None,
        lambda text: re.fullmatch(b"[ab]*c", text) is not None,
    ),
)


@settings(max_examples=60, deadline=None)
@given(case=st.sampled_from(DEFINED), steps=picks)
def test_a_token_may_come_where_its_text_leads_somewhere(case: Defined, steps: list[int]) -> None:
    """By definition, without llguidance: every token whose text may go on, not one spelling of
    it alone; what ends an output, where it is whole; and no token without a text."""
    follower, text = Follower(compiled(case.form)), b""
    for step in steps:
        expected = [
            token
            for token, piece in enumerate(TOKENS)
            if (token in EOS_TOKEN_IDS and case.is_whole(text))
            or (token not in EOS_TOKEN_IDS and piece and case.begins(text + piece))
        ]
        assert allowed(follower) == expected, text
        token = expected[step % len(expected)]
        if token in EOS_TOKEN_IDS:
            break
        text += TOKENS[token]
        follower.read([token])


def test_behind_the_end_only_ends_may_come_and_nothing_changes() -> None:
    """A sequence that ignores its end goes on: with ends."""
    yes = TOKENS.index(b"yes")
    follower = Follower(compiled(FORMS[3]), [yes, 0])
    for token in (5, VOCAB_SIZE + 1, yes, 1):
        assert allowed(follower) == list(EOS_TOKEN_IDS) and follower.fault is None
        follower.read([token])


def test_a_token_that_was_not_drawn_is_not_read() -> None:
    """-1 stands for one, of a sequence whose row failed."""
    follower = Follower(compiled(FORMS[3]))
    before = allowed(follower)
    follower.read([-1, 5])
    assert allowed(follower) == before and follower.fault is None


@pytest.mark.parametrize("token", [2, 1, VOCAB_SIZE - 1, VOCAB_SIZE, 2**31 - 1])
def test_a_token_that_may_not_come_is_a_fault_for_ever(token: int) -> None:
    """Somebody else's edits forced it: everything may come then, and the fault says why."""
    follower = Follower(compiled(FORMS[3]), [TOKENS.index(b"y")])
    follower.read([token])
    for _ in range(2):
        assert follower.fault is not None and "cannot be followed" in follower.fault
        assert len(follower.fault) < 400
        assert allowed(follower) == list(range(32 * NUM_WORDS))
        follower.read([TOKENS.index(b"e")])
