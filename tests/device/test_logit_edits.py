"""Edits of a step's logits, all rows at once, against their definition and other people's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quire.engine.device import logit_edits
from quire.engine.device.link import make_link
from quire.engine.device.logit_edits import EditTable, StepEdits
from quire.engine.params import SamplingParams
from quire.engine.plan import Admitted
from quire.engine.request import ThinkingBudget
from quire.fuzz.kernel_cases import assert_same_bits
from quire.reference.edits import Edits, Thinking, due_token, edit
from torch import Tensor

VOCAB = 40
WIDTH = 24

LINK = make_link(torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"))
"""A GPU where there is one: the same bits."""

tokens = st.integers(0, VOCAB - 1)


@st.composite
def edits(draw: st.DrawFn) -> Edits:
    allowed = draw(st.one_of(st.none(), st.lists(tokens, min_size=1, max_size=30)))
    words = st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple)
    return Edits(
        repetition_penalty=draw(st.sampled_from((1.0, 1.3, 0.7))),
        frequency_penalty=draw(st.sampled_from((0.0, 0.3, -1.1))),
        presence_penalty=draw(st.sampled_from((0.0, 0.7, -2.0))),
        logit_bias=draw(st.dictionaries(tokens, st.floats(-100, 100, width=32), max_size=5)),
        allowed_token_ids=allowed,
        bad_words=tuple(draw(st.lists(words, max_size=4))),
        thinking=draw(st.one_of(st.none(), st.none(), thoughts())),
    )


@st.composite
def thoughts(draw: st.DrawFn) -> Thinking:
    marker = st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple)
    start, end = draw(st.lists(marker, min_size=2, max_size=2, unique=True))
    return Thinking(budget=draw(st.integers(0, 6)), start=start, end=end)


def admit(table: EditTable, slot: int, given: Edits, num_prompt: int) -> bool:
    params = SamplingParams(
        repetition_penalty=given.repetition_penalty,
        frequency_penalty=given.frequency_penalty,
        presence_penalty=given.presence_penalty,
        logit_bias=given.logit_bias,
        allowed_token_ids=given.allowed_token_ids,
    )
    words = tuple(tuple(word) for word in given.bad_words)
    thinking = None
    if given.thinking is not None:
        asked = given.thinking
        thinking = ThinkingBudget(asked.budget, tuple(asked.start), tuple(asked.end))
    return table.admit(
        Admitted(
            slot,
            np.zeros(num_prompt, np.int32),
            num_prompt,
            params,
            0,
            (),
            words,
            thinking=thinking,
        )
    )


def apply(table: EditTable, logits: Tensor, known: Tensor, step: StepEdits) -> Tensor:
    """Edit on the link's device; logits stay as they are, which is asserted."""
    there = logits.to(LINK.device)
    LINK.settle()
    with LINK.on_stream():
        edited = table.apply(there, known.to(LINK.device), step).cpu()
    assert_same_bits(there.cpu(), logits)
    return edited


