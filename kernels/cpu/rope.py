"""Twin of reference.rope: split, norm, rotary and cache write of a token in one pass."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from llvmlite import ir
from numba import types
from torch import Tensor

from ...reference.ops import Batch
from .emit import FLOAT, I64, LANES, VECTOR_BYTES, Emit, emitted
from .kv import PART, KVCache
from .launch import compiled, inlined, run_ranges
from .norm import reciprocal_rms
from .simd import bfloat16s, cgutils, float32s, int32s, int64s, narrow, widen


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


def _turn(*, normed: bool) -> Callable[..., None]:
    """`_rotated` and `_round` of one head in vectors; head_dim must be a multiple of 32.

    source, target: elements [head_dim]; weight: float32 [head_dim]; eps: address of a float32.
    """

    def emit(
        e: Emit, source: Any, target: Any, weight: Any, turns: Any, eps: Any, head_dim: Any
    ) -> None:
        b = e.b
        size = VECTOR_BYTES if e.tag == types.float32 else VECTOR_BYTES // 2
        num_vectors = b.udiv(head_dim, ir.Constant(I64, LANES))
        scale = _scale(e, source, num_vectors, eps) if normed else None
        half = b.udiv(num_vectors, ir.Constant(I64, 2))
        with cgutils.for_range(b, half) as loop:
            places = [loop.index, b.add(loop.index, half)]
            low, high = (e.load_wide(e.address(source, e.times(i, size))) for i in places)
            if scale is not None:
                w = [e.load(e.address(weight, e.times(i, VECTOR_BYTES))) for i in places]
                low, high = (
                    b.fmul(b.fmul(x, scale), y) for x, y in zip((low, high), w, strict=True)
                )
            cos, sin = (e.load(e.address(turns, e.times(i, VECTOR_BYTES))) for i in places)
            turned = (
                b.fsub(b.fmul(low, cos), b.fmul(high, sin)),
                b.fadd(b.fmul(high, cos), b.fmul(low, sin)),
            )
            for x, i in zip(turned, places, strict=True):
                e.store_exactly(x, e.address(target, e.times(i, size)))

    return emit


def _scale(e: Emit, source: Any, num_vectors: Any, eps: Any) -> Any:
    """Return `reciprocal_rms` of a head in all lanes."""
    b = e.b
    size = VECTOR_BYTES if e.tag == types.float32 else VECTOR_BYTES // 2
    total = cgutils.alloca_once_value(b, e.floats(0.0))
    with cgutils.for_range(b, num_vectors) as loop:
        x = e.load_wide(e.address(source, e.times(loop.index, size)))
        b.store(b.fadd(b.load(total), b.fmul(x, x)), total)
    width = b.sitofp(e.times(num_vectors, LANES), FLOAT)
    mean = b.fdiv(e.fold(b.load(total), b.fadd), width)
    root = e.call("llvm.sqrt.f32", FLOAT, b.fadd(mean, e.load(eps, FLOAT)))
    return e.splat(b.fdiv(ir.Constant(FLOAT, 1.0), root))


_turn_normed = emitted(_turn(normed=True))
_turn_plain = emitted(_turn(normed=False))


@inlined
def _turn_head(
    tag: Any, call: _Call, source: int, target: int, weight: int, turns: int, scratch: Any
) -> None:
    """Normalize and rotate one head into target; scratch: address of [head_dim] and of eps."""
    head_dim, (space, eps) = call.head_dim, scratch
    if head_dim % (2 * LANES) != 0:
        _rotated(call, source, weight, turns, space, float32s(eps, 1)[0])
        _round(call, space, target)
    elif call.q_norm != 0:
        _turn_normed(tag, (source, target, weight, turns, eps, head_dim))
    else:
        _turn_plain(tag, (source, target, weight, turns, eps, head_dim))


def _qkv_post(tag: Any, args: tuple[int, ...], eps: float, start: int, end: int) -> None:
    call = _Call(*args)
    head_dim, kv_heads = call.head_dim, call.kv_heads
    memory = np.empty(4 * head_dim + 1, np.float32)
    memory[4 * head_dim] = eps
    q_weight: Any = np.int64(memory.ctypes.data)  # a plain address is unsigned
    k_weight, key = q_weight + head_dim * 4, q_weight + head_dim * 8
    scratch = (q_weight + head_dim * 12, q_weight + head_dim * 16)
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
            target = (
                call.out + (token * call.heads + head) * row_bytes if head < call.heads else key
            )
            _turn_head(tag, call, source + head * row_bytes, target, weight, turns, scratch)
            place = places[token]
            if head >= call.heads and place >= 0:
                part = (place // PART) * kv_heads + head - call.heads
                value = source + (head + kv_heads) * row_bytes
                _write_kv(call, key, value, part, place % PART)
    memory[0] = 0  # The last use of the owner: its memory must live until here.


@cache
def _kernel(tag: str) -> Any:
    """Compile for a tag of kernels.cpu.emit, on first use."""
    signature = f"void({tag}, UniTuple(int64, {len(_Call._fields)}), float32, int64, int64)"
    return compiled(signature)(_qkv_post)


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

    kernel = _kernel("float32" if qkv.dtype == torch.float32 else "uint16")

    def call(start: int, end: int) -> None:
        kernel(0, args, eps, start, end)

    run_ranges(call, tokens, tokens * width)
    return out
