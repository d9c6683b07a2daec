"""Multiplication by a blocked weight, in explicit SIMD: vectors of 16 columns.

A blocked weight is [blocks, steps, COLUMNS] steps of 4 bytes (one float32 or a pair of bfloat16),
block b holding output columns b * COLUMNS on, zeros behind the last; its four vectors lie apart,
[blocks, VECTORS, steps, LANES], where they are read one after the other: for sums in tiles, and in
narrow registers. One block is read once for all rows of a step: from memory by the first register
tile, from the second-level cache by the others, which meanwhile ask for the next block. So a few
rows cost what reading the weight costs. Where no instruction takes bfloat16, rows are widened
first, once for all blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba import types
from torch import Tensor
from torch.nn.functional import pad

from ...reference.linear import CHUNK
from ...reference.sums import TILE
from .emit import (
    FLOAT,
    I32,
    I32S,
    I64,
    LANES,
    NARROW,
    STEP_BYTES,
    TILES,
    VECTOR_BYTES,
    Emit,
    emitted,
)
from .launch import compiled, inlined, run_ranges
from .simd import bfloat16s, cgutils, float32s, widen

VECTORS = 4
COLUMNS = 16 * VECTORS
"""Output columns of a block."""
MAX_TILE_ROWS = 6
"""Rows of a register tile: 6 x 4 vectors of sums leave room for the operands in 32 registers."""
GROUP_ROWS = 48
"""Rows whose sums are kept over the chunks of a block: 12 KiB."""
PANEL_BYTES = 300_000
"""Rows of x that stay in the second-level cache while all blocks pass."""
AHEAD_LINES = 2
"""Cache lines of the next block that a step of a register tile asks for."""
WIDENED_TAGS = ("int16", "int8", "int32", "int64")
WIDENED = tuple(getattr(types, name) for name in WIDENED_TAGS)
"""Of bfloat16 without an instruction: what takes a pair apart would cost as much as its sums."""
AHEAD_STEPS = 48
"""Steps that a register tile asks ahead, where it takes its vectors one after the other."""
FIRST, LAST, BIASED = 1, 2, 4
"""Flags of a tile: its chunk is the first, the last; there is a bias."""


class _Call(NamedTuple):
    """Addresses and sizes of one call; columns: out_features."""

    x: int
    row_bytes: int
    step_bytes: int
    """Of a row as it is multiplied: STEP_BYTES, or twice as many of a widened one."""
    rows: int
    weight: int
    weight_bytes: int
    """Between the steps of a vector of the weight."""
    apart: int
    """Bytes between the vectors of a step."""
    steps: int
    chunk_steps: int
    bias: int
    y: int
    y_row_bytes: int
    columns: int
    element_bytes: int


def _tile(num_rows: int) -> Callable[..., None]:
    """Add the products of one chunk for num_rows rows and one block of columns.

    x: the chunk of the first row; weight: the first of steps, whose vectors are `apart` bytes apart
    from each other; ahead: what to ask for meanwhile, AHEAD_LINES lines for each step; sums:
    [num_rows, COLUMNS] float32, what the chunks before have left (unless FIRST) and what comes next
    will find (unless LAST); bias: [COLUMNS] (if BIASED); target: [num_rows, COLUMNS] elements, its
    rows target_bytes apart (if LAST).
    """

    def emit(
        e: Emit, x: Any, row_bytes: Any, weight: Any, steps: Any, ahead: Any, *rest: Any
    ) -> None:
        b = e.b
        apart, sums, flags, bias, target, target_bytes = rest
        totals = [
            [cgutils.alloca_once_value(b, e.floats(0.0)) for _ in range(VECTORS)]
            for _ in range(num_rows)
        ]
        rows = [e.address(x, e.times(row_bytes, i)) for i in range(num_rows)]

        def load(step: Any, first: int, end: int) -> tuple[list[Any], list[Any]]:
            is_apart = lies_apart(e.tag)
            base = e.address(weight, e.times(step, VECTOR_BYTES * (1 if is_apart else VECTORS)))
            offsets = [e.times(apart, j) for j in range(first, end)]
            w = [e.load(e.address(base, offset), I32S) for offset in offsets]
            if end - first < VECTORS:  # one of several passes: its lines come one after the other
                for offset in offsets:
                    e.prefetch(e.address(base, offset, AHEAD_STEPS * VECTOR_BYTES))
            else:
                coming = e.address(ahead, e.times(step, AHEAD_LINES * VECTOR_BYTES))
                for line in range(AHEAD_LINES):
                    e.prefetch(e.address(coming, line * VECTOR_BYTES))
            return [_load_splat(e, row, step) for row in rows], w

        with e.flush_modes(totals):
            for first, end in e.at_once(num_rows, VECTORS):
                some = [row[first:end] for row in totals]
                span = (ir.Constant(I64, 0), steps)
                e.sum_products(some, span, partial(load, first=first, end=end), TILE // 2)
        saved = [
            [e.address(sums, (i * VECTORS + j) * VECTOR_BYTES) for j in range(VECTORS)]
            for i in range(num_rows)
        ]
        with b.if_then(b.not_(_has(e, flags, FIRST))):
            _for_all(totals, saved, lambda total, place: _add_to(e, total, e.load(place)))
        with b.if_else(_has(e, flags, LAST)) as (last, between):
            with last:
                _finish(e, totals, flags, bias, target, target_bytes)
            with between:
                _for_all(totals, saved, lambda total, place: e.store(b.load(total), place))

    return emit


def _load_splat(e: Emit, row: Any, step: Any) -> Any:
    """Return a step of a row in all lanes; of a widened row its halves, the odd one first."""
    if e.tag not in WIDENED:
        return e.splat(e.load(e.address(row, e.times(step, STEP_BYTES)), I32))
    place = e.address(row, e.times(step, 2 * STEP_BYTES))
    return tuple(e.splat(e.load(e.address(place, half), FLOAT)) for half in (STEP_BYTES, 0))


def _has(e: Emit, flags: Any, flag: int) -> Any:
    return e.b.trunc(e.b.lshr(flags, ir.Constant(I64, flag.bit_length() - 1)), ir.IntType(1))


def _for_all(
    rows: list[list[Any]], others: list[list[Any]], act: Callable[[Any, Any], Any]
) -> None:
    for row, other in zip(rows, others, strict=True):
        for value, partner in zip(row, other, strict=True):
            act(value, partner)


def _add_to(e: Emit, total: Any, x: Any) -> None:
    """Add a vector to the one in a stack place."""
    e.b.store(e.b.fadd(e.b.load(total), x), total)


def _finish(
    e: Emit, totals: list[list[Any]], flags: Any, bias: Any, target: Any, target_bytes: Any
) -> None:
    """Add bias to the sums of a tile and round them into target."""
    size = VECTOR_BYTES if e.tag == types.float32 else VECTOR_BYTES // 2
    with e.b.if_then(_has(e, flags, BIASED)):
        for j in range(VECTORS):
            x = e.load_wide(e.address(bias, j * size))
            for row in totals:
                _add_to(e, row[j], x)
    for i, row in enumerate(totals):
        row_target = e.address(target, e.times(target_bytes, i))
        for j, total in enumerate(row):
            e.store_rounded(e.b.load(total), e.address(row_target, j * size))


_tile_1, _tile_2, _tile_3, _tile_4, _tile_5, _tile_6 = (
    emitted(_tile(rows), fused=True) for rows in range(1, MAX_TILE_ROWS + 1)
)


@inlined
def _multiply_tile(tag: Any, rows: int, args: Any) -> None:
    if rows == 6:
        _tile_6(tag, args)
    elif rows == 5:
        _tile_5(tag, args)
    elif rows == 4:
        _tile_4(tag, args)
    elif rows == 3:
        _tile_3(tag, args)
    elif rows == 2:
        _tile_2(tag, args)
    else:
        _tile_1(tag, args)


@inlined
def _add_chunk(tag: Any, call: _Call, place: Any, rows: Any, sums: int, out: Any) -> None:
    """Add the products of a chunk (block, first step) for some rows, in tiles of equal height.

    rows: address, bytes between rows, number; sums: of all these rows; out: address and bytes
    between rows, where the last chunk leaves them.
    """
    block, start = place
    x, row_bytes, num_rows = rows
    target, target_bytes = out
    steps = min(call.chunk_steps, call.steps - start)
    weight = call.weight + block * call.steps * VECTORS * VECTOR_BYTES + start * call.weight_bytes
    bias = call.bias + block * COLUMNS * call.element_bytes
    last = LAST | (BIASED if call.bias else 0)
    flags = (FIRST if start == 0 else 0) | (last if start + steps == call.steps else 0)
    x += start * call.step_bytes
    tiles = (num_rows + MAX_TILE_ROWS - 1) // MAX_TILE_ROWS
    height, taller = num_rows // tiles, num_rows % tiles
    # The first tile reads from memory itself; the others ask for what comes next, a share each.
    share = steps * AHEAD_LINES * VECTOR_BYTES
    next_weight = weight + steps * VECTORS * VECTOR_BYTES
    ahead = weight
    for tile in range(tiles):
        tile_rows = height + (1 if tile < taller else 0)
        args = (x, row_bytes, weight, steps, ahead, call.apart, sums, flags, bias)
        _multiply_tile(tag, tile_rows, (*args, target, target_bytes))
        x += tile_rows * row_bytes
        sums += tile_rows * VECTORS * VECTOR_BYTES
        target += tile_rows * target_bytes
        asked = tile * share
        ahead = next_weight + asked if asked < next_weight - weight else weight


@inlined
def _copy_rows(call: _Call, block: int, rows: Any, source: int) -> None:
    """Copy rows (first, number) of the last block, of which not every column is wanted, into y."""
    first_row, num_rows = rows
    column = block * COLUMNS
    width = call.columns - column
    for row in range(num_rows):
        place = source + row * COLUMNS * call.element_bytes
        target = call.y + (first_row + row) * call.y_row_bytes + column * call.element_bytes
        if call.element_bytes == 4:
            float32s(target, width)[:] = float32s(place, width)
        else:
            bfloat16s(target, width)[:] = bfloat16s(place, width)


@inlined
def _widen_rows(x: int, row_bytes: int, wide: int, rows: int, width: int) -> None:
    """Write rows of bfloat16 as float32 [rows, width]."""
    for row in range(rows):
        narrow, target = (
            bfloat16s(x + row * row_bytes, width),
            float32s(wide + row * width * 4, width),
        )
        for i in range(width):
            target[i] = widen(narrow[i])


def _multiply(tag: Any, args: tuple[int, ...], start: int, end: int) -> None:
    """Multiply all rows by blocks [start, end)."""
    call = _Call(*args)
    groups = max(1, PANEL_BYTES // (GROUP_ROWS * call.steps * call.step_bytes))
    panel_rows = max(1, min(groups * GROUP_ROWS, call.rows))
    is_widened = call.step_bytes > STEP_BYTES
    row_bytes = call.steps * call.step_bytes if is_widened else call.row_bytes
    width = 2 * call.steps if is_widened else 0
    memory = np.empty(2 * GROUP_ROWS * COLUMNS + panel_rows * width, np.float32)
    sums: Any = np.int64(memory.ctypes.data)  # a plain address is unsigned
    narrow = sums + GROUP_ROWS * COLUMNS * 4
    for panel in range(0, call.rows, panel_rows):
        panel_end = min(panel + panel_rows, call.rows)
        x = call.x + panel * call.row_bytes
        if is_widened:
            wide = narrow + GROUP_ROWS * COLUMNS * 4
            _widen_rows(x, call.row_bytes, wide, panel_end - panel, width)
            x = wide
        for block in range(start, end):
            whole = (block + 1) * COLUMNS <= call.columns
            for row in range(panel, panel_end, GROUP_ROWS):
                num_rows = min(GROUP_ROWS, panel_end - row)
                rows = (x + (row - panel) * row_bytes, row_bytes, num_rows)
                out = (narrow, COLUMNS * call.element_bytes)
                if whole:
                    target = call.y + row * call.y_row_bytes + block * COLUMNS * call.element_bytes
                    out = (target, call.y_row_bytes)
                for step in range(0, call.steps, call.chunk_steps):
                    _add_chunk(tag, call, (block, step), rows, sums, out)
                if not whole:
                    _copy_rows(call, block, (row, num_rows), narrow)
    memory[0] = 0  # The last use of the owner: its memory must live until here.


def lies_apart(tag: Any) -> bool:
    """Tell whether the vectors of a block lie apart, for a tag or its type."""
    return NARROW or str(tag) in TILES


@cache
def _kernel(tag: str) -> Any:
    """Compile for a tag of kernels.cpu.emit, on first use."""
    signature = f"void({tag}, UniTuple(int64, {len(_Call._fields)}), int64, int64)"
    return compiled(signature)(_multiply)


def block_weight(
    weight: Tensor, *, unit: int, is_apart: bool = False, empty: Callable[..., Tensor] = torch.empty
) -> Tensor:
    """Return weight [out, in], float32 or bfloat16, blocked: [blocks, steps, COLUMNS, pair] dtype.

    A step holds `pair` elements of a row, 2 of bfloat16; in_features is filled up with zeros to a
    multiple of unit, which is one of pair. is_apart: [blocks, VECTORS, steps, LANES, pair], as
    `lies_apart` asks for. empty(shape, dtype=) gives the memory.
    """
    out_features, in_features = weight.shape
    pair = STEP_BYTES // weight.element_size()
    weight = pad(weight, (0, -in_features % unit))
    blocks, steps = -(-out_features // COLUMNS), weight.shape[1] // pair
    shape = (blocks, VECTORS, steps, LANES) if is_apart else (blocks, steps, COLUMNS)
    blocked = empty((*shape, pair), dtype=weight.dtype)
    columns = _by_column(blocked)
    whole = out_features // COLUMNS
    columns[:whole] = weight[: whole * COLUMNS].view(columns[:whole].shape)
    if whole < blocks:
        last = pad(weight[whole * COLUMNS :], (0, 0, 0, -out_features % COLUMNS))
        columns[whole] = last.view(columns[whole].shape)
    return blocked


def unblock_weight(blocked: Tensor, out_features: int, in_features: int) -> Tensor:
    """Return the weight [out, in] that block_weight took, of whichever form."""
    whole = _by_column(blocked).flatten(0, 2).flatten(1)
    return whole[:out_features, :in_features].contiguous()


def _by_column(blocked: Tensor) -> Tensor:
    """View a blocked weight as [blocks, VECTORS, LANES, steps, pair]."""
    if blocked.dim() == 5:
        return blocked.transpose(2, 3)
    blocks, steps, _, pair = blocked.shape
    return blocked.view(blocks, steps, VECTORS, LANES, pair).permute(0, 2, 3, 1, 4)


def multiply(
    x: Tensor, blocked: Tensor, out_features: int, bias: Tensor | None, *, tag: str
) -> Tensor:
    """Multiply x [rows, in] (its rows may lie apart) by a blocked weight -> [rows, out_features].

    in: filled up as block_weight does, the weight in the form that `lies_apart` asks for; bias:
    [blocks * COLUMNS]; tag: of kernels.cpu.emit.
    """
    check_shapes(x, blocked, bias)
    is_apart = blocked.dim() == 5
    assert is_apart == lies_apart(tag), (tuple(blocked.shape), tag)
    rows = len(x)
    blocks, pair = len(blocked), blocked.shape[-1]
    steps = x.shape[1] // pair
    y = x.new_empty((rows, out_features))
    size = x.element_size()
    args = (
        x.data_ptr(),
        x.stride(0) * size,
        STEP_BYTES * (2 if tag in WIDENED_TAGS else 1),
        rows,
        blocked.data_ptr(),
        VECTOR_BYTES * (1 if is_apart else VECTORS),
        VECTOR_BYTES * (steps if is_apart else 1),
        steps,
        steps if tag in TILES else CHUNK // pair,
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        out_features * size,
        out_features,
        size,
    )
    kernel = _kernel(tag)
    # Eight nanoseconds a step where memory is the limit, one for each row where arithmetic is.
    work = blocks * steps * max(8, rows)
    run_ranges(lambda start, end: kernel(0, args, start, end), blocks, work)
    return y


def check_shapes(x: Tensor, blocked: Tensor, bias: Tensor | None) -> None:
    """Assert that the addresses of a call mean what kernels take them for."""
    blocks, width = len(blocked), x.shape[1]
    assert x.dtype == blocked.dtype and blocked.is_contiguous(), (x.dtype, blocked.dtype)
    assert blocked[0].numel() == width * COLUMNS, (x.shape, blocked.shape)
    assert x.stride(1) == 1 or width == 1, x.stride()
    assert bias is None or (bias.shape == (blocks * COLUMNS,) and bias.dtype == x.dtype), bias
