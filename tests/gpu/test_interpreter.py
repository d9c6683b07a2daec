"""The repairs of Triton's interpreter: what a kernel computes there is what a GPU computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from quire.fuzz.interpreter import DOT_STEP
from quire.fuzz.kernel_cases import assert_same_bits, make_floats
from quire.reference.activation import fma

SIZE = 256
BFLOAT16 = torch.bfloat16


@triton.jit
def _pointwise(
    x_ptr: Any, y_ptr: Any, z_ptr: Any, out_ptr: Any, KIND: tl.constexpr, SIZE: tl.constexpr
) -> None:
    i = tl.arange(0, SIZE)
    x, y, z = tl.load(x_ptr + i), tl.load(y_ptr + i), tl.load(z_ptr + i)
    if KIND == "cast":
        out = x
    if KIND == "add":
        out = x + y
    if KIND == "subtract":
        out = x - y
    if KIND == "multiply":
        out = x * y
    if KIND == "negate":
        out = -x
    if KIND == "less":
        out = tl.where(x < y, 1.0, 0.0)
    if KIND == "maximum":
        out = tl.maximum(x, y)
    if KIND == "fma":
        out = tl.fma(x, y, z)
    if KIND == "divide":
        out = x / y
    if KIND == "div_rn":
        out = tl.div_rn(x, y)
    if KIND == "sqrt":
        out = tl.sqrt(x)
    if KIND == "sqrt_rn":
        out = tl.sqrt_rn(x)
    if KIND == "full":
        out = tl.full([SIZE], 1.2345678, out_ptr.dtype.element_ty)
    tl.store(out_ptr + i, out.to(out_ptr.dtype.element_ty))


@triton.jit
def _reduce(x_ptr: Any, sums_ptr: Any, tops_ptr: Any, M: tl.constexpr, N: tl.constexpr) -> None:
    place = tl.arange(0, M)[:, None] * N + tl.arange(0, N)[None, :]
    x = tl.load(x_ptr + place)
    tl.store(sums_ptr + tl.arange(0, M), tl.sum(x, 1))
    tl.store(tops_ptr + tl.arange(0, M), tl.max(x, 1))


@triton.jit
def _argmax(x_ptr: Any, out_ptr: Any, SIZE: tl.constexpr) -> None:
    tl.store(out_ptr, tl.argmax(tl.load(x_ptr + tl.arange(0, SIZE)), 0))


@triton.jit
def _multiply(
    a_ptr: Any, b_ptr: Any, c_ptr: Any, out_ptr: Any,
    M: tl.constexpr, N: tl.constexpr, K: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    m, n, k = tl.arange(0, M)[:, None], tl.arange(0, N), tl.arange(0, K)
    a, b = tl.load(a_ptr + m * K + k[None, :]), tl.load(b_ptr + k[:, None] * N + n[None, :])
    c = tl.load(c_ptr + m * N + n[None, :])
    out = tl.dot(a, b, c, input_precision=PRECISION)
    tl.store(out_ptr + m * N + n[None, :], out)


@triton.jit
def _count(bounds_ptr: Any, out_ptr: Any) -> None:
    total = tl.load(bounds_ptr) * 0
    for i in range(tl.load(bounds_ptr), tl.load(bounds_ptr + 1)):
        total += i
    tl.store(out_ptr, total)


@triton.jit
def _copy_if(flag_ptr: Any, x_ptr: Any, out_ptr: Any, SIZE: tl.constexpr) -> None:
    i = tl.arange(0, SIZE)
    kept = (i < SIZE // 2) & (tl.load(flag_ptr) >= 0)
    tl.store(out_ptr + i, tl.load(x_ptr + i, kept, other=7.0), ~kept | (i < 3))


@pytest.fixture(autouse=True)
def interpreted(device: str) -> None:
    """Nothing here is about a GPU."""
    if device != "cpu":
        pytest.skip("kernels are not interpreted here")


def pointwise(
    kind: str, *xs: torch.Tensor, dtype: torch.dtype | None = None, seed: int = 0
) -> torch.Tensor:
    """Run an elementwise kernel on up to three inputs."""
    x, y, z = (*xs, xs[0], xs[0])[:3] if len(xs) < 3 else xs
    out = torch.full((SIZE,), torch.nan).to(dtype or x.dtype)
    _pointwise[(1,)](x, y, z, out, KIND=kind, SIZE=SIZE)
    return out


def floats(seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Make plain numbers."""
    return make_floats(seed, (SIZE,), "normal", dtype)


@pytest.mark.parametrize("flavour", ["normal", "bits", "special", "small"])
def test_casts_of_bfloat16_round_to_nearest_even(flavour: Any) -> None:
    x = make_floats(1, (SIZE,), flavour)
    assert_same_bits(pointwise("cast", x, dtype=BFLOAT16), x.to(BFLOAT16))
    assert_same_bits(pointwise("cast", x.to(BFLOAT16), dtype=torch.float32), x.to(BFLOAT16).float())


def test_a_cast_between_two_bfloat16_takes_the_even_one() -> None:
    words = (torch.arange(SIZE) * 2**16 + 0x3F808000).to(torch.int32)
    x = words.view(torch.float32)
    rounded = pointwise("cast", x, dtype=BFLOAT16)
    assert_same_bits(rounded, x.to(BFLOAT16))
    assert (rounded.view(torch.int16) % 2 == 0).all()


def test_integers_become_bfloat16_by_value() -> None:
    x = torch.arange(SIZE, dtype=torch.int32) - 99
    assert_same_bits(pointwise("cast", x, dtype=BFLOAT16), x.to(BFLOAT16))
    back = pointwise("cast", x.to(BFLOAT16), dtype=torch.int32)
    assert torch.equal(back, x)


