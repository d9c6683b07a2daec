"""From logits to drawn tokens and their log probabilities.

Pure but for the logits, which are this step's own. Log probabilities are those of the raw logits:
what min_tokens forbids, and what else a request edits, counts for the draw only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ...reference.ops import Logprobs, Ops, SamplingRows
from .sampling_rows import NO_LOGPROBS


class Banned(NamedTuple):
    """Entries of the logits that must not be drawn, on their device: [n] int64 each."""

    rows: Tensor
    tokens: Tensor


class Drawn(NamedTuple):
    """One token a row."""

    tokens: Tensor
    """[rows] int32, -1 where the logits were not finite."""
    logprobs: Logprobs | None
    """None where no row asked."""


def draw(
    ops: Ops,
    logits: Tensor,
    rows: SamplingRows,
    banned: Banned | None,
    num_logprobs: int,
    edit: Callable[[Tensor], Tensor] | None = None,
) -> Drawn:
    """Draw a token for each row of logits [rows, vocab] dtype. Overwrites logits.

    edit: makes edited logits of them; None where no row edits.
    """
    edited = logits if edit is None else edit(logits)
    if banned is not None:
        if edited is logits and num_logprobs != NO_LOGPROBS:
            edited = logits.clone()
        edited[banned.rows, banned.tokens] = -torch.inf
    tokens = ops.sample(edited, rows)
    if num_logprobs == NO_LOGPROBS:
        return Drawn(tokens, None)
    return Drawn(tokens, ops.logprobs(logits, tokens.clamp(min=0), num_logprobs))
