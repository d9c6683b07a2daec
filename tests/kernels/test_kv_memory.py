"""KV memory: both layouts against a plain table of places."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quire import reference
from quire.fuzz.attention_cases import block_sizes, head_dims
from quire.fuzz.kernel_cases import DTYPES, seeds
from quire.kernels import cpu
from quire.kernels.cpu.kv import PART

copies = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=6)


@pytest.mark.parametrize("ops", [reference, cpu])
def test_memory_holds_what_was_written_and_copied(ops: ModuleType) -> None:
    @settings(max_examples=60)
    @given(block_sizes, head_dims, st.sampled_from(DTYPES), st.integers(1, 3), copies, seeds)
    def check(
        block_size: int,
        head_dim: int,
        dtype: torch.dtype,
        kv_heads: int,
        pairs: list[tuple[int, int]],
        seed: int,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        cache = ops.new_kv_cache(5, block_size, kv_heads, head_dim, dtype)
        assert (cache.num_blocks, cache.block_size) == (5, block_size)
        size = 5 * block_size
        table = torch.zeros((2, size, kv_heads, head_dim), dtype=dtype)
        places = torch.randperm(size, generator=generator)[: size // 2 + 1]
        table[:, places] = torch.randn(table[:, places].shape, generator=generator).to(dtype)
        cache.write(places, *table[:, places])
        blocks = table.view(2, 5, block_size, kv_heads, head_dim)
        for source, target in pairs:
            blocks[:, target] = blocks[:, source]
        pair = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)
        ops.copy_blocks(cache, pair[:, 0], pair[:, 1])
        for got, expected in zip(ops.read_kv(cache, torch.arange(size)), table, strict=True):
            assert torch.equal(got, expected)

    check()


def test_a_block_of_whole_parts_is_contiguous() -> None:
    cache = cpu.new_kv_cache(3, 32, 2, 16, torch.bfloat16)
    places = torch.arange(32, 64)
    ones = torch.ones((32, 2, 16), dtype=torch.bfloat16)
    cache.write(places, ones, ones)
    for memory in (cache.keys, cache.values):
        parts = 32 // PART
        assert memory[parts : 2 * parts].eq(1).all()
        assert memory[:parts].eq(0).all()
        assert memory[2 * parts :].eq(0).all()


def test_large_memory_is_zeroed_and_aligned() -> None:
    cache = cpu.new_kv_cache(256, 16, 4, 64, torch.bfloat16)
    for memory in (cache.keys, cache.values):
        assert memory.is_contiguous()
        assert memory.data_ptr() % 64 == 0
        assert not memory.any()
