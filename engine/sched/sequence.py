"""A request while it lives in the scheduler. Owned by Scheduler; the planner only reads it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from ..request import IntArray, Request


class Hit(NamedTuple):
    """Computed tokens that a sequence finds in memory."""

    blocks: list[int]
    """Full blocks to share; prefix_index.UPCOMING where an earlier row of the step writes it."""
    source: int
    """Block to copy for the tokens after them, or -1."""
    num_tokens: int


NO_HIT = Hit([], -1, 0)


@dataclass(slots=True, eq=False)
class Sequence:
    """What is not needed in every step; the rest is in SlotTable while the sequence runs."""

    request: Request
    rank: tuple[int, int]
    """(priority, arrival number): the lowest runs first."""
    root: bytes
    max_len: int
    """Prompt and outputs never become longer."""
    token_ids: IntArray
    """Prompt and outputs as of the last time in the queue."""
    stop_ids: tuple[int, ...]
    keys: list[bytes] = field(default_factory=list)
    """Of the full blocks hashed so far."""
    slot: int = -1
    """-1: in the queue."""
    num_cached: int | None = None
    """Hit tokens of the first admission; None before."""
    held: Hit | None = None
    """A fork's share of its parent, referenced while it waits."""
