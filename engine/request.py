"""What enters and what leaves the engine: Request in, TokenEvents out, RequestOutput to the user.

Frozen structs only, no behaviour.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from .params import SamplingParams

BACKGROUND = 2**31 - 1
"""Priority of what is done when nobody else waits, whatever the policy."""

IntArray = NDArray[np.int32]
VectorRows = NDArray[np.float32]
"""[rows, width] what a model makes of sequences."""
FinishReason = Literal["stop", "length", "repetition", "abort", "error"]


class ThinkingBudget(Struct, frozen=True):
    """params.thinking_token_budget, and the engine's markers in tokens."""

    budget: int
    start: tuple[int, ...]
    end: tuple[int, ...]


class BoundedThought(Struct, frozen=True):
    """The thought that a grammar begins with, where it has a budget."""

    source: str
    """A grammar of the thought alone,"""
    limit: ThinkingBudget
    """how long it may be,"""
    is_open: bool = False
    """and whether the prompt has begun it, be it by other tokens than the marker's."""


class GrammarUse(Struct, frozen=True):
    """A grammar that a sequence follows."""

    source: str
    num_read: int = 0
    """How many of the prompt's last tokens belong to what follows it: a fork goes on inside."""
    thought: BoundedThought | None = None


class Request(Struct, frozen=True, kw_only=True):
    """One sequence to be continued, complete: nothing is looked up later."""

    request_id: str
    prompt_token_ids: IntArray
    """[prompt] at least one token, each inside the vocabulary."""
    params: SamplingParams
    seed: int
    """params.seed modulo 2**64, or the one that was drawn for it."""
    bad_word_ids: tuple[tuple[int, ...], ...] = ()
    """params.bad_words in tokens."""
    grammar: GrammarUse | None = None
    """What params.structured_outputs says."""
    thinking: ThinkingBudget | None = None
    eos_token_ids: tuple[int, ...] = ()
    """End the sequence unless params.ignore_eos."""
    priority: int = 0
    """Lower runs earlier (vLLM's meaning); equal ones first come, first served. From
    BACKGROUND on it counts under every policy."""
    arrival_s: float = 0.0
    cache_salt: str | None = None
    """Prefix-cache hits happen only between equal salts."""
    tenant: str = ""
    """Whose request it is: tenants wait in turn."""
    num_candidates: int = 0
    """So many of the likeliest tokens are told with each, also where params.logprobs is less."""
    pool: int | None = None
    """Wants the vector of its prompt, from this token on, and no token."""
    keep: bool = False
    """When its length has ended it, what it computed stays for forks until it is aborted."""


class LogprobRows(Struct, frozen=True):
    """Log probabilities of the sampling rows of a step, or of tokens of a prompt."""

    sampled: NDArray[np.float32]
    """[rows] of the drawn token, or of the prompt's."""
    ranks: IntArray
    """[rows]"""
    top_ids: IntArray
    """[rows, k] k is the most that any row asked for."""
    top: NDArray[np.float32]
    """[rows, k]"""


class PromptLogprobs(Struct, frozen=True):
    """Log probabilities of some tokens of a prompt; each token is told once, in order."""

    request_id: str
    start: int
    """Position of the first one."""
    rows: LogprobRows


class Finished(Struct, frozen=True):
    """Why a sequence ended."""

    index: int
    """Index into TokenEvents.request_ids."""
    reason: FinishReason
    stop_reason: int | str | None = None
    """The stop token id, where one of the request's own stop_token_ids ended it, or
    "repetition_detected"."""
    message: str | None = None
    """For reason "error"."""


class TokenEvents(Struct, frozen=True):
    """What one step (or an abort) gives to the outside, one entry a sequence."""

    request_ids: list[str]
    token_ids: IntArray
    """[n] the new token of each, -1 where there is none (abort, error)."""
    num_cached_tokens: IntArray
    """[n] prompt tokens that came from the prefix cache at first admission."""
    finished: tuple[Finished, ...] = ()
    logprobs: LogprobRows | None = None
    """Rows as request_ids; None where no sequence of the step asked."""
    prompts: tuple[PromptLogprobs, ...] = ()
    """Of prompts that the step computed, where the request asked; told before its tokens are."""
    vectors: VectorRows | None = None
    """Rows as request_ids; None where no sequence of the step asked."""


class TimelineEvent(Struct, frozen=True, omit_defaults=True):
    """Something that happened to a request."""

    at_ms: float
    """Since it was queued."""
    name: str
    """queued, admitted, computed, preempted, step failed, first token, ended."""
    step: int | None = None
    num_tokens: int | None = None
    """admitted: from the prefix cache; computed: in this chunk; ended: of the answer."""
    detail: str | None = None


class Timeline(Struct, frozen=True):
    """A request's story."""

    events: tuple[TimelineEvent, ...]
    num_steps: int
    """Steps that computed tokens of it,"""
    num_stalled_steps: int
    """and steps between its first and last that did not: others had the budget or the blocks."""
    num_dropped_events: int = 0
    num_guesses: int = 0
    """Tokens of it that were guessed,"""
    num_right_guesses: int = 0
    """and those that were right."""


class Logprob(Struct, frozen=True):
    """vLLM's Logprob."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


class CompletionOutput(Struct, frozen=True, kw_only=True):
    """One answer to a request."""

    index: int
    text: str
    token_ids: tuple[int, ...]
    cumulative_logprob: float | None = None
    logprobs: tuple[dict[int, Logprob], ...] | None = None
    """For each token: token id -> Logprob; the drawn token first, then the most likely ones."""
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    seed: int | None = None
    """The seed that drew it: give it to replay the answer."""


class MoreText(Struct, frozen=True):
    """That an answer goes on, for a reader who wants no more of a token than its text."""

    text: str
    num_tokens: int


class BeamSearchSequence(Struct, frozen=True, kw_only=True):
    """One answer of a beam search, vLLM's names."""

    tokens: tuple[int, ...]
    """Prompt and answer, the token that ended it included."""
    logprobs: tuple[dict[int, Logprob], ...]
    """For each token of the answer: its own first, then the likeliest ones."""
    cum_logprob: float
    text: str | None
    """Of prompt and answer; None without a tokenizer."""
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None


class BeamSearchOutput(Struct, frozen=True):
    """What LLM.beam_search gives for one prompt."""

    sequences: tuple[BeamSearchSequence, ...]
    """The best first, beam_width of them where the vocabulary is large enough."""


class RequestOutput(Struct, frozen=True, kw_only=True):
    """What generate() returns or streams (cumulative), vLLM's names."""

    request_id: str
    prompt: str | None
    prompt_token_ids: tuple[int, ...]
    outputs: tuple[CompletionOutput, ...]
    finished: bool
    num_cached_tokens: int = 0
    prompt_logprobs: tuple[dict[int, Logprob] | None, ...] | None = None
    """For each token of the prompt, where that was asked and all of them are known: None for the
    first, then token id -> Logprob; the prompt's token first, then the most likely ones."""
    error: str | None = None
    timeline: Timeline | None = None
    """Of a finished request."""
    vector: NDArray[np.float32] | None = None
    """[width] of a finished request that wants it, as the model gives it."""
