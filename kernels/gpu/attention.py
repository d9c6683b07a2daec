"""Paged attention on the GPU, causal or not. Twin of `reference.attention`, in an order of its own.

Keys are cut at absolute positions into segments. A segment is a softmax of its own (m, l, acc:
greatest score, sum of p, sum of p * v, all float32), and segments are merged from left to right.
Which program computes a segment is free: many of a row in one program ("fused"), or each in its
own, merged by the last that ends ("split"). Scores and values are matrix products, and l is one too
(p, rounded to dtype, times ones), since a matrix unit adds alike for any shape of tile, which a sum
across threads does not. So a row's bits depend on its own keys alone.

On the exact lattice the result equals the reference's. A later token's infinite or NaN value may
reach an earlier token of the same chunk, which the reference excludes.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...reference.activation import LOG2_E
from ...reference.ops import Batch
from .kv import KVCache
from .launch import is_amd, let_next_come, next_power_of_2, num_processors, start, wait
from .segments import (
    LEAST,
    ONES,
    add_values,
    attend_segment,
    begin_rows,
    find_fresh,
    find_lines,
    load_keys,
    load_values,
    merge,
    weigh_keys,
)

ENOUGH_PROGRAMS = 2
"""Decode programs for each multiprocessor from which on sequences are not split."""
SPLIT_PROGRAMS = 3
"""Programs for each multiprocessor into which they are split where they are fewer: as many as it
holds at once."""
SPLIT_REGISTERS = 168
"""What lets it hold so many of 128 threads."""
MOST_HEAD_DIM = 256


class ProgramSize(NamedTuple):
    """What a program of attention takes on."""

    rows: int
    """Query rows (tokens times heads of a group) of a program."""
    warps: int
    stages: int
    registers: int | None = None
    """Most of a thread; None: as many as it likes."""


def segment_keys(head_dim: int, dtype: torch.dtype) -> int:
    """Return the keys of a segment: what registers hold. It decides bits, so a model has one.

    Shorter ones are read by more programs, longer ones merged less.
    """
    if dtype == torch.float32 or head_dim > 128 or is_amd():  # AMD's compiler fails on more
        return 64
    return 128


def prefill_size(group: int, head_dim: int, dtype: torch.dtype) -> ProgramSize:
    """Choose for many queries of a sequence."""
    if dtype == torch.float32 or head_dim > 128:
        return ProgramSize(max(32, next_power_of_2(group)), warps=4, stages=2)
    return ProgramSize(128, warps=8, stages=3)


def decode_size(group: int, head_dim: int, dtype: torch.dtype, *, is_split: bool) -> ProgramSize:
    """Choose for one query of a sequence.

    Split: a program has about one segment, and several share a processor.
    """
    rows = max(16, next_power_of_2(group))
    narrow = head_dim <= 128 and dtype != torch.float32
    if is_split and narrow:
        registers = None if is_amd() else SPLIT_REGISTERS
        return ProgramSize(rows, warps=4, stages=1, registers=registers)
    if is_split:
        return ProgramSize(rows, warps=8, stages=2)
    return ProgramSize(rows, warps=4, stages=4 if narrow else 2)


def refuse_head_dim(head_dim: int) -> str | None:
    """Return why there is no kernel for a head_dim; None where there is one."""
    if head_dim <= MOST_HEAD_DIM:
        return None
    return f"its head_dim is {head_dim}: attention on a GPU takes at most {MOST_HEAD_DIM}."


def most_split_rows(kv_heads: int) -> int:
    """Return the most sequences of one query that are split over programs, which takes memory."""
    processors = num_processors()
    return min(ENOUGH_PROGRAMS * processors - 1, SPLIT_PROGRAMS * processors // 2) // kv_heads


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
    """See Ops.paged_attention."""
    assert q.is_contiguous(), q.stride()
    assert causal or not window, window
    out = torch.empty_like(q)
    kind = _kind_of(q, cache, scale, window, softcap, sinks)
    if len(q) > len(batch.kv_lens):
        _prefill(q, out, cache, batch, kind, causal=causal)
    _decode(q, out, cache, batch, kind)
    return out


class _Kind(NamedTuple):
    """What the kernels are compiled for, and what they all take."""

    constants: dict[str, int | bool]
    sinks: Tensor
    """Any tensor where there are none."""
    numbers: tuple[float, float, int]
    """(factor of products, what a tanh is multiplied by, window)."""


def _kind_of(
    q: Tensor, cache: KVCache, scale: float, window: int, softcap: float, sinks: Tensor | None
) -> _Kind:
    _, heads, head_dim = q.shape
    _, kv_heads, block_size, _ = cache.keys.shape
    assert sinks is None or (sinks.shape == (heads,) and sinks.dtype == torch.float32), sinks
    factor = 2 * LOG2_E * scale / softcap if softcap else scale * LOG2_E
    constants: dict[str, int | bool] = {
        "GROUP": heads // kv_heads,
        "HEAD_DIM": head_dim,
        "WIDTH": next_power_of_2(head_dim),
        "BLOCK_SIZE": block_size,
        "SEGMENT": segment_keys(head_dim, q.dtype),
        "IS_WINDOWED": window > 0,
        "IS_CAPPED": softcap > 0,
        "HAS_SINKS": sinks is not None,
    }
    return _Kind(constants, q if sinks is None else sinks, (factor, softcap * LOG2_E, window))


def _prefill(
    q: Tensor, out: Tensor, cache: KVCache, batch: Batch, kind: _Kind, *, causal: bool
) -> None:
    """Compute the sequences that have more than one query."""
    _, heads, head_dim = q.shape
    kv_heads, rows = cache.keys.shape[1], len(batch.kv_lens)
    group = heads // kv_heads
    size = prefill_size(group, head_dim, q.dtype)
    start(
        _attend_many,
        (len(q) // (size.rows // group) + rows, kv_heads),
        *(q, out, cache.keys, cache.values, kind.sinks),
        *(batch.query_starts, batch.kv_lens, batch.slots, batch.block_tables),
        *(rows, batch.block_tables.shape[1], heads, *kind.numbers),
        IS_CAUSAL=causal,
        QUERIES=size.rows // group,
        ROWS=size.rows,
        warps=size.warps,
        stages=size.stages,
        **kind.constants,
    )


def _decode(q: Tensor, out: Tensor, cache: KVCache, batch: Batch, kind: _Kind) -> None:
    """Compute the sequences that have one query, which is the last: it sees all, causal or not."""
    _, heads, head_dim = q.shape
    _, kv_heads, block_size, _ = cache.keys.shape
    rows, max_blocks = len(batch.kv_lens), batch.block_tables.shape[1]
    num_segments = triton.cdiv(max_blocks * block_size, segment_keys(head_dim, q.dtype))
    splits = min(num_segments, SPLIT_PROGRAMS * num_processors() // max(1, rows * kv_heads))
    is_split = splits > 1 and rows <= most_split_rows(kv_heads)
    size = decode_size(heads // kv_heads, head_dim, q.dtype, is_split=is_split)
    memory: tuple[Tensor, ...] = (q, out)
    fresh: tuple[Tensor | int, ...] = ()
    constants = kind.constants
    if is_split:
        shape = (num_segments, rows, heads, head_dim + 2)
        memory += (torch.empty(shape, dtype=torch.float32, device=q.device), cache.counters)
        # Behind _attend_many, which lets no kernel come early, every key is complete.
        fresh = (batch.places, rows if len(q) == rows else 0)
        constants = constants | {"PLACES": next_power_of_2(most_split_rows(kv_heads))}
    start(
        _attend_parts if is_split else _attend_one,
        (rows, kv_heads, splits) if is_split else (rows, kv_heads),
        *(*memory, cache.keys, cache.values, kind.sinks),
        *(batch.query_starts, batch.kv_lens, batch.slots, batch.block_tables, *fresh),
        *(max_blocks, heads, *kind.numbers),
        ROWS=size.rows,
        warps=size.warps,
        stages=size.stages,
        registers=size.registers,
        **constants,
    )


@triton.jit
def _load_queries(q_ptr, row, live, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Load [rows, WIDTH] of q, zero where not live. row: [rows] int64 among all heads of tokens."""
    d = tl.arange(0, WIDTH)[None, :]
    return tl.load(q_ptr + row[:, None] * HEAD_DIM + d, live[:, None] & (d < HEAD_DIM), other=0.0)


