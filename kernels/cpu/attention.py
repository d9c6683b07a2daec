"""Twin of reference.attention: a query tile against the tiles of its keys, in registers.

The (up to) QUERY_ROWS rows of a query tile are the heads of one group times consecutive tokens of
one sequence: they share keys and values. Six rows at a time go through scores, softmax and values
while a tile of keys lies in the first-level cache. Which rows share a tile decides nothing: each
has its own mask, sums and maximum, and a masked place adds zero.

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
from .tiles import MAX_ROWS

QUERY_ROWS = 48
_PARTS = KV_TILE // PART


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
    """Addresses of one thread's working memory; rows come in groups of tiles.MAX_ROWS."""

    q: int
    """[rows, head_dim] elements."""
    out: int
    """[rows, head_dim] float32."""
    states: int
    """[groups] of tiles.STATE_BYTES."""
    scores: int
    """[MAX_ROWS, KV_TILE] float32."""
    p: int
    """[MAX_ROWS, KV_TILE] elements."""
    masks: int
    """[MAX_ROWS] int64."""
    parts: int
    """[4, _PARTS] addresses of a tile's keys and values, and of the next tile's keys and values."""
    keys: int
    """Gathered keys of a tile,"""
    values: int
    """and values, right behind."""


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
def _first_key(call: _Call, tile: _Tile) -> int:
    """Return the first key that any row sees."""
    return max(0, tile.position - call.window + 1) if call.window > 0 else 0


@inlined
def _scratch(call: _Call, group: int) -> tuple[Any, _Scratch]:
    """Make the memory of one call of the kernel: (its owner, addresses)."""
    groups = (max(QUERY_ROWS, group) + MAX_ROWS - 1) // MAX_ROWS
    rows = groups * MAX_ROWS
    q_bytes = rows * call.head_dim * call.element_bytes
    tile_bytes = KV_TILE * call.head_dim * call.element_bytes
    row_tile_bytes = MAX_ROWS * KV_TILE * 4
    size = q_bytes + rows * call.head_dim * 4 + groups * tiles.STATE_BYTES
    size += 2 * row_tile_bytes + 64 + 32 * _PARTS + 2 * tile_bytes + 64
    memory = np.zeros(size, np.uint8)
    q = (memory.ctypes.data + 63) // 64 * 64
    out = q + q_bytes
    states = out + rows * call.head_dim * 4
    scores = states + groups * tiles.STATE_BYTES
    p = scores + row_tile_bytes
    masks = p + row_tile_bytes
    parts = masks + 64
    keys = parts + 32 * _PARTS
    return memory, _Scratch(q, out, states, scores, p, masks, parts, keys, keys + tile_bytes)


