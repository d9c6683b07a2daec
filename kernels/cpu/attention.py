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
from .amx import TILE_ROWS, make_palette
from .choice import best_tag
from .kv import PART, KVCache
from .launch import compiled, inlined, run_ranges
from .simd import bfloat16s, float32s, int32s, int64s
from .tiles import MAX_ROWS

QUERY_ROWS = 48
"""A multiple of what a register tile holds, 6 in vectors and 16 in the matrix unit."""
PASS_GROUPS = QUERY_ROWS // MAX_ROWS
"""Groups of MAX_ROWS rows that go through a tile together, pass by pass."""
_MASK_BYTES = 64
"""Of a group: MAX_ROWS masks, the parts to compute (tiles.FULL: none masked), a span of keys."""
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
    palette: int


class _Scratch(NamedTuple):
    """Addresses of one thread's working memory; rows come in groups of tiles.MAX_ROWS."""

    q: int
    """[rows, head_dim] elements."""
    out: int
    """[rows, head_dim] float32."""
    states: int
    """[groups] of tiles.STATE_BYTES."""
    scores: int
    """[QUERY_ROWS, KV_TILE] float32."""
    p: int
    """[QUERY_ROWS, KV_TILE] elements."""
    masks: int
    """[PASS_GROUPS] of _MASK_BYTES."""
    parts: int
    """[4, _PARTS] addresses of a tile's keys and values, and of the next tile's keys and values."""
    keys: int
    """Gathered keys of a tile,"""
    values: int
    """and values, right behind."""


class _Unit(NamedTuple):
    """Queries that are computed together: tokens of one sequence, for `heads` of its kv heads.

    More heads than one only where the tokens are few: they lie side by side in memory, and one that
    is read after the other comes at the speed of a stream.
    """

    head: int
    heads: int
    token: int
    num_tokens: int
    position: int
    """Of the first token."""
    table: int
    """Address of the sequence's blocks."""
    careful: int


@inlined
def _groups(rows: int) -> int:
    return (rows + MAX_ROWS - 1) // MAX_ROWS


@inlined
def _first_key(call: _Call, unit: _Unit) -> int:
    """Return the first key that any row sees."""
    return max(0, unit.position - call.window + 1) if call.window > 0 else 0


@inlined
def _scratch(call: _Call, group: int) -> tuple[Any, _Scratch]:
    """Make the memory of one call of the kernel: (its owner, addresses)."""
    groups = _groups(max(QUERY_ROWS, group) + TILE_ROWS)
    rows = groups * MAX_ROWS
    q_bytes = rows * call.head_dim * call.element_bytes
    tile_bytes = KV_TILE * call.head_dim * call.element_bytes
    row_tile_bytes = PASS_GROUPS * MAX_ROWS * KV_TILE * 4
    size = q_bytes + rows * call.head_dim * 4 + groups * tiles.STATE_BYTES
    size += 2 * row_tile_bytes + PASS_GROUPS * _MASK_BYTES + 32 * _PARTS + 2 * tile_bytes + 64
    memory = np.zeros(size, np.uint8)
    q = (memory.ctypes.data + 63) // 64 * 64
    out = q + q_bytes
    states = out + rows * call.head_dim * 4
    scores = states + groups * tiles.STATE_BYTES
    p = scores + row_tile_bytes
    masks = p + row_tile_bytes
    parts = masks + PASS_GROUPS * _MASK_BYTES
    keys = parts + 32 * _PARTS
    return memory, _Scratch(q, out, states, scores, p, masks, parts, keys, keys + tile_bytes)


