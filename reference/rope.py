"""What happens to the output of the qkv projection: split, per-head norm, rotary, cache write.

Rotary embedding: Su et al. 2021, arXiv:2104.09864, in the half-split pairing of the published
checkpoints (element i with i + head_dim/2).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .kv import KVCache
from .norm import scale_by_rms
from .ops import Batch


def qkv_post(
    qkv: Tensor,
    batch: Batch,
    cos_sin: Tensor,
    norms: tuple[Tensor, Tensor] | None,
    eps: float,
    cache: KVCache,
) -> Tensor:
    """See Ops.qkv_post."""
    kv_heads, head_dim = cache.keys.shape[2:]
    heads = qkv.shape[1] // head_dim - 2 * kv_heads
    qkv_thd = qkv.reshape(len(qkv), heads + 2 * kv_heads, head_dim)
    q, k = qkv_thd[:, :heads].float(), qkv_thd[:, heads : heads + kv_heads].float()
    if norms is not None:
        q, k = (scale_by_rms(x, w.float(), eps) for x, w in zip((q, k), norms, strict=True))
    turns = cos_sin[batch.positions.long()].unsqueeze(1)
    keys = _rotate(k, turns).to(qkv.dtype)
    cache.write(batch.places, keys, qkv_thd[:, heads + kv_heads :])
    return _rotate(q, turns).to(qkv.dtype)


def _rotate(x_thd: Tensor, turns: Tensor) -> Tensor:
    """Rotate float32 x [tokens, heads, head_dim] by turns [tokens, 1, head_dim]: cosines, sines."""
    a, b = x_thd.chunk(2, dim=-1)
    cos, sin = turns.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
