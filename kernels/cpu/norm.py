"""Twin of reference.norm. A row is widened into a float32 scratch row, summed, then scaled."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .launch import compiled, inlined, run_ranges
from .simd import LANES, bfloat16s, float32s, narrow, sum_lanes, sum_squares, widen

_ONE = np.float32(1.0)


@inlined
def reciprocal_rms(address: int, width: int, eps: float) -> Any:
    """Return 1 / sqrt(mean of squares + eps) of float32[width] at an address; eps is float32."""
    mean = sum_squares(address, width) / np.float32(width)
    return _ONE / np.sqrt(mean + eps)


@compiled("void(UniTuple(int64, 7), float32, int64, int64)")
def _norm_float32(args: tuple[int, ...], eps: float, start: int, end: int) -> None:
    x, x_stride, residual, residual_stride, weight, out, width = args
    w = float32s(weight, width)
    for row in range(start, end):
        address = x + row * x_stride * 4
        if residual != 0:
            added = float32s(address, width)
            address = residual + row * residual_stride * 4
            total = float32s(address, width)
            for i in range(width):
                total[i] = total[i] + added[i]
        r = reciprocal_rms(address, width, eps)
        values = float32s(address, width)
        y = float32s(out + row * width * 4, width)
        for i in range(width):
            y[i] = (values[i] * r) * w[i]


@compiled("void(UniTuple(int64, 7), float32, int64, int64)")
def _norm_bfloat16(args: tuple[int, ...], eps: float, start: int, end: int) -> None:
    x, x_stride, residual, residual_stride, weight, out, width = args
    w = bfloat16s(weight, width)
    scratch = np.empty(width, np.float32)
    for row in range(start, end):
        source = bfloat16s(x + row * x_stride * 2, width)
        if residual != 0:
            total = bfloat16s(residual + row * residual_stride * 2, width)
            for i in range(width):
                rounded = narrow(widen(total[i]) + widen(source[i]))
                total[i] = rounded
                scratch[i] = widen(rounded)
        else:
            for i in range(width):
                scratch[i] = widen(source[i])
        r = reciprocal_rms(scratch.ctypes.data, width, eps)
        y = bfloat16s(out + row * width * 2, width)
        for i in range(width):
            y[i] = narrow((scratch[i] * r) * widen(w[i]))


@inlined
def _centre(address: int, width: int) -> None:
    """Take the mean away from float32[width] at an address."""
    values = float32s(address, width)
    mean = sum_lanes(address, width) / np.float32(width)
    for i in range(width):
        values[i] = values[i] - mean


@compiled("void(UniTuple(int64, 8), float32, int64, int64)")
def _layer_norm_float32(args: tuple[int, ...], eps: float, start: int, end: int) -> None:
    x, x_stride, residual, residual_stride, weight, bias, out, width = args
    w, b = float32s(weight, width), float32s(bias, width)
    scratch = np.empty(width, np.float32)
    address = scratch.ctypes.data
    for row in range(start, end):
        source = float32s(x + row * x_stride * 4, width)
        if residual != 0:
            added = float32s(residual + row * residual_stride * 4, width)
            for i in range(width):
                scratch[i] = added[i] + source[i]
        else:
            for i in range(width):
                scratch[i] = source[i]
        _centre(address, width)
        r = reciprocal_rms(address, width, eps)
        y = float32s(out + row * width * 4, width)
        for i in range(width):
            y[i] = ((scratch[i] * r) * w[i]) + b[i]


@compiled("void(UniTuple(int64, 8), float32, int64, int64)")
def _layer_norm_bfloat16(args: tuple[int, ...], eps: float, start: int, end: int) -> None:
    x, x_stride, residual, residual_stride, weight, bias, out, width = args
    w, b = bfloat16s(weight, width), bfloat16s(bias, width)
    scratch = np.empty(width, np.float32)
    address = scratch.ctypes.data
    for row in range(start, end):
        source = bfloat16s(x + row * x_stride * 2, width)
        if residual != 0:
            added = bfloat16s(residual + row * residual_stride * 2, width)
            for i in range(width):
                scratch[i] = widen(narrow(widen(added[i]) + widen(source[i])))
        else:
            for i in range(width):
                scratch[i] = widen(source[i])
        _centre(address, width)
        r = reciprocal_rms(address, width, eps)
        y = bfloat16s(out + row * width * 2, width)
        for i in range(width):
            y[i] = narrow(((scratch[i] * r) * widen(w[i])) + widen(b[i]))


def _norm(x: Tensor, residual: Tensor | None, weight: Tensor, eps: float) -> Tensor:
    rows, width = x.shape
    assert width % LANES == 0 and weight.shape == (width,), (x.shape, weight.shape)
    assert x.dtype == weight.dtype and weight.is_contiguous(), (x.dtype, weight.dtype)
    if x.stride(1) != 1:
        x = x.contiguous()
    out = x.new_empty((rows, width))
    address, stride = 0, 0
    if residual is not None:
        assert residual.shape == x.shape and residual.dtype == x.dtype, (residual.shape, x.shape)
        assert residual.stride(1) == 1, residual.stride()
        address, stride = residual.data_ptr(), residual.stride(0)
    kernel = _norm_bfloat16 if x.dtype == torch.bfloat16 else _norm_float32
    args = (x.data_ptr(), x.stride(0), address, stride, weight.data_ptr(), out.data_ptr(), width)

    def call(start: int, end: int) -> None:
        kernel(args, eps, start, end)

    run_ranges(call, rows, rows * width)
    return out


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Twin of reference.norm.rms_norm."""
    return _norm(x, None, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Twin of reference.norm.add_rms_norm."""
    return _norm(x, residual, weight, eps)


def _layer_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float
) -> Tensor:
    rows, width = x.shape
    assert width % LANES == 0 and weight.shape == bias.shape == (width,), (x.shape, bias.shape)
    assert x.dtype == weight.dtype == bias.dtype, (x.dtype, weight.dtype, bias.dtype)
    assert weight.is_contiguous() and bias.is_contiguous(), (weight.stride(), bias.stride())
    if x.stride(1) != 1:
        x = x.contiguous()
    out = x.new_empty((rows, width))
    address, stride = 0, 0
    if residual is not None:
        assert residual.shape == x.shape and residual.dtype == x.dtype, (residual.shape, x.shape)
        if residual.stride(1) != 1:
            residual = residual.contiguous()
        address, stride = residual.data_ptr(), residual.stride(0)
    kernel = _layer_norm_bfloat16 if x.dtype == torch.bfloat16 else _layer_norm_float32
    weights = weight.data_ptr(), bias.data_ptr()
    args = (x.data_ptr(), x.stride(0), address, stride, *weights, out.data_ptr(), width)

    def call(start: int, end: int) -> None:
        kernel(args, eps, start, end)

    run_ranges(call, rows, rows * width)
    return out


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Twin of reference.norm.layer_norm."""
    return _layer_norm(x, None, weight, bias, eps)


def add_layer_norm(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Twin of reference.norm.add_layer_norm."""
    return _layer_norm(x, residual, weight, bias, eps)