@inlined
def _head_rows(call: _Call, unit: _Unit) -> int:
    """Return the rows of scratch that a kv head takes: whole groups."""
    return _groups(unit.num_tokens * (call.heads // call.kv_heads)) * MAX_ROWS


@inlined
def _load_queries(call: _Call, scratch: _Scratch, unit: _Unit, factor: float) -> None:
    """Bring the unit's queries together and clear its sums."""
    group = call.heads // call.kv_heads
    head_rows = _head_rows(call, unit)
    row_words = call.head_dim * call.element_bytes // 4
    words = group * row_words
    for h in range(unit.heads):
        for t in range(unit.num_tokens):
            source_head = (unit.token + t) * call.kv_heads + unit.head + h
            source = int32s(call.q + source_head * words * 4, words)
            target = int32s(scratch.q + h * head_rows * row_words * 4 + t * words * 4, words)
            for i in range(words):
                target[i] = source[i]
    num_rows = unit.heads * head_rows
    out = float32s(scratch.out, num_rows * call.head_dim)
    for i in range(num_rows * call.head_dim):
        out[i] = np.float32(0.0)
    for i in range(num_rows // MAX_ROWS):
        state = float32s(scratch.states + i * tiles.STATE_BYTES, tiles.STATE_BYTES // 4)
        for j in range(tiles.STATE_BYTES // 4):
            state[j] = np.float32(LEAST_FINITE if j < 32 else 0.0)
        state[tiles.FACTOR_OFFSET // 4] = factor


@inlined
def _advance(call: _Call, scratch: _Scratch, unit: _Unit, head: int, next_start: int) -> None:
    """Step scratch.parts to the keys that were next; then come those of head + 1, same tile, or the
    unit's first head of the tile that starts at next_start."""
    first_part = _first_key(call, unit) // PART
    last_part = (unit.position + unit.num_tokens - 1) // PART
    block_parts = call.block_size // PART
    part_bytes = PART * call.head_dim * call.element_bytes
    table = int32s(unit.table, call.max_blocks)
    parts = int64s(scratch.parts, 4 * _PARTS)
    for i in range(2 * _PARTS):
        parts[i] = parts[2 * _PARTS + i]
    if head + 1 < unit.heads:
        for i in range(2 * _PARTS):
            parts[2 * _PARTS + i] += part_bytes
        return
    for i in range(_PARTS):
        # Parts that no row sees may have no block: read any other, the masks hide it.
        index = min(max(next_start // PART + i, first_part), last_part)
        block = index // block_parts
        part = table[block] * block_parts + (index - block * block_parts)
        offset = (part * call.kv_heads + unit.head) * part_bytes
        parts[2 * _PARTS + i] = call.keys + offset
        parts[3 * _PARTS + i] = call.values + offset


@inlined
def _gather(call: _Call, scratch: _Scratch, unit: _Unit, head: int, tile_start: int) -> None:
    """Copy the keys and values of a tile that any row sees, zero the other values."""
    part_bytes = PART * call.head_dim * call.element_bytes
    parts = int64s(scratch.parts, 4 * _PARTS)
    for i in range(2 * _PARTS):
        parts[i] = parts[2 * _PARTS + i] = scratch.keys + i * part_bytes
    words = int32s(scratch.values, _PARTS * part_bytes // 4)
    for i in range(_PARTS * part_bytes // 4):
        words[i] = 0
    table = int32s(unit.table, call.max_blocks)
    start = max(_first_key(call, unit), tile_start)
    for key in range(start, min(tile_start + KV_TILE, unit.position + unit.num_tokens)):
        block = key // call.block_size
        place = key + (table[block] - block) * call.block_size
        part = (place // PART) * call.kv_heads + unit.head + head
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
def _mask_rows(call: _Call, unit: _Unit, masks: int, rows: tuple[int, int, int]) -> None:
    """Write the masks of a group, rows = (first, end, tile_start), and what follows from them."""
    first, end_row, tile_start = rows
    group = call.heads // call.kv_heads
    words = int64s(masks, MAX_ROWS + 2)
    ones = np.uint64(0xFFFFFFFFFFFFFFFF)
    union_start, union_end = KV_TILE, 0
    all_start, all_end = 0, KV_TILE
    for i in range(MAX_ROWS):
        mask = np.uint64(0)
        if first + i < end_row:
            position = unit.position + (first + i) // group
            start, end = _visible(position, tile_start, call.window)
            all_start, all_end = max(all_start, start), min(all_end, end)
            if start < end:
                mask = (ones >> np.uint64(KV_TILE - end)) & (ones << np.uint64(start))
                union_start, union_end = min(union_start, start), max(union_end, end)
        words[i] = np.int64(mask)
    if all_start == 0 and all_end == KV_TILE:
        words[MAX_ROWS] = tiles.FULL
    elif end_row - first > 3:
        words[MAX_ROWS] = (union_end + PART - 1) // PART
    else:
        words[MAX_ROWS] = _PARTS if union_end else 0
    pair = 4 // call.element_bytes
    words[MAX_ROWS + 1] = ((union_start // pair) << 32) | ((union_end + pair - 1) // pair)


class _Group(NamedTuple):
    """Addresses and sizes of up to MAX_ROWS rows in scratch."""

    num_rows: int
    q: int
    out: int
    state: int
    scores: int
    p: int
    masks: int


@inlined
def _group_at(call: _Call, scratch: _Scratch, place: int, index: int, num_rows: int) -> _Group:
    """Return group `index` of those that begin at row `place` of scratch and have num_rows left."""
    row, scores = place + index * MAX_ROWS, index * MAX_ROWS * KV_TILE
    return _Group(
        min(MAX_ROWS, num_rows - index * MAX_ROWS),
        scratch.q + row * call.head_dim * call.element_bytes,
        scratch.out + row * call.head_dim * 4,
        scratch.states + row // MAX_ROWS * tiles.STATE_BYTES,
        scratch.scores + scores * 4,
        scratch.p + scores * call.element_bytes,
        scratch.masks + index * _MASK_BYTES,
    )


@inlined
def _attend_rows(
    tag: Any, call: _Call, scratch: _Scratch, unit: _Unit, rows: tuple[int, int, int, int]
) -> None:
    """One tile of keys for PASS_GROUPS groups of rows or less; rows = (head, first, end, start).

    Pass by pass: one group's next pass would wait for the last numbers of the one before.
    """
    head, first, end_row, tile_start = rows
    place, num_rows = head * _head_rows(call, unit) + first, end_row - first
    num_groups = min(PASS_GROUPS, _groups(num_rows))
    pass_rows = min(QUERY_ROWS, num_rows)
    steps = call.head_dim * call.element_bytes // 4
    whole = _group_at(call, scratch, place, 0, num_rows)
    tiles.all_scores(tag, (whole.q, scratch.parts, whole.scores, steps, pass_rows))
    for index in range(num_groups):
        g = _group_at(call, scratch, place, index, num_rows)
        _mask_rows(call, unit, g.masks, (first + index * MAX_ROWS, end_row, tile_start))
        parts = int64s(g.masks, MAX_ROWS + 2)[MAX_ROWS]
        if parts:
            tiles.add_scores(tag, g.num_rows, parts, (g.q, scratch.parts, g.scores, steps))
            size = g.num_rows << 32
            tiles.find_tops(tag, parts, (size, g.scores, g.masks, g.state))
    for index in range(num_groups):
        tiles.new_maxima(tag, (_group_at(call, scratch, place, index, num_rows).state,))
    for index in range(num_groups):
        g = _group_at(call, scratch, place, index, num_rows)
        words = int64s(g.masks, MAX_ROWS + 2)
        parts, span = words[MAX_ROWS], words[MAX_ROWS + 1]
        if parts:
            size = (g.num_rows << 32) | call.head_dim
            tiles.find_probabilities(tag, parts, (size, g.scores, g.masks, g.state, g.out, g.p))
            row_bytes, column = call.head_dim * 4, 0
            while column < row_bytes:
                wide = row_bytes - column >= 256
                args = (g.p, scratch.parts, g.out, span, column, row_bytes)
                tiles.add_values(tag, g.num_rows, wide, args)
                column += 256 if wide else 64
        else:
            tiles.clear(tag, (g.p,))
    tiles.all_values(tag, (whole.p, scratch.parts, whole.out, call.head_dim * 4, pass_rows))


@inlined
def _finish(tag: Any, call: _Call, scratch: _Scratch, unit: _Unit) -> bool:
    """Divide by the sums and write the output; return whether any of it is NaN."""
    group = call.heads // call.kv_heads
    nan = False
    for h in range(unit.heads):
        for row in range(unit.num_tokens * group):
            token = unit.token + row // group
            head_index = token * call.heads + (unit.head + h) * group + row % group
            target = call.out + head_index * call.head_dim * call.element_bytes
            place = h * _head_rows(call, unit) + row
            state = scratch.states + place // MAX_ROWS * tiles.STATE_BYTES
            sums = state + tiles.SUMS_OFFSET + place % MAX_ROWS * 64
            out = scratch.out + place * call.head_dim * 4
            tiles.finish_row(tag, (sums, out, target, call.head_dim))
            nan = nan or np.isnan(float32s(sums, 1)[0])
    return nan


@inlined
def _attend_unit(tag: Any, call: _Call, scratch: _Scratch, unit: _Unit, factor: float) -> bool:
    """Attention of one unit; return whether any row came out NaN."""
    _load_queries(call, scratch, unit, factor)
    num_rows = unit.num_tokens * (call.heads // call.kv_heads)
    first_start = _first_key(call, unit) // KV_TILE * KV_TILE
    gathered = call.block_size % PART != 0 or unit.careful != 0
    if not gathered and unit.position >= 0:  # padding has no key, and no line in the table
        _advance(call, scratch, unit, unit.heads, first_start)
    for tile_start in range(first_start, unit.position + unit.num_tokens, KV_TILE):
        for head in range(unit.heads):
            if gathered:
                _gather(call, scratch, unit, head, tile_start)
            else:
                _advance(call, scratch, unit, head, tile_start + KV_TILE)
            for row in range(0, num_rows, PASS_GROUPS * MAX_ROWS):
                _attend_rows(tag, call, scratch, unit, (head, row, num_rows, tile_start))
    return _finish(tag, call, scratch, unit)


@inlined
def _unit_at(call: _Call, row: int, items: tuple[int, int, int]) -> _Unit:
    """Return the unit that begins with item items[0] of a row and ends before items[1].

    Items before items[2] are computed alone and carefully.
    """
    item, end, careful_end = items
    careful = 1 if item < careful_end else 0
    if careful:
        end = item + 1
    starts = int32s(call.query_starts, row + 2)
    row_start = starts[row]
    length = starts[row + 1] - row_start
    head = (item - row_start * call.kv_heads) // length
    offset = item - row_start * call.kv_heads - head * length
    group = call.heads // call.kv_heads
    count = min(max(1, QUERY_ROWS // group), length - offset, end - item)
    heads = 1
    if count == length:
        room = QUERY_ROWS // (_groups(count * group) * MAX_ROWS)
        heads = max(1, min(room, call.kv_heads - head, (end - item) // length))
    position = int32s(call.kv_lens, row + 1)[row] - length + offset
    table = call.tables + int32s(call.slots, row + 1)[row] * call.max_blocks * 4
    return _Unit(head, heads, row_start + offset, count, position, table, careful)


def _attend(tag: Any, args: tuple[int, ...], factor: float, start: int, end: int) -> None:
    """Items start..end-1 of tokens * kv_heads: row after row, in a row head after head."""
    call = _Call(*args)
    memory, scratch = _scratch(call, call.heads // call.kv_heads)
    starts = int32s(call.query_starts, 1 << 30)
    item, row, careful_end = start, 0, start
    tiles.begin(tag, (call.palette,))
    while item < end:
        while starts[row + 1] * call.kv_heads <= item:
            row += 1
        unit = _unit_at(call, row, (item, end, careful_end))
        num_items = unit.heads * unit.num_tokens
        if _attend_unit(tag, call, scratch, unit, factor) and unit.careful == 0:
            careful_end = item + num_items
        else:
            item += num_items
    tiles.end(tag, (0,))
    memory[0] = 0  # The last use of the owner: its memory must live until here.


@cache
def _palette() -> Tensor:
    return make_palette(tiles.PALETTE)


@cache
def _kernel(tag: str) -> Any:
    """Compile for a tag of kernels.cpu.emit, on first use."""
    signature = f"void({tag}, UniTuple(int64, {len(_Call._fields)}), float32, int64, int64)"
    return compiled(signature)(_attend)


def paged_attention(
    q: Tensor,
    cache: KVCache,
    batch: Batch,
    *,
    scale: float,
    window: int = 0,
    tag: str | None = None,
) -> Tensor:
    """Twin of reference.attention.paged_attention. tag: of kernels.cpu.emit, None for the best."""
    tokens, heads, head_dim = q.shape
    keys, values, tables = cache.keys, cache.values, batch.block_tables
    kv_heads = keys.shape[1]
    assert q.is_contiguous() and tables.is_contiguous(), (q.stride(), tables.stride())
    assert q.dtype == keys.dtype and heads % kv_heads == 0, (q.dtype, keys.dtype, heads, kv_heads)
    assert head_dim == values.shape[3] and window >= 0, (head_dim, values.shape, window)
    for array in (batch.query_starts, batch.kv_lens, batch.slots, tables):
        assert array.dtype == torch.int32, array.dtype
    out = torch.empty_like(q)
    args = (
        q.data_ptr(),
        out.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        batch.query_starts.data_ptr(),
        batch.kv_lens.data_ptr(),
        batch.slots.data_ptr(),
        tables.data_ptr(),
        tables.shape[1],
        cache.block_size,
        tokens,
        heads,
        kv_heads,
        head_dim,
        window,
        q.element_size(),
        _palette().data_ptr(),
    )
    if tag is None:
        tag = "float32" if q.dtype == torch.float32 else best_tag(cache.sums)
    kernel = _kernel(tag)
    factor = scale * LOG2_E

    def call(start: int, end: int) -> None:
        kernel(0, args, factor, start, end)

    run_ranges(call, tokens * kv_heads, _work(batch, heads * head_dim))
    return out


def _work(batch: Batch, width: int) -> int:
    """Return about how many nanoseconds a batch takes; 0 where nobody would help anyway."""
    if torch.get_num_threads() == 1:
        return 0
    lengths = np.diff(batch.query_starts.numpy())
    return int(np.dot(lengths, batch.kv_lens.numpy())) * width // 32
