"""What the scheduler may use: a frozen struct, no behaviour."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct

from ..config import GuessCosts


class SchedulerLimits(Struct, frozen=True):
    """Bounds and options, fixed for the scheduler's life."""

    max_num_seqs: int
    """Slots."""
    max_num_batched_tokens: int
    """Tokens a step."""
    max_model_len: int
    """Prompt and outputs of a sequence."""
    block_size: int
    num_blocks: int
    enable_prefix_caching: bool = True
    whole_prompts: bool = False
    """A prompt is computed in one step; max_num_batched_tokens hold the longest."""
    policy: Literal["fcfs", "priority"] = "fcfs"
    overlap: int = 1
    """Steps in flight: 1 or 2."""
    num_drafts: int = 0
    """Tokens that a sequence may guess at most in a step; 0: speculation is off."""
    guess_costs: GuessCosts = GuessCosts()
    tenant_weights: dict[str, float] = {}
    """Shares of tenants that wait for each other, above 0; 1 where none is given."""
