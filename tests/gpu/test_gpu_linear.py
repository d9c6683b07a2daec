"""Linears on the GPU: the exact lattice, float64, and a row's bits at every number of rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from quire import reference
from quire.fuzz.kernel_cases import DTYPES, assert_same_bits, make_floats, poisoned_memory
from quire.fuzz.lattice_cases import LinearCase, examples, linear_cases, move
from quire.kernels import gpu
from quire.reference.ops import PackedLinear
from torch import Tensor

BFLOAT16 = torch.bfloat16
COPIED = LinearCase(1, BFLOAT16, 600, 192, 520, 1, True, 0)
"""Enough rows for tiles that the copy engine moves, and several of them for a program."""


def pack(case: LinearCase, weight: Tensor, bias: Tensor | None, device: str) -> PackedLinear:
    """Pack a weight on the device."""
    some = None if bias is None else bias.to(device)
    packed: PackedLinear = gpu.pack_linear(weight.to(device), some, segments=case.segments)
    return packed


@examples(60)
@given(linear_cases)
@example(COPIED)
@example(COPIED._replace(out_features=130, in_features=200))
@example(COPIED._replace(rows=520, in_features=100))
@example(COPIED._replace(rows=520, extra=3))
@example(LinearCase(2, BFLOAT16, 129, 4096, 520, 4, True, 0))
@example(LinearCase(3, BFLOAT16, 40, 320, 8200, 1, False, 0))
def test_lattice_is_exact(device: str, case: LinearCase) -> None:
    x, weight, bias = case.make_lattice()
    packed = pack(case, weight, bias, device)
    with poisoned_memory():
        result = gpu.linear(move(x, device), packed).cpu()
    exact = reference.pack_linear(weight, bias, segments=case.segments)
    assert_same_bits(result, reference.linear(x, exact))


@examples(15)
@given(linear_cases)
@example(COPIED)
def test_general_inputs_are_near_float64(device: str, case: LinearCase) -> None:
    """Relative to the sum of absolute products; bfloat16: and one rounding of each segment."""
    x, weight, bias = case.make()
    parts = [
        (a.double(), b.double())
        for a, b in zip(x.chunk(case.segments, 1), weight.chunk(case.segments, 1), strict=True)
    ]
    shift = torch.zeros(1) if bias is None else bias
    exact = sum((a @ b.t() for a, b in parts), shift.double())
    size = sum((a.abs() @ b.abs().t() for a, b in parts), shift.abs().double())
    bound = 1e-6 * size
    if case.dtype == BFLOAT16:
        bound += 2.0**-8 * exact.abs() * (1 + 1e-3)
        if case.segments > 1:
            bound += 2.0**-8 * sum((a @ b.t()).abs() for a, b in parts)
    result = gpu.linear(move(x, device), pack(case, weight, bias, device)).cpu()
    error = (result.double() - exact).abs()
    assert (error <= bound).all(), (error / bound).max()


@pytest.mark.parametrize(
    ("dtype", "in_features", "out_features", "segments"),
    [(BFLOAT16, 544, 70, 1), (BFLOAT16, 1024, 70, 2), (torch.float32, 208, 40, 1)],
)
def test_a_row_keeps_its_bits_at_every_number_of_rows(
    device: str, dtype: torch.dtype, in_features: int, out_features: int, segments: int
) -> None:
    case = LinearCase(5, dtype, 530, in_features, out_features, segments, True, 0)
    x, weight, bias = case.make()
    packed = pack(case, weight, bias, device)
    x = x.to(device)
    whole = gpu.linear(x, packed).cpu()
    order = torch.randperm(530, generator=torch.Generator().manual_seed(1))
    assert_same_bits(gpu.linear(x[order.to(device)], packed).cpu(), whole[order])
    for rows in (1, 2, 16, 17, 33, 65, 130, 513):
        offset = (530 - rows) // 2
        part = gpu.linear(x[offset : offset + rows], packed).cpu()
        assert_same_bits(part, whole[offset : offset + rows])


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_of_nan_stays_alone(device: str, dtype: torch.dtype) -> None:
    case = LinearCase(7, dtype, 20, 64, 40, 1, False, 0)
    x, weight, bias = case.make()
    packed = pack(case, weight, bias, device)
    before = gpu.linear(move(x, device), packed).cpu()
    x[3] = torch.nan
    after = gpu.linear(move(x, device), packed).cpu()
    kept = torch.arange(20) != 3
    assert after[3].isnan().all()
    assert_same_bits(after[kept], before[kept])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("segments", [1, 4])
def test_packing_gives_back_what_it_took(device: str, dtype: torch.dtype, segments: int) -> None:
    case = LinearCase(9, dtype, 1, 128, 33, segments, True, 0)
    _, weight, bias = case.make()
    unpacked, unpacked_bias = gpu.unpack_linear(pack(case, weight, bias, device))
    assert_same_bits(unpacked.cpu(), weight)
    assert unpacked_bias is not None and bias is not None
    assert_same_bits(unpacked_bias.cpu(), bias)
    assert gpu.unpack_linear(pack(case, weight, None, device))[1] is None


def test_pack_linear_names_what_does_not_fit(device: str) -> None:
    with pytest.raises(ValueError, match="96 input features do not make 4"):
        gpu.pack_linear(torch.zeros(8, 96, device=device), None, segments=4)


def test_no_rows_give_no_rows(device: str) -> None:
    case = LinearCase(9, BFLOAT16, 0, 64, 33, 1, True, 0)
    x, weight, bias = case.make()
    assert gpu.linear(move(x, device), pack(case, weight, bias, device)).shape == (0, 33)


def test_denormal_sums_of_bfloat16_become_zero(device: str) -> None:
    case = LinearCase(9, BFLOAT16, 3, 64, 33, 1, False, 0)
    weight = make_floats(1, (33, 64), "normal", BFLOAT16)
    x = torch.zeros((3, 64), dtype=BFLOAT16)
    x[:, 0] = torch.tensor([2e-38, 3e-38, 1e-36])
    result = gpu.linear(move(x, device), pack(case, weight, None, device)).cpu()
    expected = reference.linear(x, reference.pack_linear(weight, None))
    assert torch.equal(result, expected) and (result == 0).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_segments_are_rounded_and_added_as_a_tree(device: str, dtype: torch.dtype) -> None:
    case = LinearCase(11, dtype, 6, 320, 33, 5, True, 0)
    x, weight, bias = case.make()
    assert bias is not None
    parts = []
    for i in range(0, 320, 64):
        part = gpu.pack_linear(weight[:, i : i + 64].to(device), None)
        parts.append(gpu.linear(x[:, i : i + 64].to(device), part).cpu().float())
    total = ((parts[0] + parts[1]) + (parts[2] + parts[3])) + parts[4]
    result = gpu.linear(x.to(device), pack(case, weight, bias, device)).cpu()
    assert_same_bits(result, (total + bias.float()).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "width", "has_bias"),
    [(1, 8, True), (17, 40, False), (70, 104, True), (514, 136, True)],
)
def test_gated_linear_is_a_linear_and_then_a_gate(
    device: str, dtype: torch.dtype, rows: int, width: int, has_bias: bool
) -> None:
    case = LinearCase(13, dtype, rows, 192, 2 * width, 1, has_bias, 0)
    for x, weight, bias in (case.make(), case.make_lattice()):
        some = None if bias is None else bias.to(device)
        gated = gpu.pack_linear(weight.to(device), some, is_gated=True)
        with poisoned_memory():
            result = gpu.gated_linear(x.to(device), gated).cpu()
        plain = gpu.linear(x.to(device), pack(case, weight, bias, device)).cpu()
        assert_same_bits(result, reference.silu_mul(plain))
    unpacked, unpacked_bias = gpu.unpack_linear(gated)
    assert_same_bits(unpacked.cpu(), weight)
    if bias is not None:
        assert unpacked_bias is not None
        assert_same_bits(unpacked_bias.cpu(), bias)
