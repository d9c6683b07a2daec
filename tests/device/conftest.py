"""Tiny models with random weights, made once a session, without transformers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from quire.engine.config import Backend, DTypeName
from quire.fuzz.checkpoints import Kind, Tiny, make_tiny


@pytest.fixture(scope="session")
def tiny_model(
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[Kind, DTypeName, Backend], Tiny]:
    @cache
    def make(kind: Kind, dtype: DTypeName, backend: Backend) -> Tiny:
        return make_tiny(kind, tmp_path_factory.mktemp(kind), dtype, backend)

    return make
