"""KV memory on the GPU: qkv post-processing, moves of blocks, what a step gathers and stores."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from quire import reference
from quire.fuzz.attention_cases import QKVCase, qkv_cases
from quire.fuzz.kernel_cases import DTYPES, assert_same_bits, make_floats, poisoned_memory
from quire.fuzz.lattice_cases import (
    LatticeQKVCase,
    StepCase,
    examples,
    lattice_qkv_cases,
    move,
    step_cases,
)
from quire.kernels import gpu
from quire.reference.ops import Batch, StepRows
from torch import Tensor

Inputs = tuple[Tensor, Batch, Tensor, tuple[Tensor, Tensor] | None]


def run(
    ops: ModuleType, case: QKVCase, inputs: Inputs, device: str = "cpu"
) -> tuple[Tensor, Tensor, Tensor]:
    """Run given inputs in the geometry of a case: (q, all keys, all values)."""
    qkv, batch, cos_sin, norms = inputs
    if norms is not None:
        norms = (norms[0].to(device), norms[1].to(device))
    cache = case.make_cache(ops, device)
    on_device = Batch(*(field.to(device) for field in batch))
    q = ops.qkv_post(move(qkv, device), on_device, cos_sin.to(device), norms, case.eps, cache)
    k, v = ops.read_kv(cache, torch.arange(case.num_places).to(device))
    return q.cpu(), k.cpu(), v.cpu()


@examples(30)
@given(qkv_cases)
@example(QKVCase(1, "bits", torch.bfloat16, 4, 20, 3, 128, 16, False, True, 0.0))
def test_turns_without_norms_have_the_reference_s_bits(device: str, case: QKVCase) -> None:
    case = case._replace(has_norms=False, tokens=min(case.tokens, 8))
    inputs = case.make()
    with poisoned_memory():
        ours = run(gpu, case, inputs, device)
    for mine, wanted in zip(ours, run(reference, case, inputs), strict=True):
        assert_same_bits(mine, wanted)


@examples(30)
@given(lattice_qkv_cases())
def test_norms_and_turns_are_exact_on_the_lattice(device: str, case: LatticeQKVCase) -> None:
    inputs = case.make()
    with poisoned_memory():
        ours = run(gpu, case.case, inputs, device)
    for mine, wanted in zip(ours, run(reference, case.case, inputs), strict=True):
        assert_same_bits(mine, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_norms_and_turns_are_near_float64(device: str, dtype: torch.dtype, head_dim: int) -> None:
    case = QKVCase(3, "normal", dtype, 4, 5, 2, head_dim, 16, True, False, 1e-6)
    qkv, batch, cos_sin, norms = case.make()
    assert norms is not None
    q, keys, values = run(gpu, case, (qkv, batch, cos_sin, norms), device)
    wide = qkv.double().reshape(4, -1, head_dim)
    cos, sin = cos_sin[batch.positions.long()].double().unsqueeze(1).chunk(2, -1)
    keys = keys[batch.places]
    for x, weight, got in ((wide[:, :5], norms[0], q), (wide[:, 5:7], norms[1], keys)):
        normed = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double()
        a, b = normed.chunk(2, -1)
        exact = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
        size = torch.cat((a.abs() + b.abs(), a.abs() + b.abs()), -1)
        bound = 1e-6 * size + (0 if dtype == torch.float32 else 2.0**-8) * exact.abs()
        assert ((got - exact).abs() <= bound).all()
    assert torch.equal(values[batch.places].double(), wide[:, 7:])


@examples(10)
@given(qkv_cases, st.integers(0, 8))
def test_qkv_post_of_a_part_has_the_same_bits(device: str, case: QKVCase, cut: int) -> None:
    case = case._replace(tokens=min(case.tokens, 8))
    qkv, batch, cos_sin, norms = case.make()
    whole, _, _ = run(gpu, case, (qkv, batch, cos_sin, norms), device)
    for part in (slice(0, cut), slice(cut, None)):
        some = batch._replace(positions=batch.positions[part], places=batch.places[part])
        q, _, _ = run(gpu, case, (qkv[part], some, cos_sin, norms), device)
        assert_same_bits(q, whole[part])


@pytest.mark.parametrize("has_norms", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_token_without_a_place_is_not_written(
    device: str, dtype: torch.dtype, has_norms: bool
) -> None:
    case = QKVCase(3, "normal", dtype, 6, 3, 2, 64, 16, has_norms, False, 1e-6)
    qkv, batch, cos_sin, norms = case.make()
    whole = run(gpu, case, (qkv, batch, cos_sin, norms), device)
    kept = torch.tensor([True, False, True, True, False, False])
    some = batch._replace(places=torch.where(kept, batch.places, -1))
    q, keys, values = run(gpu, case, (qkv, some, cos_sin, norms), device)
    assert_same_bits(q, whole[0])
    untouched = torch.ones(case.num_places, dtype=torch.bool)
    untouched[batch.places[kept]] = False
    for now, before in ((keys, whole[1]), (values, whole[2])):
        assert_same_bits(now[~untouched], before[~untouched])
        assert not now[untouched].any()


@examples(15)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=8),
    st.sampled_from([(16, 2, 64), (1, 1, 16), (24, 3, 80), (64, 2, 128)]),
    st.sampled_from(DTYPES),
)
@example([(0, 1), (1, 2), (2, 0)], (16, 2, 64), torch.bfloat16)
def test_blocks_are_copied_in_order(
    device: str, moves: list[tuple[int, int]], shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    block_size, kv_heads, head_dim = shape
    places = torch.arange(7 * block_size)
    k, v = (make_floats(seed, (len(places), *shape[1:]), "bits", dtype) for seed in (1, 2))
    sources, targets = torch.tensor(moves, dtype=torch.int64).reshape(-1, 2).t().contiguous()
    results = []
    for ops, where in ((gpu, device), (reference, "cpu")):
        cache: Any = ops.new_kv_cache(7, block_size, kv_heads, head_dim, dtype, device=where)
        cache.write(places, k, v)
        ops.copy_blocks(cache, sources.to(where), targets.to(where))
        results.append([x.cpu() for x in ops.read_kv(cache, places.to(where))])
    for mine, wanted in zip(*results, strict=True):
        assert_same_bits(mine, wanted)


def test_new_memory_is_zero_and_keeps_its_geometry(device: str) -> None:
    with poisoned_memory():
        cache = gpu.new_kv_cache(3, 16, 2, 64, torch.bfloat16, device=device)
    assert (cache.num_blocks, cache.block_size) == (3, 16)
    for x in gpu.read_kv(cache, torch.arange(48, device=device)):
        assert x.shape == (48, 2, 64) and not x.any()
    with pytest.raises(AssertionError):
        gpu.new_kv_cache(3, 16, 2, 40, torch.bfloat16, device=device)


@examples(30)
@given(step_cases)
@example(StepCase(1, ((1, 70), (1, -1), (200, 40), (1, 0), (70, -1), (0, -1)), 16))
@example(StepCase(2, ((1, -1), (1, -1)), 16))
def test_prepare_gathers_what_the_reference_does(device: str, case: StepCase) -> None:
    rows, known, tables, num_tokens = case.make()
    on_device = StepRows(*(field.to(device) for field in rows))
    with poisoned_memory():
        tokens, batch = gpu.prepare(
            on_device, known.to(device), tables.to(device), case.block_size, num_tokens
        )
    wanted, wanted_batch = reference.prepare(rows, known, tables, case.block_size, num_tokens)
    assert_same_bits(tokens.cpu(), wanted)
    for mine, field in zip(batch, wanted_batch, strict=True):
        assert_same_bits(mine.cpu(), field)


@pytest.mark.parametrize("count", [1, 7, 64, 100])
def test_tokens_are_stored_as_by_the_reference(device: str, count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    known = torch.randint(1000, (count + 3, 9), generator=generator, dtype=torch.int32)
    slots = torch.randperm(count + 3, generator=generator)[:count].int()
    slots[torch.rand(count, generator=generator) < 0.3] = -1
    positions = torch.randint(9, (count,), generator=generator, dtype=torch.int32)
    tokens = torch.randint(-1, 1000, (count,), generator=generator, dtype=torch.int32)
    tokens[0] = -1
    ours = known.clone().to(device)
    gpu.store_tokens(ours, *(x.to(device) for x in (slots, positions, tokens)))
    reference.store_tokens(known, slots, positions, tokens)
    assert_same_bits(ours.cpu(), known)
