"""Log probabilities of prompts, from the hidden states of a step, some rows at a time.

Owns nothing. The logits of all tokens of a prompt would take more memory than all else (5 GB for
8,192 tokens of 152,000 each): no more than MOST_LOGITS numbers of them exist at once. A row's bits
do not depend on how many rows are computed together, so neither does what is told. On a GPU what
they take was measured (`gpu_memory`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from ...reference.ops import Ops
from ..models.encoder import Model
from ..plan import StepPlan
from .link import Link, Scores

MOST_LOGITS = 2**24
"""33 MB of bfloat16. A GPU multiplies more rows at once no faster."""


def scored_rows(vocab_size: int) -> int:
    """Return how many tokens are scored at once."""
    return max(1, MOST_LOGITS // vocab_size)


class Scorer(NamedTuple):
    """What computes the scores."""

    model: Model
    ops: Ops
    link: Link

    def score(self, plan: StepPlan, hidden: Tensor, known: Tensor) -> Scores:
        """Score a plan's `scored` tokens.

        hidden: [tokens, hidden] of all tokens of the step; known: [slots, max_model_len] int32, the
        tokens of each slot.
        """
        size = scored_rows(self.model.config.vocab_size)
        firsts = np.cumsum(plan.num_tokens) - plan.num_tokens - plan.starts
        scores = []
        for one in plan.scored:
            tokens, first = known[int(plan.slots[one.row])], int(firsts[one.row])
            parts = []
            for start in range(one.start, one.end, size):
                end = min(start + size, one.end)
                logits = self.model.logits(hidden[first + start - 1 : first + end - 1])
                # A copy, because kernels are compiled for the alignment of what they are given.
                found = self.ops.logprobs(logits, tokens[start:end].clone(), one.num_top)
                parts.append(self.link.fetch(found))
            scores.append(parts)
        return scores
