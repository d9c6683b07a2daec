"""ModelHead: guesses by a smaller model with the target's tokens.

Its keys and values lie in the same blocks as the target's, in memory of its own: found with them by
the prefix cache, forked and copied with them. It computes prompts when the target does, and of
outputs only what is missing once a row guesses: whoever does not guess pays nothing. `_filled` says
how far each block is computed: what the target writes anew counts as missing.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ..models.base import DecoderModel, Tail
from ..plan import StepPlan
from ..request import IntArray
from .guesser import NO_ROWS, Pass, Places, Seen, Watched

MOST_TOKENS = 16384
"""That a step computes of what is missing; what is left out only makes guesses worse."""


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
        self._prompts = NO_ROWS
        """Rows of this step that compute known tokens and do not guess: up to which place."""

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
        self._prompts = Pass(plan.slots[rows], ends[rows] - 1)
        return len(rows) > 0

    def first(self, rows: Pass) -> Tensor:
        """See Head."""
        num_rows, prompts = len(rows.slots), self._prompts
        slots = np.concatenate((rows.slots, prompts.slots))
        given, starts = self._missing(slots, np.concatenate((rows.places, prompts.places)))
        tokens, batch = self._places.prepare(given, starts)
        last, tail = batch.query_starts[1 : num_rows + 1].long() - 1, batch
        if num_rows:
            guessing = Pass(given.slots[:num_rows], given.places[:num_rows])
            _, tail = self._places.prepare(guessing, guessing.places)
        return self.model.hidden(tokens, batch, self.caches, Tail(last, tail)).last

    def go_on(self, rows: Pass) -> Tensor:
        """See Head: what is guessed is not counted as computed."""
        tokens, batch = self._places.prepare(rows, rows.places)
        return self.model.hidden(tokens, batch, self.caches, None).last

    def logits(self, hidden: Tensor) -> Tensor:
        """See Head."""
        return self.model.logits(hidden)

    def observe(self, seen: Seen) -> None:
        """See Head: tokens are all that a model needs."""

    def _missing(self, slots: IntArray, places: IntArray) -> tuple[Pass, IntArray]:
        """Find where rows begin that compute what is missing, and note it as computed.

        Rows may end before their places, where it were too much for a step.
        """
        size, left = self._places.block_size, MOST_TOKENS
        starts, ends = np.empty(len(slots), np.int32), places + 1
        for row, (slot, place) in enumerate(zip(slots.tolist(), places.tolist(), strict=True)):
            blocks = self._blocks[slot, : place // size + 1]
            filled = self._filled[blocks]
            first = int((filled < size).argmax())
            start = min(first * size + int(filled[first]), place)
            end = min(place + 1, start + max(1, left))
            left -= end - start
            starts[row], ends[row] = start, end
            self._filled[blocks[first : (end - 1) // size]] = size
            self._filled[blocks[(end - 1) // size]] = (end - 1) % size + 1
        return Pass(slots, ends - 1), starts
