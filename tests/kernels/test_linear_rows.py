"""Linear and embedding: twins bit by bit, a row's bits among any others, segments, packing."""

from __future__ import annotations

import itertools
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from quire import reference
from quire.fuzz.kernel_cases import (
    assert_same_bits,
    dtypes,
    flavours,
    make_floats,
    seeds,
    usable_tag,
)
from quire.kernels import cpu
from quire.kernels.cpu import choice, emit, matmul
from quire.reference.ops import PackedLinear
from quire.reference.sums import Sums
from torch import Tensor

CHUNK, TILE = 512, 32
"""Written out, since other numbers are other answers."""
SUMS: tuple[Sums, ...] = ("pairs", "tiles")
KINDS = [(torch.float32, SUMS[0]), *((torch.bfloat16, sums) for sums in SUMS)]
SHAPES = [(256, 768), (2048, 256), (192, 1000), (80, 17)]
BOTH = [reference, cpu]
BFLOAT16_TAGS = [(sums, tag) for sums, tags in emit.TAGS.items() for tag in tags]


def make_packed(
    ops: ModuleType,
    shape: tuple[int, int],
    kind: tuple[torch.dtype, Sums],
    *,
    segments: int = 1,
) -> tuple[PackedLinear, Tensor, Tensor]:
    """Make (packed, weight, bias); shape: (in, out)."""
    in_features, out_features = shape
    dtype, sums = kind
    generator = torch.Generator().manual_seed(in_features * out_features)
    weight = torch.randn((out_features, in_features), generator=generator) / in_features**0.5
    bias = torch.randn(out_features, generator=generator).to(dtype)
    weight = weight.to(dtype)
    return ops.pack_linear(weight, bias, segments=segments, sums=sums), weight, bias


