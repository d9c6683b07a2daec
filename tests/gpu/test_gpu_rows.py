"""What works on rows on the GPU: norms, gated SiLU, GELU, embedding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from quire import reference
from quire.fuzz.kernel_cases import (
    DTYPES,
    MatrixCase,
    assert_same_bits,
    make_floats,
    matrix_cases,
    poisoned_memory,
)
from quire.fuzz.lattice_cases import NormCase, examples, integers, move, norm_cases
from quire.kernels import gpu
from torch import Tensor
from torch.nn.functional import layer_norm

BFLOAT16 = torch.bfloat16


@examples(30)
@given(norm_cases)
def test_rms_norm_is_exact_on_the_lattice(device: str, case: NormCase) -> None:
    x, weight = case.make(), case.make_weight()
    with poisoned_memory():
        result = gpu.rms_norm(x.to(device), weight.to(device), case.eps).cpu()
    assert_same_bits(result, reference.rms_norm(x, weight, case.eps))


@examples(20)
@given(norm_cases)
def test_add_rms_norm_is_exact_on_the_lattice(device: str, case: NormCase) -> None:
    x = integers(case.seed + 2, (case.rows, case.width), case.dtype)
    residual = (case.make().float() - x.float()).to(case.dtype)
    weight, ours = case.make_weight(), residual.to(device).clone()
    with poisoned_memory():
        result = gpu.add_rms_norm(move(x, device), ours, weight.to(device), case.eps).cpu()
    assert_same_bits(result, reference.add_rms_norm(x, residual, weight, case.eps))
    assert_same_bits(ours.cpu(), residual)


@examples(30)
@given(norm_cases)
def test_layer_norm_is_exact_on_the_lattice(device: str, case: NormCase) -> None:
    x, weight, bias = case.make_shifted(), case.make_weight(), case.make_weight(2)
    with poisoned_memory():
        weights = weight.to(device), bias.to(device)
        result = gpu.layer_norm(x.to(device), *weights, case.eps).cpu()
    assert_same_bits(result, reference.layer_norm(x, weight, bias, case.eps))


@examples(20)
@given(norm_cases)
def test_add_layer_norm_is_exact_on_the_lattice(device: str, case: NormCase) -> None:
    x = integers(case.seed + 2, (case.rows, case.width), case.dtype)
    residual = (case.make_shifted().float() - x.float()).to(case.dtype)
    weight, bias = case.make_weight(), case.make_weight(4)
    ours = x.to(device), residual.to(device)
    with poisoned_memory():
        result = gpu.add_layer_norm(*ours, weight.to(device), bias.to(device), case.eps).cpu()
    assert_same_bits(result, reference.add_layer_norm(x, residual, weight, bias, case.eps))
    for now, before in zip(ours, (x, residual), strict=True):
        assert_same_bits(now.cpu(), before)


@pytest.mark.parametrize("width", [16, 1040, 4096])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norms_are_near_float64(device: str, dtype: torch.dtype, width: int) -> None:
    x, weight, bias = (make_floats(seed, (5, width), "normal", dtype) * 3 for seed in (1, 2, 3))
    x, weight, bias = x + 2, weight[0].clone(), bias[0].clone()
    wide = x.double()
    exact = layer_norm(wide, (width,), weight.double(), bias.double(), 1e-12)
    size = (exact - bias.double()).abs() + bias.double().abs()
    bound = (1e-6 if dtype == torch.float32 else 2.0**-8) * (size + weight.double().abs())
    weights = weight.to(device), bias.to(device), 1e-12
    plain = gpu.layer_norm(x.to(device), *weights).cpu()
    assert ((plain - exact).abs() <= bound).all()
    nothing = torch.zeros_like(x).to(device)
    assert_same_bits(gpu.add_layer_norm(x.to(device), nothing, *weights).cpu(), plain)
    assert_same_bits(gpu.add_layer_norm(nothing, x.to(device), *weights).cpu(), plain)


@pytest.mark.parametrize("width", [80, 1024])
@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_of_a_row_ignores_its_neighbours(
    device: str, dtype: torch.dtype, width: int
) -> None:
    x, weight, bias = (make_floats(i, (40, width), "normal", dtype).to(device) for i in (1, 2, 3))
    weights = weight[0].clone(), bias[0].clone(), 1e-12
    whole = gpu.layer_norm(x, *weights).cpu()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert_same_bits(gpu.layer_norm(x[order.to(device)], *weights).cpu(), whole[order])
    wide = torch.full((3, width + 48), torch.nan, dtype=dtype, device=device)
    wide[:, 16 : 16 + width] = x[:3]
    part, nothing = wide[:, 16 : 16 + width], torch.zeros_like(x[:3])
    assert_same_bits(gpu.layer_norm(part, *weights).cpu(), whole[:3])
    assert_same_bits(gpu.add_layer_norm(part, nothing, *weights).cpu(), whole[:3])
    assert_same_bits(gpu.add_layer_norm(nothing, part, *weights).cpu(), whole[:3])


@pytest.mark.parametrize("width", [16, 1040, 4096])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norms_are_near_float64(device: str, dtype: torch.dtype, width: int) -> None:
    x, weight = (make_floats(seed, (5, width), "normal", dtype) * 3 for seed in (1, 2))
    weight = weight[0].clone()
    wide = x.double()
    exact = wide / (wide.square().mean(1, keepdim=True) + 1e-5).sqrt() * weight.double()
    bound = (5e-7 if dtype == torch.float32 else 2.0**-8 + 1e-5) * exact.abs()
    residual = x.clone().to(device)
    nothing = torch.zeros_like(residual)
    plain = gpu.rms_norm(residual, weight.to(device), 1e-5).cpu()
    assert ((plain - exact).abs() <= bound).all()
    assert_same_bits(gpu.add_rms_norm(nothing, residual, weight.to(device), 1e-5).cpu(), plain)
    assert_same_bits(residual.cpu(), x)


@examples(20)
@given(matrix_cases)
def test_add_rms_norm_rounds_the_residual_as_the_reference(device: str, case: MatrixCase) -> None:
    x, residual, weight = case.make(), case.make(2), case.make_row(1)
    ours = move(case.make(2), device)
    gpu.add_rms_norm(move(x, device), ours, weight.to(device), 1e-6)
    reference.add_rms_norm(x, residual, weight, 1e-6)
    assert_same_bits(ours.cpu(), residual)


@pytest.mark.parametrize("width", [80, 1024])
@pytest.mark.parametrize("dtype", DTYPES)
def test_norm_of_a_row_ignores_its_neighbours(device: str, dtype: torch.dtype, width: int) -> None:
    x, weight = (make_floats(seed, (40, width), "normal", dtype).to(device) for seed in (1, 2))
    weight = weight[0].clone()
    whole = gpu.rms_norm(x, weight, 1e-6).cpu()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    assert_same_bits(gpu.rms_norm(x[order.to(device)], weight, 1e-6).cpu(), whole[order])
    assert_same_bits(gpu.rms_norm(x[7:8], weight, 1e-6).cpu(), whole[7:8])
    wide = torch.full((3, width + 48), torch.nan, dtype=dtype, device=device)
    wide[:, 16 : 16 + width] = x[:3]
    assert_same_bits(gpu.rms_norm(wide[:, 16 : 16 + width], weight, 1e-6).cpu(), whole[:3])


@examples(50)
@given(matrix_cases)
@example(MatrixCase(1, "normal", BFLOAT16, 2, 2064, True))
@example(MatrixCase(1, "bits", torch.float32, 3, 1040, False))
def test_silu_mul_has_the_reference_s_bits_on_every_input(device: str, case: MatrixCase) -> None:
    gate_up = case.make(width=2 * case.width)
    with poisoned_memory():
        result = gpu.silu_mul(move(gate_up, device)).cpu()
    assert_same_bits(result, reference.silu_mul(gate_up))


def test_silu_mul_agrees_on_many_plain_numbers(device: str) -> None:
    """A step of exp2 that is fused or not shows in one of 2,500."""
    gate_up = make_floats(1, (6, 2 * 10240), "normal") * 4
    assert_same_bits(gpu.silu_mul(gate_up.to(device)).cpu(), reference.silu_mul(gate_up))


@pytest.mark.parametrize("shift", [0, 1, 16256, 40001])
def test_silu_mul_agrees_on_every_bfloat16(device: str, shift: int) -> None:
    gate = torch.arange(65536).to(torch.int32).to(torch.int16).view(BFLOAT16)
    gate_up = torch.cat((gate, gate.roll(shift)))[None]
    assert_same_bits(gpu.silu_mul(move(gate_up, device)).cpu(), reference.silu_mul(gate_up))


@examples(50)
@given(matrix_cases)
@example(MatrixCase(1, "normal", BFLOAT16, 2, 2064, True))
@example(MatrixCase(1, "bits", torch.float32, 3, 1040, False))
def test_gelu_has_the_reference_s_bits_on_every_input(device: str, case: MatrixCase) -> None:
    x = case.make()
    with poisoned_memory():
        result = gpu.gelu(move(x, device)).cpu()
    assert_same_bits(result, reference.gelu(x))


def test_gelu_agrees_on_many_plain_numbers(device: str) -> None:
    """A step that is fused or not shows in few of them."""
    x = make_floats(1, (6, 10240), "normal") * 2
    assert_same_bits(gpu.gelu(x.to(device)).cpu(), reference.gelu(x))


def test_gelu_agrees_on_every_bfloat16(device: str) -> None:
    x = torch.arange(65536).to(torch.int32).to(torch.int16).view(BFLOAT16)[None]
    assert_same_bits(gpu.gelu(move(x, device)).cpu(), reference.gelu(x))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("hidden", [16, 1040])
def test_embed_gathers_rows(device: str, dtype: torch.dtype, hidden: int) -> None:
    weight = make_floats(1, (50, hidden), "bits", dtype)
    tokens = torch.tensor([3, 49, 0, 3], dtype=torch.int32)
    with poisoned_memory():
        result: Tensor = gpu.embed(tokens.to(device), weight.to(device)).cpu()
    assert_same_bits(result, weight[tokens.long()])
    assert gpu.embed(tokens[:0].to(device), weight.to(device)).shape == (0, hidden)


def test_no_rows_give_no_rows(device: str) -> None:
    x, weight = torch.zeros((0, 64), device=device), torch.ones(64, device=device)
    assert gpu.rms_norm(x, weight, 1e-6).shape == (0, 64)
    assert gpu.add_rms_norm(x, x.clone(), weight, 1e-6).shape == (0, 64)
    assert gpu.silu_mul(x).shape == (0, 32)
    assert gpu.layer_norm(x, weight, weight, 1e-6).shape == (0, 64)
    assert gpu.add_layer_norm(x, x, weight, weight, 1e-6).shape == (0, 64)
    assert gpu.gelu(x).shape == (0, 64)
