"""What a step knows of its tokens, gathered on the GPU. Twin of `reference.prepare`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...reference.ops import Batch, StepRows
from .launch import start, wait

TOKENS = 64
"""Tokens of one row that a program prepares at once."""


def prepare(
    rows: StepRows, known: Tensor, block_tables: Tensor, block_size: int, num_tokens: int
) -> tuple[Tensor, Batch]:
    """See Ops.prepare."""
    slots, starts, query_starts = rows
    num_rows, device = len(slots), known.device
    tokens, positions = torch.empty((2, num_tokens), dtype=torch.int32, device=device)
    places = torch.empty(num_tokens, dtype=torch.int64, device=device)
    kv_lens = torch.empty(num_rows, dtype=torch.int32, device=device)
    start(
        _gather,
        (num_rows, max(1, min(16, (num_tokens - num_rows) // TOKENS))),
        *(slots, starts, query_starts, known, block_tables),
        *(tokens, positions, places, kv_lens),
        *(known.shape[1], block_tables.shape[1], block_size),
        TOKENS=TOKENS,
        warps=2,
    )
    return tokens, Batch(positions, places, query_starts, kv_lens, slots, block_tables)


@triton.jit
def _gather(
    slots_ptr, starts_ptr, query_starts_ptr, known_ptr, tables_ptr,
    tokens_ptr, positions_ptr, places_ptr, kv_lens_ptr,
    max_len, max_blocks, block_size,
    TOKENS: tl.constexpr, OVERLAPPED: tl.constexpr,
):  # fmt: skip
    """One row; the programs of a row take its tokens in turn."""
    wait(OVERLAPPED)
    row = tl.program_id(0)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    first = tl.load(query_starts_ptr + row)
    count = tl.load(query_starts_ptr + row + 1) - first
    live = slot >= 0
    start = tl.where(live, tl.load(starts_ptr + row), 0)
    slot = tl.maximum(slot, 0)
    tl.store(kv_lens_ptr + row, tl.where(live, start + count, 0))
    for begin in range(tl.program_id(1) * TOKENS, count, tl.num_programs(1) * TOKENS):
        i = begin + tl.arange(0, TOKENS)
        inside = i < count
        position = start + i
        token = tl.load(known_ptr + slot * max_len + position, inside & live, other=0)
        index = position // block_size
        block = tl.load(tables_ptr + slot * max_blocks + index, inside & live, other=0)
        place = block.to(tl.int64) * block_size + position % block_size
        tl.store(tokens_ptr + first + i, token, inside)
        tl.store(positions_ptr + first + i, tl.where(live, position, 0), inside)
        tl.store(places_ptr + first + i, tl.where(live, place, -1), inside)


def store_tokens(known: Tensor, slots: Tensor, positions: Tensor, tokens: Tensor) -> None:
    """See Ops.store_tokens."""
    start(
        _store,
        (triton.cdiv(len(slots), TOKENS),),
        *(known, slots, positions, tokens, len(slots), known.shape[1]),
        TOKENS=TOKENS,
        warps=2,
    )


@triton.jit(do_not_specialize=["num_rows"])
def _store(
    known_ptr, slots_ptr, positions_ptr, tokens_ptr, num_rows, max_len,
    TOKENS: tl.constexpr, OVERLAPPED: tl.constexpr,
):  # fmt: skip
    wait(OVERLAPPED)
    i = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    inside = i < num_rows
    slot = tl.load(slots_ptr + i, inside, other=-1).to(tl.int64)
    position = tl.load(positions_ptr + i, inside, other=0)
    token = tl.load(tokens_ptr + i, inside, other=0)
    tl.store(known_ptr + slot * max_len + position, tl.maximum(token, 0), inside & (slot >= 0))