@pytest.mark.parametrize("segments", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_keeps_its_bits_at_every_number_of_rows(
    kind: tuple[torch.dtype, Sums], segments: int
) -> None:
    for shape in SHAPES:
        if shape[0] % (16 * segments):
            continue
        packed, _, _ = make_packed(cpu, shape, kind, segments=segments)
        x = torch.randn(133, shape[0]).to(kind[0])
        whole = cpu.linear(x, packed)
        numbers = [*range(1, 10), 15, 16, 17, 33, 64, 65, 128]
        for rows, (offset, threads) in itertools.product(numbers, ((0, 1), (3, 1), (3, 2))):
            torch.set_num_threads(threads)
            part = cpu.linear(x[offset : offset + rows], packed)
            assert_same_bits(part, whole[offset : offset + rows])


@settings(max_examples=150)
@given(data=st.data())
def test_twins_agree_on_every_input(data: st.DataObject) -> None:
    """On the worst numbers: denormals, infinities, NaN, sums that cancel, any number of threads."""
    dtype, sums = data.draw(dtypes), data.draw(st.sampled_from(SUMS))
    widths = [1, 2, 16, 17, 31, 33, 48, 130, CHUNK - 1, CHUNK, CHUNK + 1, CHUNK + 2, 768, 1026]
    in_features = data.draw(st.sampled_from(widths))
    out_features = data.draw(st.sampled_from([1, 31, 33, 63, 64, 65, 200]))
    rows = data.draw(st.one_of(st.integers(0, 20), st.sampled_from([31, 32, 33, 48, 49, 97])))
    x, weight, bias = (
        make_floats(data.draw(seeds), shape, data.draw(flavours), dtype)
        for shape in ((rows, in_features), (out_features, in_features), (out_features,))
    )
    some_bias = bias if data.draw(st.booleans()) else None
    tag = None
    if dtype == torch.bfloat16:
        tag = usable_tag(sums, data.draw(st.sampled_from(emit.TAGS[sums])))
    torch.set_num_threads(data.draw(st.sampled_from([1, 2])))
    own = cpu.linear(x, cpu.pack_linear(weight, some_bias, sums=sums), tag=tag)
    packed = reference.pack_linear(weight, some_bias, sums=sums)
    assert_same_bits(own, reference.linear(x, packed))


@pytest.mark.parametrize(("sums", "tag"), BFLOAT16_TAGS)
def test_sums_on_the_border_of_denormals(sums: Sums, tag: str) -> None:
    """What is flushed on the way tells the order, the chunk and every rounding."""
    tag = usable_tag(sums, tag)
    for in_features, seed in itertools.product((64, 514, 1100), range(8)):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn((18, in_features), generator=generator).bfloat16()
        weight = (torch.randn((70, in_features), generator=generator) * 2.0**-126).bfloat16()
        packed, plain = (ops.pack_linear(weight, None, sums=sums) for ops in (cpu, reference))
        assert_same_bits(cpu.linear(x, packed, tag=tag), reference.linear(x, plain))


@pytest.mark.parametrize("sums", SUMS)
def test_the_best_instructions_are_used(sums: Sums) -> None:
    assert choice.best_tag(sums) == emit.promised_tag(sums)


@pytest.mark.parametrize(("sums", "other"), [("pairs", "tiles"), ("tiles", "pairs")])
def test_instructions_with_other_bits_are_not_used(
    sums: Sums, other: Sums, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Here the promised one adds in the order of the other kind, as a new processor might."""
    promised, multiply_by = emit.promised_tag(sums), choice.multiply_by

    def wrong(tag: str, x: Tensor, weight: Tensor, columns: int, bias: Tensor | None) -> Tensor:
        if tag != promised:
            return multiply_by(tag, x, weight, columns, bias)
        plain = matmul.unblock_weight(weight, columns, x.shape[1])
        return reference.linear(x, reference.pack_linear(plain, bias, sums=other))

    monkeypatch.setattr(choice, "multiply_by", wrong)
    tags = emit.TAGS[sums]
    if promised == tags[-1]:
        pytest.skip("nothing slower than what this machine has")
    assert choice.best_tag.__wrapped__(sums) == tags[tags.index(promised) + 1]
    assert f"by {promised} differ" in caplog.text


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("ops", BOTH)
def test_linear_adds_in_the_order_that_is_written(ops: ModuleType, dtype: torch.dtype) -> None:
    """A one that meets +2^60 is lost, unless -2^60 comes first or in another sum."""

    def survives(sums: Sums, big: int, one: int, minus: int, *, width: int = 4 * CHUNK) -> bool:
        weight = torch.zeros((1, width), dtype=dtype)
        weight[0, [big, one, minus]] = torch.tensor([2.0**60, 1.0, -(2.0**60)], dtype=dtype)
        x = torch.ones((1, width), dtype=dtype)
        return bool(ops.linear(x, ops.pack_linear(weight, None, sums=sums))[0, 0] == 1.0)

    assert not survives("pairs", 0, 4, 8)
    assert survives("pairs", 0, 8, 4)
    assert survives("pairs", CHUNK, 1, CHUNK + 8) and survives("pairs", 5, CHUNK + 1, 7)
    assert not survives("pairs", 1, CHUNK, CHUNK + 2), "the sums of two chunks meet"
    assert survives("pairs", 0, CHUNK - 4, CHUNK // 2), "a chunk is no shorter"
    if dtype == torch.float32:
        assert survives("pairs", 0, 2, 1) and not survives("pairs", 0, 1, 2)
        return
    assert survives("pairs", 1, 0, 3) is False and survives("pairs", 0, 2, 3) is True
    assert survives("tiles", 0, 1, 2), "odd elements have a sum of their own"
    assert not survives("tiles", 0, 2, 4)
    assert not survives("tiles", 0, 1, TILE), "even and odd meet before the next block"
    assert survives("tiles", TILE, 1 + TILE, TILE + 2)
    assert not survives("tiles", 0, TILE, 2 * TILE)
    assert not survives("tiles", 0, 2 * CHUNK, 2 * CHUNK + TILE), "there are no chunks"


@pytest.mark.parametrize("ops", BOTH)
@pytest.mark.parametrize("kind", KINDS)
def test_linear_is_near_float64(ops: ModuleType, kind: tuple[torch.dtype, Sums]) -> None:
    bound = 2e-6 if kind[0] == torch.float32 else 1e-2
    for segments in (1, 4):
        packed, weight, bias = make_packed(ops, (256, 96), kind, segments=segments)
        x = torch.randn(7, 256).to(kind[0])
        exact = x.double() @ weight.double().t() + bias.double()
        assert (ops.linear(x, packed) - exact).abs().max() < bound * exact.abs().max()


@pytest.mark.parametrize("ops", BOTH)
@pytest.mark.parametrize("segments", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("kind", KINDS)
def test_linear_is_exact_where_no_step_rounds(
    ops: ModuleType, kind: tuple[torch.dtype, Sums], segments: int
) -> None:
    dtype, sums = kind
    weight = torch.randint(-1, 2, (40, 192)).to(dtype)
    bias = torch.randint(-8, 9, (40,)).to(dtype)
    x = torch.randint(-1, 2, (5, 192)).to(dtype)
    packed = ops.pack_linear(weight, bias, segments=segments, sums=sums)
    exact = x.float() @ weight.float().t() + bias.float()
    assert_same_bits(ops.linear(x, packed), exact.to(dtype))


@pytest.mark.parametrize("ops", BOTH)
@pytest.mark.parametrize("kind", KINDS)
def test_segments_are_rounded_and_added_as_a_tree(
    ops: ModuleType, kind: tuple[torch.dtype, Sums]
) -> None:
    packed, weight, bias = make_packed(ops, (320, 32), kind, segments=5)
    x = torch.randn(6, 320).to(kind[0])
    parts = [
        ops.linear(
            x[:, i : i + 64], ops.pack_linear(weight[:, i : i + 64], None, sums=kind[1])
        ).float()
        for i in range(0, 320, 64)
    ]
    total = ((parts[0] + parts[1]) + (parts[2] + parts[3])) + parts[4]
    assert_same_bits(ops.linear(x, packed), (total + bias.float()).to(kind[0]))


@pytest.mark.parametrize("ops", BOTH)
@pytest.mark.parametrize("kind", KINDS)
def test_linear_takes_strided_and_empty_inputs(
    ops: ModuleType, kind: tuple[torch.dtype, Sums]
) -> None:
    packed, _, _ = make_packed(ops, (64, 32), kind)
    wide = torch.randn(9, 100).to(kind[0])
    for x in (wide[:, 20:84], wide[::2, :64], torch.randn(64, 5).to(kind[0]).t()):
        assert_same_bits(ops.linear(x, packed), ops.linear(x.contiguous(), packed))
    assert ops.linear(torch.empty(0, 64, dtype=kind[0]), packed).shape == (0, 32)
    packed, _, _ = make_packed(ops, (128, 40), kind, segments=2)
    assert ops.linear(torch.empty((0, 128), dtype=kind[0]), packed).shape == (0, 40)


@pytest.mark.parametrize("ops", BOTH)
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_nan_stays_alone(ops: ModuleType, kind: tuple[torch.dtype, Sums]) -> None:
    packed, _, _ = make_packed(ops, (64, 32), kind)
    x = torch.randn(3, 64).to(kind[0])
    before = ops.linear(x, packed)
    x[1] = float("nan")
    after = ops.linear(x, packed)
    assert after[1].isnan().all()
    assert torch.equal(after[[0, 2]], before[[0, 2]])


@pytest.mark.parametrize("ops", BOTH)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("segments", [1, 4])
def test_packing_keeps_its_own_copy_and_gives_it_back(
    ops: ModuleType, kind: tuple[torch.dtype, Sums], segments: int
) -> None:
    for shape in ((128, 70), (64, 1), (192, 64)):
        packed, weight, bias = make_packed(ops, shape, kind, segments=segments)
        unpacked, unpacked_bias = ops.unpack_linear(packed)
        assert_same_bits(unpacked, weight)
        assert unpacked_bias is not None
        assert_same_bits(unpacked_bias, bias)
        x = torch.randn(3, shape[0]).to(kind[0])
        before = ops.linear(x, packed)
        weight.zero_()
        bias.zero_()
        assert torch.equal(ops.linear(x, packed), before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("in_features", "rows"), [(64, 1300), (512, 290), (2048, 400)])
def test_rows_of_many_panels(kind: tuple[torch.dtype, Sums], in_features: int, rows: int) -> None:
    """More rows than a panel has, and an odd tile at the end."""
    dtype, sums = kind
    shapes = ((130, in_features), (rows, in_features))
    weight, x = (make_floats(seed, shape, "normal", dtype) for seed, shape in enumerate(shapes))
    own = cpu.linear(x, cpu.pack_linear(weight, None, sums=sums))
    assert_same_bits(own, reference.linear(x, reference.pack_linear(weight, None, sums=sums)))


@pytest.mark.parametrize("ops", BOTH)
def test_pack_linear_names_what_does_not_fit(ops: ModuleType) -> None:
    with pytest.raises(ValueError, match="96 input features do not make 4"):
        ops.pack_linear(torch.zeros(8, 96), None, segments=4)
    for bias in (torch.zeros(17), torch.zeros(8).bfloat16()):
        with pytest.raises(AssertionError):
            ops.pack_linear(torch.zeros(8, 96), bias)
    for dtype in (torch.float64, torch.float16):
        with pytest.raises(AssertionError):
            ops.pack_linear(torch.zeros(8, 96, dtype=dtype), None)


def test_both_implementations_share_embed() -> None:
    assert cpu.embed is reference.embed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embed_gathers_rows(dtype: torch.dtype) -> None:
    weight = torch.randn(50, 32).to(dtype)
    tokens = torch.tensor([3, 49, 0, 3], dtype=torch.int32)
    assert_same_bits(reference.embed(tokens, weight), weight[tokens.long()])
    assert reference.embed(tokens[:0], weight).shape == (0, 32)
    with pytest.raises(IndexError):
        reference.embed(torch.tensor([50], dtype=torch.int32), weight)
