"""Vectors: POST /v1/embeddings, /pooling, /classify, /v1/score, /v1/rerank.

A model that generates embeds too; one that compares two texts scores by reading both, others by the
angle between embeddings.
"""

from __future__ import annotations

import base64
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from aiohttp import web
from msgspec import UNSET, Struct

from ...engine.params import PoolingParams
from ...engine.pooling import compare
from ...engine.request import VectorRows
from ..answer import respond_whole
from ..caller import Caller, caller_of
from ..convert import split_prompts
from ..decode import read_body, show
from ..errors import ApiError
from ..pooled import PooledReply, Told, Wanted, check_pooled, prepare_vectors
from ..pooled_schema import (
    Classification,
    ClassifyBody,
    ClassifyResponse,
    Embedding,
    EmbeddingBody,
    EmbeddingResponse,
    PooledData,
    PoolingBody,
    PoolingResponse,
    RerankBody,
    RerankDocument,
    RerankResponse,
    RerankResult,
    Score,
    ScoreBody,
    ScoreResponse,
)

if TYPE_CHECKING:
    from ...engine.text.prepare import Prepared

FORMATS = ("float", "base64")
PAIRS = (("text_1", "text_2"), ("data_1", "data_2"), ("queries", "documents"))
"""Names of a score's texts."""


