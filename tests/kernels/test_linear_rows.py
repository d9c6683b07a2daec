"""Linear and embedding: a row's bits at every number of rows, segments, fallback, self-test."""

from __future__ import annotations

import importlib
import itertools
import os
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quire import reference
from quire.fuzz.kernel_cases import assert_same_bits, dtypes, flavours, make_floats, seeds
from quire.kernels import cpu
from quire.kernels.cpu import linear, pack_linear, unpack_linear
from quire.kernels.cpu.emit import best_bfloat16_tag
from quire.reference.linear import self_test
from quire.reference.ops import PackedLinear
from torch import Tensor

# By name: the package gives its function `linear` the same one.
linear_module = importlib.import_module("quire.reference.linear")
own_module = importlib.import_module("quire.kernels.cpu.linear")

DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(256, 768), (2048, 256), (192, 1000), (80, 17)]
"""At the second, oneDNN gives a single row other bits: what padding is for."""
FORMS = [(1, 1), (1, 4), (1, 16), (4, 1), (4, 4), (4, 16)]
"""(segments, padded): own kernels, oneDNN, fallback"""


def make_packed(
    in_features: int, out_features: int, dtype: torch.dtype, *, segments: int = 1, padded: int = 1
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


@pytest.mark.parametrize("form", [*FORMS, (2, 1), (3, 4), (6, 16)])
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


@pytest.mark.parametrize("padded", [1, 4, 16])
def test_linear_takes_strided_and_empty_inputs(padded: int) -> None:
    packed, _, _ = make_packed(64, 32, torch.float32, padded=padded)
    wide = torch.randn(9, 100)
    for x in (wide[:, 20:84], wide[::2, :64], torch.randn(64, 5).t()):
        assert_same_bits(linear(x, packed), linear(x.contiguous(), packed))
    assert linear(torch.empty(0, 64), packed).shape == (0, 32)


@pytest.mark.parametrize("padded", [1, 4, 16])
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
        assert self_test(packed, 7, linear)


@pytest.mark.parametrize("rows", [4, 16, 17, 64])
def test_self_test_finds_a_number_of_rows_with_other_bits(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    multiply = linear_module._multiply

    def wrong(x: Tensor, segment: Tensor, bias: Tensor | None, padded: int) -> Tensor:
        product = multiply(x, segment, bias, padded)
        return torch.nextafter(product, product + 1) if len(x) == rows else product

    packed, _, _ = make_packed(64, 32, torch.float32, padded=4)
    monkeypatch.setattr(linear_module, "_multiply", wrong)
    assert not self_test(packed, 7, linear)


def test_without_packed_matmul_the_fallback_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_module, "has_packed_matmul", lambda _: False)
    packed, weight, bias = make_packed(64, 32, torch.float32, padded=4)
    assert packed.padded == 16
    x = torch.randn(5, 64)
    torch.testing.assert_close(linear(x, packed), x @ weight.t() + bias)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("in_features", [16, 192, 512, 514, 768, 1024, 1026, 2048, 4096])
def test_own_kernels_multiply_on_this_machine(dtype: torch.dtype, in_features: int) -> None:
    """Else every test below of own against library would compare the library with itself."""
    limited = "ONEDNN_MAX_CPU_ISA" in os.environ or torch.cpu._is_amx_tile_supported()
    if limited or best_bfloat16_tag() != "uint16":
        pytest.skip("oneDNN may have another order on this processor, and multiplies then")
    assert pack_linear(torch.zeros(8, in_features, dtype=dtype), None).padded == 1


@settings(max_examples=60)
@given(data=st.data())
def test_own_kernels_have_the_bits_of_the_library(data: st.DataObject) -> None:
    """On the worst numbers: denormals, infinities, NaN, sums that cancel, any number of threads."""
    dtype = data.draw(dtypes)
    in_features = data.draw(st.sampled_from([2, 16, 130, 512, 768, 1026, 2050]))
    out_features = data.draw(st.sampled_from([1, 63, 64, 65, 200]))
    rows = data.draw(st.one_of(st.integers(1, 14), st.sampled_from([47, 48, 49, 97])))
    x, weight, bias = (
        make_floats(data.draw(seeds), shape, data.draw(flavours), dtype)
        for shape in ((rows, in_features), (out_features, in_features), (out_features,))
    )
    some_bias = bias if data.draw(st.booleans()) else None
    torch.set_num_threads(data.draw(st.sampled_from([1, 2])))
    own = linear(x, pack_linear(weight, some_bias))
    assert_same_bits(own, reference.linear(x, reference.pack_linear(weight, some_bias)))


def test_work_is_split_over_threads_without_a_trace() -> None:
    packed, _, _ = make_packed(768, 4096, torch.bfloat16)
    x = torch.randn(40, 768).bfloat16()
    torch.set_num_threads(1)
    alone = linear(x, packed)
    torch.set_num_threads(2)
    assert_same_bits(linear(x, packed), alone)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("form", FORMS)
def test_unpack_gives_back_weight_and_bias(dtype: torch.dtype, form: tuple[int, int]) -> None:
    packed, weight, bias = make_packed(128, 70, dtype, segments=form[0], padded=form[1])
    unpacked, unpacked_bias = unpack_linear(packed)
    assert_same_bits(unpacked, weight)
    assert unpacked_bias is not None
    assert_same_bits(unpacked_bias, bias)


@pytest.mark.parametrize("chunk", [64, 256, 768])
def test_another_order_of_addition_is_found_out(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that cut K otherwise would be followed, or left to itself."""
    other = partial(own_module.multiply, chunk=chunk, tag="float32")

    def pack(weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return own_module.block_weight(weight), bias

    def library(x: Tensor, weight: tuple[Tensor, Tensor | None]) -> Tensor:
        product: Tensor = other(x, weight[0], len(weight[0]) * 64, weight[1])
        return product

    monkeypatch.setattr(own_module, "library_pack_linear", pack)
    monkeypatch.setattr(own_module, "library_linear", library)
    assert own_module.find_chunk.__wrapped__(torch.float32, 768, 128) == chunk
    monkeypatch.setattr(own_module, "_CHUNKS", (512, 384))
    assert own_module.find_chunk.__wrapped__(torch.float32, 768, 128) == (chunk == 768) * 768


def test_without_its_order_the_library_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_module, "find_chunk", lambda *_: 0)
    packed, weight, bias = make_packed(64, 32, torch.float32)
    assert packed.padded == 4
    x = torch.randn(5, 64)
    assert_same_bits(linear(x, packed), reference.linear(x, reference.pack_linear(weight, bias)))


@pytest.mark.parametrize("in_features", [1, 17, 515])
def test_an_odd_width_of_bfloat16_is_left_to_the_library(in_features: int) -> None:
    weight, x = torch.randn(70, in_features).bfloat16(), torch.randn(5, in_features).bfloat16()
    packed = pack_linear(weight, None)
    assert packed.padded != 1
    assert_same_bits(linear(x, packed), reference.linear(x, reference.pack_linear(weight, None)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("in_features", "rows"), [(64, 1300), (512, 290), (2048, 100)])
def test_rows_of_many_panels(dtype: torch.dtype, in_features: int, rows: int) -> None:
    """A panel is 24 to 1 groups of 48 rows here."""
    shapes = ((130, in_features), (rows, in_features))
    weight, x = (make_floats(seed, shape, "normal", dtype) for seed, shape in enumerate(shapes))
    own = linear(x, pack_linear(weight, None))
    assert_same_bits(own, reference.linear(x, reference.pack_linear(weight, None)))


def test_a_bias_of_another_dtype_or_length_is_not_misread() -> None:
    weight, bias = torch.randn(40, 64).bfloat16(), torch.randn(40)
    packed = pack_linear(weight, bias)
    x = torch.randn(3, 64).bfloat16()
    assert packed.padded != 1
    assert_same_bits(linear(x, packed), reference.linear(x, reference.pack_linear(weight, bias)))
    with pytest.raises(AssertionError):
        pack_linear(weight, bias[:17].bfloat16())


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows_and_segments(dtype: torch.dtype) -> None:
    packed, _, _ = make_packed(128, 40, dtype, segments=2)
    assert linear(torch.empty((0, 128), dtype=dtype), packed).shape == (0, 40)


def test_a_single_input_feature_may_have_any_stride() -> None:
    packed, weight, bias = make_packed(1, 5, torch.float32)
    x = torch.randn(1, 3).t()
    assert_same_bits(linear(x, packed), reference.linear(x, reference.pack_linear(weight, bias)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_own_kernels_leave_other_dtypes_alone(dtype: torch.dtype) -> None:
    assert own_module.find_chunk(dtype, 64, 64) == 0


def test_both_implementations_share_embed() -> None:
    assert cpu.embed is reference.embed


@pytest.mark.parametrize("dtype", DTYPES)
def test_embed_gathers_rows(dtype: torch.dtype) -> None:
    weight = torch.randn(50, 32).to(dtype)
    tokens = torch.tensor([3, 49, 0, 3], dtype=torch.int32)
    assert_same_bits(reference.embed(tokens, weight), weight[tokens.long()])
    assert reference.embed(tokens[:0], weight).shape == (0, 32)
    with pytest.raises(IndexError):
        reference.embed(torch.tensor([50], dtype=torch.int32), weight)
