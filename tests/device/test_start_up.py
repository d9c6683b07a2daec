"""What happens before the first step: how much memory to take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from quire.engine.config import Backend, DTypeName
from quire.engine.device.memory import (
    MAX_DEFAULT_BYTES,
    bytes_per_block,
    default_cache_bytes,
)
from quire.fuzz.checkpoints import Kind, Tiny

TinyModel = Callable[[Kind, DTypeName, Backend], Tiny]


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
        assert total == 12 * bytes_per_block(16, tiny.config), backend


def test_blocks_hold_the_layers_of_all_models(tiny_model: TinyModel) -> None:
    one, other = (tiny_model(kind, "bfloat16", "reference").config for kind in ("qwen3", "llama2"))
    assert bytes_per_block(16, one) == 2 * 2 * 16 * 1 * 32 * 2
    assert bytes_per_block(16, one, other) == bytes_per_block(16, one) + 2 * 2 * 16 * 4 * 16 * 2


def test_default_cache_is_bounded() -> None:
    assert 0 < default_cache_bytes() <= MAX_DEFAULT_BYTES
