"""The one message between the planes: StepPlan goes to the device, StepResult comes back.

A plan is complete, the device needs nothing else, and it is a diff: the device keeps the same table
of slots as the scheduler (tokens, blocks, sampling parameters by slot), and a plan names what
changed. Plans are executed in the order of their `step`. All arrays are numpy int32 unless said
otherwise.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from msgspec import Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from .params import SamplingParams
from .request import GrammarUse, IntArray, LogprobRows, ThinkingBudget


class Admitted(Struct, frozen=True):
    """A sequence that enters a slot; everything the device must know of it."""

    slot: int
    token_ids: IntArray
    """All known tokens: the prompt and, after a preemption, the outputs so far."""
    num_prompt_tokens: int
    """Output index of a sampled token = its position - num_prompt_tokens."""
    params: SamplingParams
    seed: int
    """64 bits, unsigned."""
    stop_token_ids: tuple[int, ...]
    """Not drawn before params.min_tokens outputs (end-of-sequence ids included)."""
    bad_word_ids: tuple[tuple[int, ...], ...] = ()
    """Sequences of tokens that are not drawn."""
    grammar: GrammarUse | None = None
    """What its outputs follow."""
    thinking: ThinkingBudget | None = None
    num_candidates: int = 0
    """So many of the likeliest tokens are told at least."""
    pool: int | None = None
    """Where in its prompt what its vector is made of begins: the vector is told with what it draws
    first. None: none is wanted."""


class Scored(Struct, frozen=True):
    """Tokens of a prompt whose log probabilities a step tells, each by the logits before it."""

    row: int
    """Of the plan: it computes the tokens from start - 1 to end - 2."""
    start: int
    """Position of the first one, at least 1,"""
    end: int
    """and behind the last one."""
    num_top: int
    """Likeliest tokens to tell beside each."""


MAX_DRAFTS = 16
"""Guesses of a row."""
VOID = -2
"""Drawn behind a guess, and of no use: the row is computed again."""


class Drafts(Struct, frozen=True):
    """Guesses: the last tokens of some rows, to be compared with what is drawn."""

    counts: IntArray
    """[rows] how many of a row's tokens are guesses,"""
    token_ids: IntArray | None
    """and these, row after row: the device does not have them yet. None: it makes them, and tells
    with the result."""


class StepPlan(Struct, frozen=True, dict=True):
    """One step. Order on the device: admitted, new blocks, copies, forward, sample."""

    step: int
    admitted: tuple[Admitted, ...]
    released: IntArray
    """Slots given back since the last plan (finished, aborted or preempted)."""
    block_slots: IntArray
    """[n] new blocks: the slot that takes each,"""
    block_indices: IntArray
    """its index in that slot's table,"""
    block_ids: IntArray
    """and the block (also blocks shared through a prefix hit or a fork)."""
    copy_sources: IntArray
    """Whole blocks to copy before any write of this step,"""
    copy_targets: IntArray
    slots: IntArray
    """[rows] the sequences that compute in this step,"""
    starts: IntArray
    """[rows] their first position to compute,"""
    num_tokens: IntArray
    """[rows] and how many tokens (their inputs are in the device table already)."""
    samples: NDArray[np.bool_]
    """[rows] whether the row's last known token yields a sampled token, written behind it, and each
    of its guesses another."""
    scored: tuple[Scored, ...] = ()
    """In the order of their rows."""
    drafts: Drafts | None = None
    """None: nobody guesses."""

    def sampled(self) -> tuple[IntArray, IntArray]:
        """Give slot and position of each token that the step draws: [samples] int32."""
        return self._sampled

    @cached_property
    def _sampled(self) -> tuple[IntArray, IntArray]:
        slots, ends = self.slots[self.samples], (self.starts + self.num_tokens)[self.samples]
        if self.drafts is None:
            return slots, ends
        counts = self.drafts.counts[self.samples] + 1
        total = int(counts.sum())
        behind = counts.cumsum().repeat(counts) - np.arange(1, total + 1)
        return slots.repeat(counts), (ends.repeat(counts) - behind).astype(np.int32)

    def told(self, guesses: IntArray | None) -> StepPlan:
        """Return the plan with the guesses that the device made; itself where it made none."""
        if guesses is None:
            return self
        assert self.drafts is not None, self
        return replace(self, drafts=Drafts(self.drafts.counts, guesses))

    def guesses(self) -> IntArray | None:
        """Give the guess that each drawn token comes behind: [samples], -1 where that is none.

        None where nobody guesses, and where the device has not told yet.
        """
        return self._guesses

    @cached_property
    def _guesses(self) -> IntArray | None:
        if self.drafts is None or self.drafts.token_ids is None:
            return None
        counts = self.drafts.counts[self.samples] + 1
        guesses = np.full(int(counts.sum()), -1, np.int32)
        is_guess = np.ones(len(guesses), np.bool_)
        is_guess[counts.cumsum() - counts] = False
        guesses[is_guess] = self.drafts.token_ids
        return guesses

    def right(self, token_ids: IntArray) -> NDArray[np.bool_]:
        """Tell which of the drawn token_ids [samples] come behind right guesses only."""
        guesses = self.guesses()
        if guesses is None:
            return np.ones(len(token_ids), np.bool_)
        wrong = guesses >= 0
        firsts = (~wrong).nonzero()[0]
        wrong[1:] &= (token_ids[:-1] != guesses[1:]) | (token_ids[1:] == VOID)
        num_wrong = wrong.cumsum()
        assert self.drafts is not None
        before = num_wrong[firsts].repeat(self.drafts.counts[self.samples] + 1)
        right: NDArray[np.bool_] = num_wrong == before
        return right

    @property
    def num_scheduled_tokens(self) -> int:
        """Tokens that this step computes."""
        return int(self.num_tokens.sum())


class RowFault(Struct, frozen=True):
    """Why one sequence of a step could not be computed, where it is the only one to blame."""

    slot: int
    message: str


class StepResult(Struct, frozen=True):
    """What a step gave: for the tokens of the plan's `sampled`, in order."""

    step: int
    token_ids: IntArray
    """[samples] the drawn tokens; -1 where the logits were not finite (that request ends), VOID
    behind a guess that could not be followed."""
    logprobs: LogprobRows | None = None
    faults: tuple[RowFault, ...] = ()
    """Of rows whose token is -1 for another reason."""
    prompt_logprobs: tuple[LogprobRows, ...] = ()
    """For each of the plan's `scored`, a row for each token."""
    guesses: IntArray | None = None
    """What the device guessed, where the plan left that to it, row after row."""
    vectors: NDArray[np.float32] | None = None
    """[samples, width] where a row wants its vector. A model that only makes vectors draws token
    0."""
