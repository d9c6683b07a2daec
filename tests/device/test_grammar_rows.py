"""Masks of a step's rows, against the definition: each row's alone, and its own fault alone."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quire.engine.device.grammar_rows import GrammarRows, MaskedRows, Masks
from quire.engine.device.link import make_link
from quire.engine.device.sampling_rows import SamplingTable
from quire.engine.errors import ParamsError
from quire.engine.grammar.follower import ALL, Follower
from quire.engine.opset import choose_ops
from quire.engine.params import SamplingParams
from quire.engine.plan import Admitted
from quire.engine.request import GrammarUse
from quire.fuzz.checkpoints import VOCAB_SIZE
from quire.fuzz.grammar_cases import (
    EOS_TOKEN_IDS,
    FORMS,
    make_vocabulary,
    next_token_ids,
    source_of,
    tiny_grammars,
)
from quire.fuzz.kernel_cases import assert_same_bits
from quire.reference.edits import Edits, edit
from torch import Tensor

LINK = make_link(torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu"))
"""A GPU where there is one: the same bits."""
SOURCES = [source_of(form) for form in FORMS]
CHOICE = SOURCES[3]
TOKENS = make_vocabulary().tokens
YES, SPACE, NO = (TOKENS.index(text) for text in (b"yes", b" ", b"no"))
PROMPT = [9, 8, 7]
NUM_SLOTS = 8
WAIT_S = 20


class Broken(Exception):
    """The fault that is planted."""


class Step:
    """A Landing whose tokens come when they are let go."""

    def __init__(self, tokens: Sequence[int], *, held: bool = False, dies: bool = False) -> None:
        self._tokens = np.array(tokens, np.int32)
        self._dies = dies
        self.landed, self.asked = threading.Event(), threading.Event()
        if not held:
            self.landed.set()

    is_ready = True

    def result(self) -> Any:
        raise AssertionError("the engine's to take")

    def tokens(self) -> Any:
        self.asked.set()
        assert self.landed.wait(WAIT_S)
        if self._dies:
            raise Broken("the device died")
        return self._tokens


def make_rows() -> GrammarRows:
    rows = GrammarRows(LINK, VOCAB_SIZE)
    rows.compiled = tiny_grammars()
    return rows


def make_admitted(
    slot: int,
    source: str | None,
    outputs: Sequence[int] = (),
    *,
    stops: Sequence[int] = EOS_TOKEN_IDS,
    read: Sequence[int] = (),
    min_tokens: int = 0,
) -> Admitted:
    """A sequence that has outputs already. read: what its grammar has of the prompt."""
    prompt = [*PROMPT, *read]
    params = SamplingParams(min_tokens=min_tokens, max_tokens=None)
    use = None if source is None else GrammarUse(source, len(read))
    known = np.array([*prompt, *outputs], np.int32)
    return Admitted(slot, known, len(prompt), params, 0, tuple(stops), grammar=use)


def masks_of(
    rows: GrammarRows, slots: Sequence[int], *, early: Sequence[bool] | None = None
) -> Masks:
    """Masks of a step in which each of the slots samples, in this order."""
    early = [False] * len(slots) if early is None else list(early)
    return rows.begin(MaskedRows(list(range(len(slots))), list(slots), early)).result(WAIT_S)


def allowed_in(masks: Masks, index: int) -> list[int]:
    bits = np.unpackbits(masks.words[index].view(np.uint8), bitorder="little")
    return [int(token) for token in bits[:VOCAB_SIZE].nonzero()[0]]


def apply(rows: GrammarRows, logits: Tensor, masks: Masks, *, keep: bool) -> Tensor:
    """Mask on the link's device; where logits are to be kept, that is asserted."""
    there = logits.to(LINK.device, copy=True)
    LINK.settle()
    with LINK.on_stream():
        masked = rows.apply(there, masks, keep=keep).cpu()
    LINK.settle()
    if keep:
        assert_same_bits(there.cpu(), logits)
    return masked


class Row(NamedTuple):
    """One row of a step."""

    source: str | None
    outputs: list[int]
    num_known: int
    """Of the outputs, when it is admitted; the others are drawn, one a step."""
    num_read: int
    """Of those, how many belong to the prompt of a fork."""
    stops: list[int]
    is_early: bool


