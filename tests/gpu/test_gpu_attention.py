"""Attention on the GPU: the exact lattice, float64, and that a row's bits are its own."""

from __future__ import annotations

import importlib
import math
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from quire import reference
from quire.fuzz.attention_cases import (
    LATTICE_SCALE,
    AttentionCase,
    Sequence,
    attend,
    attend_in_parts,
    attend_to,
    exact_attention,
    make_batch,
    make_cache,
    make_lattice,
)
from quire.fuzz.kernel_cases import DTYPES, assert_same_bits, poisoned_memory
from quire.fuzz.lattice_cases import examples, gpu_attention_cases
from quire.kernels import gpu
from quire.reference.ops import Batch

BFLOAT16 = torch.bfloat16


def make_case(
    rows: list[tuple[int, int]],
    dtype: torch.dtype = BFLOAT16,
    *,
    scale: float = LATTICE_SCALE,
    window: int = 0,
    group: int = 4,
    block_size: int = 16,
) -> AttentionCase:
    """Make a case of the usual shape: (queries, keys) of each row."""
    return AttentionCase(
        seed=1,
        flavour="normal",
        dtype=dtype,
        rows=tuple(Sequence(*row) for row in rows),
        kv_heads=2,
        group=group,
        head_dim=64,
        block_size=block_size,
        window=window,
        scale=scale,
        num_bad=0,
    )


MIXED = make_case([(1, 1290), (40, 330), (1, 1), (70, 70)])
WINDOW = make_case([(1, 1290), (40, 630)], torch.float32, window=300, block_size=24)
MANY_ROWS = make_case([(1, 300), (1, 64), (1, 5), (1, 257), (1, 520), (1, 65), (1, 100), (1, 9)])
WIDE_GROUP = make_case([(9, 300), (1, 600)], group=20)
BOTH_WAYS = make_case([(1, 1), (10, 10), (140, 140), (1, 700), (3, 300)], group=1)
BOTH_WAYS = BOTH_WAYS._replace(causal=False)


@examples(60)
@given(gpu_attention_cases())
@example(MIXED)
@example(WINDOW)
@example(MANY_ROWS)
@example(WIDE_GROUP)
@example(BOTH_WAYS)
@example(BOTH_WAYS._replace(dtype=torch.float32, group=3, has_sinks=True))
@example(MIXED._replace(has_sinks=True))
@example(MANY_ROWS._replace(has_sinks=True, dtype=torch.float32))
def test_lattice_is_exact(device: str, case: AttentionCase) -> None:
    inputs = make_lattice(case)
    with poisoned_memory():
        result = attend_to(gpu, case, inputs, device=device)
    assert_same_bits(result, attend_to(reference, case, inputs))


@examples(16)
@given(gpu_attention_cases(scale=0.125, max_rows=2))
@example(MIXED._replace(scale=0.125, dtype=torch.float32))
@example(MIXED._replace(scale=0.125))
@example(BOTH_WAYS._replace(scale=0.125))
@example(MIXED._replace(scale=1.0, softcap=5.0, has_sinks=True))
@example(MIXED._replace(scale=8.0, softcap=5.0, dtype=torch.float32))
def test_general_inputs_are_near_float64(device: str, case: AttentionCase) -> None:
    """bfloat16: probabilities are rounded, in numerator and denominator, and so is the result."""
    inputs = case.make_queries(), case.make_kv()
    numerators, sums, sizes = exact_attention(case, *inputs)
    exact, size = numerators / sums, sizes / sums
    # A tanh near 1 is known to 1.2e-7, and a score to softcap times as much.
    bound = (2e-6 + 5e-7 * case.softcap) * size
    if case.dtype == BFLOAT16:
        bound += 2.0**-8 * (size + 2 * exact.abs())
    with poisoned_memory():
        result = attend_to(gpu, case, inputs, device=device)
    error = (result.double() - exact).abs()
    assert (error <= bound).all(), (error / bound).max()


