"""What happens to the output of the qkv projection, on the GPU. Twin of `reference.rope`.

A program has one token and a few heads: it splits, normalizes, rotates and writes to the KV memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...reference.ops import Batch
from .kv import KVCache
from .launch import let_next_come, next_power_of_2, start, wait

HEADS = 8
"""Heads of a program."""


def qkv_post(
    qkv: Tensor,
    batch: Batch,
    cos_sin: Tensor,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    cache: KVCache,
) -> Tensor:
    """See Ops.qkv_post."""
    _, kv_heads, block_size, head_dim = cache.keys.shape
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    assert qkv.stride(1) == 1, qkv.stride()
    q = torch.empty((len(qkv), heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    start(
        _split_rotate_write,
        (len(qkv), triton.cdiv(heads + 2 * kv_heads, HEADS)),
        *(qkv, q, cache.keys, cache.values, batch.positions, batch.places, cos_sin),
        *(norms or (cos_sin, cos_sin)),
        *(qkv.stride(0), heads, kv_heads, block_size, head_dim, eps),
        HEADS=HEADS,
        HALF=next_power_of_2(head_dim // 2),
        HAS_NORMS=norms is not None,
        warps=4,
    )
    return q


@triton.jit
def _split_rotate_write(
    qkv_ptr, q_ptr, keys_ptr, values_ptr, positions_ptr, places_ptr, cos_sin_ptr,
    q_norm_ptr, k_norm_ptr,
    stride_qkv, heads, kv_heads, block_size, head_dim, eps,
    HEADS: tl.constexpr, HALF: tl.constexpr, HAS_NORMS: tl.constexpr, OVERLAPPED: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head = (tl.program_id(1) * HEADS + tl.arange(0, HEADS))[:, None]
    half = head_dim // 2
    i = tl.arange(0, HALF)[None, :]
    inside = (i < half) & (head < heads + 2 * kv_heads)
    is_q, is_v = head < heads, head >= heads + kv_heads
    if HAS_NORMS:
        norm_q, norm_k = inside & is_q, inside & ~is_q & ~is_v
        w_a = tl.load(q_norm_ptr + i, norm_q, other=0.0).to(tl.float32)
        w_a += tl.load(k_norm_ptr + i, norm_k, other=0.0).to(tl.float32)
        w_b = tl.load(q_norm_ptr + half + i, norm_q, other=0.0).to(tl.float32)
        w_b += tl.load(k_norm_ptr + half + i, norm_k, other=0.0).to(tl.float32)
    place = tl.load(places_ptr + token)
    position = tl.load(positions_ptr + token).to(tl.int64)
    turn_ptr = cos_sin_ptr + position * head_dim + i
    cos = tl.load(turn_ptr, i < half, other=0.0)
    sin = tl.load(turn_ptr + half, i < half, other=0.0)
    wait(OVERLAPPED)
    let_next_come(OVERLAPPED)
    x_ptr = qkv_ptr + token * stride_qkv + head * head_dim + i
    raw_a = tl.load(x_ptr, inside, other=0.0)
    raw_b = tl.load(x_ptr + half, inside, other=0.0)
    a, b = raw_a.to(tl.float32), raw_b.to(tl.float32)
    if HAS_NORMS:
        squares = tl.sum(a * a, 1, keep_dims=True) + tl.sum(b * b, 1, keep_dims=True)
        mean = tl.div_rn(squares, head_dim.to(tl.float32))
        r = tl.div_rn(tl.full([HEADS, 1], 1.0, tl.float32), tl.sqrt_rn(mean + eps))
        a, b = (a * r) * w_a, (b * r) * w_b
    kind = qkv_ptr.dtype.element_ty
    turned_a, turned_b = (a * cos - b * sin).to(kind), (b * cos + a * sin).to(kind)
    out_ptr = q_ptr + (token * heads + head) * head_dim + i
    tl.store(out_ptr, turned_a, inside & is_q)
    tl.store(out_ptr + half, turned_b, inside & is_q)
    kv_head = head - heads - tl.where(is_v, kv_heads, 0)
    line = (place // block_size * kv_heads + kv_head) * block_size + place % block_size
    kept = inside & ~is_q & (place >= 0)
    tl.store(keys_ptr + line * head_dim + i, turned_a, kept & ~is_v)
    tl.store(keys_ptr + line * head_dim + half + i, turned_b, kept & ~is_v)
    tl.store(values_ptr + line * head_dim + i, raw_a, kept & is_v)
    tl.store(values_ptr + line * head_dim + half + i, raw_b, kept & is_v)
