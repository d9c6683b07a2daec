"""ModelHead: guesses by a smaller model with the target's tokens.

Its keys and values lie in the same blocks as the target's, in memory of its own: found with them by
the prefix cache, forked and copied with them. It computes prompts when the target does, and of
outputs only what is missing once a row guesses: whoever does not guess pays nothing. `_filled` says
how far each block is computed: what the target writes anew counts as missing.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..models.base import DecoderModel, Tail
from ..plan import MAX_DRAFTS, StepPlan
from ..request import IntArray
from .guesser import Seen, Watched
from .inputs import PackedStep
from .places import Places

MOST_TOKENS = 16384
"""That a step computes of what is missing; what is left out only makes guesses worse."""
NOBODY = np.zeros(0, np.int32)


class ModelHead:
    """See guesser.Head."""

    def __init__(self, model: DecoderModel, places: Places, num_blocks: int) -> None:
        self.model = model
        self.watched: Watched | None = None
        self.caches = model.new_caches(num_blocks, places.block_size)
        self.table_bytes = 0
        self._places = places
        self._blocks = np.zeros(tuple(places.table.block_tables.shape), np.int32)
        """The table of blocks, on the host."""
        self._filled = np.zeros(num_blocks, np.int32)
        """Leading places of each block whose keys and values are those of its tokens."""
        self._prompts = (NOBODY, NOBODY)
        """Slots of this step that compute known tokens and do not guess, and up to where."""

    def begin(self, plan: StepPlan) -> bool:
        """See Head: chunks of prompts are computed in any case."""
        size, filled = self._places.block_size, self._filled
        self._blocks[plan.block_slots, plan.block_indices] = plan.block_ids
        filled[plan.copy_targets] = filled[plan.copy_sources]
        ends = plan.starts + plan.num_tokens
        firsts, lasts = plan.starts // size, (ends - 1) // size
        touched = self._blocks[plan.slots, firsts]
        filled[touched] = np.minimum(filled[touched], plan.starts % size)
        for row in np.flatnonzero(lasts > firsts).tolist():
            filled[self._blocks[plan.slots[row], firsts[row] + 1 : lasts[row] + 1]] = 0
        chunks = plan.num_tokens > 1
        if plan.drafts is not None:
            chunks &= plan.drafts.counts == 0
        rows = np.flatnonzero(chunks)
        self._prompts = (plan.slots[rows], ends[rows])
        return len(rows) > 0

    def fill(self) -> None:
        """See Head."""
        slots, ends = self._prompts
        self._fill(slots, self._begins(slots, ends - 1), ends)

    def reach(self, slots: IntArray, places: IntArray) -> IntArray:
        """See Head: a pass computes few tokens of a row; what is missing more comes before."""
        starts = self._begins(slots, places)
        far = np.flatnonzero(places - starts > MAX_DRAFTS)
        if len(far):
            self._fill(slots[far], starts[far], places[far])
            starts = self._begins(slots, places)
        near = places - starts <= MAX_DRAFTS
        self._note(slots[near], starts[near], places[near] + 1)
        return np.where(near, starts, places)

    def compute(self, step: PackedStep) -> Tensor:
        """See Head: what is guessed is not counted as computed."""
        tokens, batch, tail = self._places.of_step(step)
        return self.model.hidden(tokens, batch, self.caches, tail).last

    def logits(self, hidden: Tensor) -> Tensor:
        """See Head."""
        return self.model.logits(hidden)

    def observe(self, seen: Seen) -> None:
        """See Head: tokens are all that a model needs."""

    def _begins(self, slots: IntArray, places: IntArray) -> IntArray:
        """Find the first token of each row that is missing, at most its place."""
        size, starts = self._places.block_size, places.copy()
        for row, (slot, place) in enumerate(zip(slots.tolist(), places.tolist(), strict=True)):
            filled = self._filled[self._blocks[slot, : place // size + 1]]
            first = int((filled < size).argmax())
            starts[row] = min(first * size + int(filled[first]), place)
        return starts

    def _fill(self, slots: IntArray, starts: IntArray, ends: IntArray) -> None:
        """Compute the tokens from starts to before ends, or as many as a step may; draw nothing."""
        room = MOST_TOKENS - (ends - starts).cumsum() + (ends - starts)
        ends = np.minimum(ends, starts + np.maximum(1, room)).astype(np.int32)
        self._note(slots, starts, ends)
        tokens, batch = self._places.send(slots, starts, ends)
        none = torch.empty(0, dtype=torch.int64, device=tokens.device)
        self.model.hidden(tokens, batch, self.caches, Tail(none, batch))

    def _note(self, slots: IntArray, starts: IntArray, ends: IntArray) -> None:
        """Count the tokens from starts to before ends as computed."""
        size = self._places.block_size
        for slot, start, end in zip(slots.tolist(), starts.tolist(), ends.tolist(), strict=True):
            blocks = self._blocks[slot, start // size : (end - 1) // size + 1]
            self._filled[blocks[:-1]] = size
            self._filled[blocks[-1]] = (end - 1) % size + 1
