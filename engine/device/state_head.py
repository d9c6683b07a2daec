"""StateHead: guesses by a layer on top of what the target has computed (EAGLE-3, MTP).

Its keys and values lie in the same blocks as the target's, an entry at the place of the token whose
state it has. They are written in each step for all of its tokens, once the tokens behind them are
drawn: what was written for wrong guesses is overwritten as the target's is. Of states only those
are kept from which a token was drawn: the next guess begins with the newest of them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..models.heads import HeadModel
from ..plan import MAX_DRAFTS, StepPlan
from .guesser import Pass, Places, Seen, Watched

RING = MAX_DRAFTS + 1
"""States that are kept of each slot: as many as a row draws tokens."""


class StateHead:
    """See guesser.Head."""

    def __init__(self, model: HeadModel, places: Places, num_blocks: int) -> None:
        self.model = model
        self._cache = model.new_cache(num_blocks, places.block_size)
        self.caches = (self._cache,)
        config = model.config
        self.watched = Watched(config.taps, needs_last=config.kind == "mtp")
        self._places, self._link = places, places.link
        num_slots, layer = len(places.table.tokens), config.layer
        self._states = torch.zeros(
            num_slots + 1, RING, layer.hidden_size, dtype=layer.dtype, device=places.link.device
        )
        """[slots + 1, RING, hidden] by the token's position; padding writes the last line."""
        self.table_bytes = self._states.nbytes
        self._carried = self._states[0]
        """[rows, hidden] of the newest pass."""

    def begin(self, plan: StepPlan) -> bool:
        """See Head: what is missing was never computed."""
        return False

    def first(self, rows: Pass) -> Tensor:
        """See Head."""
        slots = self._link.upload(rows.slots.astype(np.int64))
        places = self._link.upload((rows.places.astype(np.int64) - 1) % RING)
        return self._compute(rows, self._states[slots, places])

    def go_on(self, rows: Pass) -> Tensor:
        """See Head."""
        return self._compute(rows, self._carried[: len(rows.slots)])

    def logits(self, hidden: Tensor) -> Tensor:
        """See Head."""
        return self.model.logits(hidden)

    def observe(self, seen: Seen) -> None:
        """See Head."""
        states, batch, table = self.model.states(seen.features), seen.batch, self._places.table
        counts = batch.query_starts[1:] - batch.query_starts[:-1]
        slots = torch.repeat_interleave(batch.slots, counts, output_size=len(states))
        behind = slots.long() * table.max_model_len + batch.positions + 1
        tokens = table.tokens.view(-1)[behind.clamp(min=0)]
        self.model.write(tokens, states, batch, self._cache)
        places = (seen.places.long() - 1) % RING
        self._states[seen.slots.long(), places] = states[seen.samples]

    def _compute(self, rows: Pass, states: Tensor) -> Tensor:
        """Compute the entries before rows' places, with the tokens there."""
        before = Pass(rows.slots, rows.places - 1)
        tokens, _ = self._places.prepare(rows, rows.places)
        _, batch = self._places.prepare(before, before.places)
        computed = self.model.compute(tokens, states, batch, self._cache)
        self._carried = computed.carried
        return computed.last