@inlined
def _load_queries(call: _Call, scratch: _Scratch, tile: _Tile, factor: float) -> None:
    """Bring the tile's queries together and clear its sums."""
    group = call.heads // call.kv_heads
    words = group * call.head_dim * call.element_bytes // 4
    for t in range(tile.count):
        source = int32s(call.q + ((tile.token + t) * call.kv_heads + tile.head) * words * 4, words)
        target = int32s(scratch.q + t * words * 4, words)
        for i in range(words):
            target[i] = source[i]
    num_rows = tile.count * group
    out = float32s(scratch.out, num_rows * call.head_dim)
    for i in range(num_rows * call.head_dim):
        out[i] = np.float32(0.0)
    for first in range(0, num_rows, MAX_ROWS):
        state = float32s(
            scratch.states + first // MAX_ROWS * tiles.STATE_BYTES, tiles.STATE_BYTES // 4
        )
        for i in range(16):
            state[i] = np.float32(LEAST_FINITE)
        for i in range(16, tiles.STATE_BYTES // 4):
            state[i] = np.float32(0.0)
        state[tiles.FACTOR_OFFSET // 4] = factor


@inlined
def _advance(call: _Call, scratch: _Scratch, tile: _Tile, next_start: int) -> None:
    """Step scratch.parts to the tile that was next, and find the one that starts at next_start."""
    head = tile.head
    first_part = _first_key(call, tile) // PART
    last_part = (tile.position + tile.count - 1) // PART
    if next_start // PART > last_part and head + 1 < call.kv_heads:
        # What comes next is the next head. To prefetch wrongly costs nothing.
        head, next_start = head + 1, first_part * PART // KV_TILE * KV_TILE
    block_parts = call.block_size // PART
    part_bytes = PART * call.head_dim * call.element_bytes
    table = int32s(tile.table, call.max_blocks)
    parts = int64s(scratch.parts, 4 * _PARTS)
    for i in range(_PARTS):
        parts[i] = parts[2 * _PARTS + i]
        parts[_PARTS + i] = parts[3 * _PARTS + i]
        # Parts that no row sees may have no block: read any other, the masks hide it.
        index = min(max(next_start // PART + i, first_part), last_part)
        block = index // block_parts
        part = np.int64(table[block]) * block_parts + (index - block * block_parts)
        offset = (part * call.kv_heads + head) * part_bytes
        parts[2 * _PARTS + i] = call.keys + offset
        parts[3 * _PARTS + i] = call.values + offset


@inlined
def _gather(call: _Call, scratch: _Scratch, tile: _Tile, tile_start: int) -> None:
    """Copy the keys and values of a tile that any row sees, zero the other values."""
    part_bytes = PART * call.head_dim * call.element_bytes
    parts = int64s(scratch.parts, 4 * _PARTS)
    for i in range(2 * _PARTS):
        parts[i] = parts[2 * _PARTS + i] = scratch.keys + i * part_bytes
    words = int32s(scratch.values, _PARTS * part_bytes // 4)
    for i in range(_PARTS * part_bytes // 4):
        words[i] = 0
    table = int32s(tile.table, call.max_blocks)
    start = max(_first_key(call, tile), tile_start)
    for key in range(start, min(tile_start + KV_TILE, tile.position + tile.count)):
        block = key // call.block_size
        place = key + (np.int64(table[block]) - block) * call.block_size
        part = (place // PART) * call.kv_heads + tile.head
        _copy_lane(call, scratch, part, (place % PART, key - tile_start))


@inlined
def _copy_lane(call: _Call, scratch: _Scratch, part: int, lanes: tuple[int, int]) -> None:
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
def _mask_rows(
    call: _Call, scratch: _Scratch, tile: _Tile, rows: tuple[int, int, int]
) -> tuple[int, int]:
    """Write masks of rows = (first, end, tile_start); return the range of keys that any sees."""
    first, end_row, tile_start = rows
    group = call.heads // call.kv_heads
    masks = int64s(scratch.masks, MAX_ROWS)
    ones = np.uint64(0xFFFFFFFFFFFFFFFF)
    union_start, union_end = KV_TILE, 0
    for i in range(MAX_ROWS):
        mask = np.uint64(0)
        if first + i < end_row:
            position = tile.position + (first + i) // group
            start, end = _visible(position, tile_start, call.window)
            if start < end:
                mask = (ones >> np.uint64(KV_TILE - end)) & (ones << np.uint64(start))
                union_start, union_end = min(union_start, start), max(union_end, end)
        masks[i] = np.int64(mask)
    return union_start, union_end


@inlined
def _attend_rows(
    tag: Any, call: _Call, scratch: _Scratch, tile: _Tile, rows: tuple[int, int, int]
) -> None:
    """One tile of keys for MAX_ROWS rows or less; rows = (first, end, tile_start)."""
    start, end = _mask_rows(call, scratch, tile, rows)
    if end <= start:
        return
    first, num_rows = rows[0], min(MAX_ROWS, rows[1] - rows[0])
    row_bytes = call.head_dim * 4
    steps = call.head_dim * call.element_bytes // 4
    out = scratch.out + first * row_bytes
    score_args = (scratch.q + first * steps * 4, scratch.parts, scratch.scores, steps)
    if num_rows > 3:
        tiles.scores_6(tag, score_args)
    elif num_rows > 1:
        tiles.scores_3(tag, score_args)
    else:
        tiles.scores_1(tag, score_args)
    state = scratch.states + first // MAX_ROWS * tiles.STATE_BYTES
    size = (num_rows << 32) | call.head_dim
    tiles.softmax_rows(tag, (size, scratch.scores, scratch.masks, state, out, scratch.p))
    pair = 4 // call.element_bytes
    span = ((start // pair) << 32) | ((end + pair - 1) // pair)
    column = 0
    while column < row_bytes:
        args = (scratch.p, scratch.parts, out, span, column, row_bytes)
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
    group = call.heads // call.kv_heads
    num_rows = tile.count * group
    first_tile = _first_key(call, tile) // KV_TILE
    gathered = call.block_size % PART != 0 or tile.careful != 0
    if not gathered:
        _advance(call, scratch, tile, first_tile * KV_TILE)
    for index in range(first_tile, (tile.position + tile.count - 1) // KV_TILE + 1):
        tile_start = index * KV_TILE
        if gathered:
            _gather(call, scratch, tile, tile_start)
        else:
            _advance(call, scratch, tile, tile_start + KV_TILE)
        for row in range(0, num_rows, MAX_ROWS):
            _attend_rows(tag, call, scratch, tile, (row, num_rows, tile_start))
    nan = False
    for row in range(num_rows):
        head_index = (tile.token + row // group) * call.heads + tile.head * group + row % group
        target = call.out + head_index * call.head_dim * call.element_bytes
        state = scratch.states + row // MAX_ROWS * tiles.STATE_BYTES
        sums = state + tiles.SUMS_OFFSET + row % MAX_ROWS * 64
        out = scratch.out + row * call.head_dim * 4
        tiles.finish_row(tag, (sums, out, target, call.head_dim))
        nan = nan or np.isnan(float32s(sums, 1)[0])
    return nan


def _attend(tag: Any, args: tuple[int, ...], factor: float, start: int, end: int) -> None:
    """Items start..end-1 of tokens * kv_heads: row after row, in a row head after head."""
    call = _Call(*args)
    group = call.heads // call.kv_heads
    memory, scratch = _scratch(call, group)
    starts = int32s(call.query_starts, 1 << 30)
    kv_lens = int32s(call.kv_lens, 1 << 30)
    slots = int32s(call.slots, 1 << 30)
    max_count = max(1, QUERY_ROWS // group)
    item, row, careful_end = start, 0, start
    while item < end:
        while np.int64(starts[row + 1]) * call.kv_heads <= item:
            row += 1
        row_start, row_end = np.int64(starts[row]), np.int64(starts[row + 1])
        head = (item - row_start * call.kv_heads) // (row_end - row_start)
        token = item - row_start * (call.kv_heads - 1) - head * (row_end - row_start)
        careful = 1 if item < careful_end else 0
        count = 1 if careful else min(max_count, row_end - token, end - item)
        position = np.int64(kv_lens[row]) - row_end + token
        table = call.tables + np.int64(slots[row]) * call.max_blocks * 4
        tile = _Tile(head, token, count, position, table, careful)
        if _attend_tile(tag, call, scratch, tile, factor) and careful == 0:
            careful_end = item + count
        else:
            item += count
    memory[0] = 0  # The last use of the owner: its memory must live until here.


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


def attend(q: Tensor, kv: KVCache, batch: Batch, how: tuple[float, int], *, dot: bool) -> Tensor:
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
