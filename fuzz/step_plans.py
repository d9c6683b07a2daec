"""A scheduler without a policy: valid StepPlans by chance, to drive a ModelRunner alone.

Sequences enter random slots, take random blocks, compute random chunks in random order, move to
copies of their blocks, and are preempted and begun again. What comes out must not depend on it:
`reference.generate` says what each sequence answers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..engine.params import LogitsProcessor, SamplingParams, takes_prompt
from ..engine.plan import Admitted, Scored, StepPlan, StepResult
from ..engine.request import LogprobRows, ThinkingBudget
from ..reference.edits import Edits, Thinking
from ..reference.generate import Generated, Wish
from ..reference.ops import Logprobs
from .grammar_cases import next_of


def count_of(given: int | None, vocab_size: int) -> int | None:
    """Return how many log probabilities a parameter asks for; None: none at all."""
    return vocab_size if given is not None and given < 0 else given


def edits_of(
    params: SamplingParams,
    bad_words: Sequence[Sequence[int]] = (),
    thinking: ThinkingBudget | None = None,
    read: Sequence[int] = (),
    prompt: Sequence[int] = (),
) -> Edits:
    """Say in the oracle's words what a request changes in its logits.

    read: what its grammar has read before its outputs; prompt: for the thought before a form.
    """
    thought = None
    if thinking is not None and params.structured_outputs is None:
        thought = Thinking(budget=thinking.budget, start=thinking.start, end=thinking.end)
    return Edits(
        repetition_penalty=params.repetition_penalty,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        logit_bias=params.logit_bias or {},
        allowed_token_ids=params.allowed_token_ids,
        bad_words=bad_words,
        next_token_ids=next_of(params, read, thinking, prompt),
        thinking=thought,
        processors=tuple(map(_with_prompt, params.logits_processors or ())),
    )


def _with_prompt(processor: LogitsProcessor) -> LogitsProcessor:
    """Let a processor take the prompt, whether it asks for it or not."""
    if takes_prompt(processor):
        return processor
    return lambda prompt, outputs, logits: processor(outputs, logits)


class Asked(NamedTuple):
    """One request."""

    prompt: tuple[int, ...]
    params: SamplingParams
    seed: int
    """64 bits, unsigned."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """params.bad_words in tokens."""
    thinking: ThinkingBudget | None = None
    num_read: int = 0
    """Of the prompt's last tokens, by the grammar."""

    @property
    def wish(self) -> Wish:
        """The same in the oracle's words."""
        params = self.params
        assert params.max_tokens is not None, params
        return Wish(
            max_tokens=params.max_tokens,
            temperature=params.temperature,
            top_k=max(params.top_k, 0),
            top_p=params.top_p,
            min_p=params.min_p,
            seed=self.seed,
            min_tokens=params.min_tokens,
            stop_token_ids=tuple(params.stop_token_ids or ()),
            num_logprobs=params.logprobs or 0,
            num_prompt_logprobs=params.prompt_logprobs,
            edits=edits_of(
                params,
                self.bad_words,
                self.thinking,
                self.prompt[len(self.prompt) - self.num_read :],
            ),
        )


class LogprobRow(NamedTuple):
    """Log probabilities of one token, in Python numbers that compare bit for bit."""

    sampled: float
    rank: int
    top_ids: tuple[int, ...]
    top: tuple[float, ...]


class Answer(NamedTuple):
    """What one request got."""

    token_ids: tuple[int, ...]
    logprobs: tuple[LogprobRow, ...]
    """Empty where the request asked for none."""
    prompt: tuple[LogprobRow, ...] = ()
    """Of its prompt but the first token; as well."""


def answer_of(asked: Asked, generated: Generated) -> Answer:
    """Bring the oracle's answer into the form that compares."""
    rows = tuple(row_of(row, 0) for row in generated.logprobs)
    told = generated.prompt
    return Answer(
        tuple(generated.token_ids),
        rows if asked.params.logprobs is not None else (),
        () if told is None else tuple(row_of(told, row) for row in range(len(told.ranks))),
    )


