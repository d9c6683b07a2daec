"""Twin of reference.activation: the polynomials as helpers of other kernels, SiLU and GELU."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...reference.activation import (
    EXP2_COEFFICIENTS,
    EXP2_MAGIC,
    LN_2,
    LOG2_E,
    LOG_COEFFICIENTS,
    SQRT_HALF_BITS,
    TAIL_COEFFICIENTS,
    TAIL_SLOPE,
)
from .launch import compiled, inlined, run_ranges
from .simd import bfloat16s, bits, float32s, fma, from_bits, narrow, widen

_LOG2_E = np.float32(LOG2_E)
_E6, _E5, _E4, _E3, _E2, _E1, _E0 = (np.float32(c) for c in EXP2_COEFFICIENTS)
_L8, _L7, _L6, _L5, _L4, _L3, _L2, _L1, _L0 = (np.float32(c) for c in LOG_COEFFICIENTS)
_T7, _T6, _T5, _T4, _T3, _T2, _T1, _T0 = (np.float32(c) for c in TAIL_COEFFICIENTS)
_TAIL_SLOPE = np.float32(TAIL_SLOPE)
_HALF_LOG2_E = np.float32(LOG2_E / 2)
_LN_2 = np.float32(LN_2)
_SQRT_HALF_BITS = np.int32(SQRT_HALF_BITS)
_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)
_MAGIC = np.float32(EXP2_MAGIC)
_MIN_EXPONENT = np.float32(-126.0)
_MAX_EXPONENT = np.float32(126.0)


@inlined
def exp2(x: Any) -> Any:
    """Twin of reference.activation.exp2, but NaN gives 2^-126: callers look after NaN."""
    x = x if x > _MIN_EXPONENT else _MIN_EXPONENT
    biased = x + _MAGIC
    f = x - (biased - _MAGIC)
    p = fma(_E6, f, _E5)
    p = fma(p, f, _E4)
    p = fma(p, f, _E3)
    p = fma(p, f, _E2)
    p = fma(p, f, _E1)
    p = fma(p, f, _E0)
    return p * from_bits(bits(biased) << np.uint32(23))


@inlined
def split_exponent(x: Any) -> Any:
    """Return k of reference.activation.split."""
    return np.float32((np.int32(bits(x)) - _SQRT_HALF_BITS) >> np.int32(23))


@inlined
def split_mantissa(x: Any) -> Any:
    """Return m of reference.activation.split."""
    shifted = np.int32(bits(x)) - _SQRT_HALF_BITS
    return from_bits(np.uint32((shifted & np.int32(0x7FFFFF)) + _SQRT_HALF_BITS))


@inlined
def log_of_parts(k: Any, r: Any) -> Any:
    """Twin of reference.activation.log_of_parts."""
    p = _L8 * r + _L7
    p = p * r + _L6
    p = p * r + _L5
    p = p * r + _L4
    p = p * r + _L3
    p = p * r + _L2
    p = p * r + _L1
    p = p * r + _L0
    return k * _LN_2 + p * r


@inlined
def log(x: Any) -> Any:
    """Twin of reference.activation.log."""
    return log_of_parts(split_exponent(x), split_mantissa(x) - _ONE)


@inlined
def _silu(gate: Any) -> Any:
    t = -gate * _LOG2_E
    t = t if t < _MAX_EXPONENT else _MAX_EXPONENT
    return gate / (_ONE + exp2(t))


@compiled("void(int64, int64, int64, int64, int64, int64)")
def _silu_mul_float32(
    gate_up: int, stride: int, out: int, width: int, start: int, end: int
) -> None:
    for row in range(start, end):
        gate = float32s(gate_up + row * stride * 4, width)
        up = float32s(gate_up + (row * stride + width) * 4, width)
        y = float32s(out + row * width * 4, width)
        for i in range(width):
            y[i] = _silu(gate[i]) * up[i]


@compiled("void(int64, int64, int64, int64, int64, int64)")
def _silu_mul_bfloat16(
    gate_up: int, stride: int, out: int, width: int, start: int, end: int
) -> None:
    for row in range(start, end):
        gate = bfloat16s(gate_up + row * stride * 2, width)
        up = bfloat16s(gate_up + (row * stride + width) * 2, width)
        y = bfloat16s(out + row * width * 2, width)
        for i in range(width):
            y[i] = narrow(_silu(widen(gate[i])) * widen(up[i]))


def silu_mul(gate_up: Tensor) -> Tensor:
    """Twin of reference.activation.silu_mul."""
    rows, double = gate_up.shape
    width = double // 2
    if gate_up.stride(1) != 1:
        gate_up = gate_up.contiguous()
    out = gate_up.new_empty((rows, width))
    kernel = _silu_mul_bfloat16 if gate_up.dtype == torch.bfloat16 else _silu_mul_float32
    source, stride, target = gate_up.data_ptr(), gate_up.stride(0), out.data_ptr()

    def call(start: int, end: int) -> None:
        kernel(source, stride, target, width, start, end)

    run_ranges(call, rows, rows * width)
    return out


@inlined
def _gelu(x: Any) -> Any:
    z = abs(x)
    t = _ONE / (z * _TAIL_SLOPE + _ONE)
    p = fma(_T7, t, _T6)
    p = fma(p, t, _T5)
    p = fma(p, t, _T4)
    p = fma(p, t, _T3)
    p = fma(p, t, _T2)
    p = fma(p, t, _T1)
    p = fma(p, t, _T0)
    q = (t * p) * exp2(-((z * z) * _HALF_LOG2_E))
    return x * (q if x < _ZERO else _ONE - q)


@compiled("void(int64, int64, int64, int64, int64, int64)")
def _gelu_float32(source: int, stride: int, out: int, width: int, start: int, end: int) -> None:
    for row in range(start, end):
        x = float32s(source + row * stride * 4, width)
        y = float32s(out + row * width * 4, width)
        for i in range(width):
            y[i] = _gelu(x[i])


@compiled("void(int64, int64, int64, int64, int64, int64)")
def _gelu_bfloat16(source: int, stride: int, out: int, width: int, start: int, end: int) -> None:
    for row in range(start, end):
        x = bfloat16s(source + row * stride * 2, width)
        y = bfloat16s(out + row * width * 2, width)
        for i in range(width):
            y[i] = narrow(_gelu(widen(x[i])))


def gelu(x: Tensor) -> Tensor:
    """Twin of reference.activation.gelu."""
    rows, width = x.shape
    if x.stride(1) != 1:
        x = x.contiguous()
    out = x.new_empty((rows, width))
    kernel = _gelu_bfloat16 if x.dtype == torch.bfloat16 else _gelu_float32
    source, stride, target = x.data_ptr(), x.stride(0), out.data_ptr()

    def call(start: int, end: int) -> None:
        kernel(source, stride, target, width, start, end)

    run_ranges(call, rows, rows * width)
    return out
