"""Repairs of Triton's interpreter (3.6 to 3.9), so that kernels can be tested without a GPU.

`install` replaces what is wrong or differs from a GPU in a way that would hide or feign a fault:

* A dot is what a matrix unit does: one chain in float32 from the accumulator on, a step for every
  DOT_STEP elements of K, whose products are added up in float64 and rounded once. No result depends
  on a BLAS, on the shape of a tile or on a row's place in it. Operands of "tf32" are rounded to it.
  Sums over an axis are added up in float64 and rounded once.
* bfloat16, stored as 16 bits, takes part in arithmetic by its value, not as an integer, and a cast
  to it rounds to the nearest, ties to even.
* A comparison is of type int1: the stock one keeps the type of what it compares, and as a mask that
  is one scalar for all it fails.
* tl.fma rounds once. `/`, tl.sqrt and tl.rsqrt, which a GPU approximates, are rounded twice here,
  so that a kernel which needs the exact ones (tl.div_rn, tl.sqrt_rn) and forgets them is found.
* NaN and infinities raise no warning. The greatest of nothing but NaN is NaN.
* What costs time and changes no result is left out: the language is patched once, not anew in each
  call of a device function, and additions are not done twice to look for overflows.

Only tests import this module, with TRITON_INTERPRET=1 set before triton is imported. It leans on
private names; tests/gpu/test_interpreter.py fails where a version of Triton undoes it.
"""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from ..reference.activation import fma

Builder: Any = interpreter.InterpreterBuilder
Handle: Any = interpreter.TensorHandle
Reduce: Any = interpreter.ReduceOps
Executor: Any = interpreter.GridExecutor
Array = np.ndarray[Any, Any]

_stock = SimpleNamespace(
    cast=Builder.cast_impl,
    convert=Builder.create_fp_to_fp,
    binary=Builder.binary_op,
    unary=Builder.unary_op,
    dot=Builder.create_dot,
    fma=Builder.create_fma,
    run=Executor.__call__,
    patch=interpreter._patch_lang,
)
DOT_STEP = 16
"""Elements of K in one instruction on bfloat16."""
_TF32_DROPPED = 13
"""Low bits of a float32 that tf32 has not."""


def install() -> None:
    """Repair the interpreter of this process, for good."""
    Builder.cast_impl = _cast
    for name in ("si_to_fp", "ui_to_fp", "fp_to_si", "fp_to_ui", "fp_ext", "fp_trunc"):
        setattr(Builder, f"create_{name}", _cast)
    Builder.create_fp_to_fp = _convert
    Builder.get_bf16 = _make_bfloat16
    Builder.binary_op, Builder.unary_op = _binary, _unary
    Builder.create_fadd = lambda self, lhs, rhs: self.binary_op(lhs, rhs, np.add)
    Builder.create_fdiv = _divide_nearly
    Builder.create_sqrt, Builder.create_rsqrt = _sqrt_nearly, _rsqrt_nearly
    Builder.create_dot, Builder.create_fma = _dot, _fma
    Reduce.sum, Reduce.min_max = _sum, _min_max
    Executor.__call__ = _run
    builder = interpreter.interpreter_builder
    builder.options = replace(builder.options, sanitize_overflow=False)
    _patch_language()


def widen(handle: Any) -> Array:
    """Return the values of a handle: float32 of bfloat16, all else as it is stored."""
    data: Array = handle.data
    if handle.dtype.scalar != tl.bfloat16:
        return data
    return (data.astype(np.uint32) << 16).view(np.float32)


def narrow(x: Array) -> Array:
    """Return the bits of bfloat16 nearest to x, ties to even; NaN stays NaN."""
    words = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32).reshape(np.shape(x))
    rounded = (words + np.uint32(0x7FFF) + ((words >> 16) & 1)) >> 16
    return np.where(np.isnan(x), np.uint16(0x7FC0), rounded.astype(np.uint16))


def _has_bfloat16(*dtypes: Any) -> bool:
    return any(dtype.scalar == tl.bfloat16 for dtype in dtypes)


def _make(data: Array, dtype: Any) -> Any:
    """Make a handle of a numeric type from values."""
    if dtype.scalar == tl.bfloat16:
        return Handle(narrow(data), tl.bfloat16)
    return Handle(data.astype(interpreter._get_np_dtype(dtype.scalar)), dtype.scalar)


def _cast(self: Any, src: Any, dst_type: Any, *_: Any) -> Any:
    if _has_bfloat16(src.dtype, dst_type):
        return _make(widen(src), dst_type)
    return _stock.cast(self, src, dst_type)


def _convert(self: Any, src: Any, dst_type: Any, rounding_mode: Any) -> Any:
    if _has_bfloat16(src.dtype, dst_type):
        return _make(widen(src), dst_type)
    return _stock.convert(self, src, dst_type, rounding_mode)


def _make_bfloat16(_: Any, value: float) -> Any:
    return Handle(narrow(np.array([value], dtype=np.float32)), tl.bfloat16)


