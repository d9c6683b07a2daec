"""RMS norms: twins bit by bit, the order of the sum, accuracy, rows and threads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quire import reference
from quire.fuzz.kernel_cases import MatrixCase, assert_same_bits, matrix_cases, poisoned_memory
from quire.kernels import cpu
from quire.reference.norm import sum_squares

EPSILONS = st.sampled_from([1e-6, 1e-5, 0.0, 1e-40])


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


@given(st.integers(0, 2**32 - 1), st.integers(1, 70))
@settings(max_examples=25)
def test_sum_squares_adds_in_the_written_order(seed: int, steps: int) -> None:
    x = np.random.default_rng(seed).standard_normal(16 * steps).astype(np.float32)
    lanes = [np.float32(0)] * 16
    for i, value in enumerate(x):
        lanes[i % 16] = lanes[i % 16] + value * value
    half = 8
    while half:
        for j in range(half):
            lanes[j] = lanes[j] + lanes[j + half]
        half //= 2
    assert sum_squares(torch.from_numpy(x)).item() == lanes[0]


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
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
