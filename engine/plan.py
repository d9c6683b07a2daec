"""The one message between the planes: StepPlan goes to the device, StepResult comes back.

A plan is complete, the device needs nothing else, and it is a diff: the device keeps the same table
of slots as the scheduler (tokens, blocks, sampling parameters by slot), and a plan names what
changed. Plans are executed in the order of their `step`. All arrays are numpy int32 unless said
otherwise.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct
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


class StepPlan(Struct, frozen=True):
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
    """[rows] whether the row's last token yields a sampled token, written at start + num_tokens."""
    scored: tuple[Scored, ...] = ()
    """In the order of their rows."""

    @property
    def num_scheduled_tokens(self) -> int:
        """Tokens that this step computes."""
        return int(self.num_tokens.sum())


class RowFault(Struct, frozen=True):
    """Why one sequence of a step could not be computed, where it is the only one to blame."""

    slot: int
    message: str


class StepResult(Struct, frozen=True):
    """What a step gave. `samples` rows of the plan, in order."""

    step: int
    token_ids: IntArray
    """[samples] the drawn tokens; -1 where the logits were not finite (that request ends)."""
    logprobs: LogprobRows | None = None
    faults: tuple[RowFault, ...] = ()
    """Of rows whose token is -1 for another reason."""
    prompt_logprobs: tuple[LogprobRows, ...] = ()
    """For each of the plan's `scored`, a row for each token."""