def handler(
    kind: type[Any], prepare: Callable[[Caller, Any], Awaitable[tuple[list[Prepared], PooledReply]]]
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    """Make the handler of a route whose bodies are of a kind."""

    async def handle(request: web.Request) -> web.StreamResponse:
        body = await read_body(request, kind)
        return await respond_whole(request, *await prepare(caller_of(request), body))

    return handle


async def prepare_embeddings(
    caller: Caller, body: EmbeddingBody
) -> tuple[list[Prepared], PooledReply]:
    """Embed texts or tokens."""
    check_pooled(caller, body.model, classifies=False)
    encode = _encoder(body)
    params = PoolingParams(
        dimensions=body.dimensions,
        normalize=body.normalize,
        prompt_name=body.prompt_name,
        truncate_prompt_tokens=body.truncate_prompt_tokens,
    )

    def word(told: Told) -> Struct:
        vectors = enumerate(told.vectors)
        data = [Embedding(index=index, embedding=encode(one)) for index, one in vectors]
        return EmbeddingResponse(**_head(told), data=data)

    wanted = Wanted("embd-", "input", _inputs(caller, body.input), params, word)
    return await prepare_vectors(caller, body, wanted)


async def prepare_pooling(caller: Caller, body: PoolingBody) -> tuple[list[Prepared], PooledReply]:
    """Tell the model's vectors, embeddings or a classifier's numbers."""
    check_pooled(caller, body.model, classifies=None)
    encode = _encoder(body)
    params = PoolingParams(
        dimensions=body.dimensions,
        normalize=body.normalize,
        prompt_name=body.prompt_name,
        use_activation=body.use_activation,
        truncate_prompt_tokens=body.truncate_prompt_tokens,
    )

    def word(told: Told) -> Struct:
        vectors = enumerate(told.vectors)
        data = [PooledData(index=index, data=encode(one)) for index, one in vectors]
        return PoolingResponse(**_head(told), data=data)

    wanted = Wanted("pool-", "input", _inputs(caller, body.input), params, word)
    return await prepare_vectors(caller, body, wanted)


async def prepare_classes(caller: Caller, body: ClassifyBody) -> tuple[list[Prepared], PooledReply]:
    """Classify texts or tokens."""
    labels = check_pooled(caller, body.model, classifies=True).labels or ()
    params = PoolingParams(
        use_activation=body.use_activation, truncate_prompt_tokens=body.truncate_prompt_tokens
    )

    def word(told: Told) -> Struct:
        data = [
            Classification(
                index=index,
                label=labels[int(one.argmax())],
                probs=one.tolist(),
                num_classes=len(labels),
            )
            for index, one in enumerate(told.vectors)
        ]
        return ClassifyResponse(**_head(told), data=data)

    wanted = Wanted("classify-", "input", _inputs(caller, body.input), params, word)
    return await prepare_vectors(caller, body, wanted)


async def prepare_scores(caller: Caller, body: ScoreBody) -> tuple[list[Prepared], PooledReply]:
    """Score pairs of texts."""
    config = check_pooled(caller, body.model, classifies=None)
    names = [pair for pair in PAIRS if any(getattr(body, name) is not None for name in pair)]
    if len(names) != 1 or any(getattr(body, name) is None for name in names[0]):
        allowed = " or ".join(f"{first} and {second}" for first, second in PAIRS)
        raise ApiError(f"The texts must be given once, as {allowed}.", param="text_1")
    first, second = names[0]
    firsts, seconds = _list(getattr(body, first)), _list(getattr(body, second))
    comparison = compare(firsts, seconds, config, body.instruction)

    def word(told: Told) -> Struct:
        scores = enumerate(comparison.scores(told.vectors))
        data = [Score(index=index, score=score) for index, score in scores]
        return ScoreResponse(**_head(told), data=data)

    wanted = Wanted("score-", first, comparison.prompts, _comparing(body), word)
    return await prepare_vectors(caller, body, wanted)


async def prepare_ranks(caller: Caller, body: RerankBody) -> tuple[list[Prepared], PooledReply]:
    """Order documents by how well they fit a query."""
    config = check_pooled(caller, body.model, classifies=None)
    documents = [one.text if isinstance(one, RerankDocument) else one for one in body.documents]
    if body.top_n is not None and body.top_n < 0:
        raise ApiError(f"top_n is {body.top_n}: it must be 0 or more.", param="top_n")
    if not documents:
        raise ApiError("documents is empty: give at least one.", param="documents")
    comparison = compare([body.query], documents, config, body.instruction)
    shows = body.return_documents is not False

    def word(told: Told) -> Struct:
        scores = comparison.scores(told.vectors)
        # Equal ones stay in the order of the request.
        order = sorted(range(len(scores)), key=lambda index: -scores[index])
        results = [
            RerankResult(
                index=index,
                document=RerankDocument(documents[index]) if shows else UNSET,
                relevance_score=scores[index],
            )
            for index in order[: body.top_n or None]
        ]
        return RerankResponse(
            id=told.response_id, model=told.model, usage=told.usage, results=results
        )

    wanted = Wanted("rerank-", "documents", comparison.prompts, _comparing(body), word)
    return await prepare_vectors(caller, body, wanted)


embeddings = handler(EmbeddingBody, prepare_embeddings)
pooling = handler(PoolingBody, prepare_pooling)
classify = handler(ClassifyBody, prepare_classes)
score = handler(ScoreBody, prepare_scores)
rerank = handler(RerankBody, prepare_ranks)


def _inputs(caller: Caller, given: Any) -> Sequence[Any]:
    try:
        return split_prompts(given, 1, caller.state.limits.max_answers)
    except ApiError as error:
        raise ApiError(str(error).replace("prompt", "input", 1), param="input") from None


def _comparing(body: ScoreBody | RerankBody) -> PoolingParams:
    return PoolingParams(
        use_activation=body.use_activation, truncate_prompt_tokens=body.truncate_prompt_tokens
    )


def _encoder(body: EmbeddingBody) -> Callable[[VectorRows], list[float] | str]:
    """Return how vectors are written."""
    wish = body.encoding_format or FORMATS[0]
    if wish not in FORMATS:
        raise ApiError(
            f"encoding_format is {show(wish)}: it must be one of {', '.join(FORMATS)}.",
            param="encoding_format",
        )
    return partial(_write, in_base64=wish == "base64")


def _write(vector: VectorRows, *, in_base64: bool) -> list[float] | str:
    if in_base64:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.astype(np.float64).tolist()
    return numbers


def _head(told: Told) -> dict[str, Any]:
    return {
        "id": told.response_id,
        "created": told.created,
        "model": told.model,
        "usage": told.usage,
    }


def _list(given: str | list[str]) -> list[str]:
    return [given] if isinstance(given, str) else given
