"""Gated SiLU and GELU on the GPU. Twin of `reference.activation`, bit for bit on every input."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...reference.activation import LOG2_E, TAIL_COEFFICIENTS, TAIL_SLOPE
from .launch import let_next_come, start, wait
from .math import exp2, fma

WIDTH = 1024
"""Elements of a program."""
_LOG2_E = tl.constexpr(LOG2_E)
_HALF_LOG2_E = tl.constexpr(LOG2_E / 2)
_T7, _T6, _T5, _T4, _T3, _T2, _T1, _T0 = (tl.constexpr(c) for c in TAIL_COEFFICIENTS)
_TAIL_SLOPE = tl.constexpr(TAIL_SLOPE)


@triton.jit
def silu_times(gate, up):
    """Return silu(gate) * up of float32, in the reference's steps."""
    t = -gate * _LOG2_E
    t = tl.where(t > 126.0, 126.0, t)
    return tl.div_rn(gate, exp2(t) + 1.0) * up


def silu_mul(gate_up: Tensor) -> Tensor:
    """See Ops.silu_mul."""
    rows, width = len(gate_up), gate_up.shape[1] // 2
    assert gate_up.stride(1) == 1, gate_up.stride()
    out = torch.empty((rows, width), dtype=gate_up.dtype, device=gate_up.device)
    start(
        _silu_mul,
        (rows, triton.cdiv(width, WIDTH)),
        *(gate_up, out, gate_up.stride(0), width),
        WIDTH=WIDTH,
    )
    return out


@triton.jit
def _silu_mul(x_ptr, out_ptr, stride_x, width, WIDTH: tl.constexpr, OVERLAPPED: tl.constexpr):
    wait(OVERLAPPED)
    let_next_come(OVERLAPPED)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = columns < width
    gate = tl.load(x_ptr + row * stride_x + columns, inside, other=0.0).to(tl.float32)
    up = tl.load(x_ptr + row * stride_x + width + columns, inside, other=0.0).to(tl.float32)
    y = silu_times(gate, up).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * width + columns, y, inside)


def gelu(x: Tensor) -> Tensor:
    """See Ops.gelu."""
    rows, width = x.shape
    assert x.stride(1) == 1, x.stride()
    out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    start(_gelu, (rows, triton.cdiv(width, WIDTH)), *(x, out, x.stride(0), width), WIDTH=WIDTH)
    return out


@triton.jit
def _gelu(x_ptr, out_ptr, stride_x, width, WIDTH: tl.constexpr, OVERLAPPED: tl.constexpr):
    wait(OVERLAPPED)
    let_next_come(OVERLAPPED)
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    inside = columns < width
    x = tl.load(x_ptr + row * stride_x + columns, inside, other=0.0).to(tl.float32)
    z = tl.abs(x)
    t = tl.div_rn(tl.full(z.shape, 1.0, tl.float32), z * _TAIL_SLOPE + 1.0)
    p = fma(tl.full(t.shape, _T7, tl.float32), t, _T6)
    p = fma(p, t, _T5)
    p = fma(p, t, _T4)
    p = fma(p, t, _T3)
    p = fma(p, t, _T2)
    p = fma(p, t, _T1)
    p = fma(p, t, _T0)
    q = (t * p) * exp2(-((z * z) * _HALF_LOG2_E))
    y = x * tl.where(x < 0.0, q, 1.0 - q)
    tl.store(out_ptr + row * width + columns, y.to(out_ptr.dtype.element_ty), inside)
