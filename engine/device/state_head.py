"""StateHead: guesses by a layer on top of what the target has computed (EAGLE-3, MTP).

Its keys and values lie in the same blocks as the target's, an entry at the place of the token whose
state it has. They are written in each step for all of its tokens, once the tokens behind them are
drawn: what was written for wrong guesses is overwritten as the target's is. Of states only those
are kept from which a token was drawn: the next guess begins with the newest of them. What a pass
carries on stands for the state of the token that it computed, until the target has computed it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.heads import HeadModel
from ..plan import MAX_DRAFTS, StepPlan
from ..request import IntArray
from .guesser import Seen, Watched
from .inputs import PackedStep
from .places import Places

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
        self._places = places
        num_slots, layer = len(places.table.tokens), config.layer
        self._states = torch.zeros(
            num_slots + 1, RING, layer.hidden_size, dtype=layer.dtype, device=places.link.device
        )
        """[slots + 1, RING, hidden] by the token's position; padding writes the last line."""
        self.table_bytes = self._states.nbytes

    def begin(self, plan: StepPlan) -> bool:
        """See Head: what is missing was never computed."""
        return False

    def fill(self) -> None:
        """See Head: nothing is missing."""

    def reach(self, slots: IntArray, places: IntArray) -> IntArray:
        """See Head: what came before is there."""
        return places

    def compute(self, step: PackedStep) -> Tensor:
        """Compute the entries before a pass's places, with the tokens there."""
        rows = step.tensors.rows
        tokens, _ = self._places.gather(rows, step.num_tokens)
        _, batch = self._places.gather(rows._replace(starts=rows.starts - 1), step.num_tokens)
        slots, places = rows.slots.long(), rows.starts.long()
        states = self._states[slots, (places - 1) % RING]
        computed = self.model.compute(tokens, states, batch, self._cache)
        self._states[slots, places % RING] = computed.carried
        return computed.last

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
