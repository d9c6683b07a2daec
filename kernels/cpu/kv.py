"""KV memory of one layer, laid out for vectors of 16 keys. Twin of reference.kv.

A place (block * block_size + offset) is a line of one long memory that knows no blocks: place p is
lane p % 16 of part p // 16, so that one rule serves every block size, and a block whose size is a
multiple of 16 is a whole number of parts that attention reads where they lie. With steps of 4 bytes
(one float32, or a pair of bfloat16, see kernels.cpu.emit) a part is

* keys    [kv_heads, steps of head_dim, 16 keys]: a vector is one step of 16 keys,
* values  [kv_heads, steps of 16 keys, head_dim]: a vector is 16 elements of one key, or of two.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...reference.sums import Sums
from .pages import zeros

PART = 16
"""Keys in a part."""


@dataclass(slots=True, eq=False)
class KVCache:
    """Keys and values of one layer; `pair` elements of dtype fill a step.

    keys: [parts, kv_heads, head_dim / pair, 16, pair], contiguous;
    values: [parts, kv_heads, 16 / pair, head_dim, pair], contiguous.
    """

    num_blocks: int
    block_size: int
    keys: Tensor
    values: Tensor
    sums: Sums

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.keys.shape[1]

    @property
    def head_dim(self) -> int:
        """Elements of a key or value."""
        return self.values.shape[3]

    def write(self, places: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [n, kv_heads, head_dim] at places [n] int64, in order."""
        part, lane, pair = places // PART, places % PART, self.keys.shape[4]
        by_place = self.keys.permute(0, 3, 1, 2, 4)
        by_place[part, lane] = keys.reshape(*keys.shape[:2], -1, pair)
        self.values.permute(0, 2, 4, 1, 3)[part, lane // pair, lane % pair] = values


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
    """Twin of reference.kv.new_kv_cache."""
    assert torch.device(device).type == "cpu", device
    assert head_dim % 16 == 0, f"head_dim is {head_dim}: it must be a multiple of 16"
    parts = -(-num_blocks * block_size // PART)
    pair = 2 if dtype == torch.bfloat16 else 1
    keys = zeros((parts, kv_heads, head_dim // pair, PART, pair), dtype)
    values = zeros((parts, kv_heads, PART // pair, head_dim, pair), dtype)
    return KVCache(num_blocks, block_size, keys, values, sums)


def copy_blocks(cache: KVCache, sources: Tensor, targets: Tensor) -> None:
    """Twin of reference.kv.copy_blocks."""
    size = cache.block_size
    for source, target in zip(sources.tolist(), targets.tolist(), strict=True):
        if size % PART == 0:
            for memory in (cache.keys, cache.values):
                blocks = memory.view(cache.num_blocks, -1)
                blocks[target] = blocks[source]
        else:
            offsets = torch.arange(size)
            cache.write(target * size + offsets, *read_kv(cache, source * size + offsets))


def read_kv(cache: KVCache, places: Tensor) -> tuple[Tensor, Tensor]:
    """Twin of reference.kv.read_kv."""
    part, lane, pair = places // PART, places % PART, cache.keys.shape[4]
    keys = cache.keys.permute(0, 3, 1, 2, 4)[part, lane].flatten(2, 3)
    return keys, cache.values.permute(0, 2, 4, 1, 3)[part, lane // pair, lane % pair]
