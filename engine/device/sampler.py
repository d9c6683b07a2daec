"""From logits to drawn tokens and their log probabilities.

Pure but for the logits, which are this step's own. Log probabilities are those of the raw logits:
what min_tokens forbids is masked for the draw only.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...reference.ops import Ops
from ..request import LogprobRows
from .sampling_rows import NO_LOGPROBS, StepSampling


class Drawn(NamedTuple):
    """One token a row."""

    tokens: Tensor
    """[rows] int32, -1 where the logits were not finite."""
    logprobs: LogprobRows | None
    """None where no row asked."""


def draw(ops: Ops, logits: Tensor, sampling: StepSampling) -> Drawn:
    """Draw a token for each row of logits [rows, vocab] dtype. Overwrites logits."""
    rows, forbidden, num_logprobs = sampling
    if num_logprobs == NO_LOGPROBS:
        if forbidden is not None:
            logits[forbidden.rows, forbidden.tokens] = -torch.inf
        return Drawn(ops.sample(logits, rows), None)
    masked = logits
    if forbidden is not None:
        masked = logits.clone()
        masked[forbidden.rows, forbidden.tokens] = -torch.inf
    tokens = ops.sample(masked, rows)
    found = ops.logprobs(logits, tokens.clamp(min=0), num_logprobs)
    return Drawn(
        tokens,
        LogprobRows(
            sampled=found.sampled.numpy(),
            ranks=found.ranks.numpy(),
            top_ids=found.top_ids.numpy(),
            top=found.top.numpy(),
        ),
    )
