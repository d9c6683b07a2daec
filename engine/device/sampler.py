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


class Told(NamedTuple):
    """What is told beside the tokens."""

    rows: Tensor | None
    """[m] int64, of those that asked for it; None: of all."""
    num_top: int
    """Likeliest tokens of each."""


class Banned(NamedTuple):
    """Entries of the logits that must not be drawn, on their device: [n] int64 each."""

    rows: Tensor
    tokens: Tensor


class Drawn(NamedTuple):
    """One token a row."""

    tokens: Tensor
    """[rows] int32, -1 where the logits were not finite."""
    logprobs: Logprobs | None
    """None where no row asked; nothing in those that did not ask."""


def draw(
    ops: Ops,
    logits: Tensor,
    rows: SamplingRows,
    banned: Banned | None,
    told: Told | None,
    edit: Callable[[Tensor], Tensor] | None = None,
) -> Drawn:
    """Draw a token for each row of logits [rows, vocab] dtype. Overwrites logits.

    edit: makes edited logits of them; None where no row edits.
    """
    edited = logits if edit is None else edit(logits)
    if banned is not None:
        if edited is logits and told is not None:
            edited = logits.clone()
        edited[banned.rows, banned.tokens] = -torch.inf
    tokens = ops.sample(edited, rows)
    return Drawn(tokens, None if told is None else _tell(ops, logits, tokens.clamp(min=0), told))


def _tell(ops: Ops, logits: Tensor, tokens: Tensor, told: Told) -> Logprobs:
    asked = told.rows
    if asked is None:
        return ops.logprobs(logits, tokens, told.num_top)
    few = logits.index_select(0, asked), tokens.index_select(0, asked)
    return Logprobs(
        *(
            part.new_zeros(len(tokens), *part.shape[1:]).index_copy_(0, asked, part)
            for part in ops.logprobs(*few, told.num_top)
        )
    )