@st.composite
def rows_of_a_step(draw: st.DrawFn) -> Row:
    source = draw(st.sampled_from((None, *SOURCES)))
    rng, outputs = random.Random(draw(st.integers(0, 999))), list[int]()
    for _ in range(draw(st.integers(0, 8)) if source is not None else 0):
        assert source is not None
        outputs.append(rng.choice(next_token_ids(source, outputs)))
    num_known = draw(st.integers(0, len(outputs)))
    num_read = draw(st.integers(0, num_known))
    stops = draw(st.lists(st.integers(0, VOCAB_SIZE + 40), max_size=6))
    return Row(source, outputs, num_known, num_read, [*stops, *EOS_TOKEN_IDS], draw(st.booleans()))


def expected(row: Row, logits: Tensor) -> Tensor:
    """What the definition leaves of a row, float32."""
    if row.source is None:
        return logits.float()
    allowed = next_token_ids(row.source, row.outputs)
    kept = [token for token in allowed if not row.is_early or token not in row.stops] or allowed
    return edit(logits, Edits(next_token_ids=lambda _: kept), PROMPT, row.outputs)


@settings(max_examples=120, deadline=None)
@given(
    step=st.lists(rows_of_a_step(), min_size=1, max_size=NUM_SLOTS),
    slots=st.permutations(range(NUM_SLOTS)),
    dtype=st.sampled_from((torch.float32, torch.bfloat16)),
    keep=st.booleans(),
    seed=st.integers(0, 2**20),
)
def test_all_rows_at_once_equal_the_definition(
    step: list[Row], slots: list[int], dtype: torch.dtype, keep: bool, seed: int
) -> None:
    """Bit for bit: rows without a grammar, rows that may not stop yet, forks, and rows whose last
    tokens were drawn in steps that nobody waited for."""
    rows = make_rows()
    for slot, row in zip(slots, step, strict=False):
        known = row.outputs[row.num_read : row.num_known]
        read = row.outputs[: row.num_read]
        admitted = make_admitted(slot, row.source, known, read=read, stops=row.stops)
        assert rows.admit(admitted) == (row.source is not None)
    for place in range(max(len(row.outputs) for row in step)):
        drawing = [i for i, row in enumerate(step) if row.num_known <= place < len(row.outputs)]
        drawn = [step[i].outputs[place] for i in drawing]
        # Behind a row that has no grammar, whose token nobody reads.
        masked = MaskedRows(
            list(range(1, len(drawing) + 1)), [slots[i] for i in drawing], [False] * len(drawing)
        )
        rows.launched(masked, Step([3, *drawn]))
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(len(step), VOCAB_SIZE, generator=generator) * 4).to(dtype)
    with_grammar = [i for i, row in enumerate(step) if row.source is not None]
    if not with_grammar:
        return
    early = [step[i].is_early for i in with_grammar]
    masks = rows.begin(MaskedRows(with_grammar, [slots[i] for i in with_grammar], early))
    masked_logits = apply(rows, logits, masks.result(WAIT_S), keep=keep)
    assert masked_logits.dtype == dtype and masks.result().faults == {}
    for index, row in enumerate(step):
        assert_same_bits(masked_logits[index].float(), expected(row, logits[index]))


def test_a_mask_waits_for_the_step_that_draws_its_last_token() -> None:
    """And only it: the caller goes on, and computes the next step's layers."""
    rows, step = make_rows(), Step([NO, YES], held=True)
    rows.admit(make_admitted(4, CHOICE))
    rows.launched(MaskedRows([1], [4], [False]), step)
    pending = rows.begin(MaskedRows([0], [4], [False]))
    assert step.asked.wait(WAIT_S) and not pending.done()
    step.landed.set()
    assert allowed_in(pending.result(WAIT_S), 0) == next_token_ids(CHOICE, [YES])


def test_tokens_of_several_steps_are_read_in_their_order() -> None:
    rows = make_rows()
    rows.admit(make_admitted(0, CHOICE))
    for token in (YES, SPACE, NO):
        rows.launched(MaskedRows([0], [0], [False]), Step([token]))
    assert allowed_in(masks_of(rows, [0]), 0) == list(EOS_TOKEN_IDS)
    assert allowed_in(masks_of(rows, [0]), 0) == list(EOS_TOKEN_IDS), "each is read once"


