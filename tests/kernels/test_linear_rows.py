"""Linear and embedding: a row's bits at every number of rows, segments, fallback, self-test."""

from __future__ import annotations

import importlib
import itertools

import pytest
import torch
from quire import reference
from quire.fuzz.kernel_cases import assert_same_bits
from quire.kernels import cpu
from quire.reference.linear import linear, pack_linear, self_test
from quire.reference.ops import PackedLinear
from torch import Tensor

# By name: the package gives its function `linear` the same one.
linear_module = importlib.import_module("quire.reference.linear")

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(256, 768), (2048, 256), (192, 1000), (80, 17)]
"""At the second, oneDNN gives a single row other bits: what padding is for."""
FORMS = [(1, 4), (1, 16), (4, 4), (4, 16)]
"""(segments, padded)"""


def make_packed(
    in_features: int, out_features: int, dtype: torch.dtype, *, segments: int = 1, padded: int = 4
) -> tuple[PackedLinear, Tensor, Tensor]:
    """Make (packed, weight, bias)."""
    generator = torch.Generator().manual_seed(in_features * out_features)
    shape = (out_features, in_features)
    weight = (torch.randn(shape, generator=generator) / in_features**0.5).to(dtype)
    bias = torch.randn(out_features, generator=generator).to(dtype)
    return pack_linear(weight, bias, segments=segments, padded=padded), weight, bias


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_keeps_its_bits_at_every_number_of_rows(
    dtype: torch.dtype, form: tuple[int, int]
) -> None:
    for in_features, out_features in SHAPES:
        if in_features % (16 * form[0]):
            continue
        packed, _, _ = make_packed(
            in_features, out_features, dtype, segments=form[0], padded=form[1]
        )
        x = torch.randn(133, in_features).to(dtype)
        whole = linear(x, packed)
        numbers = [*range(1, 10), 15, 16, 17, 33, 64, 65, 128]
        for rows, (offset, threads) in itertools.product(numbers, ((0, 1), (3, 1), (3, 2))):
            torch.set_num_threads(threads)
            part = linear(x[offset : offset + rows], packed)
            assert_same_bits(part, whole[offset : offset + rows])


@pytest.mark.parametrize("form", FORMS)
def test_linear_is_near_float64(form: tuple[int, int]) -> None:
    for dtype, bound in ((torch.float32, 2e-6), (torch.bfloat16, 1e-2)):
        packed, weight, bias = make_packed(256, 96, dtype, segments=form[0], padded=form[1])
        x = torch.randn(7, 256).to(dtype)
        exact = x.double() @ weight.double().t() + bias.double()
        assert (linear(x, packed) - exact).abs().max() < bound * exact.abs().max()


@pytest.mark.parametrize("form", [*FORMS, (2, 4), (3, 4), (6, 16)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_linear_is_exact_where_no_step_rounds(dtype: torch.dtype, form: tuple[int, int]) -> None:
    weight = torch.randint(-1, 2, (40, 192)).to(dtype)
    bias = torch.randint(-8, 9, (40,)).to(dtype)
    x = torch.randint(-1, 2, (5, 192)).to(dtype)
    packed = pack_linear(weight, bias, segments=form[0], padded=form[1])
    exact = x.float() @ weight.float().t() + bias.float()
    assert_same_bits(linear(x, packed), exact.to(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_segments_are_rounded_and_added_as_a_tree(dtype: torch.dtype) -> None:
    packed, weight, bias = make_packed(320, 32, dtype, segments=5)
    x = torch.randn(6, 320).to(dtype)
    parts = [
        linear(x[:, i : i + 64], pack_linear(weight[:, i : i + 64], None)).float()
        for i in range(0, 320, 64)
    ]
    total = ((parts[0] + parts[1]) + (parts[2] + parts[3])) + parts[4]
    assert_same_bits(linear(x, packed), (total + bias.float()).to(dtype))


@pytest.mark.parametrize("padded", [4, 16])
def test_linear_takes_strided_and_empty_inputs(padded: int) -> None:
    packed, _, _ = make_packed(64, 32, torch.float32, padded=padded)
    wide = torch.randn(9, 100)
    for x in (wide[:, 20:84], wide[::2, :64], torch.randn(64, 5).t()):
        assert_same_bits(linear(x, packed), linear(x.contiguous(), packed))
    assert linear(torch.empty(0, 64), packed).shape == (0, 32)


@pytest.mark.parametrize("padded", [4, 16])
def test_a_row_of_nan_stays_alone(padded: int) -> None:
    packed, _, _ = make_packed(64, 32, torch.float32, padded=padded)
    x = torch.randn(3, 64)
    before = linear(x, packed)
    x[1] = float("nan")
    after = linear(x, packed)
    assert after[1].isnan().all()
    assert torch.equal(after[[0, 2]], before[[0, 2]])


@pytest.mark.parametrize(("segments", "padded"), FORMS)
def test_the_weight_may_change_after_packing(segments: int, padded: int) -> None:
    packed, weight, bias = make_packed(64, 32, torch.float32, segments=segments, padded=padded)
    x = torch.randn(3, 64)
    before = linear(x, packed)
    weight.zero_()
    bias.zero_()
    assert torch.equal(linear(x, packed), before)


def test_pack_linear_names_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="96 input features do not make 4"):
        pack_linear(torch.zeros(8, 96), None, segments=4)
    with pytest.raises(ValueError, match="padded is 3"):
        pack_linear(torch.zeros(8, 96), None, padded=3)


def test_self_test_holds_for_all_forms() -> None:
    for dtype, (segments, padded) in itertools.product(DTYPES, FORMS):
        packed, _, _ = make_packed(256, 128, dtype, segments=segments, padded=padded)
        assert self_test(packed, 7)


@pytest.mark.parametrize("rows", [4, 16, 17, 64])
def test_self_test_finds_a_number_of_rows_with_other_bits(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiply = linear_module._multiply

    def wrong(x: Tensor, segment: Tensor, bias: Tensor | None, padded: int) -> Tensor:
        product = multiply(x, segment, bias, padded)
        return torch.nextafter(product, product + 1) if len(x) == rows else product

    packed, _, _ = make_packed(64, 32, torch.float32)
    monkeypatch.setattr(linear_module, "_multiply", wrong)
    assert not self_test(packed, 7)


def test_without_packed_matmul_the_fallback_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_module, "_has_packed_matmul", lambda _: False)
    packed, weight, bias = make_packed(64, 32, torch.float32)
    assert packed.padded == 16
    x = torch.randn(5, 64)
    torch.testing.assert_close(linear(x, packed), x @ weight.t() + bias)


def test_both_implementations_share_linear_and_embed() -> None:
    assert cpu.linear is reference.linear
    assert cpu.embed is reference.embed


@pytest.mark.parametrize("dtype", DTYPES)
def test_embed_gathers_rows(dtype: torch.dtype) -> None:
    weight = torch.randn(50, 32).to(dtype)
    tokens = torch.tensor([3, 49, 0, 3], dtype=torch.int32)
    assert_same_bits(reference.embed(tokens, weight), weight[tokens.long()])
    assert reference.embed(tokens[:0], weight).shape == (0, 32)
    with pytest.raises(IndexError):
        reference.embed(torch.tensor([50], dtype=torch.int32), weight)