def _binary(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
    if _has_bfloat16(lhs.dtype) and _has_bfloat16(rhs.dtype):
        output = op(widen(lhs), widen(rhs))
        result = Handle(output if output.dtype == np.bool_ else narrow(output), tl.bfloat16)
    else:
        result = _stock.binary(self, lhs, rhs, op)
    if result.data.dtype == np.bool_:
        result.dtype = tl.int1
    return result


def _unary(self: Any, arg: Any, op: Any) -> Any:
    if not _has_bfloat16(arg.dtype):
        return _stock.unary(self, arg, op)
    return _make(op(widen(arg)), arg.dtype)


def _divide_nearly(self: Any, lhs: Any, rhs: Any) -> Any:
    if lhs.data.dtype != np.float32:
        return self.binary_op(lhs, rhs, np.divide)
    product = lhs.data * (np.float32(1) / rhs.data)
    # A reciprocal overflows or vanishes where the quotient need not: a GPU scales such divisors.
    exact = lhs.data / rhs.data
    return _make(
        np.where(np.isclose(product, exact, rtol=1e-6, atol=0), product, exact), tl.float32
    )


def _sqrt_nearly(self: Any, arg: Any) -> Any:
    if arg.data.dtype != np.float32:
        return self.unary_op(arg, np.sqrt)
    root = np.sqrt(arg.data)
    return _make(np.where(root == 0, root, arg.data * (np.float32(1) / root)), tl.float32)


def _rsqrt_nearly(self: Any, arg: Any) -> Any:
    return self.unary_op(arg, lambda x: np.float32(1) / np.sqrt(x))


def _dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, *rest: Any) -> Any:
    if (
        d.data.dtype != np.float32
        or min(a.dtype.primitive_bitwidth, b.dtype.primitive_bitwidth) < 16
    ):
        return _stock.dot(self, a, b, d, input_precision, *rest)
    left, right = widen(a), widen(b)
    if left.dtype == np.float32 and "TF32" in str(input_precision) and not _has_bfloat16(a.dtype):
        left, right = _round_to_tf32(left), _round_to_tf32(right)
    # By torch, which keeps to one thread where it is told to.
    wide_a, wide_b = (torch.from_numpy(x.astype(np.float64, order="C")) for x in (left, right))
    total = torch.from_numpy(np.array(d.data))
    for k in range(0, left.shape[-1], DOT_STEP):
        step = slice(k, k + DOT_STEP)
        total = (torch.matmul(wide_a[..., step], wide_b[..., step, :]) + total).float()
    return Handle(total.numpy(), tl.float32)


def _round_to_tf32(x: Array) -> Array:
    words = np.ascontiguousarray(x).view(np.uint32)
    half = np.uint32((1 << (_TF32_DROPPED - 1)) - 1) + ((words >> _TF32_DROPPED) & 1)
    rounded = ((words + half) >> _TF32_DROPPED << _TF32_DROPPED).view(np.float32)
    return np.where(np.isfinite(x), rounded, x)


def _fma(self: Any, x: Any, y: Any, z: Any) -> Any:
    if z.data.dtype == np.float32:
        wide = [
            torch.from_numpy(np.array(part)) for part in np.broadcast_arrays(x.data, y.data, z.data)
        ]
        return Handle(fma(*wide).numpy(), tl.float32)
    if _has_bfloat16(z.dtype):
        exact = widen(x).astype(np.float64) * widen(y) + widen(z)
        return _make(exact, tl.bfloat16)
    return _stock.fma(self, x, y, z)


def _sum(self: Any, operand: Any) -> Any:
    data = widen(operand.handle)
    if data.dtype == np.float32:
        data = data.astype(np.float64)
    total = np.sum(data, axis=self.axis, keepdims=self.keep_dims)
    if _has_bfloat16(operand.dtype):
        total = narrow(np.asarray(total))
    return self.to_tensor(total, operand.dtype)


def _min_max(self: Any, operand: Any, val_reduce_op: Any, idx_reduce_op: Any = None) -> Any:
    """Twin of the stock one, which raises or warns where all is NaN."""
    operand = operand[0] if isinstance(operand, tuple) else operand
    data = operand.handle.data
    is_max = np.nanmax in (val_reduce_op,) or np.nanargmax in (idx_reduce_op,)
    keep = {"axis": self.axis, "keepdims": self.keep_dims}
    results = []
    if val_reduce_op is not None:
        best = (np.fmax if is_max else np.fmin).reduce(data, **keep)
        results.append(self.to_tensor(best, operand.dtype))
    if idx_reduce_op is not None:
        if data.dtype.kind == "f":
            data = np.where(np.isnan(data), -np.inf if is_max else np.inf, data)
        index = (np.argmax if is_max else np.argmin)(data, **keep)
        results.append(self.to_tensor(index, tl.int32))
    return tuple(results) if len(results) > 1 else results[0]


def _run(self: Any, *args: Any, **kwargs: Any) -> None:
    with np.errstate(all="ignore"):
        _stock.run(self, *args, **kwargs)


class _Nothing:
    """What stands for a scope of patches: there is nothing to restore."""

    def restore(self) -> None:
        """Do nothing."""


def _patch_language() -> None:
    """Patch the language under both of its names, as is done for each kernel and then undone."""

    kernel = SimpleNamespace(__globals__={"tl": tl, "core": tl.core})
    _stock.patch(kernel)
    tl.tensor.__index__ = lambda self: int(self.handle.data.squeeze())
    interpreter._patch_lang = lambda _: _Nothing()
