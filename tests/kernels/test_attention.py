"""Attention: twins bit by bit, the exact lattice, float64, and that a row's bits are its own."""

from __future__ import annotations

import math
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quire import reference
from quire.fuzz.attention_cases import (
    LATTICE_SCALE,
    AttentionCase,
    Sequence,
    attend,
    attend_in_parts,
    attend_to,
    attention_cases,
    block_sizes,
    exact_attention,
    make_batch,
    make_cache,
    make_lattice,
)
from quire.fuzz.kernel_cases import assert_same_bits, poisoned_memory, usable_tag
from quire.kernels import cpu
from quire.kernels.cpu import emit, launch
from quire.kernels.cpu.attention import Options, attend_by
from quire.reference.ops import Batch
from quire.reference.sums import Sums
from torch.nn.functional import scaled_dot_product_attention

BFLOAT16_TAGS = [(sums, tag) for sums, tags in emit.TAGS.items() for tag in tags]


def make_case(
    rows: list[tuple[int, int]], dtype: torch.dtype = torch.bfloat16, window: int = 0
) -> AttentionCase:
    """Make a small case of the usual shape: (queries, keys) of each row."""
    return AttentionCase(
        seed=1,
        flavour="normal",
        dtype=dtype,
        rows=tuple(Sequence(*row) for row in rows),
        kv_heads=2,
        group=3,
        head_dim=32,
        block_size=16,
        window=window,
        scale=0.125,
        num_bad=0,
    )


def split_rows(case: AttentionCase, cuts: list[int]) -> list[list[tuple[int, int, int]]]:
    """Cut each row's queries in two: batches of (row, first query, end query)."""
    first, second = [], []
    for i, (row, cut) in enumerate(zip(case.rows, cuts, strict=True)):
        middle = cut % (row.num_queries + 1)
        first.append((i, 0, middle))
        second.append((i, middle, row.num_queries))
    return [[x for x in batch if x[1] < x[2]] for batch in (second, first)]


@settings(max_examples=80)
@given(attention_cases())
def test_twins_agree_on_every_input(case: AttentionCase) -> None:
    with poisoned_memory():
        assert_same_bits(attend(cpu, case), attend(reference, case))


@settings(max_examples=60)
@given(attention_cases())
def test_twins_agree_where_every_query_sees_all(case: AttentionCase) -> None:
    case = case._replace(causal=False, window=0)
    with poisoned_memory():
        assert_same_bits(attend(cpu, case), attend(reference, case))


@settings(max_examples=120)
@given(attention_cases(), st.sampled_from(BFLOAT16_TAGS))
def test_all_instructions_give_the_same_bits(
    case: AttentionCase, sums_and_tag: tuple[Sums, str]
) -> None:
    sums, tag = sums_and_tag
    case = case._replace(dtype=torch.bfloat16, sums=sums)
    by = partial(attend_by, usable_tag(sums, tag))

    def attention(q: torch.Tensor, cache: Any, batch: Batch, **options: Any) -> torch.Tensor:
        return by(q, cache, batch, Options(**options))

    ops: Any = SimpleNamespace(new_kv_cache=cpu.new_kv_cache, paged_attention=attention)
    assert_same_bits(attend(ops, case), attend(reference, case))


@pytest.mark.parametrize("sums", emit.TAGS)
def test_few_rows_after_many_meet_nothing_of_them(sums: Sums) -> None:
    """Scratch rows that a short unit leaves alone still hold the probabilities of a long one."""
    case = make_case([(40, 192), (1, 192), (3, 64), (40, 128), (2, 100)])._replace(
        sums=sums, stale=2.0
    )
    torch.set_num_threads(1)
    assert_same_bits(attend(cpu, case), attend(reference, case))


@pytest.mark.parametrize("ops", [reference, cpu])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lattice_is_exact(ops: ModuleType, dtype: torch.dtype) -> None:
    @settings(max_examples=40)
    @given(attention_cases())
    def check(case: AttentionCase) -> None:
        case = case._replace(dtype=dtype, scale=LATTICE_SCALE, softcap=0.0)
        q, kv = make_lattice(case)
        numerators, sums, _ = exact_attention(case, q, kv)
        expected = (numerators.float() / sums.float()).to(dtype)
        assert torch.equal(attend_to(ops, case, (q, kv)), expected)

    check()


@settings(max_examples=25)
@given(attention_cases(st.just("normal")))
def test_reference_is_near_float64(case: AttentionCase) -> None:
    case = case._replace(num_bad=0, scale=0.125)
    q, kv = case.make_queries(), case.make_kv()
    numerators, sums, sizes = exact_attention(case, q, kv)
    # A tanh near 1 is known to 1.2e-7, and a score to softcap times as much.
    near = (6e-6 if case.dtype == torch.float32 else 2.0**-7) + 5e-7 * case.softcap
    bound = near * sizes / sums + 1e-30
    error = (attend(reference, case).double() - numerators / sums).abs()
    assert (error <= bound).all(), (error / bound).max()


@pytest.mark.parametrize("ops", [reference, cpu])
def test_rows_keep_their_bits_in_any_batch_chunk_and_block_size(ops: ModuleType) -> None:
    @settings(max_examples=40)
    @given(attention_cases(), st.lists(st.integers(0, 200), min_size=4, max_size=4), block_sizes)
    def check(case: AttentionCase, cuts: list[int], size: int) -> None:
        cuts = cuts[: len(case.rows)]
        batches = [batch for batch in split_rows(case, cuts) if batch]
        parts = attend_in_parts(ops, case, batches, block_size=size)
        assert_same_bits(attend(ops, case), parts)

    check()


