"""RMS and layer normalization on the GPU, with and without a residual. Twin of `reference.norm`.

One program a row. A sum is a tree that depends on the row's width alone, so it has other last bits
than the reference's 16 lanes, and the same whatever rows stand beside it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import let_next_come, next_power_of_2, start, wait


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See Ops.rms_norm."""
    return _normalize(x, x, weight, eps, is_adding=False)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See Ops.add_rms_norm."""
    return _normalize(x, residual, weight, eps, is_adding=True)


def _normalize(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, is_adding: bool
) -> Tensor:
    rows, width = x.shape
    assert x.stride(1) == residual.stride(1) == 1, (x.stride(), residual.stride())
    out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    block = next_power_of_2(width)
    start(
        _norm_rows,
        (rows,),
        *(x, residual, weight, out, x.stride(0), residual.stride(0), width, eps),
        IS_ADDING=is_adding,
        BLOCK=block,
        warps=min(16, max(1, block // 512)),
    )
    return out


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """See Ops.layer_norm."""
    return _centre_and_normalize(x, x, (weight, bias), eps, is_adding=False)


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """See Ops.add_layer_norm."""
    return _centre_and_normalize(x, residual, (weight, bias), eps, is_adding=True)


def _centre_and_normalize(
    x: Tensor, residual: Tensor, weights: tuple[Tensor, Tensor], eps: float, *, is_adding: bool
) -> Tensor:
    rows, width = x.shape
    assert x.stride(1) == residual.stride(1) == 1, (x.stride(), residual.stride())
    out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    block = next_power_of_2(width)
    start(
        _layer_norm_rows,
        (rows,),
        *(x, residual, *weights, out, x.stride(0), residual.stride(0), width, eps),
        IS_ADDING=is_adding,
        BLOCK=block,
        warps=min(16, max(1, block // 256)),
    )
    return out


@triton.jit
def _norm_rows(
    x_ptr, residual_ptr, weight_ptr, out_ptr, stride_x, stride_residual, width, eps,
    IS_ADDING: tl.constexpr, BLOCK: tl.constexpr, OVERLAPPED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)[None, :]
    inside = columns < width
    weight = tl.load(weight_ptr + columns, inside, other=0.0).to(tl.float32)
    wait(OVERLAPPED)
    let_next_come(OVERLAPPED)
    x = tl.load(x_ptr + row * stride_x + columns, inside, other=0.0).to(tl.float32)
    if IS_ADDING:
        place_ptr = residual_ptr + row * stride_residual + columns
        total = (tl.load(place_ptr, inside, other=0.0).to(tl.float32) + x).to(
            out_ptr.dtype.element_ty
        )
        tl.store(place_ptr, total, inside)
        x = total.to(tl.float32)
    mean = tl.div_rn(tl.sum(x * x, 1, keep_dims=True), width.to(tl.float32))
    r = tl.div_rn(tl.full([1, 1], 1.0, tl.float32), tl.sqrt_rn(mean + eps))
    y = (x * r) * weight
    tl.store(out_ptr + row * width + columns, y.to(out_ptr.dtype.element_ty), inside)


@triton.jit
def _layer_norm_rows(
    x_ptr, residual_ptr, weight_ptr, bias_ptr, out_ptr, stride_x, stride_residual, width, eps,
    IS_ADDING: tl.constexpr, BLOCK: tl.constexpr, OVERLAPPED: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)[None, :]
    inside = columns < width
    weight = tl.load(weight_ptr + columns, inside, other=0.0).to(tl.float32)
    wait(OVERLAPPED)
    let_next_come(OVERLAPPED)
    x = tl.load(x_ptr + row * stride_x + columns, inside, other=0.0).to(tl.float32)
    if IS_ADDING:
        place_ptr = residual_ptr + row * stride_residual + columns
        total = tl.load(place_ptr, inside, other=0.0).to(tl.float32) + x
        x = total.to(out_ptr.dtype.element_ty).to(tl.float32)
    mean = tl.div_rn(tl.sum(x, 1, keep_dims=True), width.to(tl.float32))
    x = tl.where(inside, x - mean, 0.0)
    variance = tl.div_rn(tl.sum(x * x, 1, keep_dims=True), width.to(tl.float32))
    r = tl.div_rn(tl.full([1, 1], 1.0, tl.float32), tl.sqrt_rn(variance + eps))
    bias = tl.load(bias_ptr + columns, inside, other=0.0).to(tl.float32)
    y = ((x * r) * weight) + bias
    tl.store(out_ptr + row * width + columns, y.to(out_ptr.dtype.element_ty), inside)
