"""Edits of a step's logits, all rows at once, against their definition and other people's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quire.engine.device import logit_edits
from quire.engine.device.link import make_link
from quire.engine.device.logit_edits import EditTable, StepEdits
from quire.engine.opset import choose_ops
from quire.fuzz.edit_cases import (
    VOCAB,
    EditCase,
    Editor,
    admit,
    check_edits,
    edit_cases,
    make_histories,
)
from quire.fuzz.kernel_cases import assert_same_bits
from quire.reference.edits import Edits, Thinking, due_token
from quire.reference.ops import Ops

LINK = make_link(torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"))
"""A GPU where there is one: the same bits."""

OPS = choose_ops(LINK.device.type, "auto")
TWINS = [OPS, choose_ops("cpu", "reference")] if LINK.device.type == "cpu" else [OPS]


@pytest.mark.parametrize("ops", TWINS, ids=lambda ops: ops.__name__)
@settings(max_examples=200, deadline=None)
@given(case=edit_cases, at_once=st.sampled_from((2**24, 1, 40)))
def test_all_rows_at_once_equal_the_definition(ops: Ops, case: EditCase, at_once: int) -> None:
    """Also as the history grows, and in how many turns soever thoughts are looked at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logit_edits, "MAX_ELEMENTS", at_once)
        check_edits(ops, LINK, case, is_exact=LINK.device.type == "cpu")


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
    table = EditTable(OPS, LINK, VOCAB)
    editor = Editor(OPS, LINK, table)
    assert admit(table, 2, Edits(allowed_token_ids=[1], logit_bias={3: 1.0}), 2)
    assert not admit(table, 2, Edits(), 2)
    assert admit(table, 2, Edits(logit_bias={4: 2.0}), 2)
    x = torch.zeros(1, VOCAB)
    edited = editor.apply(x, make_histories(0, 8), StepEdits([0], [2], [3]))
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
    table = EditTable(OPS, LINK, VOCAB)
    editor = Editor(OPS, LINK, table)
    num_prompt = 0 if what == "bad words" else 6
    admit(table, 0, given, num_prompt)
    mine = editor.apply(logits, history.int(), StepEdits([0], [0], [12]))
    assert_same_bits(mine, processor()(history, logits.clone()))
