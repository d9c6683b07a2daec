"""Qkv post-processing: twins bit by bit, float64, and that tokens do not meet."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quire import reference
from quire.fuzz.attention_cases import QKVCase, qkv_cases
from quire.fuzz.kernel_cases import assert_same_bits, poisoned_memory
from quire.kernels import cpu
from quire.kernels.cpu import launch


def run(ops: ModuleType, case: QKVCase) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Run a case: (q, all keys, all values)."""
    qkv, batch, cos_sin, norms = case.make()
    cache = case.make_cache(ops)
    q = ops.qkv_post(qkv, batch, cos_sin, norms, case.eps, cache)
    return q, *ops.read_kv(cache, torch.arange(case.num_places))


@settings(max_examples=150)
@given(qkv_cases)
def test_qkv_post_twins_agree_on_every_input(case: QKVCase) -> None:
    with poisoned_memory():
        for ours, theirs in zip(run(cpu, case), run(reference, case), strict=True):
            assert_same_bits(ours, theirs)


@settings(max_examples=25)
@given(qkv_cases)
def test_qkv_post_is_near_float64(case: QKVCase) -> None:
    case = case._replace(flavour="normal", eps=1e-6, tokens=max(1, case.tokens))
    qkv, batch, cos_sin, norms = case.make()
    q, keys, values = run(reference, case)
    wide = qkv.double().reshape(case.tokens, -1, case.head_dim)
    expected_q, expected_k = wide[:, : case.heads], wide[:, case.heads : -case.kv_heads]
    if norms:
        expected_q, expected_k = (
            x / (x.square().mean(-1, keepdim=True) + case.eps).sqrt() * w.double()
            for x, w in ((expected_q, norms[0]), (expected_k, norms[1]))
        )
    cos, sin = cos_sin[batch.positions.long()].double().unsqueeze(1).chunk(2, -1)
    turn = torch.complex(cos, sin)
    tolerance = 1e-5 if case.dtype == torch.float32 else 3e-2
    for x, got in ((expected_q, q), (expected_k, keys[batch.places])):
        turned = torch.complex(*x.chunk(2, -1)) * turn
        expected = torch.cat((turned.real, turned.imag), -1)
        torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)
    assert torch.equal(values[batch.places].double(), wide[:, -case.kv_heads :])
    untouched = torch.ones(case.num_places, dtype=torch.bool).index_fill(0, batch.places, False)
    assert not keys[untouched].any()
    assert not values[untouched].any()


@settings(max_examples=30)
@given(qkv_cases, st.integers(0, 20))
def test_qkv_post_of_a_part_has_the_same_bits(case: QKVCase, cut: int) -> None:
    whole, _, _ = run(cpu, case)
    qkv, batch, cos_sin, norms = case.make()
    for part in (slice(0, cut), slice(cut, None)):
        some = batch._replace(positions=batch.positions[part], places=batch.places[part])
        q = cpu.qkv_post(qkv[part], some, cos_sin, norms, case.eps, case.make_cache(cpu))
        assert_same_bits(q, whole[part])


@settings(max_examples=20)
@given(qkv_cases, st.integers(2, 5))
def test_qkv_post_does_not_depend_on_threads(case: QKVCase, threads: int) -> None:
    alone = run(cpu, case)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "MIN_WORK", 1)
        torch.set_num_threads(threads)
        try:
            for ours, theirs in zip(run(cpu, case), alone, strict=True):
                assert_same_bits(ours, theirs)
        finally:
            torch.set_num_threads(1)


@pytest.mark.parametrize("head_dim", [16, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_denormal_heads_are_kept(dtype: torch.dtype, head_dim: int) -> None:
    case = QKVCase(3, "small", dtype, 9, 2, 1, head_dim, 16, False, False, 1e-6)
    outs = []
    for ops in (cpu, reference):
        qkv, batch, cos_sin, norms = case.make()
        qkv = (qkv.float() * 1e-1).to(dtype)
        outs.append(ops.qkv_post(qkv, batch, cos_sin, norms, case.eps, case.make_cache(ops)))
    assert outs[1].count_nonzero() > 0
    assert_same_bits(*outs)