def row_of(rows: Logprobs | LogprobRows, row: int, num_top: int | None = None) -> LogprobRow:
    """Read one row off tensors or arrays; num_top: of the most likely tokens, None for all."""
    return LogprobRow(
        float(rows.sampled[row]),
        int(rows.ranks[row]),
        tuple(rows.top_ids[row, :num_top].tolist()),
        tuple(rows.top[row, :num_top].tolist()),
    )


@dataclass(slots=True, eq=False)
class _Sequence:
    asked: Asked
    slot: int = -1
    computed: int = 0
    outputs: list[int] = field(default_factory=list)
    rows: list[LogprobRow] = field(default_factory=list)
    told: list[LogprobRow] = field(default_factory=list)
    """Of the prompt."""
    blocks: list[int] = field(default_factory=list)
    done: bool = False

    @property
    def known(self) -> list[int]:
        return [*self.asked.prompt, *self.outputs]


@dataclass(slots=True, eq=False)
class _Diff:
    """A StepPlan under construction."""

    admitted: list[Admitted] = field(default_factory=list)
    released: list[int] = field(default_factory=list)
    blocks: list[tuple[int, int, int]] = field(default_factory=list)
    """(slot, index, block)"""
    copies: list[tuple[int, int]] = field(default_factory=list)
    rows: list[tuple[int, int, int, bool]] = field(default_factory=list)
    """(slot, start, tokens, whether it samples)"""