@triton.jit
def _find_row(starts_ptr, num_rows, program, QUERIES: tl.constexpr):
    """Return the row that a program belongs to: rows begin at program starts[r] // QUERIES + r."""
    low, high = 0, num_rows
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(starts_ptr + middle) // QUERIES + middle <= program:
            low = middle
        else:
            high = middle
    return low


@triton.jit(do_not_specialize=["num_rows"])
def _attend_many(
    q_ptr, out_ptr, keys_ptr, values_ptr, sinks_ptr, starts_ptr, lens_ptr, slots_ptr, tables_ptr,
    num_rows, max_blocks, heads, factor, cap, window,
    GROUP: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_SIZE: tl.constexpr, SEGMENT: tl.constexpr,
    IS_WINDOWED: tl.constexpr, IS_CAPPED: tl.constexpr, HAS_SINKS: tl.constexpr,
    IS_CAUSAL: tl.constexpr, OVERLAPPED: tl.constexpr,
):  # fmt: skip
    """QUERIES tokens of one sequence with all heads of one kv head; the latest tokens first."""
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    row = _find_row(starts_ptr, num_rows, program, QUERIES)
    start = tl.load(starts_ptr + row)
    count = tl.load(starts_ptr + row + 1) - start
    first_query = (program - (start // QUERIES + row)) * QUERIES
    wait(OVERLAPPED)
    if (count > 1) & (first_query < count):
        kv_len = tl.load(lens_ptr + row)
        r = tl.arange(0, ROWS)
        query = first_query + r // GROUP
        live = (query < count) & (r < QUERIES * GROUP)
        head_row = (start + query).to(tl.int64) * heads + kv_head * GROUP + r % GROUP
        q = _load_queries(q_ptr, head_row, live, HEAD_DIM, WIDTH)
        if IS_CAUSAL:
            position = (kv_len - count + query)[:, None]
            end = kv_len - count + tl.minimum(first_query + QUERIES, count)
        else:
            position = tl.full([ROWS, 1], 0, tl.int32) + (kv_len - 1)
            end = kv_len
        lowest = 0
        if IS_WINDOWED:
            lowest = tl.maximum(kv_len - count + first_query - window + 1, 0)
        table_ptr = tables_ptr + tl.load(slots_ptr + row).to(tl.int64) * max_blocks
        head = kv_head * GROUP + r % GROUP
        m, l = begin_rows(sinks_ptr, head, live, ONES, HAS_SINKS)
        acc = tl.zeros([ROWS, WIDTH], tl.float32)
        for first in range(lowest // SEGMENT * SEGMENT, end, SEGMENT):
            own_m, own_l, own_acc = attend_segment(
                q, keys_ptr, values_ptr, table_ptr, first, position, lowest, end, factor, cap,
                window, kv_head, tl.num_programs(1), HEAD_DIM, WIDTH, BLOCK_SIZE, SEGMENT,
                IS_WINDOWED, IS_CAPPED,
            )  # fmt: skip
            m, l, acc = merge(m, l, acc, own_m, own_l, own_acc)
        _store_result(out_ptr, head_row, live, l, acc, HEAD_DIM, WIDTH)


@triton.jit
def _store_result(out_ptr, row, live, l, acc, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr):
    d = tl.arange(0, WIDTH)[None, :]
    result = tl.div_rn(acc, tl.broadcast_to(tl.max(l, 1, keep_dims=True), acc.shape)) + 0.0
    inside = live[:, None] & (d < HEAD_DIM)
    tl.store(out_ptr + row[:, None] * HEAD_DIM + d, result.to(out_ptr.dtype.element_ty), inside)


@triton.jit
def _attend_one(
    q_ptr, out_ptr, keys_ptr, values_ptr, sinks_ptr, starts_ptr, lens_ptr, slots_ptr, tables_ptr,
    max_blocks, heads, factor, cap, window,
    GROUP: tl.constexpr, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, SEGMENT: tl.constexpr, IS_WINDOWED: tl.constexpr,
    IS_CAPPED: tl.constexpr, HAS_SINKS: tl.constexpr, OVERLAPPED: tl.constexpr,
):  # fmt: skip
    """The one query of a sequence with all heads of one kv head."""
    row, kv_head = tl.program_id(0), tl.program_id(1)
    token = tl.load(starts_ptr + row)
    count = tl.load(starts_ptr + row + 1) - token
    end = tl.load(lens_ptr + row)
    lowest = 0
    if IS_WINDOWED:
        lowest = tl.maximum(end - window, 0)
    table_ptr = tables_ptr + tl.load(slots_ptr + row).to(tl.int64) * max_blocks
    wait(OVERLAPPED)
    let_next_come(OVERLAPPED)
    if (count == 1) & (end > 0):
        r = tl.arange(0, ROWS)
        live = r < GROUP
        head_row = token.to(tl.int64) * heads + kv_head * GROUP + r
        q = _load_queries(q_ptr, head_row, live, HEAD_DIM, WIDTH)
        position = tl.full([ROWS, 1], 0, tl.int32) + (end - 1)
        m, l = begin_rows(sinks_ptr, kv_head * GROUP + r, live, ONES, HAS_SINKS)
        acc = tl.zeros([ROWS, WIDTH], tl.float32)
        for first in range(lowest // SEGMENT * SEGMENT, end, SEGMENT):
            own_m, own_l, own_acc = attend_segment(
                q, keys_ptr, values_ptr, table_ptr, first, position, lowest, end, factor, cap,
                window, kv_head, tl.num_programs(1), HEAD_DIM, WIDTH, BLOCK_SIZE, SEGMENT,
                IS_WINDOWED, IS_CAPPED,
            )  # fmt: skip
            m, l, acc = merge(m, l, acc, own_m, own_l, own_acc)
        _store_result(out_ptr, head_row, live, l, acc, HEAD_DIM, WIDTH)


@triton.jit(do_not_specialize=["num_places"])
def _attend_parts(
    q_ptr, out_ptr, parts_ptr, counters_ptr, keys_ptr, values_ptr, sinks_ptr, starts_ptr, lens_ptr,
    slots_ptr, tables_ptr, places_ptr, num_places, max_blocks, heads, factor, cap, window,
    PLACES: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, HEAD_DIM: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_SIZE: tl.constexpr, SEGMENT: tl.constexpr,
    IS_WINDOWED: tl.constexpr, IS_CAPPED: tl.constexpr, HAS_SINKS: tl.constexpr,
    OVERLAPPED: tl.constexpr,
):  # fmt: skip
    """Every n-th segment of what `_attend_one` does; the program that ends last merges them.

    Keys of the first segment come before the wait, but those that any row of this step writes.
    """
    row, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    kv_heads, splits = tl.num_programs(1), tl.num_programs(2)
    token = tl.load(starts_ptr + row)
    count = tl.load(starts_ptr + row + 1) - token
    end = tl.where(count == 1, tl.load(lens_ptr + row), 0)
    lowest = 0
    if IS_WINDOWED:
        lowest = tl.maximum(end - window, 0)
    begin = lowest // SEGMENT
    num_segments = tl.cdiv(end, SEGMENT) - begin
    num_own = (num_segments - split + splits - 1) // splits
    table_ptr = tables_ptr + tl.load(slots_ptr + row).to(tl.int64) * max_blocks
    segment = begin + split
    line, held = find_lines(
        table_ptr, segment * SEGMENT, lowest, end, kv_head, kv_heads, BLOCK_SIZE, SEGMENT,
        IS_WINDOWED,
    )  # fmt: skip
    at = (num_places, kv_head, kv_heads)
    is_fresh = held & find_fresh(places_ptr, at, line, PLACES, BLOCK_SIZE)
    k = load_keys(keys_ptr, line, held & ~is_fresh, HEAD_DIM, WIDTH)
    wait(OVERLAPPED)
    let_next_come(OVERLAPPED)
    if num_own <= 0:
        return
    r = tl.arange(0, ROWS)
    live = r < GROUP
    head = kv_head * GROUP + r
    q = _load_queries(q_ptr, token.to(tl.int64) * heads + head, live, HEAD_DIM, WIDTH)
    position = tl.full([ROWS, 1], 0, tl.int32) + (end - 1)
    if tl.max(is_fresh.to(tl.int32), 0) > 0:
        k = tl.where(is_fresh[None, :], load_keys(keys_ptr, line, is_fresh, HEAD_DIM, WIDTH), k)
    for i in range(0, num_own):
        m, p = weigh_keys(
            q, k, segment * SEGMENT, position, lowest, end, factor, cap, window, SEGMENT,
            IS_WINDOWED, IS_CAPPED,
        )  # fmt: skip
        v = load_values(values_ptr, line, held, HEAD_DIM, WIDTH)
        l, acc = add_values(p, v, SEGMENT)
        part = (segment * tl.num_programs(0) + row).to(tl.int64) * heads + head
        _store_part(parts_ptr, part, live, m, l, acc, HEAD_DIM, WIDTH)
        segment += splits
        if i + 1 < num_own:
            line, held = find_lines(
                table_ptr, segment * SEGMENT, lowest, end, kv_head, kv_heads, BLOCK_SIZE, SEGMENT,
                IS_WINDOWED,
            )  # fmt: skip
            k = load_keys(keys_ptr, line, held, HEAD_DIM, WIDTH)
    counter_ptr = counters_ptr + row * kv_heads + kv_head
    # What all threads stored comes before the count.
    tl.debug_barrier()
    done = tl.atomic_add(counter_ptr, 1, sem="acq_rel")
    if done == tl.minimum(splits, num_segments) - 1:
        tl.store(counter_ptr, 0)
        first_head = token.to(tl.int64) * heads + kv_head * GROUP
        _merge_parts(
            parts_ptr, out_ptr, sinks_ptr, first_head, row, kv_head, heads, begin, num_segments,
            GROUP, HEAD_DIM, WIDTH, HAS_SINKS,
        )  # fmt: skip


@triton.jit
def _store_part(parts_ptr, line, live, m, l, acc, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Store one segment: acc, m, l side by side, in parts [segments, rows, heads, HEAD_DIM + 2]."""
    d = tl.arange(0, WIDTH)[None, :]
    place_ptr = parts_ptr + line[:, None] * (HEAD_DIM + 2)
    tl.store(place_ptr + d, acc, live[:, None] & (d < HEAD_DIM))
    tl.store(place_ptr + HEAD_DIM, m, live[:, None])
    tl.store(place_ptr + HEAD_DIM + 1, tl.max(l, 1, keep_dims=True), live[:, None])


@triton.jit
def _merge_parts(
    parts_ptr, out_ptr, sinks_ptr, first_head, row, kv_head, heads, begin, num_segments,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """Merge the segments of the heads of one kv head from left to right, and store the result.

    A few are loaded at once, since a load is a trip to memory. Other programs wrote them: past the
    L1.
    """
    AT_ONCE: tl.constexpr = 8
    HEADS: tl.constexpr = triton.next_power_of_2(GROUP)
    g = tl.arange(0, HEADS)
    live = g < GROUP
    d = tl.arange(0, WIDTH)[None, :]
    inside = d < HEAD_DIM
    m, l = begin_rows(sinks_ptr, kv_head * GROUP + g, live, 1, HAS_SINKS)
    acc = tl.zeros([HEADS, WIDTH], tl.float32)
    for first in range(0, num_segments, AT_ONCE):
        for i in tl.static_range(AT_ONCE):
            held = (live & (g * 0 + first + i < num_segments))[:, None]
            line = ((begin + first + i) * tl.num_programs(0) + row).to(tl.int64) * heads
            line = (line + kv_head * GROUP + g)[:, None] * (HEAD_DIM + 2)
            part_ptr = parts_ptr + line
            part = tl.load(part_ptr + d, held & inside, other=0.0, cache_modifier=".cg")
            part_m = tl.load(part_ptr + HEAD_DIM, held, other=LEAST, cache_modifier=".cg")
            part_l = tl.load(part_ptr + HEAD_DIM + 1, held, other=0.0, cache_modifier=".cg")
            m, l, acc = merge(m, l, acc, part_m, part_l, part)
    _store_result(out_ptr, first_head + g, live, l, acc, HEAD_DIM, WIDTH)
