"""EditTable: what each slot changes in its logits; all rows of a step at once.

Owns the edits by slot: numbers on the host, masks of allowed tokens on the device, and those of the
last step as `Ops.edit_logits` takes them: while the same rows are edited, only lengths change.
Nothing is remembered of a sequence's history: it is read from the table of known tokens, which
knows the newest one even where the host does not. So preemption, forks and steps in flight need no
care. `reference.edits` is the definition.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...reference.ops import EditRows, Ops
from ..params import LogitsProcessor, SamplingParams
from ..plan import Admitted
from ..request import IntArray, ThinkingBudget
from .link import Link
from .processors import Failed, ProcessedRow, process
from .thinking import ThinkingRow, end_thoughts

MAX_ELEMENTS = 2**22
"""Of a temporary tensor: thoughts of more rows are looked at in several turns."""
NO_PENALTIES = (1.0, 0.0, 0.0)


class SlotEdits(NamedTuple):
    """One slot's edits, on the host."""

    num_prompt_tokens: int
    penalties: tuple[float, float, float]
    """Repetition, frequency, presence."""
    bias: tuple[tuple[int, float], ...]
    bad_words: tuple[tuple[int, ...], ...]
    thinking: ThinkingBudget | None
    processors: tuple[LogitsProcessor, ...]


NOTHING = SlotEdits(0, NO_PENALTIES, (), (), None, ())
"""Of a row that only must not draw some tokens."""


class Forbidden(NamedTuple):
    """Entries of edited logits that must not be drawn: [n] int64 each, rows ascending."""

    rows: NDArray[np.int64]
    tokens: NDArray[np.int64]


class StepEdits(NamedTuple):
    """What the sampling rows of one step edit, on the host."""

    rows: list[int]
    """[m] those that do,"""
    slots: list[int]
    """[m] their slots,"""
    lengths: list[int]
    """[m] and known tokens."""


class Composed(NamedTuple):
    """What the rows of a step edit, as it stays while they are the same."""

    rows: list[int]
    slots: list[int]
    edits: EditRows
    """With the lengths of the step that it was made for, nothing banned."""
    penalized: list[int]
    """Entries."""


def penalties_of(params: SamplingParams) -> tuple[float, float, float]:
    """Return the repetition, frequency and presence penalty."""
    return params.repetition_penalty, params.frequency_penalty, params.presence_penalty


def has_edits(admitted: Admitted) -> bool:
    """Whether a sequence changes its logits."""
    params = admitted.params
    return bool(
        penalties_of(params) != NO_PENALTIES
        or params.logit_bias
        or params.allowed_token_ids is not None
        or admitted.bad_word_ids
        or admitted.thinking
        or params.logits_processors
    )


