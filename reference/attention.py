"""Paged attention, causal or not: the definition, in plain PyTorch.

Online softmax (Milakov and Gimelshein 2018, arXiv:1805.02867) over tiles of KV_TILE keys at
absolute positions 0..63, 64..127, ... A query is one row of arithmetic and never meets another:

1. score = (sum over head_dim of q * k) * factor, factor = scale * log2(e) rounded to float32.
   With a softcap: t = exp2((sum) * (2 * log2(e) * scale / softcap)), the argument clamped to [-126,
   126]; score = (1 - 2 / (t + 1)) * (softcap * log2(e)), which is the cap times a tanh.
2. A tile without a visible key leaves the row as it is; in the others
   m' = max(m, visible scores), m starting at the least finite float32, with a sink at
   sink * log2(e), and lane 0 at one;
   c = exp2(m - m'); p = exp2(score - m') for visible keys, else 0;
   lanes = lanes * c + (((p[0:16] + p[16:32]) + p[32:48]) + p[48:64]), 16 sums of unrounded p;
   out = out * c, then out + sum over the tile's keys of p * v, p rounded to dtype.
3. Row sum = the 16 lanes folded by halves; result = out / row sum + 0 (no negative zero), rounded
   once to dtype.

Both inner sums start from what is there (0, or out): in float32 elements in order, total = total +
(a * b), two IEEE operations; in bfloat16 `reference.sums.add_products` in the order that the cache
was made for. In "tiles" a block of values is VALUE_TILE keys at absolute positions.

What a query does not see is never read: neither keys nor values of masked places (stale, NaN) nor
later tokens of the same step reach it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .activation import LOG2_E, exp2
from .kv import KVCache, read_kv
from .ops import KV_TILE, Batch
from .sums import TILE, Sums, add_products

LANES = 16
LEAST_FINITE = torch.finfo(torch.float32).min
VALUE_TILE = 16
"""Keys in a block of "tiles"."""


class _Kind(NamedTuple):
    """What is the same for all rows: how products are added, and the options of the operation."""

    sums: Sums | None
    scale: float
    window: int
    softcap: float
    sinks: Tensor | None
    causal: bool


class _Queries(NamedTuple):
    """Rows of a batch that have the same number of query tokens."""

    tokens: Tensor
    """[rows, queries] int64, index of each query token in the batch."""
    kv_lens: Tensor
    """[rows] int64, keys up to and including the row's last query."""
    tables: Tensor
    """[rows, max_blocks] int64."""


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
    """See Ops.paged_attention; the order of arithmetic is in the module's docstring."""
    assert causal or not window, window
    out = torch.empty_like(q)
    sums = cache.sums if q.dtype == torch.bfloat16 else None
    kind = _Kind(sums, scale, window, softcap, sinks, causal)
    starts = batch.query_starts.long()
    counts = starts.diff()
    for count in sorted(set(counts.tolist()) - {0}):
        rows = (counts == count).nonzero().squeeze(1)
        tokens = starts[rows, None] + torch.arange(count)
        tables = batch.block_tables[batch.slots[rows].long()].long()
        queries = _Queries(tokens, batch.kv_lens[rows].long(), tables)
        _attend(q, cache, queries, kind, out)
    return out


