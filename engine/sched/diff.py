"""Builds a StepPlan while a decision is committed. Owns nothing that outlives the commit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..kv.block_pool import IdArray
from ..plan import Admitted, Drafts, StepPlan
from .planner import Grant
from .sequence import Hit, Sequence

_INT = np.int32
_NONE = np.zeros(0, _INT)


class PlanDiff:
    """Starts with the running rows, then takes one admission after the other."""

    __slots__ = ("_admitted", "_blocks", "_copies", "_grant", "_news", "_samples")

    def __init__(
        self,
        grant: Grant,
        samples: NDArray[np.bool_],
        opened: tuple[IdArray, IdArray],
        ids: IdArray,
    ) -> None:
        self._grant = grant
        self._samples = samples
        self._blocks = [(*opened, ids)]
        self._admitted: list[Admitted] = []
        self._copies: list[tuple[int, int]] = []
        self._news: list[tuple[int, int, int, bool]] = []

    def admit(
        self, sequence: Sequence, blocks: IdArray, hit: Hit, *, num_tokens: int, samples: bool
    ) -> None:
        """Add a sequence that has just got its slot and `blocks`."""
        slot, request = sequence.slot, sequence.request
        self._admitted.append(
            Admitted(
                slot,
                sequence.token_ids,
                len(request.prompt_token_ids),
                request.params,
                request.seed,
                sequence.stop_ids,
                request.bad_word_ids,
                request.grammar,
                request.thinking,
                request.num_candidates,
                request.pool,
            )
        )
        self._blocks.append((np.full(len(blocks), slot), np.arange(len(blocks)), blocks))
        if hit.source >= 0:
            self._copies.append((hit.source, int(blocks[len(hit.blocks)])))
        self._news.append((slot, hit.num_tokens, num_tokens, samples))

    def plan(self, step: int, released: list[int]) -> StepPlan:
        """Put the plan together; `released` leaves out slots that were given again."""
        grant, samples = self._grant, self._samples
        slots, starts, num_tokens = grant.slots, grant.starts, grant.counts
        block_slots, block_indices, block_ids = self._blocks[0]
        if self._news:
            news = np.array(self._news, np.intp)
            slots = np.concatenate((slots, news[:, 0]))
            starts = np.concatenate((starts, news[:, 1]))
            num_tokens = np.concatenate((num_tokens, news[:, 2]))
            samples = np.concatenate((samples, news[:, 3].astype(np.bool_)))
            columns = zip(*self._blocks, strict=True)
            block_slots, block_indices, block_ids = (np.concatenate(c) for c in columns)
            again = {admitted.slot for admitted in self._admitted}
            released = [slot for slot in released if slot not in again]
        drafts = grant.drafts
        if drafts is not None and self._news:
            others = np.zeros(len(self._news), _INT)
            drafts = Drafts(np.concatenate((drafts.counts, others)), drafts.token_ids)
        sources = targets = _NONE
        if self._copies:
            sources, targets = np.array(self._copies, _INT).T
        return StepPlan(
            step=step,
            admitted=tuple(self._admitted),
            released=np.array(released, _INT) if released else _NONE,
            block_slots=block_slots.astype(_INT),
            block_indices=block_indices.astype(_INT),
            block_ids=block_ids.astype(_INT),
            copy_sources=sources,
            copy_targets=targets,
            slots=slots.astype(_INT),
            starts=starts.astype(_INT),
            num_tokens=num_tokens.astype(_INT),
            samples=samples,
            drafts=drafts,
        )
