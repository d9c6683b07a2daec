"""The scheduler's counters."""

from __future__ import annotations

from msgspec import Struct


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
    """and those that were right."""
    num_scheduled_tokens: int = 0
    num_steps: int = 0
