"""Budgets of thoughts before forms: where they end, whoever cuts their text into tokens."""

from __future__ import annotations

import random

import numpy as np
import pytest
from quire.engine.grammar.follower import Follower
from quire.engine.grammar.source import grammar_source, thought_grammar
from quire.engine.grammar.thought import ThoughtLimit
from quire.engine.request import BoundedThought, ThinkingBudget
from quire.engine.structured import StructuredOutputsParams, Thought
from quire.fuzz.checkpoints import VOCAB_SIZE
from quire.fuzz.grammar_cases import make_vocabulary, tiny_grammars
from quire.reference.edits import Thinking, due_token

TOKENS = make_vocabulary().tokens
NUM_WORDS = -(-VOCAB_SIZE // 32)


def spell(text: str) -> tuple[int, ...]:
    """A text by its bytes."""
    return tuple(TOKENS.index(bytes([one])) for one in text.encode())


START, END = spell("b"), spell("aca")


def make_limit(budget: int, *, start: str = "", prompt: tuple[int, ...] = ()) -> ThoughtLimit:
    source = thought_grammar(Thought(start, "aca"))
    bounded = BoundedThought(source, ThinkingBudget(budget, START, END), is_open=not start)
    return ThoughtLimit(tiny_grammars().resume(source), bounded, prompt)


def draw_tokens(rng: random.Random, count: int) -> list[int]:
    """Mostly pieces of the markers, spelled in any way."""
    likely = [one for one, text in enumerate(TOKENS) if text and set(text) <= set(b"abc")]
    return [rng.choice(likely) for _ in range(count)]


@pytest.mark.parametrize("budget", [0, 1, 5])
@pytest.mark.parametrize("is_open", [True, False])
def test_a_thought_is_bounded_until_its_text_ends(budget: int, is_open: bool) -> None:
    """Against the definition by tokens, up to where the text of the end has come."""
    rng, num_over, num_due = random.Random(budget), 0, 0
    for _ in range(300):
        prompt = (*draw_tokens(rng, 2), *START, *draw_tokens(rng, rng.randrange(3)))
        later = prompt[prompt.index(START[0]) + 1 :]
        if START[0] in (*prompt[:2], *later) or any(b"a" in TOKENS[one] for one in later):
            continue
        outputs = draw_tokens(rng, rng.randrange(14))
        if not is_open:
            prompt, outputs = (), [*START, *outputs]
            if START[0] in outputs[1:]:
                continue
        limit = make_limit(budget, start="" if is_open else "b", prompt=prompt)
        for place, token in enumerate(outputs):
            before = limit.copy()
            limit.read(token)
            assert before.due == make_again(budget, is_open, prompt, outputs[:place]).due
        text = b"".join(TOKENS[one] for one in outputs)
        if b"aca" in text:
            num_over += 1
            assert limit.due is None
        else:
            due = due_token(Thinking(budget=budget, start=START, end=END), prompt, outputs)
            num_due += due is not None
            assert limit.due == due
    assert num_over and num_due


def make_again(
    budget: int, is_open: bool, prompt: tuple[int, ...], outputs: list[int]
) -> ThoughtLimit:
    limit = make_limit(budget, start="" if is_open else "b", prompt=prompt)
    for token in outputs:
        limit.read(token)
    return limit


def test_a_form_that_comes_at_once_has_no_thought() -> None:
    limit = make_limit(0, start="b")
    assert limit.due is None
    for token in (*spell("c"), *START):
        limit.read(token)
        assert limit.due is None


def test_what_is_due_is_all_that_may_come_and_then_the_form() -> None:
    form = StructuredOutputsParams(regex="[0-9]{2}", thought=Thought("", "aca"))
    follower = Follower(
        tiny_grammars().resume(grammar_source(form)), (), make_limit(2, prompt=START)
    )
    mask = np.zeros(NUM_WORDS, np.uint32)
    said = list[int]()
    for token in spell("ab"):
        follower.read([token])
    while len(said) < len(END):
        follower.fill(mask)
        (only,) = np.unpackbits(mask.view(np.uint8), bitorder="little").nonzero()[0].tolist()
        said.append(only)
        follower.read([only])
    assert tuple(said) == END
    follower.fill(mask)
    allowed = np.unpackbits(mask.view(np.uint8), bitorder="little").nonzero()[0].tolist()
    assert all(TOKENS[one][:1] in b"0123456789 \n" for one in allowed)
