"""EditTable: what each slot changes in its logits; all rows of a step at once.

Owns the edits by slot: numbers on the host, masks of allowed tokens on the device. Nothing is
remembered of a sequence's history: it is read from the table of known tokens, which knows the
newest one even where the host does not. So preemption, forks and steps in flight need no care.
`reference.edits` is the definition.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..params import LogitsProcessor, SamplingParams
from ..plan import Admitted
from ..request import IntArray, ThinkingBudget
from .link import Link
from .processors import Failed, ProcessedRow, process
from .thinking import ThinkingRow, end_thoughts

MAX_ELEMENTS = 2**22
"""Of a temporary tensor: more rows are penalized in several turns."""
NO_TOKEN = 2**31 - 1
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


class StepEdits(NamedTuple):
    """What the sampling rows of one step edit, on the host."""

    rows: list[int]
    """[m] those that do,"""
    slots: list[int]
    """[m] their slots,"""
    lengths: list[int]
    """[m] and known tokens."""


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

    def __init__(self, link: Link, vocab_size: int) -> None:
        self._link, self._vocab_size = link, vocab_size
        self._slots: dict[int, SlotEdits] = {}
        self._denied: dict[int, Tensor] = {}
        """[vocab] bool on the device, by slot: tokens that are not among the allowed ones."""
        self._space: Tensor | None = None
        """[rows, vocab] float32, used again: the pages of a new one cost more than filling it."""

    def admit(self, admitted: Admitted) -> bool:
        """Take a sequence's edits into its slot; whether it has any."""
        slot, params = admitted.slot, admitted.params
        self._slots.pop(slot, None)
        self._denied.pop(slot, None)
        if not has_edits(admitted):
            return False
        if params.allowed_token_ids is not None:
            denied = torch.ones(self._vocab_size, dtype=torch.bool, device=self._link.device)
            denied[self._link.upload(np.array(params.allowed_token_ids, np.int64))] = False
            self._denied[slot] = denied
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

    def apply(self, logits: Tensor, known: Tensor, step: StepEdits, *, keep: bool = True) -> Tensor:
        """Return logits [rows, vocab] as float32 with a step's edits, until the next call.

        known: [slots, width], the tokens of each slot. keep: logits stay as they are.
        """
        x = self._widen(logits) if keep or logits.dtype != torch.float32 else logits
        edits = [self._slots[slot] for slot in step.slots]
        denied = [i for i, slot in enumerate(step.slots) if slot in self._denied]
        if denied:
            masks = torch.stack([self._denied[step.slots[i]] for i in denied])
            rows = self._send([step.rows[i] for i in denied])
            x[rows] = x[rows].masked_fill(masks, -torch.inf)
        if any(one.bad_words for one in edits):
            self._ban_words(x, known, step, edits)
        biases = [
            (row, *pair) for row, one in zip(step.rows, edits, strict=True) for pair in one.bias
        ]
        if biases:
            biased, tokens, values = zip(*biases, strict=True)
            x[self._send(biased), self._send(tokens)] += self._send_floats(values)
        penalized = [i for i, one in enumerate(edits) if one.penalties != NO_PENALTIES]
        longest = max((step.lengths[i] for i in penalized), default=1)
        at_once = max(1, MAX_ELEMENTS // longest)
        for first in range(0, len(penalized), at_once):
            self._penalize(x, known, step, edits, penalized[first : first + at_once])
        thinking = [
            ThinkingRow(row, slot, length, one.num_prompt_tokens, one.thinking)
            for row, slot, length, one in zip(*step, edits, strict=True)
            if one.thinking is not None
        ]
        if thinking:
            end_thoughts(x, known, thinking, self._send, max_elements=MAX_ELEMENTS)
        return x

    def process(
        self, x: Tensor, known: Tensor, step: StepEdits, faulty: Container[int]
    ) -> list[Failed]:
        """Run the processors of a step's rows on edited logits; see processors.process.

        faulty: slots whose processors are not asked any more.
        """
        rows = [
            ProcessedRow(row, slot, length, edits.num_prompt_tokens, edits.processors)
            for row, slot, length in zip(*step, strict=True)
            if (edits := self._slots[slot]).processors and slot not in faulty
        ]
        return process(x, known, rows)

    def _widen(self, logits: Tensor) -> Tensor:
        if self._space is None or len(self._space) < len(logits):
            self._space = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
        return self._space[: len(logits)].copy_(logits)

    def _ban_words(self, x: Tensor, known: Tensor, step: StepEdits, edits: list[SlotEdits]) -> None:
        """Ban the last token of each word whose other tokens the outputs end with.

        Words of one number of tokens are compared at once, at most as many as outputs are there.
        """
        by_size: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
        for i, one in enumerate(edits):
            num_outputs = step.lengths[i] - one.num_prompt_tokens
            for word in one.bad_words:
                if len(word) <= num_outputs + 1:
                    by_size.setdefault(len(word), []).append((i, word))
        for size, words in by_size.items():
            tokens = self._send([token for _, word in words for token in word]).view(-1, size)
            rows, slots, ends = (
                self._send([numbers[i] for i, _ in words])
                for numbers in (step.rows, step.slots, step.lengths)
            )
            before = torch.arange(1 - size, 0, device=x.device)
            tails = known[slots[:, None], ends[:, None] + before]
            comes = (tails == tokens[:, :-1]).all(1)
            bans = torch.where(comes, -torch.inf, torch.inf)
            index = rows * x.shape[1] + tokens[:, -1]
            x.view(-1).scatter_reduce_(0, index, bans, "amin")

    def _penalize(
        self,
        x: Tensor,
        known: Tensor,
        step: StepEdits,
        edits: list[SlotEdits],
        penalized: list[int],
    ) -> None:
        """Penalize some of the rows of x [rows, vocab] by what their histories have.

        Only the tokens of a history are touched. One that comes again is written again, the same.
        """
        rows, slots, lengths = (
            self._send([numbers[i] for i in penalized])[:, None]
            for numbers in (step.rows, step.slots, step.lengths)
        )
        prompts = self._send([edits[i].num_prompt_tokens for i in penalized])[:, None]
        values = self._send_floats([v for i in penalized for v in edits[i].penalties])
        repetition, frequency, presence = values.view(-1, 3, 1).unbind(1)
        history = known[slots[:, 0], : max(step.lengths[i] for i in penalized)]
        position = torch.arange(history.shape[1], device=x.device)
        # There is a prompt, so its first token stands for the places behind a history's end.
        tokens = torch.where(position < lengths, history, history[:, :1])
        drawn = history.masked_fill((position < prompts) | (position >= lengths), NO_TOKEN)
        drawn = drawn.sort(1).values
        counts = torch.searchsorted(drawn, tokens, right=True) - torch.searchsorted(drawn, tokens)
        tokens = tokens.long()
        old = x[rows, tokens]
        new = torch.where(old > 0, old / repetition, old * repetition)
        new = new - frequency * counts
        x[rows, tokens] = new - presence * (counts > 0)

    def _send(self, numbers: Sequence[int]) -> Tensor:
        return self._link.upload(np.array(numbers, np.int64))

    def _send_floats(self, numbers: list[float] | tuple[float, ...]) -> Tensor:
        return self._link.upload(np.array(numbers, np.float32).view(np.int32)).view(torch.float32)
