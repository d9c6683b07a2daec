"""From rows and the device table to a Batch, and drawn tokens back into the table.

Integers only. Padding rows (slot -1) fill a step up to a number of rows that a kernel or a graph
was made for; nothing is written for them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .ops import Batch, StepRows


def prepare(
    rows: StepRows, known: Tensor, block_tables: Tensor, block_size: int, num_tokens: int
) -> tuple[Tensor, Batch]:
    """See Ops.prepare."""
    slots, starts, query_starts = rows
    counts = query_starts.diff().long()
    row = torch.arange(len(slots)).repeat_interleave(counts)
    assert len(row) == num_tokens, (len(row), num_tokens)
    live = slots >= 0
    offsets = torch.arange(num_tokens, dtype=torch.int32) - query_starts[row]
    token_live, token_slots = live[row], slots[row].clamp(min=0).long()
    positions = torch.where(token_live, starts[row] + offsets, 0)
    blocks = block_tables[token_slots, (positions // block_size).long()].long()
    places = torch.where(token_live, blocks * block_size + positions % block_size, -1)
    tokens = torch.where(token_live, known[token_slots, positions.long()], 0)
    kv_lens = torch.where(live, starts + counts, 0).int()
    return tokens, Batch(positions, places, query_starts, kv_lens, slots, block_tables)


def store_tokens(known: Tensor, slots: Tensor, positions: Tensor, tokens: Tensor) -> None:
    """See Ops.store_tokens."""
    live = slots >= 0
    known[slots[live].long(), positions[live].long()] = tokens[live].clamp(min=0)