def _attend(q: Tensor, cache: KVCache, queries: _Queries, kind: _Kind, out: Tensor) -> None:
    """Attention of equally long rows: write out[queries.tokens]."""
    count = queries.tokens.shape[1]
    num_keys = -(-int(queries.kv_lens.max()) // KV_TILE) * KV_TILE
    key_index = torch.arange(num_keys)
    last = queries.kv_lens[:, None] - count + torch.arange(count)
    if not kind.causal:
        last = (queries.kv_lens[:, None] - 1).expand(-1, count)
    see = key_index <= last[..., None]
    if kind.window:
        see &= key_index > last[..., None] - kind.window
    blocks = (key_index // cache.block_size).clamp(max=queries.tables.shape[1] - 1)
    held = see.any(1)
    places = queries.tables[:, blocks] * cache.block_size + key_index % cache.block_size
    k, v = read_kv(cache, torch.where(held, places, 0))
    k, v = (torch.where(held[..., None, None], x.float(), 0.0) for x in (k, v))
    if count > 1 and not bool(v.isfinite().all()):
        # 0 * NaN: a value that one query sees must not reach another that does not. Each alone.
        for start in range(0, count, 16):
            tokens = queries.tokens[:, start : start + 16]
            ends = (last + 1)[:, start : start + 16].flatten()
            tables = queries.tables.repeat_interleave(tokens.shape[1], 0)
            alone = _Queries(tokens.reshape(-1, 1), ends, tables)
            _attend(q, cache, alone, kind, out)
        return
    heads, head_dim = q.shape[1:]
    kv_heads = k.shape[2]
    q_rikgd = q[queries.tokens].float().reshape(len(k), count, kv_heads, -1, head_dim)
    q_rkid = q_rikgd.transpose(1, 2).flatten(2, 3)
    see = see.repeat_interleave(heads // kv_heads, dim=1).unsqueeze(1)
    result = _softmax_values(q_rkid, k, v, see, kind)
    result = result.reshape(len(k), kv_heads, count, -1, head_dim).transpose(1, 2)
    out[queries.tokens] = result.reshape(len(k), count, heads, head_dim).to(q.dtype)


def _scale(products: Tensor, kind: _Kind) -> Tensor:
    """Return the scores, in powers of two."""
    if not kind.softcap:
        return products * (kind.scale * LOG2_E)
    t = exp2((products * (2 * LOG2_E * kind.scale / kind.softcap)).clamp(-126.0, 126.0))
    return (1.0 - 2.0 / (t + 1.0)) * (kind.softcap * LOG2_E)


def _softmax_values(q: Tensor, k: Tensor, v: Tensor, see: Tensor, kind: _Kind) -> Tensor:
    """Float32 attention of q [rows, kv_heads, queries, head_dim] over k, v [rows, keys, kv_heads,
    head_dim], all float32; see: [rows, 1, queries, keys] bool. A token's heads are side by side."""
    sums = kind.sums
    scores = torch.zeros((*q.shape[:3], k.shape[1]))
    scores = _add(scores, q.movedim(3, 0)[..., None], k.permute(3, 0, 2, 1)[..., None, :], sums)
    scores = _scale(scores, kind)
    out = torch.zeros_like(q)
    m = torch.full((*q.shape[:3], 1), LEAST_FINITE)
    lanes = torch.zeros((*q.shape[:3], LANES))
    if kind.sinks is not None:
        sinks = (kind.sinks * LOG2_E).view(q.shape[1], -1)
        m = sinks.repeat(1, q.shape[2] // sinks.shape[1]).expand(q.shape[:3])[..., None].clone()
        lanes[..., 0] = 1.0
    for start in range(0, k.shape[1], KV_TILE):
        tile = slice(start, start + KV_TILE)
        seen = see[..., tile]
        tile_scores = scores[..., tile]
        top = torch.where(seen, tile_scores, LEAST_FINITE).amax(-1, keepdim=True)
        new_m = torch.maximum(m, top)
        c = exp2(m - new_m)
        p = torch.where(seen, exp2(tile_scores - new_m), 0.0)
        p0, p1, p2, p3 = p.reshape(*p.shape[:-1], KV_TILE // LANES, LANES).unbind(-2)
        new_lanes = lanes * c + (((p0 + p1) + p2) + p3)
        p = p if sums is None else p.bfloat16().float()
        v_i = v[:, tile].permute(1, 0, 2, 3)[..., None, :]
        new_out = _add(out * c, p.movedim(3, 0)[..., None], v_i, sums, tile=VALUE_TILE)
        live = seen.any(-1, keepdim=True)
        m = torch.where(live, new_m, m)
        lanes = torch.where(live, new_lanes, lanes)
        out = torch.where(live, new_out, out)
    while lanes.shape[-1] > 1:
        half = lanes.shape[-1] // 2
        lanes = lanes[..., :half] + lanes[..., half:]
    return out / lanes + 0.0


def _add(total: Tensor, a: Tensor, b: Tensor, sums: Sums | None, *, tile: int = TILE) -> Tensor:
    """Return total + sum over i of a[i] * b[i]; sums None: of float32."""
    if sums is not None:
        return add_products(total, a, b, sums, tile=tile)
    for a_i, b_i in zip(a, b, strict=True):
        total = total + a_i * b_i
    return total