@examples(12)
@given(
    gpu_attention_cases(scale=0.125),
    st.lists(st.integers(0, 40), min_size=3, max_size=3),
    st.sampled_from([16, 8, 24, 64]),
)
@example(MIXED._replace(scale=0.125), [0, 17, 1, 33], 24)
@example(MIXED._replace(scale=0.125, softcap=30.0, has_sinks=True), [0, 17, 1, 33], 16)
def test_rows_keep_their_bits_in_any_batch_chunk_and_block_size(
    device: str, case: AttentionCase, cuts: list[int], block_size: int
) -> None:
    first, second = [], []
    for i, row in enumerate(case.rows):
        cut = cuts[i] % row.num_queries
        second.append((i, cut, row.num_queries))
        first.extend([(i, 0, cut)] * (cut > 0))
    batches = [second[::-1], *([first] if first else [])]
    parts = attend_in_parts(gpu, case, batches, block_size=block_size, device=device)
    assert_same_bits(parts, attend(gpu, case, device=device))


@pytest.mark.parametrize("rows", [(70, 330), (6, 1300)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_decode_token_by_token_has_the_bits_of_a_prefill(
    device: str, dtype: torch.dtype, rows: tuple[int, int]
) -> None:
    case = make_case([rows], dtype, scale=0.125, group=3)
    whole = attend(gpu, case, device=device)
    some = sorted({0, 1, 31, 32, 54, rows[0] - 1} & set(range(rows[0])))
    batch = [(0, query, query + 1) for query in some]
    alone = [batch[:1], batch[1:]]
    parts = attend_in_parts(gpu, case, alone, block_size=32, device=device)
    assert_same_bits(parts[some], whole[some])


@pytest.mark.parametrize("rows", [(150, 150), (20, 700)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_query_that_sees_all_has_its_bits_alone_and_among_others(
    device: str, dtype: torch.dtype, rows: tuple[int, int]
) -> None:
    """Programs of many queries, of one, and of some of one's segments."""
    case = make_case([rows], dtype, scale=0.125, group=1)._replace(causal=False)
    whole = attend(gpu, case, device=device)
    some = sorted({0, 1, 19, 127, 128, rows[0] - 1} & set(range(rows[0])))
    batch = [(0, query, query + 1) for query in some]
    parts = attend_in_parts(gpu, case, [batch[:1], batch[1:]], block_size=32, device=device)
    assert_same_bits(parts[some], whole[some])
    last = case._replace(causal=True)
    assert_same_bits(attend(gpu, last, device=device)[-1], whole[-1])


def test_what_lies_beyond_a_sequence_never_reaches_it(device: str) -> None:
    case = make_case([(70, 70), (1, 5), (130, 130)], scale=0.125)._replace(causal=False)
    for stale in (math.nan, math.inf, 1e30):
        stained = attend(gpu, case._replace(stale=stale), device=device)
        assert_same_bits(stained, attend(gpu, case._replace(stale=0.0), device=device))


def test_memory_is_attended_to_again_and_again(device: str) -> None:
    """What programs leave for each other in a cache is as it was when all have ended."""
    case = make_case([(1, 1290), (1, 200)], scale=0.125)  # of 3 programs, 2 have work
    batch, places = make_batch(case, 16)
    cache: Any = make_cache(gpu, case, case.make_kv(), places, 16, device=device)
    on_device = Batch(*(field.to(device) for field in batch))
    q = case.make_queries().to(device)
    with poisoned_memory():
        first, second, third = (
            gpu.paged_attention(q, cache, on_device, scale=0.125).cpu() for _ in range(3)
        )
    assert_same_bits(second, first)
    assert_same_bits(third, first)
    assert not cache.counters.any()


def test_more_rows_are_not_split_and_have_the_same_bits(device: str) -> None:
    """Few rows are cut into segments of several programs, many are not: it must not show."""
    rows = [(1, 1290), *[(1, 3)] * 12]
    case = make_case(rows, scale=0.125)
    whole = attend(gpu, case, device=device)
    parts = attend_in_parts(gpu, case, [[(0, 0, 1)]], block_size=16, device=device)
    assert_same_bits(parts[:1], whole[:1])


@pytest.mark.parametrize("num_queries", [1, 5])
def test_blocks_behind_the_window_are_not_read(device: str, num_queries: int) -> None:
    case = make_case([(num_queries, 700)], scale=0.125, window=20)
    q, kv = case.make_queries(), case.make_kv()
    expected = attend_to(gpu, case, (q, kv), device=device)
    batch, places = make_batch(case, 16)
    cache: Any = make_cache(gpu, case, kv, places, 16, device=device)
    behind = 700 - num_queries - 19
    batch.block_tables[batch.slots[0], : behind // 16] = 2**31 - 1
    on_device = Batch(*(field.to(device) for field in batch))
    out = gpu.paged_attention(q.to(device), cache, on_device, scale=0.125, window=20)
    assert_same_bits(out.cpu(), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_rows_leave_the_others_alone(device: str, dtype: torch.dtype) -> None:
    """A padding row has slot -1 and kv_len 0: no line of the table is read for it, whether it has a
    token, several or none."""
    case = make_case([(1, 300), (5, 40), (1, 7)], dtype, scale=0.125)
    q, kv = case.make_queries(), case.make_kv()
    expected = attend_to(gpu, case, (q, kv), device=device)
    batch, places = make_batch(case, 16)
    cache: Any = make_cache(gpu, case, kv, places, 16, device=device)
    index = torch.tensor([0, 0, 1, 2, 3, 4, 5, 6, *[0] * 90])
    live = torch.tensor([True, False, *[True] * 6, *[False] * 90])
    none = torch.full((5,), -1, dtype=torch.int32)
    padded = batch._replace(
        positions=batch.positions[index] * live,
        places=torch.where(live, batch.places[index], -1),
        query_starts=torch.tensor([0, 1, 2, 7, 8, 9, 98, 98, 98], dtype=torch.int32),
        kv_lens=torch.tensor([300, 0, 40, 7, 0, 0, 0, 0], dtype=torch.int32),
        slots=torch.stack([batch.slots[0], none[0], *batch.slots[1:], *none[1:]]),
    )
    on_device = Batch(*(field.to(device) for field in padded))
    with poisoned_memory():
        out = gpu.paged_attention(q[index].to(device), cache, on_device, scale=0.125)
    assert_same_bits(out.cpu()[live], expected)


def test_nothing_is_attended_by_no_rows(device: str) -> None:
    case = make_case([(1, 20)])
    batch, places = make_batch(case, 16)
    cache: Any = make_cache(gpu, case, case.make_kv(), places, 16, device=device)
    nothing = batch._replace(
        query_starts=torch.zeros(1).int(), kv_lens=batch.kv_lens[:0], slots=batch.slots[:0]
    )
    on_device = Batch(*(field.to(device) for field in nothing))
    q = case.make_queries()[:0].to(device)
    assert gpu.paged_attention(q, cache, on_device, scale=0.125).shape == q.shape


def test_what_lies_beyond_a_row_never_reaches_it(device: str) -> None:
    """Infinite and NaN keys of later tokens, whose values are plain, in the same block."""
    case = make_case([(1, 70), (1, 300)], scale=0.125)
    for stale in (math.nan, math.inf, 1e30):
        stained = attend(gpu, case._replace(stale=stale), device=device)
        assert_same_bits(stained, attend(gpu, case._replace(stale=0.0), device=device))


@pytest.mark.parametrize("kv_heads", [1, 2, 5, 8, 500])
def test_rows_are_split_up_to_the_number_that_a_start_measures(
    device: str, monkeypatch: pytest.MonkeyPatch, kv_heads: int
) -> None:
    """Parts take memory: more rows must not be split than are said to be."""
    started: list[Any] = []
    module = importlib.import_module("quire.kernels.gpu.attention")
    monkeypatch.setattr(module, "start", lambda kernel, *_, **__: started.append(kernel))
    cache = gpu.new_kv_cache(1, 16, kv_heads, 16, BFLOAT16, device=device)
    most = module.most_split_rows(kv_heads)
    for rows in range(1, most + 20):
        batch = Batch(*(torch.zeros(rows, 64, dtype=torch.int32, device=device) for _ in range(6)))
        q = torch.zeros(rows, kv_heads, 16, dtype=BFLOAT16, device=device)
        gpu.paged_attention(q, cache, batch, scale=1.0)
        assert (started.pop() is module._attend_parts) == (rows <= most), rows
