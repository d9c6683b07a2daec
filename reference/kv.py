"""KV memory of one layer in its plainest layout, and moves inside it. It computes nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .sums import Sums


@dataclass(slots=True, eq=False)
class KVCache:
    """Keys and values of one layer, each [num_blocks, block_size, kv_heads, head_dim] dtype."""

    keys: Tensor
    values: Tensor
    sums: Sums

    @property
    def num_blocks(self) -> int:
        """Blocks of memory."""
        return self.keys.shape[0]

    @property
    def block_size(self) -> int:
        """Places in a block."""
        return self.keys.shape[1]

    def write(self, places: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [n, kv_heads, head_dim] at places [n] int64, in order; -1 skips."""
        if len(places) and int(places.min()) < 0:
            kept = places >= 0
            places, keys, values = places[kept], keys[kept], values[kept]
        self.keys.flatten(0, 1)[places] = keys
        self.values.flatten(0, 1)[places] = values


def new_kv_cache(
    num_blocks: int,
    block_size: int,
    kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    *,
    sums: Sums = "pairs",
    device: torch.device | str = "cpu",
) -> KVCache:
    """See Ops.new_kv_cache."""
    assert head_dim % 16 == 0, f"head_dim is {head_dim}: it must be a multiple of 16"
    shape = (num_blocks, block_size, kv_heads, head_dim)
    keys, values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
    return KVCache(keys, values, sums)


def copy_blocks(cache: KVCache, sources: Tensor, targets: Tensor) -> None:
    """See Ops.copy_blocks: one after another, so a block copied first may be overwritten next."""
    for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
        cache.keys[target] = cache.keys[source]
        cache.values[target] = cache.values[source]


def read_kv(cache: KVCache, places: Tensor) -> tuple[Tensor, Tensor]:
    """See Ops.read_kv."""
    return cache.keys.flatten(0, 1)[places], cache.values.flatten(0, 1)[places]
