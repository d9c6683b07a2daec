"""Quire serves language models from paged memory: one request, one answer.

`from quire import LLM, AsyncEngine, SamplingParams`. Names load on first use, so that importing the
package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine.async_engine import AsyncEngine
    from .engine.config import EngineConfig
    from .engine.errors import QuireError
    from .engine.llm import LLM
    from .engine.params import (
        BeamSearchParams,
        PoolingParams,
        RepetitionDetectionParams,
        RequestOutputKind,
        SamplingParams,
    )
    from .engine.pooling import PoolingRequestOutput, ScoringRequestOutput
    from .engine.request import BeamSearchOutput, CompletionOutput, RequestOutput
    from .engine.structured import StructuredOutputsParams
    from .engine.text.pooled import TextPair

__version__ = "0.1.0"

_HOMES = {
    "AsyncEngine": "async_engine",
    "BeamSearchOutput": "request",
    "BeamSearchParams": "params",
    "CompletionOutput": "request",
    "EngineConfig": "config",
    "LLM": "llm",
    "PoolingParams": "params",
    "PoolingRequestOutput": "pooling",
    "QuireError": "errors",
    "RepetitionDetectionParams": "params",
    "RequestOutput": "request",
    "RequestOutputKind": "params",
    "SamplingParams": "params",
    "ScoringRequestOutput": "pooling",
    "StructuredOutputsParams": "structured",
    "TextPair": "text.pooled",
}

__all__ = [
    "AsyncEngine",
    "BeamSearchOutput",
    "BeamSearchParams",
    "CompletionOutput",
    "EngineConfig",
    "LLM",
    "PoolingParams",
    "PoolingRequestOutput",
    "QuireError",
    "RepetitionDetectionParams",
    "RequestOutput",
    "RequestOutputKind",
    "SamplingParams",
    "ScoringRequestOutput",
    "StructuredOutputsParams",
    "TextPair",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'quire' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f".engine.{_HOMES[name]}", __name__), name)
