"""A segment of attention on the GPU: its keys and values, scores, softmax and sums.

What `attention` does is which program computes which segments; what a segment is stands here, so
that no program can compute it otherwise. Keys before the wait of a kernel are read by `load_keys`
alone.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...reference.activation import LOG2_E
from ...reference.attention import LEAST_FINITE

_LOG2_E = tl.constexpr(LOG2_E)
LEAST = tl.constexpr(LEAST_FINITE)
"""The greatest score of nothing; finite, so that no difference of two is NaN."""
ONES = tl.constexpr(16)
"""Columns of ones that p is multiplied by: the least that a matrix unit takes."""


@triton.jit
def merge(m, l, acc, other_m, other_l, other_acc):
    """Append a segment [.., 1], [.., 1], [.., WIDTH] to what is on its left."""
    top = tl.maximum(m, other_m)
    a, b = tl.exp2(m - top), tl.exp2(other_m - top)
    return top, l * a + other_l * b, acc * a + other_acc * b


@triton.jit
def find_lines(
    table_ptr, first, lowest, end, kv_head, kv_heads,
    BLOCK_SIZE: tl.constexpr, SEGMENT: tl.constexpr, IS_WINDOWED: tl.constexpr,
):  # fmt: skip
    """Return (the lines of keys from first on among all of a layer, which lie in lowest .. end)."""
    key = first + tl.arange(0, SEGMENT)
    held = key < end
    if IS_WINDOWED:
        held = held & (key >= lowest)
    block = tl.load(table_ptr + key // BLOCK_SIZE, held, other=0)
    return (block * kv_heads + kv_head) * BLOCK_SIZE + key % BLOCK_SIZE, held


@triton.jit
def load_keys(keys_ptr, line, held, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Load [WIDTH, SEGMENT], zero where not held."""
    d = tl.arange(0, WIDTH)[:, None]
    mask = held[None, :]
    if WIDTH != HEAD_DIM:
        mask = mask & (d < HEAD_DIM)
    return tl.load(keys_ptr + line[None, :].to(tl.int64) * HEAD_DIM + d, mask, other=0.0)


@triton.jit
def find_fresh(places_ptr, at, line, PLACES: tl.constexpr, BLOCK_SIZE: tl.constexpr):
    """Return which lines are those of the places. at: (number of places, kv head, kv heads)."""
    num_places, kv_head, kv_heads = at
    i = tl.arange(0, PLACES)
    place = tl.load(places_ptr + i, i < num_places, other=-1).to(tl.int32)
    fresh = (place // BLOCK_SIZE * kv_heads + kv_head) * BLOCK_SIZE + place % BLOCK_SIZE
    is_fresh = (line[:, None] == fresh[None, :]) & (place >= 0)[None, :]
    return tl.max(is_fresh.to(tl.int32), 1) > 0


@triton.jit
def load_values(values_ptr, line, held, HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Load [SEGMENT, WIDTH], zero where not held."""
    d = tl.arange(0, WIDTH)[None, :]
    mask = held[:, None]
    if WIDTH != HEAD_DIM:
        mask = mask & (d < HEAD_DIM)
    return tl.load(values_ptr + line[:, None].to(tl.int64) * HEAD_DIM + d, mask, other=0.0)


@triton.jit
def _tanh(x):
    """Return the tanh whose e^2x is 2^x here; NaN stays."""
    x = tl.where(x > 126.0, 126.0, tl.where(x < -126.0, -126.0, x))
    t = tl.exp2(x) + 1.0
    return 1.0 - tl.div_rn(tl.full(t.shape, 2.0, tl.float32), t)


@triton.jit
def begin_rows(sinks_ptr, head, live, COLUMNS: tl.constexpr, HAS_SINKS: tl.constexpr):
    """Return (m, l) before the first key: [rows, 1], [rows, COLUMNS]."""
    if HAS_SINKS:
        sinks = tl.load(sinks_ptr + head, live, other=0.0)[:, None]
        return sinks * _LOG2_E, tl.full([head.shape[0], COLUMNS], 1.0, tl.float32)
    else:
        m = tl.full([head.shape[0], 1], LEAST, tl.float32)
        return m, tl.zeros([head.shape[0], COLUMNS], tl.float32)


@triton.jit
def weigh_keys(
    q, k, first, position, lowest, end, factor, cap, window,
    SEGMENT: tl.constexpr, IS_WINDOWED: tl.constexpr, IS_CAPPED: tl.constexpr,
):  # fmt: skip
    """Return (m, p) of the keys first .. first + SEGMENT that lie in lowest .. end.

    position: [rows, 1], the last key that each query sees.
    """
    key = first + tl.arange(0, SEGMENT)
    held = key < end
    if IS_WINDOWED:
        held = held & (key >= lowest)
    scores = tl.dot(q, k, input_precision="ieee") * factor
    if IS_CAPPED:
        scores = _tanh(scores) * cap
    seen = (key[None, :] <= position) & held[None, :]
    if IS_WINDOWED:
        seen = seen & (key[None, :] > position - window)
    scores = tl.where(seen, scores, float("-inf"))
    m = tl.maximum(tl.max(scores, 1, keep_dims=True), LEAST)
    return m, tl.exp2(scores - m).to(q.dtype)


@triton.jit
def add_values(p, v, SEGMENT: tl.constexpr):
    """Return (l, acc) of a segment."""
    ones = tl.full([SEGMENT, ONES], 1.0, v.dtype)
    return tl.dot(p, ones, input_precision="ieee"), tl.dot(p, v, input_precision="ieee")


@triton.jit
def attend_segment(
    q, keys_ptr, values_ptr, table_ptr, first, position, lowest, end, factor, cap, window, kv_head,
    kv_heads,
    HEAD_DIM: tl.constexpr, WIDTH: tl.constexpr, BLOCK_SIZE: tl.constexpr, SEGMENT: tl.constexpr,
    IS_WINDOWED: tl.constexpr, IS_CAPPED: tl.constexpr,
):  # fmt: skip
    """Return (m, l, acc) of the keys first .. first + SEGMENT that lie in lowest .. end."""
    line, held = find_lines(
        table_ptr, first, lowest, end, kv_head, kv_heads, BLOCK_SIZE, SEGMENT, IS_WINDOWED
    )
    k = load_keys(keys_ptr, line, held, HEAD_DIM, WIDTH)
    v = load_values(values_ptr, line, held, HEAD_DIM, WIDTH)
    m, p = weigh_keys(
        q, k, first, position, lowest, end, factor, cap, window, SEGMENT, IS_WINDOWED, IS_CAPPED
    )
    l, acc = add_values(p, v, SEGMENT)
    return m, l, acc