def histories(seed: int, num_slots: int) -> Tensor:
    """[slots, WIDTH]: few tokens, so that words come; rubbish behind each history."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.randint(0, 4, (num_slots, WIDTH), dtype=torch.int32, generator=generator)
    known[:, WIDTH - 4 :] = 2**31 - 1
    return known


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(
        st.tuples(edits(), st.integers(1, 8), st.integers(0, 10)), min_size=1, max_size=6
    ),
    dtype=st.sampled_from((torch.float32, torch.bfloat16)),
    seed=st.integers(0, 2**20),
    at_once=st.sampled_from((2**24, 1, 40)),
)
def test_all_rows_at_once_equal_the_definition(
    rows: list[tuple[Edits, int, int]], dtype: torch.dtype, seed: int, at_once: int
) -> None:
    """Bit for bit, whatever the other rows edit and in how many turns they are penalized."""
    table, known = EditTable(LINK, VOCAB), histories(seed, 8)
    slots = [7 - i for i in range(len(rows))]
    has = [
        admit(table, slot, asked, num_prompt)
        for slot, (asked, num_prompt, _) in zip(slots, rows, strict=True)
    ]
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(len(rows), VOCAB, generator=generator) * 8).to(dtype)
    logits[0, 3], logits[-1, 5] = -torch.inf, 0.0
    lengths = [num_prompt + num_outputs for _, num_prompt, num_outputs in rows]
    step = table.of_step(np.array(slots), np.array(lengths), np.array(has))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logit_edits, "MAX_ELEMENTS", at_once)
        edited = apply(table, logits, known, step)
    for row, (asked, num_prompt, _) in enumerate(rows):
        history = known[slots[row], : lengths[row]].tolist()
        expected = edit(logits[row], asked, history[:num_prompt], history[num_prompt:])
        # -0 and 0 draw alike.
        assert_same_bits(edited[row] + 0.0, expected + 0.0)


@pytest.mark.parametrize(
    ("prompt", "outputs", "due"),
    [
        ([5], [8, 1], None),
        ([5], [8, 1, 1], 9),
        ([5], [8, 1, 1, 9], 10),
        ([5], [8, 1, 1, 9, 10], None),
        # A thought that ends by itself, in time and in the last moment.
        ([5], [8, 9, 10, 1, 1, 1], None),
        ([5], [8, 1, 9], 10),
        # A thought in a thought does not begin anew; one behind another does.
        ([5], [8, 8, 1], 9),
        ([5], [8, 1, 1, 9, 10, 8, 1], None),
        ([5], [8, 1, 1, 9, 10, 8, 1, 1], 9),
        # Of the prompt, the last start counts, with what is behind it.
        ([8, 1, 1, 8], [1], None),
        ([8, 1, 1, 8], [1, 1], 9),
        ([8, 1, 1, 1, 1], [], 9),
        ([8, 1, 1, 1, 9], [], 10),
        ([8, 1, 1, 9, 10], [1, 1], None),
        ([5, 8], [], None),
    ],
)
def test_a_thought_ends_where_its_budget_is_spent(
    prompt: list[int], outputs: list[int], due: int | None
) -> None:
    thinking = Thinking(budget=2, start=(8,), end=(9, 10))
    assert due_token(thinking, prompt, outputs) == due
    nothing = Thinking(budget=0, start=(8,), end=(9,))
    assert due_token(nothing, [1], [8]) == 9 and due_token(nothing, [1, 8], []) == 9


def test_a_slot_forgets_the_edits_of_who_was_there() -> None:
    table = EditTable(LINK, VOCAB)
    assert admit(table, 2, Edits(allowed_token_ids=[1], logit_bias={3: 1.0}), 2)
    assert not admit(table, 2, Edits(), 2)
    assert admit(table, 2, Edits(logit_bias={4: 2.0}), 2)
    x = torch.zeros(1, VOCAB)
    edited = apply(table, x, histories(0, 8), StepEdits([0], [2], [3]))
    assert edited[0, 4] == 2.0 and edited.sum() == 2.0


def theirs(name: str, *args: Any, **options: Any) -> Any:
    processors = pytest.importorskip("transformers.generation.logits_process")
    return getattr(processors, name)(*args, **options)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("what", ["repetition", "bias", "bad words", "allowed"])
def test_edits_are_those_of_transformers(what: str, seed: int) -> None:
    """Where both define the same thing, exactly. Their bad words look into the prompt too."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1, VOCAB, generator=generator) * 5
    history = torch.randint(0, 4, (1, 12), generator=generator)
    cases: dict[str, tuple[Edits, Any]] = {
        "repetition": (
            Edits(repetition_penalty=1.37),
            lambda: theirs("RepetitionPenaltyLogitsProcessor", 1.37),
        ),
        "bias": (
            Edits(logit_bias={5: 2.5, 1: -7.25}),
            lambda: theirs("SequenceBiasLogitsProcessor", [[[5], 2.5], [[1], -7.25]]),
        ),
        "bad words": (
            Edits(bad_words=[(7,), (0, 1), (2, 2, 3), (1, 3)]),
            lambda: theirs("NoBadWordsLogitsProcessor", [[7], [0, 1], [2, 2, 3], [1, 3]]),
        ),
        "allowed": (
            Edits(allowed_token_ids=[4, 9]),
            lambda: theirs("PrefixConstrainedLogitsProcessor", lambda *_: [4, 9], 1),
        ),
    }
    given, processor = cases[what]
    table = EditTable(LINK, VOCAB)
    num_prompt = 0 if what == "bad words" else 6
    admit(table, 0, given, num_prompt)
    mine = apply(table, logits, history.int(), StepEdits([0], [0], [12]))
    assert_same_bits(mine, processor()(history, logits.clone()))
