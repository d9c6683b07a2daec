"""Sums of products: the one order in which each kind of number is added, everywhere.

Matrix products and attention are sums of products, and a sum of floats depends on its order. These
orders are those of the instructions that processors have for it, so that the fastest kernel of a
machine can keep one of them, and every other machine can repeat it in steps. `Sums` names the order
of bfloat16: it belongs to the model's configuration, since another order gives other last bits
(docs/decisions/0006-sums-of-our-own.md).

* "pairs": one total; elements in the order 1, 0, 3, 2, 5, 4, ...; total = total + a * b, rounded
  once to float32 (vdpbf16ps of AVX512-BF16).
* "tiles": elements are cut into blocks of TILE, the last may be shorter. In a block the even and
  the odd elements are added up apart, from zero, each step rounded once; then
  total = total + (even + odd), two more steps (tdpbf16ps of AMX).

In both, denormal operands (the running total too) count as zero, and a result that is below the
least normal number, after rounding to 24 bits, becomes a zero of its sign.
float32 has no choice: `add_fused` in linears, separate multiply and add in attention.
"""

from __future__ import annotations

import math
from typing import Literal, assert_never

import torch
from torch import Tensor

from .activation import LEAST_NORMAL, fma, is_middle, round_to_odd

Sums = Literal["pairs", "tiles"]

TILE = 32
"""Elements in a block of "tiles"."""
FLUSHED = math.nextafter(LEAST_NORMAL * (1 - 2**-25), 0.0)
"""The greatest magnitude that a bfloat16 sum flushes: above it, sums round up to LEAST_NORMAL."""
_NO_UNDERFLOW = 2.0**-100
_NO_FUSED_UNDERFLOW = 2.0**-78
_NO_OVERFLOW = 2.0**120


def add_products(total: Tensor, a: Tensor, b: Tensor, sums: Sums, *, tile: int = TILE) -> Tensor:
    """Return total + sum over i of a[i] * b[i], all float32 that came from bfloat16 but the total.

    a[i] and b[i] broadcast to the shape of total; their number is even. tile: elements in a block
    of "tiles", even.
    """
    assert len(a) == len(b) and len(a) % 2 == 0 == tile % 2, (a.shape, b.shape, tile)
    add = _add_plainly if _is_plain(total, a, b, _NO_UNDERFLOW) else _add_flushed
    match sums:
        case "pairs":
            for pair in range(0, len(a), 2):
                for i in (pair + 1, pair):
                    total = add(total, a[i], b[i])
            return total
        case "tiles":
            nothing = torch.zeros_like(total)
            for start in range(0, len(a), tile):
                end = min(start + tile, len(a))
                even = odd = nothing
                for i in range(start, end, 2):
                    even = add(even, a[i], b[i])
                    odd = add(odd, a[i + 1], b[i + 1])
                total = add(total, add(even, odd, 1.0), 1.0)
            return total
    assert_never(sums)


def add_fused(total: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return total + sum over i of a[i] * b[i] of float32, in order, each step rounded once."""
    if not _is_plain(total, a, b, _NO_FUSED_UNDERFLOW):
        for a_i, b_i in zip(a, b, strict=True):
            total = fma(a_i, b_i, total)
        return total
    exact = total.double()
    for a_i, b_i in zip(a.double(), b.double(), strict=True):
        nearly = torch.addcmul(exact, a_i, b_i)
        middle = is_middle(nearly)
        if middle.any():
            nearly = torch.where(middle, round_to_odd(a_i * b_i, exact, nearly), nearly)
        exact = nearly.float().double()
    return exact.float()


def round_sums(total: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float32 sums to dtype; to bfloat16, denormals become zero."""
    return total if dtype == torch.float32 else flush(total).to(dtype)


def flush(x: Tensor) -> Tensor:
    """Replace denormals by zeros of their sign."""
    return torch.where(x.abs() < LEAST_NORMAL, x * 0.0, x)


def _is_plain(total: Tensor, a: Tensor, b: Tensor, least: float) -> bool:
    """Return whether nothing is denormal, nor can any sum be: no product below least but zero."""
    (low_a, high_a), (low_b, high_b), (low, high) = (_range(x) for x in (a, b, total))
    if min(low_a, low_b) < LEAST_NORMAL or min(low_a * low_b, low) < least:
        return False
    return high_a * high_b * len(a) + high < _NO_OVERFLOW


def _range(x: Tensor) -> tuple[float, float]:
    """Return the least magnitude but zero, and the greatest; NaN gives NaN."""
    if not x.numel():
        return 1.0, 0.0
    size = x.abs()
    low = torch.where(size == 0.0, 1.0, size).min()
    return float(low), float(size.max())


def _add_plainly(total: Tensor, a: Tensor, b: Tensor | float) -> Tensor:
    """Add where products are exact in float32 and nothing is denormal: fused or not is the same."""
    return total + a if isinstance(b, float) else torch.addcmul(total, a, b)


def _add_flushed(total: Tensor, a: Tensor, b: Tensor | float) -> Tensor:
    """Add in float64: products are exact and sums so nearly that they round right (16, 24 bits)."""
    b = a.new_tensor(b) if isinstance(b, float) else b
    total, a, b = (flush(x).double() for x in (total, a, b))
    exact = torch.addcmul(total, a, b)
    return torch.where(exact.abs() <= FLUSHED, exact * 0.0, exact).float()
