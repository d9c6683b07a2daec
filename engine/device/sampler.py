"""From logits to drawn tokens and their log probabilities.

Pure. Log probabilities are those of the raw logits: what min_tokens forbids, and what else a
request edits, counts for the draw only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ...reference.ops import EditRows, Logprobs, Ops, SamplingRows


class Told(NamedTuple):
    """What is told beside the tokens."""

    rows: Tensor | None
    """[m] int64, of those that asked for it; None: of all."""
    num_top: int
    """Likeliest tokens of each."""


class Source(NamedTuple):
    """What is drawn from."""

    logits: Tensor
    """[rows, vocab] dtype or float32,"""
    edits: EditRows | None
    """and what is yet to be edited in it."""


class Drawn(NamedTuple):
    """One token a row."""

    tokens: Tensor
    """[rows] int32, -1 where the logits were not finite."""
    logprobs: Logprobs | None
    """None where no row asked; nothing in those that did not ask."""
    vectors: Tensor | None = None
    """[rows, width] float32; None where no row wants its own."""


def draw(
    ops: Ops,
    logits: Tensor,
    rows: SamplingRows,
    told: Told | None,
    edit: Callable[[Tensor], Source] | None = None,
) -> Drawn:
    """Draw a token for each row of logits [rows, vocab] dtype.

    edit: what to draw from instead; None: the logits.
    """
    source = Source(logits, None) if edit is None else edit(logits)
    tokens = ops.sample(source.logits, rows, source.edits)
    if told is None:
        return Drawn(tokens, None)
    return Drawn(tokens, ops.logprobs(logits, tokens.clamp(min=0), told.num_top, told.rows))
