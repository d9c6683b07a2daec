"""Twin of reference.attention: a query tile against the tiles of its keys, in registers.

The (up to) QUERY_ROWS rows of a query tile are the heads of one group times consecutive tokens of one
sequence: they share keys and values. Six rows at a time go through scores, softmax and values while a
tile of keys lies in the first-level cache. Which rows share a tile decides nothing: each has its own
mask, sums and maximum, and a masked place adds zero.

A masked value that is not finite would add NaN (0 * NaN). A row that comes out NaN is therefore
computed again alone, with masked values zeroed: the careful path, as slow as it is rare.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...reference.activation import LOG2_E
from ...reference.attention import LEAST_FINITE
from ...reference.ops import KV_TILE, Batch
from . import tiles
from .kv import PART, KVCache
from .launch import compiled, inlined, run_ranges
from .simd import bfloat16s, float32s, int32s, int64s

QUERY_ROWS = 48
_PARTS = KV_TILE // PART
_STATE_BYTES = 128
"""16 sums, then the running maximum and the factor, padded to a vector."""


@inlined
def _visible(position: int, tile_start: int, window: int) -> tuple[int, int]:
    """Range of keys of a tile that a query sees, from the tile's start; empty if end <= start."""
    start = max(0, position - window + 1 - tile_start) if window > 0 else 0
    return start, min(KV_TILE, position + 1 - tile_start)


class _Call(NamedTuple):
    """Addresses and sizes of one call. All arrays are contiguous."""

    q: int
    out: int
    keys: int
    values: int
    query_starts: int
    kv_lens: int
    slots: int
    tables: int
    max_blocks: int
    block_size: int
    tokens: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int
    element_bytes: int


class _Scratch(NamedTuple):
    """Addresses of one thread's working memory."""

    q: int
    """[rows, head_dim] elements."""
    out: int
    """[rows, head_dim] float32."""
    state: int
    """[rows] of _STATE_BYTES."""
    scores: int
    """[6, KV_TILE] float32."""
    p: int
    """[6, KV_TILE] elements."""
    parts: int
    """[2, _PARTS] addresses of a tile's keys, then values."""
    keys: int
    """Gathered keys of a tile,"""
    values: int
    """and values."""


class _Tile(NamedTuple):
    """Query rows that are computed together: `count` tokens of one kv head."""

    head: int
    token: int
    count: int
    position: int
    """Of the first token."""
    table: int
    """Address of the sequence's blocks."""
    careful: int


@inlined
def _group(call: _Call) -> int:
    return call.heads // call.kv_heads


@inlined
def _load_queries(call: _Call, scratch: _Scratch, tile: _Tile, factor: float) -> None:
    """Bring the tile's queries together and clear its sums."""
    group = _group(call)
    words = call.head_dim * call.element_bytes // 4
    for t in range(tile.count):
        head_index = (tile.token + t) * call.heads + tile.head * group
        source = int32s(call.q + head_index * words * 4, group * words)
        target = int32s(scratch.q + t * group * words * 4, group * words)
        for i in range(group * words):
            target[i] = source[i]
    out = float32s(scratch.out, tile.count * group * call.head_dim)
    for i in range(tile.count * group * call.head_dim):
        out[i] = np.float32(0.0)
    for row in range(tile.count * group):
        state = float32s(scratch.state + row * _STATE_BYTES, 18)
        for i in range(16):
            state[i] = np.float32(0.0)
        state[16] = np.float32(LEAST_FINITE)
        state[17] = factor