@pytest.mark.parametrize("kind", ["add", "subtract", "multiply", "maximum", "negate"])
def test_arithmetic_of_bfloat16_is_of_its_values(kind: str) -> None:
    x, y = floats(1, BFLOAT16), floats(2, BFLOAT16)
    wanted = {
        "add": x + y,
        "subtract": x - y,
        "multiply": x * y,
        "maximum": torch.maximum(x, y),
        "negate": -x,
    }
    assert_same_bits(pointwise(kind, x, y), wanted[kind])


def test_bfloat16_is_compared_by_value() -> None:
    x, y = floats(1, BFLOAT16), floats(2, BFLOAT16)
    assert torch.equal(pointwise("less", x, y, dtype=torch.float32), (x < y).float())


def test_a_constant_of_bfloat16_is_rounded() -> None:
    wanted = torch.full((SIZE,), 1.2345678).to(BFLOAT16)
    assert_same_bits(pointwise("full", floats(1, BFLOAT16)), wanted)


def test_fma_rounds_once() -> None:
    ulps = torch.arange(SIZE) % 5 - 2
    x, y, z = 2.0**-12 * (1 + ulps * 2.0**-23), floats(1), torch.full((SIZE,), 1 + 3 * 2.0**-23)
    near = torch.where(torch.arange(SIZE) < SIZE // 2, 2.0**-12 * (1 - 2.0**-23), y)
    wanted = fma(x, near, z)
    assert_same_bits(pointwise("fma", x, near, z), wanted)
    assert not torch.equal(x * near + z, wanted), "these numbers do not tell one rounding from two"


def test_only_what_a_gpu_rounds_exactly_is_exact() -> None:
    x, y = floats(1).abs(), floats(2)
    quotient, root = (x.double() / y).float(), x.double().sqrt().float()
    assert_same_bits(pointwise("div_rn", x, y), quotient)
    assert_same_bits(pointwise("sqrt_rn", x), root)
    for nearly, exact in ((pointwise("divide", x, y), quotient), (pointwise("sqrt", x), root)):
        assert not torch.equal(nearly, exact)
        torch.testing.assert_close(nearly, exact, rtol=3e-7, atol=0)
    powers = torch.exp2(torch.arange(SIZE) % 60 - 30.0)
    assert_same_bits(pointwise("divide", x, powers), x / powers)
    extremes = torch.tensor([3e38, 1e-45, 0.0, torch.inf]).repeat(SIZE // 4)
    ones = torch.tensor([1.0, 1.0, torch.nan, torch.nan]).repeat(SIZE // 4)
    torch.testing.assert_close(pointwise("divide", extremes, extremes), ones, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
def test_dots_are_a_chain_of_steps_rounded_once(dtype: torch.dtype) -> None:
    a = (floats(1)[:16, None] * floats(2)[:64]).to(dtype)
    b = (floats(3)[:64, None] * floats(4)[:32]).to(dtype)
    wanted = c = floats(5)[:16, None] * torch.ones(32)
    out = torch.full((16, 32), torch.nan)
    _multiply[(1,)](a, b, c, out, M=16, N=32, K=64, PRECISION="ieee")
    for k in range(0, 64, DOT_STEP):
        step = slice(k, k + DOT_STEP)
        wanted = (a[:, step].double() @ b[step].double() + wanted).float()
    assert_same_bits(out, wanted)


def test_dots_of_float32_in_tf32_lose_bits() -> None:
    a, b = floats(1)[:, None] * torch.ones(16), torch.eye(16)
    out = torch.full((16, 16), torch.nan)
    a = a[:16].contiguous()
    _multiply[(1,)](a, b, torch.zeros(16, 16), out, M=16, N=16, K=16, PRECISION="tf32")
    assert not torch.equal(out, a)
    assert (out.view(torch.int32) % 2**13 == 0).all()
    torch.testing.assert_close(out, a, rtol=2**-11, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
def test_reductions_are_of_values(dtype: torch.dtype) -> None:
    x = (floats(1)[:64, None] * floats(2) - 1.0).to(dtype)
    sums, tops = torch.zeros(64, dtype=dtype), torch.zeros(64, dtype=dtype)
    _reduce[(1,)](x, sums, tops, M=64, N=SIZE)
    assert_same_bits(sums, x.double().sum(1).float().to(dtype))
    assert_same_bits(tops, x.amax(1))


def test_nothing_but_nan_reduces_without_a_warning() -> None:
    x = torch.full((2, 16), torch.nan)
    x[1, 3] = -torch.inf
    sums, tops = torch.zeros(2), torch.zeros(2)
    _reduce[(1,)](x, sums, tops, M=2, N=16)
    assert sums.isnan().all()
    assert_same_bits(tops, torch.tensor([torch.nan, -torch.inf]))
    out = torch.full((1,), 99, dtype=torch.int32)
    _argmax[(1,)](torch.full((16,), torch.nan), out, SIZE=16)
    assert 0 <= out.item() < 16


def test_loops_take_bounds_from_memory() -> None:
    out = torch.zeros(1, dtype=torch.int32)
    _count[(1,)](torch.tensor([3, 7], dtype=torch.int32), out)
    assert out.item() == 3 + 4 + 5 + 6


@pytest.mark.parametrize("flag", [5, -5])
def test_a_comparison_of_a_scalar_joins_a_mask(flag: int) -> None:
    x, out = floats(1), torch.zeros(SIZE)
    _copy_if[(1,)](torch.tensor([flag]), x, out, SIZE=SIZE)
    i = torch.arange(SIZE)
    kept = (i < SIZE // 2) & (flag >= 0)
    assert_same_bits(out, torch.where(~kept | (i < 3), torch.where(kept, x, 7.0), 0.0))
