"""Twin of reference.prepare: one pass over the rows instead of a gather for each tensor."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...reference.ops import Batch, StepRows
from .launch import compiled
from .simd import int32s, int64s


class _Call(NamedTuple):
    """Addresses and sizes of one call. All arrays are contiguous."""

    slots: int
    starts: int
    query_starts: int
    known: int
    tables: int
    tokens: int
    positions: int
    places: int
    kv_lens: int
    rows: int
    max_len: int
    max_blocks: int
    block_size: int


@compiled(f"void(UniTuple(int64, {len(_Call._fields)}))")
def _prepare(args: Any) -> None:
    call = _Call(*args)
    rows = call.rows
    slots, starts = int32s(call.slots, rows), int32s(call.starts, rows)
    query_starts, kv_lens = int32s(call.query_starts, rows + 1), int32s(call.kv_lens, rows)
    num_tokens = query_starts[rows]
    tokens, positions = int32s(call.tokens, num_tokens), int32s(call.positions, num_tokens)
    places = int64s(call.places, num_tokens)
    for row in range(rows):
        slot, first, end = slots[row], query_starts[row], query_starts[row + 1]
        if slot < 0:
            kv_lens[row] = 0
            for token in range(first, end):
                tokens[token], positions[token], places[token] = 0, 0, -1
            continue
        known = int32s(call.known + slot * call.max_len * 4, call.max_len)
        table = int32s(call.tables + slot * call.max_blocks * 4, call.max_blocks)
        shift = starts[row] - first
        kv_lens[row] = end + shift
        for token in range(first, end):
            position = token + shift
            index = position // call.block_size
            tokens[token], positions[token] = known[position], position
            places[token] = (table[index] - index) * call.block_size + position


@compiled("void(int64, int64, int64, int64, int64, int64)")
def _store(known: int, max_len: int, slots: int, positions: int, tokens: int, size: int) -> None:
    lines, columns, values = int32s(slots, size), int32s(positions, size), int32s(tokens, size)
    for i in range(size):
        if lines[i] >= 0:
            int32s(known + lines[i] * max_len * 4, max_len)[columns[i]] = max(values[i], 0)


def prepare(
    rows: StepRows, known: Tensor, block_tables: Tensor, block_size: int, num_tokens: int
) -> tuple[Tensor, Batch]:
    """Twin of reference.prepare.prepare."""
    slots, starts, query_starts = rows
    for array in (slots, starts, query_starts, known, block_tables):
        assert array.dtype == torch.int32 and array.is_contiguous(), (array.dtype, array.stride())
    num_rows = len(slots)
    assert len(query_starts) == num_rows + 1 and len(starts) == num_rows, (num_rows, len(starts))
    assert int(query_starts[-1]) == num_tokens, (query_starts, num_tokens)
    tokens, positions = (slots.new_empty(num_tokens) for _ in range(2))
    places = torch.empty(num_tokens, dtype=torch.int64)
    kv_lens = slots.new_empty(num_rows)
    args: Any = (
        slots.data_ptr(),
        starts.data_ptr(),
        query_starts.data_ptr(),
        known.data_ptr(),
        block_tables.data_ptr(),
        tokens.data_ptr(),
        positions.data_ptr(),
        places.data_ptr(),
        kv_lens.data_ptr(),
        num_rows,
        known.shape[1],
        block_tables.shape[1],
        block_size,
    )
    _prepare(args)
    return tokens, Batch(positions, places, query_starts, kv_lens, slots, block_tables)


def store_tokens(known: Tensor, slots: Tensor, positions: Tensor, tokens: Tensor) -> None:
    """Twin of reference.prepare.store_tokens."""
    size = len(slots)
    assert len(positions) == len(tokens) == size, (size, len(positions), len(tokens))
    for array in (known, slots, positions, tokens):
        assert array.dtype == torch.int32 and array.is_contiguous(), (array.dtype, array.stride())
    _store(
        known.data_ptr(),
        known.shape[1],
        slots.data_ptr(),
        positions.data_ptr(),
        tokens.data_ptr(),
        size,
    )
