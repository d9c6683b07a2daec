"""Hypothesis strategies and makers of requests and limits, shared by machines and tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st
from msgspec.structs import replace

from ..engine.config import GuessCosts
from ..engine.params import RepetitionDetectionParams, SamplingParams
from ..engine.request import Request
from ..engine.sched.scheduler import SchedulerLimits
from .oracles import VOCAB

STEMS = ((1, 2, 3, 4, 5, 6, 1, 2, 3, 4), (1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2), (2,) * 12)
"""Beginnings that many prompts share, in whole or in part."""
TENANTS = ("", "a", "b", "a", "")
"""Of requests in turn."""


def make_limits(
    *,
    max_num_seqs: int = 4,
    budget: int = 64,
    max_model_len: int = 64,
    block_size: int = 4,
    num_blocks: int = 64,
    caching: bool = True,
    policy: str = "fcfs",
    overlap: int = 1,
) -> SchedulerLimits:
    """Make limits for a small scheduler."""
    return SchedulerLimits(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        max_model_len=max_model_len,
        block_size=block_size,
        num_blocks=num_blocks,
        enable_prefix_caching=caching,
        policy="priority" if policy == "priority" else "fcfs",
        overlap=overlap,
    )


def make_request(
    request_id: str,
    prompt: Sequence[int],
    *,
    params: SamplingParams | None = None,
    seed: int = 0,
    eos: tuple[int, ...] = (),
    priority: int = 0,
    salt: str | None = None,
    tenant: str = "",
) -> Request:
    """Make a request."""
    return Request(
        request_id=request_id,
        prompt_token_ids=np.array(prompt, np.int32),
        params=params or SamplingParams(max_tokens=8),
        seed=seed,
        eos_token_ids=eos,
        priority=priority,
        cache_salt=salt,
        tenant=tenant,
    )


@st.composite
def limits(draw: st.DrawFn) -> SchedulerLimits:
    """Draw limits, down to pools that hold just one sequence of the model length."""
    block_size = draw(st.sampled_from((1, 2, 4, 8, 16)))
    max_model_len = draw(st.integers(2, 40))
    least = -(-(max_model_len - 1) // block_size)
    made = make_limits(
        max_num_seqs=draw(st.integers(1, 6)),
        budget=draw(st.sampled_from((1, 2, 3, 5, 8, 16, 64, 512))),
        max_model_len=max_model_len,
        block_size=block_size,
        num_blocks=least + draw(st.sampled_from((0, 0, 1, 2, 3, 5, 8, 20, 150))),
        caching=draw(st.sampled_from((True, True, True, False))),
        policy=draw(st.sampled_from(("fcfs", "priority"))),
        overlap=draw(st.integers(1, 2)),
    )
    return replace(
        made,
        tenant_weights=draw(st.sampled_from(({}, {"a": 3.0}))),
        num_drafts=draw(st.sampled_from((0, 0, 1, 3, 7))),
        guess_costs=GuessCosts(
            token=draw(st.sampled_from((0.0, 0.05, 0.5))),
            crowd=draw(st.sampled_from((0.0, 0.1))),
            step=draw(st.sampled_from((0.0, 0.2))),
        ),
    )


@st.composite
def prompts(draw: st.DrawFn, max_len: int) -> list[int]:
    """Draw a prompt of 1 to max_len tokens that may share its beginning with others."""
    stem = draw(st.sampled_from(((), *STEMS)))
    stem = stem[: draw(st.integers(0, len(stem)))]
    tail = draw(st.lists(st.integers(0, VOCAB - 1), max_size=12))
    return [*stem, *tail][:max_len] or [draw(st.integers(0, VOCAB - 1))]


@st.composite
def sampling_params(draw: st.DrawFn) -> SamplingParams:
    """Draw what decides when a request ends, and which of its tokens are computed."""
    max_tokens = draw(st.one_of(st.none(), st.integers(1, 20)))
    least = draw(st.sampled_from((0, 0, 0, 1, 3, 6)))
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=least if max_tokens is None else min(least, max_tokens),
        stop_token_ids=draw(st.lists(st.integers(0, VOCAB - 1), max_size=2)),
        ignore_eos=draw(st.booleans()),
        repetition_detection=draw(st.one_of(st.none(), repetition_rules())),
        prompt_logprobs=draw(st.sampled_from((None, None, 1))),
    )


@st.composite
def repetition_rules(draw: st.DrawFn) -> RepetitionDetectionParams:
    """Draw rules that short answers of few tokens meet."""
    longest = draw(st.integers(0, 4))
    return RepetitionDetectionParams(
        max_pattern_size=longest,
        min_pattern_size=draw(st.integers(0, longest)),
        min_count=draw(st.integers(2, 4)),
    )