class EditTable:
    """Edits by slot."""

    def __init__(self, ops: Ops, link: Link, vocab_size: int) -> None:
        self._ops, self._link, self._vocab_size = ops, link, vocab_size
        self._slots: dict[int, SlotEdits] = {}
        self._denied: dict[int, Tensor] = {}
        """[vocab] bool on the device, by slot: tokens that are not among the allowed ones."""
        self._none_denied = torch.empty((0, vocab_size), dtype=torch.bool, device=link.device)
        self._others: set[int] = set()
        """Slots that edit what `Ops.edit_logits` does not: thoughts, processors."""
        self._composed: Composed | None = None

    def admit(self, admitted: Admitted) -> bool:
        """Take a sequence's edits into its slot; whether it has any."""
        slot, params = admitted.slot, admitted.params
        self._slots.pop(slot, None)
        self._denied.pop(slot, None)
        self._others.discard(slot)
        self._composed = None
        if not has_edits(admitted):
            return False
        if params.allowed_token_ids is not None:
            denied = torch.ones(self._vocab_size, dtype=torch.bool, device=self._link.device)
            denied[self._link.upload(np.array(params.allowed_token_ids, np.int64))] = False
            self._denied[slot] = denied
        if admitted.thinking is not None or params.logits_processors:
            self._others.add(slot)
        self._slots[slot] = SlotEdits(
            admitted.num_prompt_tokens,
            penalties_of(params),
            tuple((params.logit_bias or {}).items()),
            admitted.bad_word_ids,
            admitted.thinking,
            tuple(params.logits_processors or ()),
        )
        return True

    def of_step(self, slots: IntArray, lengths: IntArray, flags: IntArray) -> StepEdits:
        """Collect the edits of sampling rows [n]; flags: nonzero for those that have some."""
        rows = np.flatnonzero(flags)
        return StepEdits(rows.tolist(), slots[rows].tolist(), lengths[rows].tolist())

    def needs_logits(self, step: StepEdits) -> bool:
        """Whether a step edits what `Ops.edit_logits` does not."""
        return not self._others.isdisjoint(step.slots)

    def rows_of(self, known: Tensor, step: StepEdits, forbidden: Forbidden | None) -> EditRows:
        """Return a step's edits as operations take them.

        known: [slots, width], the tokens of each slot. forbidden: of rows of the step.
        """
        composed = self._compose(known, step)
        edits = composed.edits._replace(
            lengths=self._send(step.lengths),
            longest=max([step.lengths[i] for i in composed.penalized], default=0),
        )
        if forbidden is None:
            return edits
        entries = np.searchsorted(np.array(step.rows), forbidden.rows)
        return edits._replace(
            banned=self._link.upload(entries.astype(np.int64)),
            banned_tokens=self._link.upload(forbidden.tokens),
        )

    def end_thoughts(self, x: Tensor, known: Tensor, step: StepEdits) -> None:
        """End thoughts in x [rows, vocab] of a step's rows; see thinking.end_thoughts."""
        rows = [
            ThinkingRow(row, slot, length, edits.num_prompt_tokens, edits.thinking)
            for row, slot, length in zip(*step, strict=True)
            if (edits := self._of(slot)).thinking is not None
        ]
        end_thoughts(x, known, rows, self._send, max_elements=MAX_ELEMENTS)

    def process(
        self, x: Tensor, known: Tensor, step: StepEdits, faulty: Container[int]
    ) -> list[Failed]:
        """Run the processors of a step's rows on edited logits; see processors.process.

        faulty: slots whose processors are not asked any more.
        """
        rows = [
            ProcessedRow(row, slot, length, edits.num_prompt_tokens, edits.processors)
            for row, slot, length in zip(*step, strict=True)
            if (edits := self._of(slot)).processors and slot not in faulty
        ]
        return process(x, known, rows)

    def _of(self, slot: int) -> SlotEdits:
        return self._slots.get(slot, NOTHING)

    def _compose(self, known: Tensor, step: StepEdits) -> Composed:
        """Return what the rows of a step edit, made anew where they are not those of the last."""
        last = self._composed
        if last is not None and (last.rows, last.slots) == (step.rows, step.slots):
            return last
        edits = [self._of(slot) for slot in step.slots]
        masked = [i for i, slot in enumerate(step.slots) if slot in self._denied]
        denied = [self._denied[step.slots[i]] for i in masked]
        penalized = [i for i, one in enumerate(edits) if one.penalties != NO_PENALTIES]
        biases = [(i, *pair) for i, one in enumerate(edits) for pair in one.bias]
        biased, bias_tokens, values = zip(*biases, strict=True) if biases else ((), (), ())
        worded = [i for i, one in enumerate(edits) for _ in one.bad_words]
        rows = EditRows(
            known=known,
            rows=self._send(step.rows),
            slots=self._send(step.slots),
            lengths=self._send(step.lengths),
            prompts=self._send([one.num_prompt_tokens for one in edits]),
            masked=self._send(masked),
            denied=torch.stack(denied) if denied else self._none_denied,
            penalties=self._send_floats([v for one in edits for v in one.penalties]).view(-1, 3),
            penalized=self._send(penalized),
            biased=self._send(biased),
            bias_tokens=self._send(bias_tokens),
            biases=self._send_floats(values),
            worded=self._send(worded),
            words=self._send_words([word for one in edits for word in one.bad_words]),
            banned=self._send(()),
            banned_tokens=self._send(()),
            longest=0,
        )
        self._composed = Composed(step.rows, step.slots, rows, penalized)
        return self._composed

    def _send(self, numbers: Sequence[int]) -> Tensor:
        return self._link.upload(np.array(numbers, np.int64))

    def _send_floats(self, numbers: Sequence[float]) -> Tensor:
        return self._link.upload(np.array(numbers, np.float32).view(np.int32)).view(torch.float32)

    def _send_words(self, words: Sequence[tuple[int, ...]]) -> Tensor:
        """Send words below each other, right-aligned, -1 before the shorter ones: [words, most]."""
        most = max(map(len, words), default=1)
        table = np.full((len(words), most), -1, np.int32)
        for line, word in zip(table, words, strict=True):
            line[most - len(word) :] = word
        return self._link.upload(table.ravel()).view(-1, most)
