"""Elementwise functions: exp2 and log, polynomials that all of Quire shares, gated SiLU and GELU.

Every step is one IEEE float32 operation, so that any implementation which keeps the order of these
lines has the same bits: torch's own exp and log differ between vector body and tail, and between
machines. Coefficients are the float32 values nearest to the decimals written here.
"""

from __future__ import annotations

import torch
from torch import Tensor

LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453
SQRT_HALF_BITS = 0x3F3504F3
"""Bits of the float32 nearest to sqrt(1/2): `log` reduces to [sqrt(1/2), sqrt(2))."""
EXP2_COEFFICIENTS = (
    1.5403530e-4,
    1.3333558e-3,
    9.6181291e-3,
    5.5504109e-2,
    2.4022651e-1,
    6.9314718e-1,
    1.0,
)
"""Of f^6 .. f^0, f in [-1/2, 1/2]."""
LEAST_NORMAL = torch.finfo(torch.float32).tiny
EXP2_MAGIC = 12582912.0 + 127
"""1.5 * 2^23 + 127: float32 is integral there, and the low bits of n + it are 2^n's exponent."""
_BELOW_FLOAT32 = (1 << 29) - 1
"""Bits of a float64 that float32 has not,"""
_HALF_FLOAT32 = 1 << 28
"""and the middle between two float32."""
LOG_COEFFICIENTS = (
    0.0873592496,
    -0.143092647,
    0.149183661,
    -0.165703118,
    0.199620202,
    -0.250017613,
    0.333339512,
    -0.499999911,
    1.0,
)
"""Of r^8 .. r^0 in log(1 + r) / r, r in [sqrt(1/2) - 1, sqrt(2) - 1]; fitted for relative error."""

TAIL_COEFFICIENTS = (
    0.0356747831,
    -0.157203118,
    0.206353564,
    -0.0536836939,
    0.128561651,
    0.0999134854,
    0.120753957,
    0.119629299,
)
"""Of t^7 .. t^0 in (1 - Phi(z)) / (t * exp(-z^2 / 2)), z >= 0, t = 1 / (1 + TAIL_SLOPE * z), Phi
the normal distribution function; fitted for relative error, 1.5e-7."""
TAIL_SLOPE = 0.3


def exp2(x: Tensor) -> Tensor:
    """Return 2 ** x for float32 x <= 127 of any shape, relative error below 3e-7.

    x is clamped to -126 from below (the least normal result); n is x rounded to an integer by
    adding and taking away EXP2_MAGIC, f = x - n; Horner's rule with fused multiply-adds; times 2^n
    through the exponent bits. NaN stays NaN.
    """
    x = torch.maximum(x, x.new_tensor(-126.0))
    n = (x + EXP2_MAGIC) - EXP2_MAGIC
    f = x - n
    p = torch.full_like(f, EXP2_COEFFICIENTS[0])
    for coefficient in EXP2_COEFFICIENTS[1:]:
        p = fma(p, f, coefficient)
    exponent = torch.nan_to_num(n).to(torch.int32) + 127
    return p * (exponent << 23).view(torch.float32)


def fma(x: Tensor, y: Tensor, z: Tensor | float) -> Tensor:
    """Return x * y + z of float32, rounded once.

    float64 holds the product exactly and rounds the sum; a second rounding, to float32, goes wrong
    only where the first has ended in the middle between two float32, or where float32 has fewer
    bits because the result is denormal.
    """
    addend = torch.as_tensor(z).double()
    product = x.double() * y.double()
    total = product + addend
    twice = is_middle(total) | (total.abs() < LEAST_NORMAL)
    if twice.any():
        total = torch.where(twice, round_to_odd(product, addend, total), total)
    return total.float()


def is_middle(x: Tensor) -> Tensor:
    """Return where a float64 lies in the middle between two normal float32."""
    return (x.view(torch.int64) & _BELOW_FLOAT32) == _HALF_FLOAT32


def round_to_odd(x: Tensor, y: Tensor, total: Tensor) -> Tensor:
    """Return x + y of float64, from their finite sum, with the last bit set where it is not exact.

    So it lies in no middle, and rounding it to fewer bits is as rounding the exact sum.
    """
    part = total - x
    error = (x - (total - part)) + (y - part)
    bits = total.view(torch.int64)
    toward_zero = bits - ((error != 0) & ((error < 0) != (total < 0))).long()
    return torch.where(error == 0, bits, toward_zero | 1).view(torch.float64)


def log(x: Tensor) -> Tensor:
    """Return the natural logarithm of normal, positive, finite float32 x of any shape.

    x = 2^k * m with m in [sqrt(1/2), sqrt(2)), r = m - 1; then `log_of_parts`. Relative error below
    3e-7, near x = 1 too.
    """
    k, m = split(x)
    return log_of_parts(k, m - 1.0)


def split(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return (k, m), both float32, with x = 2^k * m and m in [sqrt(1/2), sqrt(2))."""
    shifted = x.view(torch.int32) - SQRT_HALF_BITS
    m = ((shifted & 0x7FFFFF) + SQRT_HALF_BITS).view(torch.float32)
    return (shifted >> 23).float(), m


def log_of_parts(k: Tensor, r: Tensor) -> Tensor:
    """Return k * log(2) + log(1 + r): Horner's rule for log(1 + r) / r; k * log(2) + p * r."""
    p = torch.full_like(r, LOG_COEFFICIENTS[0])
    for coefficient in LOG_COEFFICIENTS[1:]:
        p = p * r + coefficient
    return k * LN_2 + p * r


def silu_mul(gate_up: Tensor) -> Tensor:
    """See Ops.silu_mul: t = -gate * log2(e); gate / (1 + exp2(min(t, 126))) * up; one rounding."""
    gate, up = gate_up.float().chunk(2, dim=-1)
    t = (-gate) * LOG2_E
    t = torch.minimum(t, t.new_tensor(126.0))
    silu = gate / (exp2(t) + 1.0)
    return (silu * up).to(gate_up.dtype)


def gelu(x: Tensor) -> Tensor:
    """See Ops.gelu: x * Phi(x), one rounding.

    z = |x|; t = 1 / (1 + TAIL_SLOPE * z); p by Horner's rule with fused multiply-adds; q = (t * p)
    * exp2(-((z * z) * (log2(e) / 2))); Phi is q below zero, else 1 - q. Error below 4e-7, as
    torch's. Negative infinity and NaN give NaN.
    """
    wide = x.float()
    z = wide.abs()
    t = 1.0 / (z * TAIL_SLOPE + 1.0)
    p = torch.full_like(t, TAIL_COEFFICIENTS[0])
    for coefficient in TAIL_COEFFICIENTS[1:]:
        p = fma(p, t, coefficient)
    q = (t * p) * exp2(-((z * z) * (LOG2_E / 2)))
    return (wide * torch.where(wide < 0, q, 1.0 - q)).to(x.dtype)
