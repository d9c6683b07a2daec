"""A request while it lives in the scheduler. Owned by Scheduler; the planner only reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from ..config import Policy
from ..errors import ParamsError
from ..kv.block_pool import IdArray
from ..request import BACKGROUND, IntArray, Request
from .limits import SchedulerLimits


class Hit(NamedTuple):
    """Computed tokens that a sequence finds in memory."""

    blocks: IdArray
    """Full blocks to share; prefix_index.UPCOMING where an earlier row of the step writes it."""
    source: int
    """Block to copy for the tokens after them, or -1."""
    num_tokens: int

    def held(self) -> IdArray:
        """List the blocks that exist already: all to be referenced, the source once it is used."""
        blocks = self.blocks[self.blocks >= 0]
        return blocks if self.source < 0 else np.append(blocks, self.source)


NO_HIT = Hit(np.zeros(0, np.intp), -1, 0)


@dataclass(slots=True, eq=False)
class Sequence:
    """What is not needed in every step; the rest is in SlotTable while the sequence runs."""

    request: Request
    rank: tuple[int, int, int]
    """(priority, arrival number of the request that it goes on with, its own): the lowest first."""
    root: bytes
    """Parent key of the first block."""
    max_len: int
    """Prompt and outputs never become longer."""
    token_ids: IntArray
    """Prompt and outputs as of the last time in the queue."""
    stop_ids: tuple[int, ...]
    """All token ids that may end it."""
    keys: list[bytes] = field(default_factory=list)
    """Of the full blocks hashed so far."""
    slot: int = -1
    """-1: in the queue."""
    num_cached: int | None = None
    """Hit tokens of the first admission; None before."""
    held: Hit | None = None
    """Referenced while it is in no slot: a waiting fork's share of its parent, or what was kept."""
    account: int = -1
    """FairQueue's, of its tenant."""
    num_paid: int = 0
    """Tokens that its tenant has paid for, as of the last time in the queue."""
    num_told: int = 1
    """Tokens of the prompt that need no log probabilities any more: of the first there are none."""

    @property
    def request_id(self) -> str:
        """The request's id."""
        return self.request.request_id

    @property
    def num_untold(self) -> int:
        """Tokens of the prompt whose log probabilities are still to be told."""
        if self.request.params.prompt_logprobs is None:
            return 0
        return len(self.request.prompt_token_ids) - self.num_told

    @property
    def most_hit(self) -> int:
        """Tokens that need not be computed, where they are in memory: never the last one, nor any
        whose logits are still to be told."""
        most = len(self.token_ids) - 1
        return min(most, self.num_told - 1) if self.num_untold else most


def make_sequence(
    request: Request, limits: SchedulerLimits, *, root: bytes, arrival: int
) -> Sequence:
    """Check a request against the limits: ParamsError if it could never fit."""
    params = request.params
    length = len(request.prompt_token_ids)
    if length == 0:
        raise ParamsError("The prompt is empty: it must have at least one token.", "prompt")
    if length + 1 > limits.max_model_len:
        raise ParamsError(
            f"The prompt has {length} tokens: with one more to generate it must not exceed "
            f"the model length of {limits.max_model_len}.",
            "prompt",
        )
    if not -(2**63) < request.priority < 2**63:
        raise ParamsError(f"priority is {request.priority}: it must fit 64 bits.", "priority")
    max_len = limits.max_model_len
    if params.max_tokens is not None:
        max_len = min(max_len, length + params.max_tokens)
    most = limits.num_blocks * limits.block_size + 1
    if max_len > most:
        raise ParamsError(
            f"The request may grow to {max_len} tokens and the KV memory holds {most}: "
            "it must have a shorter prompt or a smaller max_tokens.",
            "max_tokens",
        )
    eos = () if params.ignore_eos else request.eos_token_ids
    return Sequence(
        request=request,
        rank=(_urgency(request.priority, limits.policy), arrival, arrival),
        root=root,
        max_len=max_len,
        token_ids=np.ascontiguousarray(request.prompt_token_ids, dtype=np.int32),
        stop_ids=(*eos, *(params.stop_token_ids or ())),
    )


def _urgency(priority: int, policy: Policy) -> int:
    """Clients choose theirs where the policy lets them; the background is behind everybody."""
    return priority if policy == "priority" or priority >= BACKGROUND else 0
