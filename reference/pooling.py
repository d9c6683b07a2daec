"""From the hidden states of a sequence to one vector: the definition, for every device.

Elementwise operations of torch only, and sums whose order depends on a sequence's length alone: a
vector's bits do not depend on what stands beside it. A row of a sum is added in halves: while there
are n > 1 rows, the last n // 2 are added to the first.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from .activation import LOG2_E, exp2

Kind = Literal["last", "cls", "mean", "max", "mean_sqrt_len", "weighted_mean"]
"""Of the last token, of the first one, the mean, the greatest, the sum over the length's root, the
mean weighted by positions from 1."""


def pool(hidden: Tensor, kind: Kind, start: int = 0) -> Tensor:
    """Return the vector [width] float32 of a sequence: hidden [tokens, width], one or more.

    start: the position of the first of them.
    """
    match kind:
        case "last":
            return hidden[-1].float()
        case "cls":
            return hidden[0].float()
        case "max":
            return hidden.float().amax(0)
        case "mean":
            return sum_rows(hidden) / len(hidden)
        case "weighted_mean":
            places = range(start + 1, start + len(hidden) + 1)
            weights = torch.tensor(places, dtype=torch.float32, device=hidden.device)
            return sum_rows(hidden.float() * weights[:, None]) / float(sum(places))
        case "mean_sqrt_len":
            return sum_rows(hidden) / torch.tensor(float(len(hidden))).sqrt().item()


def sum_rows(x: Tensor) -> Tensor:
    """Return the sum of x [n, width] over n, in float32, by halves."""
    total = x.float()
    while len(total) > 1:
        half = len(total) // 2
        kept = total[: len(total) - half].clone()
        kept[:half] += total[len(total) - half :]
        total = kept
    return total[0]


def tanh(x: Tensor) -> Tensor:
    """Return the hyperbolic tangent of float32 x, of any shape, absolute error below 3e-7.

    1 - 2 / (exp2(2 * log2(e) * x) + 1), the argument clamped to [-126, 126].
    """
    return 1.0 - 2.0 / (exp2((x * (2 * LOG2_E)).clamp(-126.0, 126.0)) + 1.0)
