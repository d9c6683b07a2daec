"""Twin of reference.rope: split, norm, rotary and cache write of a token in one pass."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...reference.ops import Batch
from .kv import PART, KVCache
from .launch import compiled, inlined, run_ranges
from .norm import reciprocal_rms
from .simd import bfloat16s, float32s, int32s, int64s, narrow, widen


class _Call(NamedTuple):
    """Addresses and sizes of one call; a q_norm of 0 means no norm."""

    qkv: int
    qkv_stride: int
    out: int
    positions: int
    places: int
    cos_sin: int
    q_norm: int
    k_norm: int
    keys: int
    values: int
    heads: int
    kv_heads: int
    head_dim: int
    element_bytes: int


@inlined
def _read(call: _Call, address: int, target: int) -> None:
    """Widen head_dim elements into float32 scratch."""
    wide = float32s(target, call.head_dim)
    if call.element_bytes == 4:
        source = float32s(address, call.head_dim)
        for i in range(call.head_dim):
            wide[i] = source[i]
    else:
        halves = bfloat16s(address, call.head_dim)
        for i in range(call.head_dim):
            wide[i] = widen(halves[i])


@inlined
def _rotated(call: _Call, address: int, weight: int, turns: int, scratch: int, eps: float) -> None:
    """Leave one head, normalized with float32 weight [head_dim] and rotated, in scratch."""
    _read(call, address, scratch)
    half = call.head_dim // 2
    low, high = float32s(scratch, half), float32s(scratch + half * 4, half)
    if call.q_norm != 0:
        r = reciprocal_rms(scratch, call.head_dim, eps)
        x, w = float32s(scratch, call.head_dim), float32s(weight, call.head_dim)
        for i in range(call.head_dim):
            x[i] = (x[i] * r) * w[i]
    cos, sin = float32s(turns, half), float32s(turns + half * 4, half)
    for i in range(half):
        a, b = low[i], high[i]
        low[i] = a * cos[i] - b * sin[i]
        high[i] = b * cos[i] + a * sin[i]


@inlined
def _round(call: _Call, scratch: int, address: int) -> None:
    """Round head_dim float32 to elements."""
    x = float32s(scratch, call.head_dim)
    if call.element_bytes == 4:
        target = float32s(address, call.head_dim)
        for i in range(call.head_dim):
            target[i] = x[i]
    else:
        halves = bfloat16s(address, call.head_dim)
        for i in range(call.head_dim):
            halves[i] = narrow(x[i])


@inlined
def _write_kv(call: _Call, key: int, value: int, part: int, lane: int) -> None:
    """Store a key and a value (addresses of elements) as a lane of a part; see kernels.cpu.kv."""
    steps = call.head_dim * call.element_bytes // 4
    source = int32s(key, steps)
    target = int32s(call.keys + part * PART * steps * 4, PART * steps)
    for i in range(steps):
        target[i * PART + lane] = source[i]
    values = call.values + part * PART * steps * 4
    if call.element_bytes == 4:
        wide_source = int32s(value, steps)
        wide_target = int32s(values + lane * steps * 4, steps)
        for i in range(steps):
            wide_target[i] = wide_source[i]
    else:
        half_source = bfloat16s(value, call.head_dim)
        half_target = bfloat16s(values + (lane // 2) * call.head_dim * 4, 2 * call.head_dim)
        for i in range(call.head_dim):
            half_target[2 * i + lane % 2] = half_source[i]


@compiled(f"void(UniTuple(int64, {len(_Call._fields)}), float32, int64, int64)")
def _qkv_post(args: tuple[int, ...], eps: float, start: int, end: int) -> None:
    call = _Call(*args)
    head_dim, kv_heads = call.head_dim, call.kv_heads
    memory = np.empty(4 * head_dim, np.float32)
    q_weight = memory.ctypes.data
    k_weight, scratch = q_weight + head_dim * 4, q_weight + head_dim * 8
    key = q_weight + head_dim * 12
    if call.q_norm != 0:
        _read(call, call.q_norm, q_weight)
        _read(call, call.k_norm, k_weight)
    positions, places = int32s(call.positions, end), int64s(call.places, end)
    row_bytes = head_dim * call.element_bytes
    for token in range(start, end):
        source = call.qkv + token * call.qkv_stride * call.element_bytes
        turns = call.cos_sin + positions[token] * head_dim * 4
        for head in range(call.heads + kv_heads):
            weight = q_weight if head < call.heads else k_weight
            _rotated(call, source + head * row_bytes, weight, turns, scratch, eps)
            if head < call.heads:
                _round(call, scratch, call.out + (token * call.heads + head) * row_bytes)
            else:
                place = places[token]
                part = (place // PART) * kv_heads + head - call.heads
                value = source + (head + kv_heads) * row_bytes
                _round(call, scratch, key)
                _write_kv(call, key, value, part, place % PART)


def qkv_post(
    qkv: Tensor,
    batch: Batch,
    cos_sin: Tensor,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    cache: KVCache,
) -> Tensor:
    """Twin of reference.rope.qkv_post."""
    tokens, width = qkv.shape
    kv_heads, head_dim = cache.kv_heads, cache.head_dim
    heads = width // head_dim - 2 * kv_heads
    assert qkv.dtype == cache.keys.dtype and qkv.stride(1) == 1, (qkv.dtype, qkv.stride())
    assert cos_sin.is_contiguous() and cos_sin.shape[1] == head_dim, cos_sin.shape
    assert cos_sin.dtype == torch.float32, cos_sin.dtype
    out = qkv.new_empty((tokens, heads, head_dim))
    q_norm, k_norm = 0, 0
    if norms is not None:
        assert norms[0].dtype == norms[1].dtype == qkv.dtype, (norms[0].dtype, norms[1].dtype)
        q_norm, k_norm = norms[0].data_ptr(), norms[1].data_ptr()
    args: Any = (
        qkv.data_ptr(),
        qkv.stride(0),
        out.data_ptr(),
        batch.positions.data_ptr(),
        batch.places.data_ptr(),
        cos_sin.data_ptr(),
        q_norm,
        k_norm,
        cache.keys.data_ptr(),
        cache.values.data_ptr(),
        heads,
        kv_heads,
        head_dim,
        qkv.element_size(),
    )

    def call(start: int, end: int) -> None:
        _qkv_post(args, eps, start, end)

    run_ranges(call, tokens, tokens * width)
    return out
