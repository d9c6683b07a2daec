"""What requests change in their logits, histories, and the comparison with the definition."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from ..engine.device.link import Link
from ..engine.device.logit_edits import EditTable, Forbidden, StepEdits
from ..engine.params import SamplingParams
from ..engine.plan import Admitted
from ..engine.request import ThinkingBudget
from ..reference.edits import Edits, Thinking, edit
from ..reference.ops import Ops, SamplingRows
from .kernel_cases import assert_same_bits, make_sampling_rows

VOCAB = 40
WIDTH = 24
NUM_SLOTS = 8

tokens = st.integers(0, VOCAB - 1)


@st.composite
def edits(draw: st.DrawFn) -> Edits:
    """What one request asks."""
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
    """Budgets with short markers."""
    marker = st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple)
    start, end = draw(st.lists(marker, min_size=2, max_size=2, unique=True))
    return Thinking(budget=draw(st.integers(0, 6)), start=start, end=end)


def admit(table: EditTable, slot: int, given: Edits, num_prompt: int) -> bool:
    """Take edits into a slot; whether there are any."""
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


def make_histories(seed: int, num_slots: int) -> Tensor:
    """Make [slots, WIDTH]: few tokens, so that words come; rubbish behind each history."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.randint(0, 4, (num_slots, WIDTH), dtype=torch.int32, generator=generator)
    known[:, WIDTH - 4 :] = 2**31 - 1
    return known


class EditCase(NamedTuple):
    """Rows of a step, some of which are edited, and how they go on."""

    rows: list[tuple[Edits, int, int] | None]
    """Edits, prompt and outputs; None: nothing."""
    forbidden: list[tuple[int, int]]
    """(row, modulo their number; token)."""
    dtype: torch.dtype
    seed: int
    num_steps: int
    """Outputs grow by one with each but the first."""
    padding: int
    """Columns of the logits behind the vocabulary."""

    def make_logits(self) -> Tensor:
        """Make [rows, VOCAB], rows far apart if there is padding."""
        generator = torch.Generator().manual_seed(self.seed)
        shape = len(self.rows), VOCAB + self.padding
        logits = (torch.randn(shape, generator=generator) * 8).to(self.dtype)
        logits[0, 3], logits[-1, 5] = -torch.inf, 0.0
        return logits[:, :VOCAB]

    def make_forbidden(self) -> Forbidden | None:
        """Make what no row may draw whatever it asks."""
        pairs = sorted({(row % len(self.rows), token) for row, token in self.forbidden})
        rows, tokens = np.array(pairs, np.int64).reshape(-1, 2).T.copy()
        return Forbidden(rows, tokens) if pairs else None


edit_cases = st.builds(
    EditCase,
    rows=st.lists(
        st.one_of(st.tuples(edits(), st.integers(1, 8), st.integers(0, 10)), st.none()),
        min_size=1,
        max_size=6,
    ),
    forbidden=st.lists(st.tuples(st.integers(0, 5), tokens), max_size=3),
    dtype=st.sampled_from((torch.float32, torch.bfloat16)),
    seed=st.integers(0, 2**20),
    num_steps=st.integers(1, 3),
    padding=st.sampled_from((0, 7)),
)


class Editor(NamedTuple):
    """What edits logits."""

    ops: Ops
    link: Link
    table: EditTable

    def apply(
        self, logits: Tensor, known: Tensor, step: StepEdits, forbidden: Forbidden | None = None
    ) -> Tensor:
        """Edit on the link's device, and return that on the host: [rows, vocab] float32.

        Asserts that logits stay as they are, and that sampling from edits is as from what they
        give.
        """
        there, lines = logits.to(self.link.device), known.to(self.link.device)
        rows = make_sampling_rows(len(logits), temperature=4.0)
        rows = SamplingRows(*(field.to(self.link.device) for field in rows))
        self.link.settle()
        with self.link.on_stream():
            edits = self.table.rows_of(lines, step, forbidden)
            x = self.ops.edit_logits(there, edits)
            assert_same_bits(self.ops.sample(there, rows, edits), self.ops.sample(x, rows))
            if forbidden is None:
                self.table.end_thoughts(x, lines, step)
            edited = x.cpu()
        assert_same_bits(there.cpu(), logits)
        return edited


def check_edits(ops: Ops, link: Link, case: EditCase, *, is_exact: bool) -> None:
    """Compare all rows at once with the definition: bit for bit, whatever the others edit.

    is_exact: signs of zeros, which draw alike, are compared too.
    """
    table, known = EditTable(ops, link, VOCAB), make_histories(case.seed, NUM_SLOTS)
    slots = np.arange(NUM_SLOTS, dtype=np.int32)[::-1][: len(case.rows)]
    has = np.array(
        [
            asked is not None and admit(table, int(slot), *asked[:2])
            for slot, asked in zip(slots, case.rows, strict=True)
        ],
        np.int32,
    )
    forbidden = case.make_forbidden()
    if forbidden is not None:
        has[forbidden.rows] = 1
    logits, zero = case.make_logits(), -0.0 if is_exact else 0.0
    for late in range(case.num_steps):
        lengths = [late + asked[1] + asked[2] if asked else 1 for asked in case.rows]
        step = table.of_step(slots, np.array(lengths, np.int32), has)
        edited = Editor(ops, link, table).apply(logits, known, step, forbidden)
        for row, asked in enumerate(case.rows):
            expected = logits[row].float()
            if asked is not None:
                history = known[slots[row], : lengths[row]].tolist()
                without = replace(asked[0], thinking=None) if forbidden else asked[0]
                expected = edit(logits[row], without, history[: asked[1]], history[asked[1] :])
            if forbidden is not None:
                expected[forbidden.tokens[forbidden.rows == row]] = -torch.inf
            assert_same_bits(edited[row] + zero, expected + zero)