def test_stops_are_withheld_while_anything_else_may_come() -> None:
    """Stop tokens that the vocabulary has not are none; what the grammar forbids stays so."""
    rows = make_rows()
    rows.admit(make_admitted(0, CHOICE, [YES], stops=[0, SPACE, VOCAB_SIZE + 3]))
    rows.admit(make_admitted(1, CHOICE, [YES], stops=[*EOS_TOKEN_IDS, VOCAB_SIZE - 1]))
    rows.admit(make_admitted(2, CHOICE, [NO], stops=EOS_TOKEN_IDS))
    slots = [0, 1, 2]
    late = masks_of(rows, slots)
    assert [allowed_in(late, i) for i in slots] == [[0, 1, SPACE], [0, 1, SPACE], [0, 1]]
    early = masks_of(rows, slots, early=[True] * 3)
    assert [allowed_in(early, i) for i in slots] == [[1], [SPACE], [0, 1]]


@pytest.mark.parametrize("held", [False, True])
def test_a_slot_forgets_the_grammar_of_who_was_there(held: bool) -> None:
    """And its tokens that are still on their way: nobody waits for them."""
    rows, gone = make_rows(), Step([NO], held=held)
    rows.admit(make_admitted(2, SOURCES[1], [TOKENS.index(b'{"')]))
    rows.launched(MaskedRows([0], [2], [False]), gone)
    assert rows.admit(make_admitted(2, CHOICE))
    assert allowed_in(masks_of(rows, [2]), 0) == next_token_ids(CHOICE, [])
    assert not gone.asked.is_set()
    assert not rows.admit(make_admitted(2, None))
    assert rows.admit(make_admitted(2, CHOICE, [NO]))
    assert allowed_in(masks_of(rows, [2]), 0) == list(EOS_TOKEN_IDS)


def test_a_grammar_that_does_not_compile_leaves_nothing_in_its_slot() -> None:
    rows = make_rows()
    rows.admit(make_admitted(2, CHOICE))
    with pytest.raises(ParamsError, match="unknown name"):
        rows.admit(make_admitted(2, "start: x"))
    assert not rows._slots


def breaks(patch: pytest.MonkeyPatch, name: str, victim: str) -> None:
    """Let a method of Follower raise for one grammar."""
    method = getattr(Follower, name)
    compiled = tiny_grammars().resume(victim)

    def call(self: Follower, *arguments: Any) -> Any:
        if self._compiled is compiled:
            raise Broken("planted")
        return method(self, *arguments)

    patch.setattr(Follower, name, call)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("fault", ["fill", "read", "device", "token"])
