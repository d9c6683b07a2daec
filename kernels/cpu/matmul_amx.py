"""Multiplication of bfloat16 by a blocked weight (see `matmul`) in the matrix unit.

Rows are brought into tiles first: 16 rows of 64 bytes lie side by side, in a memory of their own,
rows that do not exist are zeros. A register tile is 2 x 2 tiles of sums (1 x 4 for 16 rows or
less), which pass over all of K. While a block is multiplied the next one is asked for.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir
from torch import Tensor

from . import amx
from .amx import ROW_BYTES, TILE_BYTES, TILE_ROWS
from .emit import I64, Emit, emitted
from .launch import compiled, inlined, run_ranges
from .matmul import COLUMNS, VECTORS, check_shapes
from .simd import bfloat16s, cgutils, int64s

BLOCK_TILE_BYTES = VECTORS * TILE_BYTES
"""Bytes of a block that one tile of x meets."""
PANEL_BYTES = 600_000
"""Rows of x that stay in the second-level cache while all blocks pass."""
AHEAD_BYTES = 1024
"""How far ahead each of the four streams of a block is asked for; more is slower."""
_SUM_BYTES = 32 * 32 * 4
"""Also what 16 rows of 64 columns take."""
_A0, _A1, _B0, _B1 = 4, 5, 6, 7


class _Call(NamedTuple):
    """Addresses and sizes of one call; x: the tiles of rows [groups, tiles of K, 1 KiB]."""

    x: int
    rows: int
    weight: int
    tiles: int
    blocks: int
    bias: int
    y: int
    columns: int
    palette: int


def _begin(e: Emit, palette: Any) -> None:
    amx.configure(e, palette)


def _end(e: Emit, _: Any) -> None:
    amx.release(e)


def _finish(num_vectors: int) -> Any:
    """Round sums [rows, num_vectors * 16] float32 into target, whose rows lie target_bytes apart.

    bias: address, 0 for none.
    """

    def emit(e: Emit, sums: Any, bias: Any, target: Any, target_bytes: Any, rows: Any) -> None:
        b = e.b
        added = [cgutils.alloca_once_value(b, e.floats(0.0)) for _ in range(num_vectors)]
        is_biased = b.icmp_signed("!=", bias, ir.Constant(I64, 0))
        with b.if_then(is_biased):
            for j, place in enumerate(added):
                b.store(e.load_wide(e.address(bias, j * ROW_BYTES // 2)), place)
        with cgutils.for_range(b, rows) as loop:
            source = e.address(sums, e.times(loop.index, num_vectors * ROW_BYTES))
            row_target = e.address(target, b.mul(loop.index, target_bytes))
            for j, place in enumerate(added):
                x = e.load(e.address(source, j * ROW_BYTES))
                x = b.select(is_biased, b.fadd(x, b.load(place)), x)
                e.store_rounded(x, e.address(row_target, j * ROW_BYTES // 2))

    return emit


def _two_by_two(
    e: Emit, x: Any, weight: Any, tiles: Any, sums: Any, ahead: Any, lines: Any, *before: Any
) -> None:
    """Multiply two tiles of rows by 32 columns: sums [32, 32] float32.

    x, weight: the first tiles, those of the second row and column are `tiles` tiles behind; ahead:
    what to ask for meanwhile, `lines` lines for each tile of K; before: what `_finish` takes, of
    sums that are rounded while the last products of these are still on their way.
    """
    for register in range(4):
        amx.zero(e, register)
    below = e.address(x, e.times(tiles, TILE_BYTES))
    right = e.address(weight, e.times(tiles, TILE_BYTES))
    with cgutils.for_range(e.b, tiles) as loop:
        place = e.times(loop.index, TILE_BYTES)
        amx.load(e, _A0, e.address(x, place))
        amx.load(e, _B0, e.address(weight, place))
        amx.multiply(e, 0, _A0, _B0)
        amx.load(e, _B1, e.address(right, place))
        amx.multiply(e, 1, _A0, _B1)
        amx.load(e, _A1, e.address(below, place))
        amx.multiply(e, 2, _A1, _B0)
        amx.multiply(e, 3, _A1, _B1)
        line = e.b.mul(loop.index, e.times(lines, ROW_BYTES))
        amx.prefetch_lines(e, e.address(ahead, line), lines)
    _finish(2)(e, *before)
    for register in range(4):
        row, column = divmod(register, 2)
        place = e.address(sums, row * TILE_ROWS * 2 * ROW_BYTES + column * ROW_BYTES)
        amx.store(e, register, place, 2 * ROW_BYTES)


def _one_by_four(e: Emit, x: Any, weight: Any, tiles: Any, sums: Any) -> None:
    """Multiply a tile of rows by 64 columns, in four streams from memory: sums [16, 64] float32."""
    for register in range(4):
        amx.zero(e, register)
    streams = [e.address(weight, e.times(tiles, j * TILE_BYTES)) for j in range(VECTORS)]
    with cgutils.for_range(e.b, tiles) as loop:
        place = e.times(loop.index, TILE_BYTES)
        amx.load(e, _A0, e.address(x, place))
        for stream in streams:
            for line in range(TILE_BYTES // ROW_BYTES):
                e.prefetch(e.address(stream, place, AHEAD_BYTES + line * ROW_BYTES))
        for register, stream in enumerate(streams):
            b = _B0 if register % 2 == 0 else _B1
            amx.load(e, b, e.address(stream, place))
            amx.multiply(e, register, _A0, b)
    for register in range(4):
        amx.store(e, register, e.address(sums, register * ROW_BYTES), COLUMNS * 4)


_begin_amx = emitted(_begin)
_end_amx = emitted(_end)
_multiply_2x2 = emitted(_two_by_two)
_multiply_1x4 = emitted(_one_by_four)
_finish_2 = emitted(_finish(2))
_finish_4 = emitted(_finish(4))


@inlined
def _finish_rows(
    tag: Any, call: _Call, sums: int, place: tuple[int, int], size: tuple[int, int]
) -> None:
    """Write sums [rows, columns] float32 into y; place: first row and column; size: of sums."""
    row, column = place
    rows, width = size
    rows = min(rows, call.rows - row)
    target, target_bytes = call.y + (row * call.columns + column) * 2, call.columns * 2
    bias = call.bias + column * 2 if call.bias else 0
    if column + width <= call.columns:
        if width == 32:
            _finish_2(tag, (sums, bias, target, target_bytes, rows))
        else:
            _finish_4(tag, (sums, bias, target, target_bytes, rows))
        return
    # The last block, of which not every column is wanted: rounded where the sums are.
    if width == 32:
        _finish_2(tag, (sums, bias, sums, width * 2, rows))
    else:
        _finish_4(tag, (sums, bias, sums, width * 2, rows))
    wanted = max(0, call.columns - column)
    for i in range(rows):
        y = bfloat16s(target + i * target_bytes, wanted)
        y[:] = bfloat16s(sums + i * width * 2, wanted)


@inlined
def _multiply_tile(tag: Any, call: _Call, block: int, group: int, sums: int) -> None:
    """Multiply one tile of rows by one block."""
    weight = call.weight + block * call.tiles * BLOCK_TILE_BYTES
    _multiply_1x4(tag, (call.x + group * call.tiles * TILE_BYTES, weight, call.tiles, sums))
    _finish_rows(tag, call, sums, (group * TILE_ROWS, block * COLUMNS), (TILE_ROWS, COLUMNS))


class _Waiting(NamedTuple):
    """Sums [rows, 32] float32 that are still to be rounded: the arguments of `_finish`."""

    sums: int
    bias: int
    target: int
    target_bytes: int
    rows: int


@inlined
def _multiply_block(
    tag: Any, call: _Call, block: int, groups: tuple[int, int], waiting: _Waiting
) -> _Waiting:
    """Multiply two or more tiles of rows [groups) by one block; return what waits of it."""
    first, end = groups
    # The next block comes in equal shares.
    passes = (end - first + 1) // 2 * 2
    lines = (BLOCK_TILE_BYTES // ROW_BYTES + passes - 1) // passes
    if block + 1 == call.blocks:
        lines = 0
    ahead = call.weight + (block + 1) * call.tiles * BLOCK_TILE_BYTES
    for pair in range(first, end, 2):
        # An odd last tile is multiplied once more, beside the one before it.
        group = min(pair, end - 2)
        x = call.x + group * call.tiles * TILE_BYTES
        row = group * TILE_ROWS
        rows = min(32, call.rows - row)
        for half in range(2):
            weight = call.weight + (2 * block + half) * 2 * call.tiles * TILE_BYTES
            column = block * COLUMNS + half * 32
            sums = waiting.sums ^ _SUM_BYTES
            w = waiting
            before = (w.sums, w.bias, w.target, w.target_bytes, w.rows)
            _multiply_2x2(tag, (x, weight, call.tiles, sums, ahead, lines, *before))
            ahead += call.tiles * lines * ROW_BYTES
            if column + 32 <= call.columns:
                bias = call.bias + column * 2 if call.bias else 0
                target = call.y + (row * call.columns + column) * 2
                waiting = _Waiting(sums, bias, target, call.columns * 2, rows)
            else:
                _finish_rows(tag, call, sums, (row, column), (32, 32))
                waiting = _Waiting(sums, 0, 0, 0, 0)
    return waiting


def _multiply(tag: Any, args: tuple[int, ...], start: int, end: int) -> None:
    """Multiply all rows by blocks [start, end)."""
    call = _Call(*args)
    groups = (call.rows + TILE_ROWS - 1) // TILE_ROWS
    panel = max(2, PANEL_BYTES // (call.tiles * TILE_BYTES) // 2 * 2)
    memory = np.empty(4 * _SUM_BYTES, np.uint8)
    # Two places in turn, which differ in one bit.
    sums: Any = np.int64(memory.ctypes.data) // (2 * _SUM_BYTES) * (2 * _SUM_BYTES)
    waiting = _Waiting(sums + 2 * _SUM_BYTES, 0, 0, 0, 0)
    _begin_amx(tag, (call.palette,))
    for first in range(0, groups, panel):
        last = min(first + panel, groups)
        for block in range(start, end):
            if last - first == 1:
                _multiply_tile(tag, call, block, first, waiting.sums ^ _SUM_BYTES)
            else:
                waiting = _multiply_block(tag, call, block, (first, last), waiting)
    _finish_2(tag, (waiting.sums, waiting.bias, waiting.target, waiting.target_bytes, waiting.rows))
    _end_amx(tag, (0,))
    memory[0] = 0  # The last use of the owner: its memory must live until here.


@compiled("void(UniTuple(int64, 5), int64, int64)")
def _tile_rows(args: tuple[int, ...], start: int, end: int) -> None:
    """Bring groups [start, end) of rows into tiles."""
    x, row_bytes, rows, tiles, target = args
    words = ROW_BYTES // 8
    for group in range(start, end):
        for i in range(TILE_ROWS):
            row = group * TILE_ROWS + i
            for tile in range(tiles):
                place = target + ((group * tiles + tile) * TILE_ROWS + i) * ROW_BYTES
                to = int64s(place, words)
                if row < rows:
                    source = int64s(x + row * row_bytes + tile * ROW_BYTES, words)
                    for j in range(words):
                        to[j] = source[j]
                else:
                    for j in range(words):
                        to[j] = 0


@cache
def _kernel() -> Any:
    """Compile on first use: other processors have no such instructions."""
    return compiled(f"void(uint32, UniTuple(int64, {len(_Call._fields)}), int64, int64)")(_multiply)


@cache
def _palette() -> Tensor:
    return amx.make_palette({})


def multiply_amx(x: Tensor, blocked: Tensor, out_features: int, bias: Tensor | None) -> Tensor:
    """Multiply x [rows, in] bfloat16 (its rows may lie apart) -> [rows, out_features].

    in: a multiple of 32; blocked: its vectors apart; bias: [blocks * COLUMNS].
    """
    check_shapes(x, blocked, bias)
    rows = len(x)
    blocks, steps = blocked.shape[0], blocked.shape[2]
    tiles = steps // TILE_ROWS
    assert steps % TILE_ROWS == 0, steps
    y = x.new_empty((rows, out_features))
    groups = -(-rows // TILE_ROWS)
    tiled = torch.empty(groups * tiles * TILE_BYTES + 64, dtype=torch.uint8)
    target = (tiled.data_ptr() + 63) // 64 * 64
    packing = (x.data_ptr(), x.stride(0) * 2, rows, tiles, target)
    run_ranges(lambda start, end: _tile_rows(packing, start, end), groups, rows * steps // 8)
    args = (
        target,
        rows,
        blocked.data_ptr(),
        tiles,
        blocks,
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        out_features,
        _palette().data_ptr(),
    )
    kernel = _kernel()
    work = blocks * steps * max(8, rows // 16)
    run_ranges(lambda start, end: kernel(0, args, start, end), blocks, work)
    return y
