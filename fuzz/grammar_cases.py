"""A vocabulary for the tiny models, grammars over it, and what may come next by definition.

The definition: a matcher that is made anew reads the whole output. Nothing is remembered.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from ..engine.grammar.follower import Follower
from ..engine.grammar.grammars import Grammars, Vocabulary
from ..engine.grammar.source import grammar_source, thought_grammar
from ..engine.grammar.thought import ThoughtLimit
from ..engine.params import SamplingParams
from ..engine.request import BoundedThought, GrammarUse, ThinkingBudget
from ..engine.structured import StructuredOutputsParams
from .checkpoints import VOCAB_SIZE

EOS_TOKEN_IDS = (0, 1)
_PARTS = (
    *('{"', '":', '": ', '", "', '"}', "}", "true", "false", "null", "ab", "abc", "ba", "yes"),
    *("no", "name", "age", "12", "00", "], [", "[]", " }", "<a>", "</a>", "tool", "\n  ", "é"),
)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "ages": {"type": "array", "items": {"type": "integer", "maximum": 99}, "maxItems": 2},
        "inner": {"anyOf": [{"type": "null"}, {"enum": ["a", "ab", "é"]}]},
    },
    "required": ["name", "inner"],
    "additionalProperties": False,
}
FORMS: tuple[StructuredOutputsParams, ...] = (
    StructuredOutputsParams(regex="(ab|a|b)*c"),
    StructuredOutputsParams(json=SCHEMA),
    StructuredOutputsParams(json_object=True),
    StructuredOutputsParams(choice=["yes", "no", "yes no", "é"]),
    StructuredOutputsParams(grammar='start: "<a>" x "</a>"\nx: /[a-c]+/ | "(" x ")"'),
    StructuredOutputsParams(
        structural_tag={
            "structures": [{"begin": "<a>", "schema": {"type": "integer"}, "end": "</a>"}],
            "triggers": ["<a"],
        }
    ),
)
"""One of each kind."""


SPECIAL_TOKENS = ("<|end|>", "<|stop|>")


def make_vocabulary() -> Vocabulary:
    """Return tokens for VOCAB_SIZE ids: two that end, letters, bytes of letters, longer texts."""
    tokens = [b"<|end|>", b"<|stop|>", *(bytes((i,)) for i in range(32, 127)), b"\n"]
    tokens += [b"\xc3", b"\xa9", b"\xe2\x82", *(part.encode() for part in _PARTS)]
    rng = random.Random(7)
    while len(tokens) < VOCAB_SIZE - 1:
        tokens.append(bytes(rng.choices(b'abc"{}: 019,[]', k=rng.randint(2, 4))))
    tokens.append(b"")  # one without a text
    special = {"<|end|>": 0, "<|stop|>": 1}
    return Vocabulary(tokens, special, EOS_TOKEN_IDS)


@cache
def tiny_grammars() -> Grammars:
    """Return the compiler for the tiny models' vocabulary."""
    return Grammars(make_vocabulary)


def source_of(form: StructuredOutputsParams) -> str:
    """Return the text of a form's grammar."""
    return grammar_source(form, SPECIAL_TOKENS)


def next_token_ids(
    source: str,
    outputs: Sequence[int],
    thought: BoundedThought | None = None,
    prompt: Sequence[int] = (),
) -> list[int]:
    """Return what may come after outputs, read from the beginning. prompt: before a thought."""
    mask = np.zeros(-(-VOCAB_SIZE // 32), np.uint32)
    limit = None
    if thought is not None:
        limit = ThoughtLimit(tiny_grammars().resume(thought.source), thought, prompt)
    follower = Follower(tiny_grammars().resume(source), outputs, limit)
    assert follower.fault is None, (source, outputs, follower.fault)
    follower.fill(mask)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[:VOCAB_SIZE]
    return [int(token) for token in bits.nonzero()[0]]


def next_of(
    params: SamplingParams,
    read: Sequence[int] = (),
    thinking: ThinkingBudget | None = None,
    prompt: Sequence[int] = (),
) -> Callable[[Sequence[int]], Sequence[int]] | None:
    """Say in the oracle's words what a form allows, and a budget of the thought before it.

    read: what came before the outputs; prompt: before that.
    """
    form = params.structured_outputs
    if form is None:
        return None
    source, thought = source_of(form), None
    if thinking is not None and form.thought is not None:
        grammar = thought_grammar(form.thought, SPECIAL_TOKENS)
        thought = BoundedThought(grammar, thinking, is_open=not form.thought.start)
    return lambda outputs: next_token_ids(source, [*read, *outputs], thought, prompt)


def use_of(params: SamplingParams, num_read: int = 0) -> GrammarUse | None:
    """Return the grammar of a request's form."""
    if params.structured_outputs is None:
        return None
    return GrammarUse(source_of(params.structured_outputs), num_read)
