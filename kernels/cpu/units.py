"""What a kernel of attention works on: a call's sizes, a thread's memory, the unit of its work."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ...reference.ops import KV_TILE
from . import tiles
from .amx import TILE_ROWS
from .kv import PART
from .launch import inlined
from .tiles import MAX_ROWS

QUERY_ROWS = 48
"""A multiple of what a register tile holds, 6 in vectors and 16 in the matrix unit."""
PASS_GROUPS = QUERY_ROWS // MAX_ROWS
"""Groups of MAX_ROWS rows that go through a tile together, pass by pass."""
MASK_BYTES = 64
"""Of a group: MAX_ROWS masks, the parts to compute (tiles.FULL: none masked), a span of keys."""
PARTS = KV_TILE // PART


class Call(NamedTuple):
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
    is_causal: int
    is_capped: int
    sinks: int
    """Address of [heads] float32; 0: none."""
    element_bytes: int
    palette: int


class Scratch(NamedTuple):
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
    """[PASS_GROUPS] of MASK_BYTES."""
    parts: int
    """[4, PARTS] addresses of a tile's keys and values, and of the next tile's keys and values."""
    keys: int
    """Gathered keys of a tile,"""
    values: int
    """and values, right behind."""


class Unit(NamedTuple):
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
    end: int
    """Keys before this one are seen by some of the tokens, later ones by none."""
    table: int
    """Address of the sequence's blocks."""
    careful: int


@inlined
def groups_of(rows: int) -> int:
    return (rows + MAX_ROWS - 1) // MAX_ROWS


@inlined
def first_key(call: Call, unit: Unit) -> int:
    """Return the first key that any row sees."""
    return max(0, unit.position - call.window + 1) if call.window > 0 else 0


@inlined
def last_key(call: Call, unit: Unit, token: int) -> int:
    """Return the last key that a token of the unit sees."""
    return unit.position + token if call.is_causal else unit.end - 1


@inlined
def make_scratch(call: Call, group: int) -> tuple[Any, Scratch]:
    """Make the memory of one call of the kernel: (its owner, addresses)."""
    groups = groups_of(max(QUERY_ROWS, group) + TILE_ROWS)
    rows = groups * MAX_ROWS
    q_bytes = rows * call.head_dim * call.element_bytes
    tile_bytes = KV_TILE * call.head_dim * call.element_bytes
    row_tile_bytes = PASS_GROUPS * MAX_ROWS * KV_TILE * 4
    size = q_bytes + rows * call.head_dim * 4 + groups * tiles.STATE_BYTES
    size += 2 * row_tile_bytes + PASS_GROUPS * MASK_BYTES + 32 * PARTS + 2 * tile_bytes + 64
    memory = np.zeros(size, np.uint8)
    q = (memory.ctypes.data + 63) // 64 * 64
    out = q + q_bytes
    states = out + rows * call.head_dim * 4
    scores = states + groups * tiles.STATE_BYTES
    p = scores + row_tile_bytes
    masks = p + row_tile_bytes
    parts = masks + PASS_GROUPS * MASK_BYTES
    keys = parts + 32 * PARTS
    return memory, Scratch(q, out, states, scores, p, masks, parts, keys, keys + tile_bytes)


@inlined
def rows_of_head(call: Call, unit: Unit) -> int:
    """Return the rows of scratch that a kv head takes: whole groups."""
    return groups_of(unit.num_tokens * (call.heads // call.kv_heads)) * MAX_ROWS
