"""Matrix multiplication on the GPU. Twin of `reference.linear`, with an order of its own.

The sum over K of one row and column is one chain in float32: the matrix unit's products of 16
elements, from left to right. No tile size and no kernel changes it, so which of them computes a row
is free, and is chosen by the number of rows: few rows are a stream of weights, many are arithmetic.
On the exact lattice the result equals the reference's.

K segments are multiplied apart, rounded, and added by the reference's own tree.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ...reference.activation import LEAST_NORMAL
from ...reference.linear import add_tree, check_linear, cut_segments
from ...reference.ops import PackedLinear
from ...reference.sums import Sums, round_sums
from .activation import silu_times
from .launch import let_next_come, num_processors, start, wait, wait_at_0
from .tiles import choose_tiles

GROUP_ROWS = 8
"""Tiles of rows that share a pass over the weights."""
WOVEN = 8
"""Rows of gates, then rows of ups, that lie side by side in a gated weight: columns of a result
that one thread of a matrix unit holds, so that gating a tile moves nothing."""
FEW_ROWS = tl.constexpr(16)
"""Rows of a tile up to which a product is a stream of weights."""
_LEAST_NORMAL = tl.constexpr(LEAST_NORMAL)


def pack_linear(
    weight: Tensor,
    bias: Tensor | None,
    *,
    segments: int = 1,
    is_gated: bool = False,
    sums: Sums = "pairs",
) -> PackedLinear:
    """See Ops.pack_linear. A segment is [out, in] dtype, not a copy where it is contiguous.

    Gated: rows are woven, WOVEN gates and WOVEN ups in turn.
    """
    check_linear(weight, bias)
    bias = None if bias is None else bias.detach()
    if is_gated:
        assert segments == 1, segments
        weight = _weave(weight.detach())
        bias = None if bias is None else _weave(bias)
    return PackedLinear(
        in_features=weight.shape[1],
        out_features=weight.shape[0],
        segments=tuple(part.contiguous() for part in cut_segments(weight, segments)),
        bias=bias,
        sums=sums,
        is_gated=is_gated,
    )


def unpack_linear(weight: PackedLinear) -> tuple[Tensor, Tensor | None]:
    """See Ops.unpack_linear."""
    full = torch.cat(weight.segments, 1)
    if not weight.is_gated:
        return full, weight.bias
    return _unweave(full), None if weight.bias is None else _unweave(weight.bias)


def _weave(x: Tensor) -> Tensor:
    """Order x [gates and ups, ...] as WOVEN gates, WOVEN ups, and so on."""
    return x.view(2, -1, WOVEN, *x.shape[1:]).transpose(0, 1).reshape(x.shape)


def _unweave(x: Tensor) -> Tensor:
    return x.view(-1, 2, WOVEN, *x.shape[1:]).transpose(0, 1).reshape(x.shape)


def linear(x: Tensor, weight: PackedLinear) -> Tensor:
    """See Ops.linear."""
    assert not weight.is_gated, "a gated weight is for gated_linear"
    if len(weight.segments) == 1:
        return _multiply(x, weight.segments[0], weight.bias, is_gated=False)
    width = weight.in_features // len(weight.segments)
    parts = [
        _multiply(x[:, i * width : (i + 1) * width], segment, None, is_gated=False).float()
        for i, segment in enumerate(weight.segments)
    ]
    total = add_tree(parts)
    if weight.bias is not None:
        total = total + weight.bias.float()
    return round_sums(total, x.dtype)


def gated_linear(x: Tensor, weight: PackedLinear) -> Tensor:
    """See Ops.gated_linear."""
    assert weight.is_gated, "gated_linear needs a gated weight"
    return _multiply(x, weight.segments[0], weight.bias, is_gated=True)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, *, is_gated: bool) -> Tensor:
    """Multiply x [rows, in] by weight [out, in] -> [rows, out], gated: [rows, out / 2]."""
    rows, width = x.shape
    out_features = weight.shape[0]
    assert width == weight.shape[1] and x.dtype == weight.dtype, (x.shape, x.dtype, weight.shape)
    assert x.stride(1) == 1, x.stride()
    shape = (rows, out_features // 2 if is_gated else out_features)
    out = torch.empty(shape, dtype=x.dtype, device=x.device)
    tiles = choose_tiles(rows, out_features, width, x.dtype)
    bias_ptr = weight if bias is None else bias
    is_moved = tiles.copy_engine and _is_aligned(x)
    sources: tuple[Any, ...] = (x, weight)
    if is_moved:
        sources = (
            TensorDescriptor.from_tensor(x, [tiles.rows, tiles.k]),
            TensorDescriptor.from_tensor(weight, [tiles.out, tiles.k]),
        )
    num_tiles = triton.cdiv(rows, tiles.rows) * triton.cdiv(out_features, tiles.out)
    start(
        _multiply_moved if is_moved else _multiply_loaded,
        (min(num_tiles, num_processors() * tiles.programs) if is_moved else num_tiles,),
        *(*sources, bias_ptr, out, rows, out_features, width, x.stride(0)),
        ROWS=tiles.rows,
        OUT=tiles.out,
        K=tiles.k,
        GROUP=GROUP_ROWS,
        IS_EVEN=width % tiles.k == 0,
        HAS_BIAS=bias is not None,
        IS_GATED=is_gated,
        WOVEN=WOVEN,
        warps=tiles.warps,
        stages=tiles.stages,
    )
    return out


def _is_aligned(x: Tensor) -> bool:
    """Return whether the copy engine can read x: whole 16 bytes everywhere."""
    return x.stride(0) % 8 == 0 and x.shape[1] % 8 == 0 and x.data_ptr() % 16 == 0


@triton.jit
def _tile_of(
    program, rows, out_features, ROWS: tl.constexpr, OUT: tl.constexpr, GROUP: tl.constexpr
):
    """Return the tile (row, column) of a program: columns of GROUP tiles of rows, one by one."""
    row_tiles, out_tiles = tl.cdiv(rows, ROWS), tl.cdiv(out_features, OUT)
    group = program // (GROUP * out_tiles)
    first = group * GROUP
    size = tl.minimum(row_tiles - first, GROUP)
    inside = program % (GROUP * out_tiles)
    return first + inside % size, inside // size


@triton.jit
def _finish(
    total, row_tile, out_tile, bias_ptr, out_ptr, rows, out_features,
    ROWS: tl.constexpr, OUT: tl.constexpr, HAS_BIAS: tl.constexpr, IS_GATED: tl.constexpr,
    WOVEN: tl.constexpr,
):  # fmt: skip
    """Add the bias, round, gate, and store a tile."""
    kind: tl.constexpr = out_ptr.dtype.element_ty
    if HAS_BIAS:
        column = out_tile * OUT + tl.arange(0, OUT)
        bias = tl.load(bias_ptr + column, column < out_features, other=0.0)
        total += bias.to(tl.float32)[None, :]
    result = _round(total, kind)
    width: tl.constexpr = OUT // 2 if IS_GATED else OUT
    if IS_GATED:
        pairs = result.to(tl.float32).reshape(ROWS, OUT // (2 * WOVEN), 2, WOVEN)
        gate, up = pairs.permute(0, 1, 3, 2).split()
        result = silu_times(gate, up).reshape(ROWS, width).to(kind)
        out_features = out_features // 2
    row = row_tile * ROWS + tl.arange(0, ROWS)
    column = out_tile * width + tl.arange(0, width)
    place_ptr = out_ptr + row[:, None].to(tl.int64) * out_features + column[None, :]
    tl.store(place_ptr, result, (row < rows)[:, None] & (column < out_features)[None, :])


@triton.jit
def _round(total, KIND: tl.constexpr):
    """Round float32 sums; in bfloat16, denormals become zero."""
    if tl.float32 == KIND:
        return total
    return tl.where(tl.abs(total) < _LEAST_NORMAL, total * 0.0, total).to(KIND)


@triton.jit(do_not_specialize=["rows"])
def _multiply_loaded(
    x_ptr, weight_ptr, bias_ptr, out_ptr, rows, out_features, width, stride_x,
    ROWS: tl.constexpr, OUT: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr,
    IS_EVEN: tl.constexpr, HAS_BIAS: tl.constexpr, IS_GATED: tl.constexpr, WOVEN: tl.constexpr,
    OVERLAPPED: tl.constexpr,
):  # fmt: skip
    """One tile, loaded by threads: any shape, any dtype."""
    wait(OVERLAPPED)
    row_tile, out_tile = _tile_of(tl.program_id(0), rows, out_features, ROWS, OUT, GROUP)
    row = row_tile * ROWS + tl.arange(0, ROWS)
    column = out_tile * OUT + tl.arange(0, OUT)
    # Rows beyond the edge are not read: all programs would meet in the same lines of x. Weights
    # beyond it are read again from row 0, and not stored.
    live = (row < rows)[:, None]
    column = tl.where(column < out_features, column, 0).to(tl.int64)
    k = tl.arange(0, K)
    x_ptr += row[:, None].to(tl.int64) * stride_x + k[None, :]
    weight_ptr += column[None, :] * width + k[:, None]
    total = tl.zeros([ROWS, OUT], tl.float32)
    for first in range(0, width, K):
        if IS_EVEN:
            x = tl.load(x_ptr + first, live, other=0.0)
            weight = tl.load(weight_ptr + first)
        else:
            inside = k < width - first
            x = tl.load(x_ptr + first, live & inside[None, :], other=0.0)
            weight = tl.load(weight_ptr + first, inside[:, None], other=0.0)
        total = tl.dot(x, weight, total, input_precision="ieee")
    let_next_come(OVERLAPPED)
    _finish(
        total, row_tile, out_tile, bias_ptr, out_ptr, rows, out_features,
        ROWS, OUT, HAS_BIAS, IS_GATED, WOVEN,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows"])
def _multiply_moved(
    x_tiles, weight_tiles, bias_ptr, out_ptr, rows, out_features, width, stride_x,
    ROWS: tl.constexpr, OUT: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr,
    IS_EVEN: tl.constexpr, HAS_BIAS: tl.constexpr, IS_GATED: tl.constexpr, WOVEN: tl.constexpr,
    OVERLAPPED: tl.constexpr,
):  # fmt: skip
    """Every n-th tile, moved by the copy engine, which gives zeros beyond the edges.

    Few rows: the first weights are on their way before the wait.
    """
    IS_EARLY: tl.constexpr = ROWS <= FEW_ROWS
    if not IS_EARLY:
        wait(OVERLAPPED)
    num_tiles = tl.cdiv(rows, ROWS) * tl.cdiv(out_features, OUT)
    for tile in tl.range(tl.program_id(0), num_tiles, tl.num_programs(0), flatten=True):
        row_tile, out_tile = _tile_of(tile, rows, out_features, ROWS, OUT, GROUP)
        total = tl.zeros([ROWS, OUT], tl.float32)
        for first in range(0, width, K):
            weight = weight_tiles.load([out_tile * OUT, first])
            x_first = wait_at_0(first, K, OVERLAPPED) if IS_EARLY else first
            x = x_tiles.load([row_tile * ROWS, x_first])
            total = tl.dot(x, weight.T, total)
        _finish(
            total, row_tile, out_tile, bias_ptr, out_ptr, rows, out_features,
            ROWS, OUT, HAS_BIAS, IS_GATED, WOVEN,
        )  # fmt: skip
    let_next_come(OVERLAPPED)
