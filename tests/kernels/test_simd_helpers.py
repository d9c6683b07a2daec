"""The bits of floats inside kernels."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from quire.fuzz.kernel_cases import SPECIAL, assert_same_bits, make_floats
from quire.kernels.cpu import simd
from quire.kernels.cpu.launch import compiled
from quire.reference.activation import fma

NANS = torch.tensor([0x7F800001, 0x7FFFFFFF, 0x7FFF8000, 0x7F80FFFF, -1, -0x7FFFFF, -0x8000])
WORDS = torch.cat(
    [
        make_floats(1, (50_000,), "bits").view(torch.int32),
        make_floats(2, (5000,), "special").view(torch.int32),
        NANS.to(torch.int32),
        (torch.arange(0, 2**16) * 2**16 + 2**15).to(torch.int32),
    ]
)


@compiled("void(int64, int64, int64)")
def _narrow(source: int, target: int, count: int) -> None:
    x, y = simd.float32s(source, count), simd.bfloat16s(target, count)
    for i in range(count):
        y[i] = simd.narrow(x[i])


@compiled("void(int64, int64, int64)")
def _widen(source: int, target: int, count: int) -> None:
    x, y = simd.bfloat16s(source, count), simd.float32s(target, count)
    for i in range(count):
        y[i] = simd.widen(x[i])


@compiled("void(int64, int64, int64, int64)")
def _keys(source: int, keys: int, back: int, count: int) -> None:
    x, key = simd.float32s(source, count), simd.int32s(keys, count)
    for i in range(count):
        key[i] = simd.order_key(x[i])
        simd.float32s(back, count)[i] = simd.from_order_key(key[i])


@compiled("void(int64, int64, int64, int64, int64)")
def _fma(x: int, y: int, z: int, target: int, count: int) -> None:
    a, b, c = (simd.float32s(x, count), simd.float32s(y, count), simd.float32s(z, count))
    out = simd.float32s(target, count)
    for i in range(count):
        out[i] = simd.fma(a[i], b[i], c[i])


def test_narrow_rounds_as_torch_does_and_keeps_nan() -> None:
    x = WORDS.view(torch.float32)
    y = torch.empty(len(x), dtype=torch.bfloat16)
    _narrow(x.data_ptr(), y.data_ptr(), len(x))
    assert_same_bits(y, x.bfloat16())


def test_widen_is_exact() -> None:
    x = torch.arange(65536).to(torch.int32).to(torch.int16).view(torch.bfloat16)
    y = torch.empty(len(x))
    _widen(x.data_ptr(), y.data_ptr(), len(x))
    assert_same_bits(y, x.float())


def make_near_ties(count: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Make x, y, z with x * y + z hard by the middle between two float32, on it or far from it.

    x * y may be +-2^-24 * (1 + 2^-23) * (1 - 2^-23), or +-2^-24 * (1 - 2^-46): beside z, float64
    rounds to the middle, and from there to the even neighbour, which is the wrong one.
    """
    ulps = torch.randint(-2, 3, (2, count)).float()
    signs = torch.randint(0, 2, (count,)).float() * 2 - 1
    return (
        signs * 2.0**-12 * (1 + ulps[0] * 2.0**-23),
        2.0**-12 * (1 + ulps[1] * 2.0**-23),
        1 + 3 * 2.0**-23,
    )


@pytest.mark.parametrize("near_ties", [True, False])
def test_fma_rounds_once(near_ties: bool) -> None:
    if near_ties:
        x, y, z = make_near_ties(1000)
    else:
        x, y, z = torch.randn(1000), torch.rand(1000), 0.75
    exact = [
        Fraction(a) * Fraction(b) + Fraction(z) for a, b in zip(x.tolist(), y.tolist(), strict=True)
    ]
    wanted = torch.tensor([nearest_float32(number) for number in exact])
    assert_same_bits(fma(x, y, z), wanted)
    out, third = torch.empty(1000), torch.full((1000,), z)
    _fma(x.data_ptr(), y.data_ptr(), third.data_ptr(), out.data_ptr(), 1000)
    assert_same_bits(out, wanted)
    if near_ties:
        twice = (x.double() * y.double() + z).float()
        assert not torch.equal(twice, wanted), "these numbers do not tell one rounding from two"


def nearest_float32(number: Fraction) -> float:
    """Round a fraction of size about one, ties to even."""
    exponent = math.frexp(float(number))[1] - 24
    return float(round(number / Fraction(2) ** exponent) * Fraction(2) ** exponent)


def test_order_keys_order_as_floats_do() -> None:
    x = WORDS.view(torch.float32)
    x = torch.cat([x[~x.isnan()], torch.tensor(SPECIAL)])
    keys, back = torch.empty(len(x), dtype=torch.int32), torch.empty(len(x))
    _keys(x.data_ptr(), keys.data_ptr(), back.data_ptr(), len(x))
    assert torch.equal(back, x)
    ordered = x[keys.argsort()]
    assert (ordered[1:] >= ordered[:-1]).all()
    assert torch.equal((ordered[1:] == ordered[:-1]), keys.sort().values.diff() == 0)
    assert (keys[x == float("inf")] == simd.INFINITY_KEY).all()
    assert keys[x == 0].abs().max() == 0
