"""From the vectors that a model makes to embeddings, scores and classes. Pure numpy.

Sums are of float64 over one vector: what becomes of it does not depend on others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from msgspec import Struct

from .errors import ParamsError
from .params import PoolingParams
from .request import RequestOutput, VectorRows
from .text.pooled import TextPair
from .vectors import PoolingConfig

LEAST_LENGTH = 1e-12
"""A shorter vector is not made longer."""


class PoolingOutput(Struct, frozen=True):
    """What became of a vector."""

    data: VectorRows
    """[width] float32"""

    @property
    def embedding(self) -> list[float]:
        """Of an embedding model."""
        numbers: list[float] = self.data.tolist()
        return numbers

    @property
    def probs(self) -> list[float]:
        """Of a classifier, a number for each label."""
        return self.embedding


class ScoringOutput(Struct, frozen=True):
    """How well two texts fit."""

    score: float


class PoolingRequestOutput(Struct, frozen=True, kw_only=True):
    """What encode, embed and classify give for a prompt, vLLM's names."""

    request_id: str
    outputs: PoolingOutput
    prompt_token_ids: tuple[int, ...]
    num_cached_tokens: int = 0
    finished: bool = True


class ScoringRequestOutput(Struct, frozen=True, kw_only=True):
    """What score gives for a pair of texts."""

    request_id: str
    outputs: ScoringOutput
    prompt_token_ids: tuple[int, ...]
    finished: bool = True


def finish(vector: VectorRows, params: PoolingParams, config: PoolingConfig) -> VectorRows:
    """Make of a vector [width] float32 what a request asked for."""
    if config.labels is not None:
        if params.use_activation is False:
            return vector
        return activate(vector, config)
    if params.dimensions is not None:
        vector = vector[: params.dimensions]
    wish = params.use_activation if params.normalize is None else params.normalize
    return normalized(vector) if (config.normalize if wish is None else wish) else vector


def activate(vector: VectorRows, config: PoolingConfig) -> VectorRows:
    """Turn a classifier's numbers [labels] into scores."""
    wide = vector.astype(np.float64)
    match config.scores:
        case "softmax":
            wide = np.exp(wide - wide.max())
            wide /= wide.sum()
        case "sigmoid":
            wide = 1.0 / (1.0 + np.exp(-wide))
    return wide.astype(np.float32)


def normalized(vector: VectorRows) -> VectorRows:
    """Return a vector of the length of one."""
    wide = vector.astype(np.float64)
    length = max(float(np.sqrt(np.square(wide).sum())), LEAST_LENGTH)
    return (wide / length).astype(np.float32)


class Comparison(NamedTuple):
    """Pairs of texts to be scored: by a model that reads both, or by the angle of embeddings."""

    prompts: list[str | TextPair]
    """Whose vectors are wanted,"""
    pairs: list[tuple[int, int]]
    """and the two prompts of each score; twice the same where one prompt holds both texts."""

    def scores(self, vectors: Sequence[VectorRows]) -> list[float]:
        """Score every pair, of the finished vectors of all prompts."""
        found = []
        for first, second in self.pairs:
            a, b = vectors[first], vectors[second]
            if first == second:
                found.append(float(a[0]))
            else:
                found.append(float(np.dot(normalized(a), normalized(b).astype(np.float64))))
        return found


def compare(
    firsts: Sequence[str],
    seconds: Sequence[str],
    config: PoolingConfig,
    instruction: str | None = None,
) -> Comparison:
    """Say what to compute for pairs of texts: one with many, or as many with as many.

    instruction: see TextPair. ParamsError where the model cannot score, or the numbers do not fit.
    """
    if config.labels is not None and len(config.labels) != 1:
        raise ParamsError(
            f"The model has {len(config.labels)} labels: scores are for models with one, or for "
            "embedding models.",
            "model",
        )
    if not firsts or not seconds or len(firsts) not in (1, len(seconds)):
        raise ParamsError(
            f"There are {len(firsts)} first texts and {len(seconds)} second ones: there must be "
            "one first text, or as many as second ones, and at least one.",
            "text_1",
        )
    repeated = list(firsts) * (len(seconds) if len(firsts) == 1 else 1)
    if config.labels is not None:
        pairs = [TextPair(*texts, instruction) for texts in zip(repeated, seconds, strict=True)]
        return Comparison(list(pairs), [(index, index) for index in range(len(pairs))])
    if instruction is not None:
        raise ParamsError(
            "instruction is given: the model embeds texts one by one and has no place for it.",
            "instruction",
        )
    start = len(firsts)
    return Comparison(
        [*firsts, *seconds],
        [(min(index, start - 1), start + index) for index in range(len(seconds))],
    )


def pooled(
    output: RequestOutput, params: PoolingParams, config: PoolingConfig
) -> PoolingRequestOutput:
    """Make of a finished request's output what the user gets."""
    assert output.vector is not None, output
    return PoolingRequestOutput(
        request_id=output.request_id,
        outputs=PoolingOutput(finish(output.vector, params, config)),
        prompt_token_ids=output.prompt_token_ids,
        num_cached_tokens=output.num_cached_tokens,
    )
