"""The scheduler's counters."""

from __future__ import annotations

from msgspec import Struct

from ..plan import MAX_DRAFTS


class SchedulerStats(Struct):
    """Counters since the start; tokens where the name does not say otherwise."""

    prefix_queries: int = 0
    """Prompt tokens looked up, once a request;"""
    prefix_hits: int = 0
    """of these, found (or shared by a fork)."""
    resumed_queries: int = 0
    """The same for preempted requests that come back,"""
    resumed_hits: int = 0
    """which do not count above."""
    num_preemptions: int = 0
    num_evictions: int = 0
    """Published blocks that were overwritten."""
    num_copies: int = 0
    """Blocks copied."""
    num_drafts: int = 0
    """Rows that guessed,"""
    num_draft_tokens: int = 0
    """their guesses,"""
    num_accepted_tokens: int = 0
    """and those that were right:"""
    accepted_at: tuple[int, ...] = (0,) * MAX_DRAFTS
    """of the first guesses of rows, of the second, ..."""
    saved_s: float = 0.0
    """Seconds that guesses have saved, by what they cost when they were tried at the start."""
    num_scheduled_tokens: int = 0
    num_steps: int = 0
