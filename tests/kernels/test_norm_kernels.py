"""RMS and layer norms: twins bit by bit, the order of the sum, accuracy, rows and threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quire import reference
from quire.fuzz.kernel_cases import MatrixCase, assert_same_bits, matrix_cases, poisoned_memory
from quire.kernels import cpu
from quire.reference.norm import sum_lanes, sum_squares
from torch.nn.functional import layer_norm

EPSILONS = st.sampled_from([1e-6, 1e-5, 0.0, 1e-40])
LAYER_EPSILONS = EPSILONS | st.just(1e-12)
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


@settings(max_examples=150)
@given(matrix_cases, EPSILONS)
def test_rms_norm_twins_agree_on_every_input(case: MatrixCase, eps: float) -> None:
    x, weight = case.make(), case.make_row(1)
    with poisoned_memory():
        assert_same_bits(cpu.rms_norm(x, weight, eps), reference.rms_norm(x, weight, eps))


@settings(max_examples=150)
@given(matrix_cases, EPSILONS)
def test_add_rms_norm_twins_agree_and_update_the_residual(case: MatrixCase, eps: float) -> None:
    x, weight = case.make(), case.make_row(1)
    ours, theirs = case.make(2), case.make(2)
    with poisoned_memory():
        y = cpu.add_rms_norm(x, ours, weight, eps)
        assert_same_bits(y, reference.add_rms_norm(x, theirs, weight, eps))
    assert_same_bits(ours, theirs)
    assert_same_bits(ours, case.make(2) + x)


@settings(max_examples=150)
@given(matrix_cases, LAYER_EPSILONS)
def test_layer_norm_twins_agree_on_every_input(case: MatrixCase, eps: float) -> None:
    x, weight, bias = case.make(), case.make_row(1), case.make_row(2)
    with poisoned_memory():
        wanted = reference.layer_norm(x, weight, bias, eps)
        assert_same_bits(cpu.layer_norm(x, weight, bias, eps), wanted)


@settings(max_examples=150)
@given(matrix_cases, LAYER_EPSILONS, st.booleans())
def test_add_layer_norm_twins_agree_and_write_to_neither(
    case: MatrixCase, eps: float, is_near: bool
) -> None:
    """Near: what is normalized is small beside what is added, and hangs on one rounding."""
    x, weight, bias = case.make(), case.make_row(1), case.make_row(3)
    residual = -x if is_near else case.make(2)
    kept = x.clone(), residual.clone()
    with poisoned_memory():
        wanted = reference.add_layer_norm(x, residual, weight, bias, eps)
        assert_same_bits(cpu.add_layer_norm(x, residual, weight, bias, eps), wanted)
    assert_same_bits(wanted, reference.layer_norm(residual + x, weight, bias, eps))
    for now, before in zip((x, residual), kept, strict=True):
        assert_same_bits(now, before)


@pytest.mark.parametrize("term", ["x", "x * x"])
@given(st.integers(0, 2**32 - 1), st.integers(1, 70))
@settings(max_examples=25)
def test_sums_add_in_the_written_order(term: str, seed: int, steps: int) -> None:
    x = np.random.default_rng(seed).standard_normal(16 * steps).astype(np.float32)
    lanes = [np.float32(0)] * 16
    for i, value in enumerate(x):
        lanes[i % 16] = lanes[i % 16] + (value if term == "x" else value * value)
    half = 8
    while half:
        for j in range(half):
            lanes[j] = lanes[j] + lanes[j + half]
        half //= 2
    total = sum_lanes if term == "x" else sum_squares
    assert total(torch.from_numpy(x)).item() == lanes[0]


def test_rms_norm_rounds_its_square_root_correctly() -> None:
    x = torch.rand(2000, 16) * 10
    weight = torch.ones(16)
    mean = sum_squares(x).numpy() / np.float32(16)
    r = np.float32(1) / np.sqrt(mean + np.float32(1e-6))
    assert torch.equal(reference.rms_norm(x, weight, 1e-6), torch.from_numpy(x.numpy() * r))


def test_norms_are_exact_where_no_step_rounds() -> None:
    x = torch.randint(0, 2, (9, 64)).float() * 2 - 1
    weight = torch.randint(-8, 9, (64,)).float()
    for ops in (reference, cpu):
        assert torch.equal(ops.rms_norm(x, weight, 0.0), x * weight)
        assert torch.equal(ops.rms_norm(x * 4, weight, 0.0), x * weight)


def test_rms_norm_is_near_float64() -> None:
    x, weight = torch.randn(20, 1024) * 30, torch.randn(1024)
    wide = x.double()
    exact = wide / (wide.square().mean(1, keepdim=True) + 1e-5).sqrt() * weight.double()
    assert ((reference.rms_norm(x, weight, 1e-5) - exact).abs() <= 1e-6 * exact.abs()).all()


def test_layer_norm_is_exact_where_no_step_rounds() -> None:
    signs = torch.tensor([1.0, -1.0]).repeat(9, 32)
    weight, bias = torch.randint(-8, 9, (2, 64)).float()
    shifts = torch.randint(-5, 6, (9, 1)).float()
    for ops in (reference, cpu):
        assert torch.equal(
            ops.layer_norm(4 * signs + shifts, weight, bias, 0.0), signs * weight + bias
        )
        given = ops.add_layer_norm(shifts - 7 * signs, 9 * signs, weight, bias, 0.0)
        assert torch.equal(given, signs * weight + bias)


@DTYPES
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_layer_norm_is_near_float64_and_torch(dtype: torch.dtype, shift: float) -> None:
    """The mean is known to a few bits of itself, and so is what is left of a great one."""
    x = (torch.randn(20, 768) * 3 + shift).to(dtype)
    weight, bias = torch.randn(2, 768).to(dtype)
    exact = layer_norm(x.double(), (768,), weight.double(), bias.double(), 1e-12)
    near = 1e-6 + 1e-6 * shift if dtype == torch.float32 else 2.0**-7
    for ops in (reference, cpu):
        given = ops.layer_norm(x, weight, bias, 1e-12).double()
        assert ((given - exact).abs() <= near * (1 + exact.abs())).all()
    theirs = layer_norm(x.float(), (768,), weight.float(), bias.float(), 1e-12)
    assert torch.allclose(cpu.layer_norm(x, weight, bias, 1e-12).float(), theirs, atol=20 * near)


def test_layer_norm_of_equal_numbers_is_the_bias() -> None:
    x, (weight, bias) = torch.full((2, 48), 3.3), torch.randn(2, 48)
    for ops in (reference, cpu):
        assert torch.allclose(ops.layer_norm(x, weight, bias, 1e-5), bias.expand(2, 48), atol=1e-3)


@DTYPES
def test_layer_norm_of_a_row_ignores_its_neighbours_and_threads(dtype: torch.dtype) -> None:
    x = torch.randn(700, 768).to(dtype)
    weights = (*torch.randn(2, 768).to(dtype), 1e-12)
    whole = cpu.layer_norm(x, *weights)
    assert_same_bits(whole, reference.layer_norm(x, *weights))
    torch.set_num_threads(2)
    assert_same_bits(cpu.layer_norm(x, *weights), whole)
    assert_same_bits(cpu.layer_norm(x[333:334], *weights), whole[333:334])
    assert_same_bits(cpu.add_layer_norm(x, torch.zeros_like(x), *weights), whole)
    columns = x.t().contiguous().t()
    assert_same_bits(cpu.add_layer_norm(torch.zeros_like(x), columns, *weights), whole)


@DTYPES
def test_norm_of_a_row_ignores_its_neighbours_and_threads(dtype: torch.dtype) -> None:
    x, weight = torch.randn(700, 1024).to(dtype), torch.randn(1024).to(dtype)
    whole = cpu.rms_norm(x, weight, 1e-6)
    assert_same_bits(whole, reference.rms_norm(x, weight, 1e-6))
    torch.set_num_threads(2)
    assert_same_bits(cpu.rms_norm(x, weight, 1e-6), whole)
    assert_same_bits(cpu.rms_norm(x[333:334], weight, 1e-6), whole[333:334])
    residual = torch.zeros_like(x)
    assert_same_bits(cpu.add_rms_norm(x, residual, weight, 1e-6), whole)
    assert torch.equal(residual, x)


def test_norms_refuse_what_would_read_past_the_end() -> None:
    x = torch.zeros(2, 32)
    with pytest.raises(AssertionError):
        cpu.rms_norm(x, torch.zeros(16), 1e-6)
    with pytest.raises(AssertionError):
        cpu.rms_norm(x, torch.zeros(32, dtype=torch.bfloat16), 1e-6)
    with pytest.raises(AssertionError):
        cpu.rms_norm(x[:, :24], torch.zeros(24), 1e-6)
    with pytest.raises(AssertionError):
        cpu.add_rms_norm(x, x[:1], torch.zeros(32), 1e-6)
    row = torch.zeros(32)
    for weight, bias in ((row[:16], row), (row, row[:16]), (row, row.bfloat16())):
        with pytest.raises(AssertionError):
            cpu.layer_norm(x, weight, bias, 1e-6)
    with pytest.raises(AssertionError):
        cpu.layer_norm(x, torch.zeros(64)[::2], row, 1e-6)
    with pytest.raises(AssertionError):
        cpu.layer_norm(x[:, :24], row[:24], row[:24], 1e-6)
    with pytest.raises(AssertionError):
        cpu.add_layer_norm(x, x[:1], row, row, 1e-6)
