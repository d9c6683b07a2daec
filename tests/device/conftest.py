"""Tiny models with random weights, made once a session, without transformers and without files."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import pytest
from quire.engine.config import Backend, DTypeName
from quire.engine.models.base import DecoderModel
from quire.engine.models.registry import read_model_config
from quire.engine.opset import choose_ops
from quire.fuzz.checkpoints import Kind, random_weights, write_config
from quire.reference.decoder import DecoderConfig, DecoderWeights
from quire.reference.ops import Ops


class Tiny(NamedTuple):
    """A model on one backend, and what the oracle needs of it."""

    config: DecoderConfig
    weights: DecoderWeights
    model: DecoderModel
    ops: Ops


MakeTiny = Callable[[Kind, DTypeName, Backend], Tiny]


@pytest.fixture(scope="session")
def make_tiny(tmp_path_factory: pytest.TempPathFactory) -> MakeTiny:
    @cache
    def make(kind: Kind, dtype: DTypeName, backend: Backend) -> Tiny:
        segments = 2 if kind == "llama3" else 1
        path = write_config(kind, tmp_path_factory.mktemp(kind), attention_bias=kind == "llama2")
        config = read_model_config(path, dtype, segments)
        ops = choose_ops("cpu", backend)
        weights = random_weights(config, ops)
        return Tiny(config.decoder, weights, DecoderModel(config.decoder, weights, ops), ops)

    return make
