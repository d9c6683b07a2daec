"""Rows to a batch and tokens back: both implementations against each other, padding included."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from quire import reference
from quire.fuzz.kernel_cases import seeds
from quire.kernels import cpu
from quire.reference.ops import Batch, StepRows
from torch import Tensor


def ints(values: list[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def make_rows(rng: random.Random, num_slots: int, max_len: int) -> StepRows:
    """Rows of several lengths; about a quarter is padding, whose start is anything, and which may
    have no token."""
    slots, starts, counts = [], [], []
    for slot in rng.sample(range(num_slots), rng.randint(1, num_slots)):
        if rng.random() < 0.25:
            slots.append(-1)
            starts.append(rng.choice([0, -5, 2**31 - 1]))
            counts.append(rng.choice([1, 1, 0, 7]))
        else:
            start = rng.randrange(max_len)
            slots.append(slot)
            starts.append(start)
            counts.append(rng.randint(1, max_len - start))
    return StepRows(ints(slots), ints(starts), ints([0, *counts]).cumsum(0, dtype=torch.int32))


@settings(max_examples=150)
@given(seeds)
def test_the_kernel_equals_the_reference(seed: int) -> None:
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    num_slots, max_len, block_size = rng.randint(1, 9), rng.randint(1, 60), rng.choice([1, 3, 16])
    rows = make_rows(rng, num_slots, max_len)
    max_blocks = -(-max_len // block_size)
    known = torch.randint(0, 10**6, (num_slots, max_len), generator=generator).int()
    tables = torch.randint(0, 2**31 - 1, (num_slots, max_blocks), generator=generator).int()
    args = (rows, known, tables, block_size, int(rows.query_starts[-1]))
    (tokens, batch), (expected_tokens, expected) = cpu.prepare(*args), reference.prepare(*args)
    for one, other in zip((tokens, *batch), (expected_tokens, *expected), strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    positions = torch.randint(0, max_len, rows.slots.shape, generator=generator).int()
    drawn = torch.randint(-1, 9, rows.slots.shape, generator=generator).int()
    tables_of_tokens = [known.clone(), known.clone()]
    for ops, table in zip((cpu, reference), tables_of_tokens, strict=True):
        ops.store_tokens(table, rows.slots, positions, drawn)
    assert torch.equal(*tables_of_tokens)


@pytest.mark.parametrize("ops", [cpu, reference])
def test_tokens_are_stored_but_not_for_padding_and_never_below_zero(ops: object) -> None:
    known = torch.full((2, 3), 5, dtype=torch.int32)
    ops.store_tokens(known, ints([1, -1, 0]), ints([2, 0, 1]), ints([8, 9, -1]))  # type: ignore[attr-defined]
    assert known.tolist() == [[5, 0, 5], [5, 5, 8]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("block_size", [8, 16])
@pytest.mark.parametrize("ops", [cpu, reference])
@pytest.mark.parametrize("padding", [(1, 1), (2, 0), (0, 2), (0, 0)])
def test_padding_changes_no_memory_and_no_other_row(
    padding: tuple[int, int], ops: object, block_size: int, dtype: torch.dtype
) -> None:
    """A step of two rows, alone and with padding that has no line in the table."""
    torch.manual_seed(0)
    heads, kv_heads, head_dim = 4, 2, 32
    qkv = torch.randn(7, (heads + 2 * kv_heads) * head_dim).to(dtype)
    turns = torch.randn(30, head_dim)
    tables = torch.randperm(8).int().view(2, 4)
    known = torch.zeros((2, 4 * block_size), dtype=torch.int32)
    results = []
    for slots in ([1, 0], [1, 0, -1, -1]):
        ends = ints([0, 2, 3, 3 + padding[0], 3 + sum(padding)][: len(slots) + 1])
        size = int(ends[-1])
        cache = ops.new_kv_cache(8, block_size, kv_heads, head_dim, dtype)  # type: ignore[attr-defined]
        every = torch.arange(8 * block_size)
        fill = torch.Generator().manual_seed(1)
        shape = (len(every), kv_heads, head_dim)
        cache.write(every, *(torch.randn(shape, generator=fill).to(dtype) for _ in range(2)))
        rows = StepRows(ints(slots), ints([20, 3, 0, 0][: len(slots)]), ends)
        _, batch = ops.prepare(rows, known, tables, block_size, size)  # type: ignore[attr-defined]
        assert isinstance(batch, Batch)
        q = ops.qkv_post(qkv[:size], batch, turns, None, 1e-6, cache)  # type: ignore[attr-defined]
        out = ops.paged_attention(q, cache, batch, scale=0.2)  # type: ignore[attr-defined]
        results.append((q[:3], out[:3], *ops.read_kv(cache, every)))  # type: ignore[attr-defined]
    for alone, padded in zip(*results, strict=True):
        assert torch.equal(alone, padded)
