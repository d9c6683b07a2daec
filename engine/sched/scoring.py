"""Log probabilities of prompts: which step computes whose, and whose a result brings.

A sequence computes every position whose logits are asked for, chunk by chunk as it is planned: it
finds no prefix there (`Sequence.most_hit`), but others find its blocks. What was told is counted
when its step retires; only idle sequences are preempted, so that none tells anything twice.
"""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from ..kv.block_pool import IdArray
from ..plan import Scored, StepPlan, StepResult
from ..request import LogprobRows, PromptLogprobs
from .sequence import Sequence
from .table import SlotTable


class Scoring:
    """The running sequences with positions to tell that no plan has computed yet."""

    def __init__(self) -> None:
        self._by_slot: dict[int, Sequence] = {}

    def __bool__(self) -> bool:
        return bool(self._by_slot)

    def enter(self, sequence: Sequence) -> None:
        """Take in a sequence that has just got its slot, where it asks."""
        if sequence.num_untold:
            self._by_slot[sequence.slot] = sequence

    def leave(self, slot: int) -> None:
        """Forget a slot whose sequence stops running."""
        self._by_slot.pop(slot, None)

    def mark(self, plan: StepPlan) -> StepPlan:
        """Say in a plan which tokens its rows have to tell."""
        scored: list[Scored] = []
        for row in np.isin(plan.slots, list(self._by_slot)).nonzero()[0].tolist():
            slot = int(plan.slots[row])
            sequence = self._by_slot[slot]
            first, length = int(plan.starts[row]), len(sequence.request.prompt_token_ids)
            start = max(first + 1, sequence.num_told)
            end = min(first + int(plan.num_tokens[row]) + 1, length)
            if start < end:
                num_top = sequence.request.params.prompt_logprobs
                assert num_top is not None, sequence.request_id
                scored.append(Scored(row, start, end, num_top))
            if end == length:
                del self._by_slot[slot]
        return replace(plan, scored=tuple(scored)) if scored else plan


def tell(plan: StepPlan, result: StepResult, table: SlotTable) -> tuple[PromptLogprobs, ...]:
    """Count what a result brings of prompts as told; leave out sequences that have ended."""
    told: list[PromptLogprobs] = []
    for one, rows in zip(plan.scored, result.prompt_logprobs, strict=True):
        slot = int(plan.slots[one.row])
        if table.draining[slot]:
            continue
        sequence = table.sequence(slot)
        assert sequence.num_told == one.start, (sequence.request_id, sequence.num_told, one)
        sequence.num_told = one.end
        told.append(PromptLogprobs(sequence.request_id, one.start, rows))
    return tuple(told)


def rows_of(logprobs: LogprobRows | None, rows: IdArray) -> LogprobRows | None:
    """Select rows of the log probabilities."""
    if logprobs is None:
        return None
    return LogprobRows(
        logprobs.sampled[rows], logprobs.ranks[rows], logprobs.top_ids[rows], logprobs.top[rows]
    )
