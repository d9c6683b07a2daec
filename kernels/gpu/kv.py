"""KV memory of one layer on the GPU, and copies of whole blocks. Twin of `reference.kv`.

A block of one kv head is contiguous, so that attention reads long runs of memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...reference.sums import Sums
from .launch import start, wait

COPY_WIDTH = 1024
"""Words that a program of `_copy` moves at once."""

NUM_COUNTERS = 4096
"""More rows times kv heads fill a GPU without splitting a sequence."""


@dataclass(slots=True, eq=False)
class KVCache:
    """Keys and values of one layer, each [num_blocks, kv_heads, block_size, head_dim] dtype."""

    keys: Tensor
    values: Tensor
    sums: Sums
    """Unused: a GPU adds in an order of its own."""
    counters: Tensor
    """[NUM_COUNTERS] int32, zero between kernels: programs that have ended, by row and kv head."""

    @property
    def num_blocks(self) -> int:
        """Blocks of memory."""
        return self.keys.shape[0]

    @property
    def block_size(self) -> int:
        """Places in a block."""
        return self.keys.shape[2]

    def write(self, places: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [n, kv_heads, head_dim] at places [n] int64; -1 skips."""
        kept = places >= 0
        places, keys, values = (x[kept].to(self.keys.device) for x in (places, keys, values))
        blocks, offsets = places // self.block_size, places % self.block_size
        self.keys[blocks, :, offsets] = keys
        self.values[blocks, :, offsets] = values


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
    shape = (num_blocks, kv_heads, block_size, head_dim)
    keys, values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
    counters = torch.zeros(NUM_COUNTERS, dtype=torch.int32, device=device)
    return KVCache(keys, values, sums, counters)


def read_kv(cache: KVCache, places: Tensor) -> tuple[Tensor, Tensor]:
    """See Ops.read_kv."""
    places = places.to(cache.keys.device)
    blocks, offsets = places // cache.block_size, places % cache.block_size
    return cache.keys[blocks, :, offsets], cache.values[blocks, :, offsets]


def copy_blocks(cache: KVCache, sources: Tensor, targets: Tensor) -> None:
    """See Ops.copy_blocks: a program owns a range of every block and copies pair after pair."""
    keys, values = (
        x.view(torch.int32).view(cache.num_blocks, -1) for x in (cache.keys, cache.values)
    )
    num_words = keys.shape[1]
    grid = (triton.cdiv(num_words, COPY_WIDTH), 2)
    if len(sources):
        start(
            _copy, grid, keys, values, sources, targets, len(sources), num_words, WIDTH=COPY_WIDTH
        )


@triton.jit(do_not_specialize=["num_copies"])
def _copy(
    keys_ptr, values_ptr, sources_ptr, targets_ptr, num_copies, num_words,
    WIDTH: tl.constexpr, OVERLAPPED: tl.constexpr,
):  # fmt: skip
    wait(OVERLAPPED)
    data_ptr = keys_ptr if tl.program_id(1) == 0 else values_ptr
    words = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    inside = words < num_words
    for i in range(num_copies):
        source = tl.load(sources_ptr + i) * num_words
        target = tl.load(targets_ptr + i) * num_words
        tl.store(data_ptr + target + words, tl.load(data_ptr + source + words, inside), inside)