@settings(max_examples=25)
@given(attention_cases(), st.integers(2, 5))
def test_threads_do_not_change_bits(case: AttentionCase, threads: int) -> None:
    alone = attend(cpu, case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "MIN_WORK", 1)
        torch.set_num_threads(threads)
        try:
            assert_same_bits(attend(cpu, case), alone)
        finally:
            torch.set_num_threads(1)


@pytest.mark.parametrize("ops", [reference, cpu])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_later_tokens_never_reach_earlier_ones(
    ops: ModuleType, dtype: torch.dtype, bad: float
) -> None:
    case = make_case([(70, 100)], dtype)
    q, kv = case.make_queries(), case.make_kv()
    clean = attend_to(ops, case, (q, kv))
    for tensor in kv[0]:
        tensor[77] = bad
    spoiled = attend_to(ops, case, (q, kv))
    assert_same_bits(spoiled[:47], clean[:47])
    assert spoiled[47:].isnan().all()


@pytest.mark.parametrize("ops", [reference, cpu])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_later_tokens_reach_earlier_ones_where_nothing_is_causal(
    ops: ModuleType, dtype: torch.dtype
) -> None:
    case = make_case([(70, 70), (9, 100)], dtype)._replace(causal=False)
    q, kv = case.make_queries(), case.make_kv()
    clean = attend_to(ops, case, (q, kv))
    kv[0][1][69] += 3
    changed = attend_to(ops, case, (q, kv))
    assert (changed[:70] != clean[:70]).any(-1).all()
    assert_same_bits(changed[70:], clean[70:])
    for tensor in kv[0]:
        tensor[69] = math.nan
    spoiled = attend_to(ops, case, (q, kv))
    assert spoiled[:70].isnan().all()
    assert_same_bits(spoiled[70:], clean[70:])


@pytest.mark.parametrize("ops", [reference, cpu])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 16, 24, 128])
def test_attention_of_whole_sequences_is_that_of_torch(
    ops: ModuleType, dtype: torch.dtype, size: int
) -> None:
    case = make_case([(10, 10), (130, 130), (1, 1), (64, 64)], dtype)
    case = case._replace(causal=False, head_dim=64, block_size=size)
    q, kv = case.make_queries(), case.make_kv()
    out = attend_to(ops, case, (q, kv)).float()
    start = 0
    for row, (k, v) in zip(case.rows, kv, strict=True):
        rows = slice(start, start := start + row.num_queries)
        query, key, value = (x.float().transpose(0, 1) for x in (q[rows], k, v))
        expected = scaled_dot_product_attention(
            query, key, value, scale=case.scale, enable_gqa=True
        )
        near = 1e-5 if dtype == torch.float32 else 0.02
        assert torch.allclose(out[rows], expected.transpose(0, 1), atol=near, rtol=near)


@pytest.mark.parametrize("ops", [reference, cpu])
def test_attention_both_ways_has_no_window(ops: ModuleType) -> None:
    case = make_case([(3, 20)], window=5)._replace(causal=False)
    with pytest.raises(AssertionError):
        attend(ops, case)


@pytest.mark.parametrize("ops", [reference, cpu])
def test_blocks_behind_the_window_are_not_read(ops: ModuleType) -> None:
    case = make_case([(3, 190)], window=20)
    q, kv = case.make_queries(), case.make_kv()
    expected = attend_to(ops, case, (q, kv))
    batch, places = make_batch(case, 16)
    cache = make_cache(ops, case, kv, places, 16)
    batch.block_tables[batch.slots[0], : (187 - 19) // 16] = 2**31 - 1
    out = ops.paged_attention(q, cache, batch, scale=case.scale, window=case.window)
    assert_same_bits(out, expected)


@pytest.mark.parametrize("ops", [reference, cpu])
def test_a_row_without_queries_is_skipped(ops: ModuleType) -> None:
    case = make_case([(2, 20), (1, 1), (3, 70)])
    batch, places = make_batch(case, 16)
    cache = make_cache(ops, case, case.make_kv(), places, 16)
    q = case.make_queries()
    expected = ops.paged_attention(q, cache, batch, scale=0.125)
    keep = [0, 2, 2, 3, 3, 6]
    rows = torch.tensor([0, 0, 1, 1, 2])
    wider = batch._replace(
        query_starts=torch.tensor(keep).int(), kv_lens=batch.kv_lens[rows], slots=batch.slots[rows]
    )
    assert_same_bits(ops.paged_attention(q, cache, wider, scale=0.125), expected)
    nothing = batch._replace(
        query_starts=torch.zeros(1).int(), kv_lens=batch.kv_lens[:0], slots=batch.slots[:0]
    )
    assert ops.paged_attention(q[:0], cache, nothing, scale=0.125).shape == q[:0].shape


@pytest.mark.parametrize("ops", [reference, cpu])
def test_negative_zero_never_appears(ops: ModuleType) -> None:
    case = make_case([(4, 70)])
    q, kv = case.make_queries(), case.make_kv()
    for _, v in kv:
        v.fill_(-1e-38)
    out = attend_to(ops, case, (q * 0, kv))
    assert not torch.signbit(out[out == 0]).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("group", [1, 3, 48, 64])
@pytest.mark.parametrize("causal", [True, False])
def test_twins_agree_on_plain_numbers(dtype: torch.dtype, group: int, causal: bool) -> None:
    """Whatever the strategy draws: sums that round, several tiles, more than QUERY_ROWS rows."""
    rows = (Sequence(70, 70), Sequence(1, 200), Sequence(3, 130))
    case = AttentionCase(1, "normal", dtype, rows, 2, group, 64, 16, 0, 0.125, 0)
    case = case._replace(causal=causal)
    assert_same_bits(attend(cpu, case), attend(reference, case))
