"""What happens before the first step: the self-test of the matmul, and how much memory to take."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from quire.engine.config import Backend, DTypeName
from quire.engine.device import selftest
from quire.engine.device.memory import (
    MAX_DEFAULT_BYTES,
    bytes_per_block,
    default_cache_bytes,
    num_blocks_within,
)
from quire.engine.opset import choose_ops
from quire.fuzz.checkpoints import Kind, Tiny
from quire.reference.linear import PADDED_FALLBACK

TinyModel = Callable[[Kind, DTypeName, Backend], Tiny]
BACKENDS: tuple[Backend, ...] = ("kernels", "reference")
OPS = {backend: choose_ops("cpu", backend) for backend in BACKENDS}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", BACKENDS)
def test_this_machine_passes(dtype: torch.dtype, backend: Backend) -> None:
    ops = OPS[backend]
    weights = [torch.randn(n, k, dtype=dtype) for n, k in ((96, 64), (96, 64), (48, 128))]
    linears = [ops.pack_linear(weight, None) for weight in weights]
    forms = [linear.padded for linear in linears]
    assert selftest.check_linears(linears, ops) == []
    assert [linear.padded for linear in linears] == forms


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("segments", [1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_failing_shapes_are_repacked_and_logged(
    dtype: torch.dtype,
    segments: int,
    backend: Backend,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    ops = OPS[backend]
    weights = [torch.randn(n, k).to(dtype) for n, k in ((96, 64), (96, 64), (48, 128))]
    bias = torch.randn(96).to(dtype)
    linears = [
        ops.pack_linear(weight, bias if len(weight) == 96 else None, segments=segments)
        for weight in weights
    ]
    other = linears[2].padded
    if linears[0].padded == PADDED_FALLBACK:
        pytest.skip("nothing but the fallback on this processor")
    monkeypatch.setattr(selftest, "self_test", lambda linear, *_: linear.in_features != 64)
    with caplog.at_level(logging.WARNING, logger="quire"):
        assert selftest.check_linears(linears, ops) == [(64, 96)]
    assert [linear.padded for linear in linears[:2]] == [16, 16]
    assert linears[2].padded == other
    assert [len(linear.segments) for linear in linears] == [segments] * 3
    assert "64 -> 96" in caplog.text
    x = torch.randn(5, 64).to(dtype)
    wanted = x.double() @ weights[1].double().T + bias.double()
    error = (ops.linear(x, linears[1]).double() - wanted).norm() / wanted.norm()
    assert error < (1e-6 if dtype == torch.float32 else 1e-2)


def test_bytes_per_block_are_those_of_the_cache(tiny_model: TinyModel) -> None:
    backends: tuple[Backend, ...] = ("reference", "kernels")
    for backend in backends:
        tiny = tiny_model("qwen3", "bfloat16", backend)
        caches: list[Any] = tiny.model.new_caches(12, 16)
        tensors = [
            value
            for cache in caches
            for value in (getattr(cache, name) for name in type(cache).__slots__)
            if isinstance(value, torch.Tensor)
        ]
        total = sum(tensor.numel() * tensor.itemsize for tensor in tensors)
        assert total == 12 * bytes_per_block(tiny.config, 16), backend


def test_blocks_within_round_down(tiny_model: TinyModel) -> None:
    config = tiny_model("qwen3", "bfloat16", "reference").config
    one = bytes_per_block(config, 16)
    assert one == 2 * 2 * 16 * 1 * 32 * 2
    sizes = (one - 1, one, 5 * one + 7)
    assert [num_blocks_within(config, 16, size) for size in sizes] == [0, 1, 5]


def test_default_cache_is_bounded() -> None:
    assert 0 < default_cache_bytes() <= MAX_DEFAULT_BYTES