def test_a_fault_is_its_rows_alone(
    fault: str, keep: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The victim's row stays as it is, for whatever it draws is void; the others do not notice."""
    rows = make_rows()
    for slot, source in enumerate((SOURCES[0], CHOICE, SOURCES[1])):
        rows.admit(make_admitted(slot, source))
    if fault in ("fill", "read"):
        breaks(monkeypatch, fault, CHOICE)
    drawn = next_token_ids(SOURCES[0], [])[0]
    step = MaskedRows([0, 1, 2], [0, 1, 2], [True] * 3)
    rows.launched(MaskedRows([0], [0], [False]), Step([drawn]))
    victims = Step([5 if fault == "token" else YES], dies=fault == "device")
    rows.launched(MaskedRows([0], [1], [False]), victims)
    with caplog.at_level(logging.CRITICAL, "quire"):
        masks = rows.begin(step).result(WAIT_S)
    assert list(masks.faults) == [1]
    words = {
        "fill": "Its grammar failed: Broken: planted",
        "read": "Its grammar failed: Broken: planted",
        "device": "Its grammar failed: Broken: the device died",
        "token": "Its grammar cannot be followed",
    }
    assert masks.faults[1].startswith(words[fault])
    assert (masks.words[1] == ALL).all()
    logits = torch.randn(3, VOCAB_SIZE)
    masked = apply(rows, logits, masks, keep=keep)
    assert_same_bits(masked[1], logits[1])
    for index, source, outputs in ((0, SOURCES[0], [drawn]), (2, SOURCES[1], [])):
        row = Row(source, outputs, 0, 0, list(EOS_TOKEN_IDS), True)
        assert_same_bits(masked[index], expected(row, logits[index]))


def test_a_table_asks_for_masks_of_the_rows_that_have_a_grammar() -> None:
    """A mask says itself what may not stop yet; of the other rows, the table does."""
    table = SamplingTable(choose_ops("cpu", "reference"), LINK, NUM_SLOTS, VOCAB_SIZE)
    table.grammars.compiled = tiny_grammars()
    for slot, source, least in ((5, CHOICE, 2), (1, None, 2), (3, CHOICE, 0), (2, None, 0)):
        table.admit(make_admitted(slot, source, min_tokens=least))

    def extras(slots: list[int]) -> Any:
        parameters, seeds = np.zeros((5, len(slots)), np.int32), np.zeros(len(slots), np.int64)
        positions = np.full(len(slots), len(PROMPT) + 1, np.int32)
        return table.fill(np.array(slots, np.int32), positions, parameters, seeds)

    all_rows = extras([1, 5, 2, 3])
    assert all_rows.masked == MaskedRows([1, 3], [5, 3], [True, False])
    assert all_rows.forbidden.rows.tolist() == [0, 0]
    assert all_rows.forbidden.tokens.tolist() == list(EOS_TOKEN_IDS)
    assert extras([5, 3]).forbidden is None
    assert extras([1, 2]).masked is None
    table.admit(make_admitted(5, None, min_tokens=2))
    assert extras([5]).masked is None and extras([5]).forbidden is not None


@pytest.mark.parametrize(
    ("guesses", "drawn", "read"),
    [
        # Each guess may come; all of them, the first, or none is drawn.
        ([YES, SPACE], [YES, SPACE, NO], [YES, SPACE, NO]),
        ([YES, SPACE], [YES, 0, NO], [YES, 0]),
        ([YES, SPACE], [NO, SPACE, NO], [NO]),
        # The second cannot come: its row is not masked, and what it draws does not count.
        ([YES, YES], [YES, SPACE, NO], [YES, SPACE]),
    ],
)
def test_rows_behind_guesses_have_the_masks_of_what_they_guess(
    guesses: list[int], drawn: list[int], read: list[int]
) -> None:
    """And the next step's mask is that of what was drawn, whatever was guessed."""
    rows = make_rows()
    rows.admit(make_admitted(3, CHOICE))
    step = MaskedRows([0, 1, 2], [3, 3, 3], [False] * 3, [-1, *guesses])
    masks = rows.begin(step).result(WAIT_S)
    assert not masks.void and not masks.faults
    for index in range(3):
        said = guesses[:index]
        allowed = allowed_in(masks, index)
        if all(said[i] in next_token_ids(CHOICE, said[:i]) for i in range(index)):
            assert allowed == next_token_ids(CHOICE, said)
        else:
            assert allowed == list(range(VOCAB_SIZE))
    rows.launched(step, Step(drawn))
    assert allowed_in(masks_of(rows, [3]), 0) == next_token_ids(CHOICE, read)


def test_a_grammar_that_fails_behind_a_guess_only_voids_that_row(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The sequence goes on without it, and what is drawn there is not read."""
    rows = make_rows()
    rows.admit(make_admitted(3, CHOICE))
    step = MaskedRows([0, 1, 2], [3, 3, 3], [False] * 3, [-1, YES, SPACE])
    with monkeypatch.context() as patch, caplog.at_level(logging.CRITICAL, "quire"):
        patch.setattr(Follower, "copy", lambda self: 1 // 0)
        masks = rows.begin(step).result(WAIT_S)
    assert masks.void == [1, 2] and not masks.faults
    assert allowed_in(masks, 0) == next_token_ids(CHOICE, [])
    rows.launched(step, Step([YES, SPACE, NO]), masks.void)
    assert allowed_in(masks_of(rows, [3]), 0) == next_token_ids(CHOICE, [YES])