class PlanMaker:
    """Makes plans for all requests until each has its answer; deterministic in rng."""

    def __init__(
        self,
        requests: Sequence[Asked],
        rng: random.Random,
        *,
        block_size: int,
        num_blocks: int,
        num_slots: int,
        whole: bool = False,
    ) -> None:
        """whole: no chunks, no preemption, no copies."""
        self._sequences = [_Sequence(asked) for asked in requests]
        self._rng = rng
        self._block_size = block_size
        self._free_blocks = rng.sample(range(num_blocks), num_blocks)
        self._free_slots = rng.sample(range(num_slots), num_slots)
        self._whole = whole
        self._step = 0
        self._released: list[int] = []
        self._drawing: list[_Sequence] = []
        self._scored: list[tuple[_Sequence, Scored]] = []

    @property
    def finished(self) -> bool:
        """Whether every request has its answer."""
        return all(sequence.done for sequence in self._sequences)

    def answers(self) -> list[Answer]:
        """Return them in the order of the requests."""
        return [
            Answer(tuple(one.outputs), tuple(one.rows), tuple(one.told)) for one in self._sequences
        ]

    def plan(self) -> StepPlan:
        """Make the next step, of at least one row."""
        running = [one for one in self._sequences if one.slot >= 0]
        if not self._whole and len(running) > 1 and self._rng.random() < 0.1:
            self._give_back(running[-1])
        diff = _Diff(released=self._released)
        self._released, self._drawing, self._scored = [], [], []
        for sequence in self._sequences:
            if sequence.slot < 0 and not sequence.done and self._free_slots:
                self._admit(sequence, diff)
        running = [one for one in self._sequences if one.slot >= 0]
        self._rng.shuffle(running)
        for sequence in running:
            if self._whole or not diff.rows or self._rng.random() < 0.7:
                self._schedule(sequence, diff)
        self._step += 1
        return self._build(diff)

    def take(self, result: StepResult) -> None:
        """Read the drawn tokens of the last plan."""
        assert len(result.token_ids) == len(self._drawing), (result, len(self._drawing))
        for (sequence, scored), rows in zip(self._scored, result.prompt_logprobs, strict=True):
            sequence.told += [row_of(rows, row) for row in range(scored.end - scored.start)]
        for index, sequence in enumerate(self._drawing):
            token = int(result.token_ids[index])
            params = sequence.asked.params
            sequence.outputs.append(token)
            if params.logprobs is not None:
                assert result.logprobs is not None, params
                sequence.rows.append(row_of(result.logprobs, index, params.logprobs))
            stopped = token < 0 or token in (params.stop_token_ids or ())
            if stopped or len(sequence.outputs) == params.max_tokens:
                sequence.done = True
                self._give_back(sequence)

    def _admit(self, sequence: _Sequence, diff: _Diff) -> None:
        needed = -(-(len(sequence.asked.prompt) + 64) // self._block_size)
        if len(self._free_blocks) < needed:
            return
        sequence.slot, sequence.computed = self._free_slots.pop(), 0
        asked = sequence.asked
        diff.admitted.append(
            Admitted(
                slot=sequence.slot,
                token_ids=np.array(sequence.known, dtype=np.int32),
                num_prompt_tokens=len(asked.prompt),
                params=asked.params,
                seed=asked.seed,
                stop_token_ids=tuple(asked.params.stop_token_ids or ()),
            )
        )

    def _give_back(self, sequence: _Sequence) -> None:
        self._released.append(sequence.slot)
        self._free_slots.insert(0, sequence.slot)
        self._free_blocks = sequence.blocks + self._free_blocks
        sequence.slot, sequence.blocks = -1, []

    def _schedule(self, sequence: _Sequence, diff: _Diff) -> None:
        """Compute a chunk, in blocks of which one may first move to a copy."""
        remaining = len(sequence.known) - sequence.computed
        count = remaining if self._whole else self._rng.randint(1, remaining)
        if not self._whole and self._rng.random() < 0.5:
            count = remaining
        start = sequence.computed
        end = start + count
        if not self._whole and sequence.blocks and self._free_blocks and self._rng.random() < 0.2:
            self._move(sequence, diff)
        while len(sequence.blocks) * self._block_size < end:
            diff.blocks.append((sequence.slot, len(sequence.blocks), self._free_blocks[-1]))
            sequence.blocks.append(self._free_blocks.pop())
        samples = count == remaining
        self._score(sequence, len(diff.rows), end)
        diff.rows.append((sequence.slot, start, count, samples))
        sequence.computed = end
        if samples:
            self._drawing.append(sequence)

    def _score(self, sequence: _Sequence, row: int, end: int) -> None:
        """Have a row that computes up to `end` tell what it has not told of its prompt."""
        num_top, prompt = sequence.asked.params.prompt_logprobs, sequence.asked.prompt
        first = max(sequence.computed, len(sequence.told)) + 1
        last = min(end + 1, len(prompt))
        if num_top is not None and first < last:
            self._scored.append((sequence, Scored(row, first, last, num_top)))

    def _move(self, sequence: _Sequence, diff: _Diff) -> None:
        """Copy one block and go on in the copy; the old one is free from the next step on."""
        index = self._rng.randrange(len(sequence.blocks))
        target = self._free_blocks.pop()
        diff.copies.append((sequence.blocks[index], target))
        diff.blocks.append((sequence.slot, index, target))
        self._free_blocks.insert(0, sequence.blocks[index])
        sequence.blocks[index] = target

    def _build(self, diff: _Diff) -> StepPlan:
        blocks = np.array(diff.blocks, dtype=np.int32).reshape(-1, 3)
        copies = np.array(diff.copies, dtype=np.int32).reshape(-1, 2)
        rows = np.array([row[:3] for row in diff.rows], dtype=np.int32).reshape(-1, 3)
        return StepPlan(
            step=self._step,
            admitted=tuple(diff.admitted),
            released=np.array(diff.released, dtype=np.int32),
            block_slots=blocks[:, 0],
            block_indices=blocks[:, 1],
            block_ids=blocks[:, 2],
            copy_sources=copies[:, 0],
            copy_targets=copies[:, 1],
            slots=rows[:, 0],
            starts=rows[:, 1],
            num_tokens=rows[:, 2],
            samples=np.array([row[3] for row in diff.rows], dtype=np.bool_),
            scored=tuple(scored for _, scored in self._scored),
        )
