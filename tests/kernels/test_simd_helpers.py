"""The bits of floats inside kernels."""

from __future__ import annotations

import torch
from quire.fuzz.kernel_cases import SPECIAL, assert_same_bits, make_floats
from quire.kernels.cpu import simd
from quire.kernels.cpu.launch import compiled

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


@compiled("void(int64, int64, int64)")
def _floor(source: int, target: int, count: int) -> None:
    x, y = simd.float32s(source, count), simd.float32s(target, count)
    for i in range(count):
        y[i] = simd.floor(x[i])


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


def test_floor_is_the_floor() -> None:
    x = torch.cat([WORDS.view(torch.float32), torch.randn(1000) * 100])
    y = torch.empty(len(x))
    _floor(x.data_ptr(), y.data_ptr(), len(x))
    assert_same_bits(y, x.floor())


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
