"""Elementwise functions that kernels share, in the steps of `reference.activation`.

Every step is one IEEE float32 operation: kernels are compiled without contraction, and where the
reference fuses a multiply-add this says so. tl.exp and tl.log are approximations, not used here.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...reference.activation import (
    EXP2_COEFFICIENTS,
    EXP2_MAGIC,
    LN_2,
    LOG_COEFFICIENTS,
    SQRT_HALF_BITS,
)

_E6, _E5, _E4, _E3, _E2, _E1, _E0 = (tl.constexpr(c) for c in EXP2_COEFFICIENTS)
_MAGIC = tl.constexpr(EXP2_MAGIC)
_L8, _L7, _L6, _L5, _L4, _L3, _L2, _L1, _L0 = (tl.constexpr(c) for c in LOG_COEFFICIENTS)
_LN_2 = tl.constexpr(LN_2)
_SQRT_HALF_BITS = tl.constexpr(SQRT_HALF_BITS)


@triton.jit
def exp2(x):
    """Return 2 ** x for float32 x <= 127. Twin of reference.activation.exp2."""
    x = tl.where(x < -126.0, -126.0, x)
    shifted = x + _MAGIC
    f = x - (shifted - _MAGIC)
    p = fma(tl.full(f.shape, _E6, tl.float32), f, _E5)
    p = fma(p, f, _E4)
    p = fma(p, f, _E3)
    p = fma(p, f, _E2)
    p = fma(p, f, _E1)
    p = fma(p, f, _E0)
    return p * (shifted.to(tl.int32, bitcast=True) << 23).to(tl.float32, bitcast=True)


@triton.jit
def fma(x, y, z):
    """Return x * y + z of float32, rounded once; x and y of one shape, z a number."""
    return tl.fma(x, y, tl.full(y.shape, z, tl.float32))


@triton.jit
def log(x):
    """Return the natural logarithm of normal, positive, finite float32 x."""
    k, m = split(x)
    return log_of_parts(k, m - 1.0)


@triton.jit
def split(x):
    """Return (k, m), both float32, with x = 2^k * m and m in [sqrt(1/2), sqrt(2))."""
    shifted = x.to(tl.int32, bitcast=True) - _SQRT_HALF_BITS
    m = ((shifted & 0x7FFFFF) + _SQRT_HALF_BITS).to(tl.float32, bitcast=True)
    return (shifted >> 23).to(tl.float32), m


@triton.jit
def log_of_parts(k, r):
    """Return k * log(2) + log(1 + r). Twin of reference.activation.log_of_parts."""
    p = r * _L8 + _L7
    p = p * r + _L6
    p = p * r + _L5
    p = p * r + _L4
    p = p * r + _L3
    p = p * r + _L2
    p = p * r + _L1
    p = p * r + _L0
    return k * _LN_2 + p * r
