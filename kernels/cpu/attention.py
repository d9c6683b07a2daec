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
from .amx import make_palette
from .choice import best_tag
from .kv import PART, KVCache
from .launch import compiled, inlined, run_ranges
from .simd import bfloat16s, float32s, int32s, int64s
from .tiles import MAX_ROWS
from .units import (
    MASK_BYTES,
    PARTS,
    PASS_GROUPS,
    QUERY_ROWS,
    Call,
    Scratch,
    Unit,
    first_key,
    groups_of,
    last_key,
    make_scratch,
    rows_of_head,
)


@inlined
def _visible(last: int, tile_start: int, window: int) -> tuple[int, int]:
    """Range of keys of a tile that a query sees, from the tile's start; empty if end <= start."""
    start = max(0, last - window + 1 - tile_start) if window > 0 else 0
    return start, min(KV_TILE, last + 1 - tile_start)


@inlined
def _load_queries(call: Call, scratch: Scratch, unit: Unit, factors: tuple[float, float]) -> None:
    """Bring the unit's queries together and clear its sums."""
    group = call.heads // call.kv_heads
    head_rows = rows_of_head(call, unit)
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
        state[tiles.FACTOR_OFFSET // 4] = factors[0]
        state[tiles.FACTOR_OFFSET // 4 + 1] = factors[1]
    if call.sinks:
        _load_sinks(call, scratch, unit)


@inlined
def _load_sinks(call: Call, scratch: Scratch, unit: Unit) -> None:
    """Begin the maxima of the unit's rows with the sinks, and their sums with one."""
    group = call.heads // call.kv_heads
    sinks = float32s(call.sinks, call.heads)
    for h in range(unit.heads):
        for row in range(unit.num_tokens * group):
            place = h * rows_of_head(call, unit) + row
            address = scratch.states + place // MAX_ROWS * tiles.STATE_BYTES
            state = float32s(address, tiles.STATE_BYTES // 4)
            sink = sinks[(unit.head + h) * group + row % group]
            state[place % MAX_ROWS] = sink * np.float32(LOG2_E)
            state[tiles.SUMS_OFFSET // 4 + place % MAX_ROWS * 16] = np.float32(1.0)


@inlined
def _advance(call: Call, scratch: Scratch, unit: Unit, head: int, next_start: int) -> None:
    """Step scratch.parts to the keys that were next; then come those of head + 1, same tile, or the
    unit's first head of the tile that starts at next_start."""
    first_part = first_key(call, unit) // PART
    last_part = (unit.end - 1) // PART
    block_parts = call.block_size // PART
    part_bytes = PART * call.head_dim * call.element_bytes
    table = int32s(unit.table, call.max_blocks)
    parts = int64s(scratch.parts, 4 * PARTS)
    for i in range(2 * PARTS):
        parts[i] = parts[2 * PARTS + i]
    if head + 1 < unit.heads:
        for i in range(2 * PARTS):
            parts[2 * PARTS + i] += part_bytes
        return
    for i in range(PARTS):
        # Parts that no row sees may have no block: read any other, the masks hide it.
        index = min(max(next_start // PART + i, first_part), last_part)
        block = index // block_parts
        part = table[block] * block_parts + (index - block * block_parts)
        offset = (part * call.kv_heads + unit.head) * part_bytes
        parts[2 * PARTS + i] = call.keys + offset
        parts[3 * PARTS + i] = call.values + offset


@inlined
def _gather(call: Call, scratch: Scratch, unit: Unit, head: int, tile_start: int) -> None:
    """Copy the keys and values of a tile that any row sees, zero the other values."""
    part_bytes = PART * call.head_dim * call.element_bytes
    parts = int64s(scratch.parts, 4 * PARTS)
    for i in range(2 * PARTS):
        parts[i] = parts[2 * PARTS + i] = scratch.keys + i * part_bytes
    words = int32s(scratch.values, PARTS * part_bytes // 4)
    for i in range(PARTS * part_bytes // 4):
        words[i] = 0
    table = int32s(unit.table, call.max_blocks)
    start = max(first_key(call, unit), tile_start)
    for key in range(start, min(tile_start + KV_TILE, unit.end)):
        block = key // call.block_size
        place = key + (table[block] - block) * call.block_size
        part = (place // PART) * call.kv_heads + unit.head + head
        _copy_lane(call, scratch, part, (place % PART, key - tile_start))


@inlined
def _copy_lane(call: Call, scratch: Scratch, part: int, lanes: tuple[int, int]) -> None:
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
def _mask_rows(call: Call, unit: Unit, masks: int, rows: tuple[int, int, int]) -> None:
    """Write the masks of a group, rows = (first, end, tile_start), and what follows from them.

    Mostly all rows see the whole tile, and there is no need for masks.
    """
    first, end_row, tile_start = rows
    group = call.heads // call.kv_heads
    words = int64s(masks, MAX_ROWS + 2)
    pair = 4 // call.element_bytes
    last_row = min(first + MAX_ROWS, end_row) - 1
    low, high = last_key(call, unit, first // group), last_key(call, unit, last_row // group)
    if low >= tile_start + KV_TILE - 1 and (call.window <= 0 or high - call.window < tile_start):
        words[MAX_ROWS], words[MAX_ROWS + 1] = tiles.FULL, KV_TILE // pair
        return
    ones = np.uint64(0xFFFFFFFFFFFFFFFF)
    union_start, union_end = KV_TILE, 0
    all_start, all_end = 0, KV_TILE
    for i in range(MAX_ROWS):
        mask = np.uint64(0)
        if first + i < end_row:
            last = last_key(call, unit, (first + i) // group)
            start, end = _visible(last, tile_start, call.window)
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
        words[MAX_ROWS] = PARTS if union_end else 0
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
def _group_at(call: Call, scratch: Scratch, place: int, index: int, num_rows: int) -> _Group:
    """Return group `index` of those that begin at row `place` of scratch and have num_rows left."""
    row, scores = place + index * MAX_ROWS, index * MAX_ROWS * KV_TILE
    return _Group(
        min(MAX_ROWS, num_rows - index * MAX_ROWS),
        scratch.q + row * call.head_dim * call.element_bytes,
        scratch.out + row * call.head_dim * 4,
        scratch.states + row // MAX_ROWS * tiles.STATE_BYTES,
        scratch.scores + scores * 4,
        scratch.p + scores * call.element_bytes,
        scratch.masks + index * MASK_BYTES,
    )


@inlined
def _attend_rows(
    tag: Any, call: Call, scratch: Scratch, unit: Unit, rows: tuple[int, int, int, int]
) -> None:
    """One tile of keys for PASS_GROUPS groups of rows or less; rows = (head, first, end, start).

    Pass by pass: one group's next pass would wait for the last numbers of the one before.
    """
    head, first, end_row, tile_start = rows
    place, num_rows = head * rows_of_head(call, unit) + first, end_row - first
    num_groups = min(PASS_GROUPS, groups_of(num_rows))
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
            if call.is_capped:
                tiles.cap_scores(tag, (g.num_rows, g.scores, g.state))
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
def _finish(tag: Any, call: Call, scratch: Scratch, unit: Unit) -> bool:
    """Divide by the sums and write the output; return whether any of it is NaN."""
    group = call.heads // call.kv_heads
    nan = False
    for h in range(unit.heads):
        for row in range(unit.num_tokens * group):
            token = unit.token + row // group
            head_index = token * call.heads + (unit.head + h) * group + row % group
            target = call.out + head_index * call.head_dim * call.element_bytes
            place = h * rows_of_head(call, unit) + row
            state = scratch.states + place // MAX_ROWS * tiles.STATE_BYTES
            sums = state + tiles.SUMS_OFFSET + place % MAX_ROWS * 64
            out = scratch.out + place * call.head_dim * 4
            tiles.finish_row(tag, (sums, out, target, call.head_dim))
            nan = nan or np.isnan(float32s(sums, 1)[0])
    return nan


@inlined
def _attend_unit(
    tag: Any, call: Call, scratch: Scratch, unit: Unit, factors: tuple[float, float]
) -> bool:
    """Attention of one unit; return whether any row came out NaN."""
    _load_queries(call, scratch, unit, factors)
    num_rows = unit.num_tokens * (call.heads // call.kv_heads)
    first_start = first_key(call, unit) // KV_TILE * KV_TILE
    gathered = call.block_size % PART != 0 or unit.careful != 0
    if not gathered and unit.end > 0:  # padding has no key, and no line in the table
        _advance(call, scratch, unit, unit.heads, first_start)
    for tile_start in range(first_start, unit.end, KV_TILE):
        for head in range(unit.heads):
            if gathered:
                _gather(call, scratch, unit, head, tile_start)
            else:
                _advance(call, scratch, unit, head, tile_start + KV_TILE)
            for row in range(0, num_rows, PASS_GROUPS * MAX_ROWS):
                _attend_rows(tag, call, scratch, unit, (head, row, num_rows, tile_start))
    return _finish(tag, call, scratch, unit)


@inlined
def _unit_at(call: Call, row: int, items: tuple[int, int, int]) -> Unit:
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
        room = QUERY_ROWS // (groups_of(count * group) * MAX_ROWS)
        heads = max(1, min(room, call.kv_heads - head, (end - item) // length))
    kv_len = int32s(call.kv_lens, row + 1)[row]
    position = kv_len - length + offset
    num_seen = position + count if call.is_causal else kv_len
    table = call.tables + int32s(call.slots, row + 1)[row] * call.max_blocks * 4
    return Unit(head, heads, row_start + offset, count, position, num_seen, table, careful)


def _attend(
    tag: Any, args: tuple[int, ...], factors: tuple[float, float], start: int, end: int
) -> None:
    """Items start..end-1 of tokens * kv_heads: row after row, in a row head after head."""
    call = Call(*args)
    memory, scratch = make_scratch(call, call.heads // call.kv_heads)
    starts = int32s(call.query_starts, 1 << 30)
    item, row, careful_end = start, 0, start
    tiles.begin(tag, (call.palette,))
    while item < end:
        while starts[row + 1] * call.kv_heads <= item:
            row += 1
        unit = _unit_at(call, row, (item, end, careful_end))
        num_items = unit.heads * unit.num_tokens
        if _attend_unit(tag, call, scratch, unit, factors) and unit.careful == 0:
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
    numbers = f"UniTuple(int64, {len(Call._fields)}), UniTuple(float32, 2)"
    signature = f"void({tag}, {numbers}, int64, int64)"
    return compiled(signature)(_attend)


class Options(NamedTuple):
    """What is asked of Ops.paged_attention."""

    scale: float
    window: int = 0
    softcap: float = 0.0
    sinks: Tensor | None = None
    causal: bool = True


def paged_attention(
    q: Tensor,
    cache: KVCache,
    batch: Batch,
    *,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    sinks: Tensor | None = None,
    causal: bool = True,
) -> Tensor:
    """Twin of reference.attention.paged_attention."""
    tag = "float32" if q.dtype == torch.float32 else best_tag(cache.sums)
    return attend_by(tag, q, cache, batch, Options(scale, window, softcap, sinks, causal))


def attend_by(tag: str, q: Tensor, cache: KVCache, batch: Batch, options: Options) -> Tensor:
    """Do what paged_attention does by a tag of kernels.cpu.emit."""
    scale, window, softcap, sinks, causal = options
    tokens, heads, head_dim = q.shape
    keys, values, tables = cache.keys, cache.values, batch.block_tables
    kv_heads = keys.shape[1]
    assert q.is_contiguous() and tables.is_contiguous(), (q.stride(), tables.stride())
    assert q.dtype == keys.dtype and heads % kv_heads == 0, (q.dtype, keys.dtype, heads, kv_heads)
    assert head_dim == values.shape[3] and window >= 0, (head_dim, values.shape, window)
    assert causal or not window, window
    for array in (batch.query_starts, batch.kv_lens, batch.slots, tables):
        assert array.dtype == torch.int32, array.dtype
    if sinks is not None:
        assert sinks.shape == (heads,) and sinks.dtype == torch.float32, (sinks.shape, sinks.dtype)
        sinks = sinks.contiguous()
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
        int(causal),
        int(softcap > 0),
        0 if sinks is None else sinks.data_ptr(),
        q.element_size(),
        _palette().data_ptr(),
    )
    kernel = _kernel(tag)
    factors = (scale * LOG2_E, 0.0)
    if softcap:
        factors = (softcap * LOG2_E, 2 * LOG2_E * scale / softcap)

    def call(start: int, end: int) -> None:
        kernel(0, args, factors, start, end)

    run_ranges(call, tokens * kv_heads, _work(batch, heads * head_dim))
    return out


def _work(batch: Batch, width: int) -> int:
    """Return about how many nanoseconds a batch takes; 0 where nobody would help anyway."""
    if torch.get_num_threads() == 1:
        return 0
    lengths = np.diff(batch.query_starts.numpy())
    return int(np.dot(lengths, batch.kv_lens.numpy())) * width // 32