@inlined
def _locate(call: _Call, scratch: _Scratch, tile: _Tile, tile_start: int) -> None:
    """Set scratch.parts to the keys and values of a tile, where they lie or gathered."""
    start, _ = _visible(tile.position, tile_start, call.window)
    _, end = _visible(tile.position + tile.count - 1, tile_start, call.window)
    table = int32s(tile.table, call.max_blocks)
    part_bytes = PART * call.head_dim * call.element_bytes
    parts = int64s(scratch.parts, 2 * _PARTS)
    if call.block_size % PART == 0 and tile.careful == 0:
        block_parts = call.block_size // PART
        for i in range(_PARTS):
            # Parts that no row sees may have no block: read any other, the masks hide it.
            index = tile_start // PART + min(max(i, start // PART), (end - 1) // PART)
            block = index // block_parts
            part = np.int64(table[block]) * block_parts + (index - block * block_parts)
            offset = (part * call.kv_heads + tile.head) * part_bytes
            parts[i] = call.keys + offset
            parts[_PARTS + i] = call.values + offset
    else:
        for i in range(_PARTS):
            parts[i] = scratch.keys + i * part_bytes
            parts[_PARTS + i] = scratch.values + i * part_bytes
        words = int32s(scratch.values, _PARTS * part_bytes // 4)
        for i in range(_PARTS * part_bytes // 4):
            words[i] = 0
        for key in range(start, end):
            place = tile_start + key
            block = place // call.block_size
            place += (np.int64(table[block]) - block) * call.block_size
            _gather(call, scratch, (place // PART) * call.kv_heads + tile.head, (place % PART, key))


@inlined
def _gather(call: _Call, scratch: _Scratch, part: int, lanes: tuple[int, int]) -> None:
    """Copy one key and value: lane lanes[0] of a part -> key lanes[1] of the gathered tile."""
    lane, key = lanes
    size = PART * call.head_dim
    steps = call.head_dim * call.element_bytes // 4
    target_part = key // PART
    source = int32s(call.keys + part * size * call.element_bytes, steps * PART)
    target = int32s(scratch.keys + target_part * size * call.element_bytes, steps * PART)
    for i in range(steps):
        target[i * PART + key % PART] = source[i * PART + lane]
    if call.element_bytes == 4:
        wide_source = int32s(call.values + part * size * 4, size)
        wide_target = int32s(scratch.values + target_part * size * 4, size)
        for i in range(call.head_dim):
            wide_target[key % PART * call.head_dim + i] = wide_source[lane * call.head_dim + i]
    else:
        half_source = bfloat16s(call.values + part * size * 2, size)
        half_target = bfloat16s(scratch.values + target_part * size * 2, size)
        source_base = (lane // 2) * 2 * call.head_dim + lane % 2
        target_base = (key % PART // 2) * 2 * call.head_dim + key % 2
        for i in range(call.head_dim):
            half_target[target_base + 2 * i] = half_source[source_base + 2 * i]


@inlined
def _attend_rows(
    tag: Any, call: _Call, scratch: _Scratch, tile: _Tile, rows: tuple[int, int, int]
) -> None:
    """One tile of keys for rows[0] .. rows[0] + 5 or less; rows = (first, count, tile_start)."""
    first, num_rows, tile_start = rows
    group = _group(call)
    position = tile.position + first // group
    last_position = tile.position + (first + num_rows - 1) // group
    start, _ = _visible(position, tile_start, call.window)
    _, end = _visible(last_position, tile_start, call.window)
    if end <= start:
        return
    row_bytes = call.head_dim * 4
    steps = call.head_dim * call.element_bytes // 4
    q = scratch.q + first * steps * 4
    out = scratch.out + first * row_bytes
    if num_rows > 3:
        tiles.scores_6(tag, (q, scratch.parts, scratch.scores, steps))
    elif num_rows > 1:
        tiles.scores_3(tag, (q, scratch.parts, scratch.scores, steps))
    else:
        tiles.scores_1(tag, (q, scratch.parts, scratch.scores, steps))
    p_bytes = KV_TILE * call.element_bytes
    for i in range(num_rows):
        position = tile.position + (first + i) // group
        start_i, end_i = _visible(position, tile_start, call.window)
        p = scratch.p + i * p_bytes
        if end_i <= start_i:
            words = int32s(p, p_bytes // 4)
            for j in range(p_bytes // 4):
                words[j] = 0
        else:
            ones = np.uint64(0xFFFFFFFFFFFFFFFF)
            mask = (ones >> np.uint64(KV_TILE - end_i)) & (ones << np.uint64(start_i))
            state = scratch.state + (first + i) * _STATE_BYTES
            place = scratch.scores + i * KV_TILE * 4
            tiles.softmax_row(
                tag, (place, np.int64(mask), state, out + i * row_bytes, p, call.head_dim)
            )
    pair = 4 // call.element_bytes
    span = ((start // pair) << 32) | ((end + pair - 1) // pair)
    parts = scratch.parts + 8 * _PARTS
    column = 0
    while column < row_bytes:
        args = (scratch.p, parts, out, span, column, row_bytes)
        wide = row_bytes - column >= 256
        if num_rows > 3:
            if wide:
                tiles.values_6x4(tag, args)
            else:
                tiles.values_6x1(tag, args)
        elif num_rows > 1:
            if wide:
                tiles.values_3x4(tag, args)
            else:
                tiles.values_3x1(tag, args)
        elif wide:
            tiles.values_1x4(tag, args)
        else:
            tiles.values_1x1(tag, args)
        column += 256 if wide else 64


@inlined
def _attend_tile(tag: Any, call: _Call, scratch: _Scratch, tile: _Tile, factor: float) -> bool:
    """Attention of one query tile; return whether any row came out NaN."""
    _load_queries(call, scratch, tile, factor)
    group = _group(call)
    num_rows = tile.count * group
    first_key = max(0, tile.position - call.window + 1) if call.window > 0 else 0
    for index in range(first_key // KV_TILE, (tile.position + tile.count - 1) // KV_TILE + 1):
        tile_start = index * KV_TILE
        _locate(call, scratch, tile, tile_start)
        row = 0
        while row < num_rows:
            count = min(6, num_rows - row)
            _attend_rows(tag, call, scratch, tile, (row, count, tile_start))
            row += count
    nan = False
    for row in range(num_rows):
        head_index = (tile.token + row // group) * call.heads + tile.head * group + row % group
        target = call.out + head_index * call.head_dim * call.element_bytes
        state = scratch.state + row * _STATE_BYTES
        out = scratch.out + row * call.head_dim * 4
        tiles.finish_row(tag, (state, out, target, call.head_dim))
        x = float32s(state, 1)[0]
        nan = nan or x != x
    return nan


def _attend(tag: Any, args: tuple[int, ...], factor: float, start: int, end: int) -> None:
    """Items start..end-1; item = kv head * tokens + token."""
    call = _Call(*args)
    group = _group(call)
    rows = max(QUERY_ROWS, group) + 6
    sizes = call.head_dim * call.element_bytes
    memory = np.zeros(
        rows * (sizes + call.head_dim * 4 + _STATE_BYTES)
        + 12 * KV_TILE * 4 + 2 * 8 * _PARTS + 2 * KV_TILE * sizes + 64,
        np.uint8,
    )
    q = (memory.ctypes.data + 63) // 64 * 64
    out = q + rows * sizes
    state = out + rows * call.head_dim * 4
    scores = state + rows * _STATE_BYTES
    p = scores + 6 * KV_TILE * 4
    parts = p + 6 * KV_TILE * 4
    keys = parts + 2 * 8 * _PARTS
    scratch = _Scratch(q, out, state, scores, p, parts, keys, keys + KV_TILE * sizes)
    starts = int32s(call.query_starts, 1 << 30)
    kv_lens = int32s(call.kv_lens, 1 << 30)
    slots = int32s(call.slots, 1 << 30)
    max_count = max(1, QUERY_ROWS // group)
    item, row = start, 0
    while item < end:
        head = item // call.tokens
        token = item - head * call.tokens
        if starts[row] > token:
            row = 0
        while starts[row + 1] <= token:
            row += 1
        row_end = np.int64(starts[row + 1])
        count = min(max_count, row_end - token, end - item)
        position = np.int64(kv_lens[row]) - row_end + token
        table = call.tables + np.int64(slots[row]) * call.max_blocks * 4
        tile = _Tile(head, token, count, position, table, 0)
        if _attend_tile(tag, call, scratch, tile, factor):
            for i in range(count):
                one = _Tile(head, token + i, 1, position + i, table, 1)
                _attend_tile(tag, call, scratch, one, factor)
        item += count


@cache
def _kernel(kind: str) -> Any:
    """Compile for a tag of kernels.cpu.tiles, on first use."""
    return compiled(f"void({kind}, UniTuple(int64, {len(_Call._fields)}), float32, int64, int64)")(
        _attend
    )


def paged_attention(
    q: Tensor, cache: KVCache, batch: Batch, *, scale: float, window: int = 0
) -> Tensor:
    """Twin of reference.attention.paged_attention."""
    return attend(q, cache, batch, (scale, window), dot=tiles.has_dot_instruction())


def attend(
    q: Tensor, kv: KVCache, batch: Batch, how: tuple[float, int], *, dot: bool
) -> Tensor:
    """Do it; how: (scale, window); dot: with the bfloat16 dot product instruction."""
    tokens, heads, head_dim = q.shape
    keys, tables = kv.keys, batch.block_tables
    kv_heads = keys.shape[1]
    assert q.is_contiguous() and tables.is_contiguous(), (q.stride(), tables.stride())
    assert q.dtype == keys.dtype and heads % kv_heads == 0, (q.dtype, keys.dtype, heads, kv_heads)
    scale, window = how
    out = torch.empty_like(q)
    args = (
        q.data_ptr(),
        out.data_ptr(),
        keys.data_ptr(),
        kv.values.data_ptr(),
        batch.query_starts.data_ptr(),
        batch.kv_lens.data_ptr(),
        batch.slots.data_ptr(),
        tables.data_ptr(),
        tables.shape[1],
        kv.block_size,
        tokens,
        heads,
        kv_heads,
        head_dim,
        window,
        q.element_size(),
    )
    kernel = _kernel("float32" if q.dtype == torch.float32 else "uint16" if dot else "int16")
    factor = scale * LOG2_E

    def call(start: int, end: int) -> None:
        kernel(0, args, factor, start, end)

    run_ranges(call, tokens * kv_heads, 0)
    return out
