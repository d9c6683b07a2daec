"""Bodies of requests for vectors and of their responses: OpenAI's embeddings, vLLM's scores,
classes and raw vectors, Jina's and Cohere's rerank.

Pure. As in schema.py a field that nobody knows is an error, and null means "not given".
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET, Struct, UnsetType

from .schema import Ignored


class PooledBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """What all of them share."""

    model: str | None = None
    truncate_prompt_tokens: int | None = None
    """A longer text loses its end; -1: beyond what the model takes."""
    user: str | None = None
    priority: int | None = None
    cache_salt: str | None = None
    request_id: str | None = None


class EmbeddingBody(PooledBody, kw_only=True):
    """POST /v1/embeddings."""

    input: str | list[str | int | list[int]]
    encoding_format: str | None = None
    """float or base64 (of little-endian float32)."""
    dimensions: int | None = None
    normalize: bool | None = None
    prompt_name: str | None = None
    """Which of the model's prompts is written before each text; empty: none."""


class PoolingBody(EmbeddingBody, kw_only=True):
    """POST /pooling: the vector as the model makes it, unless more is asked."""

    use_activation: bool | None = None


class ClassifyBody(PooledBody, kw_only=True):
    """POST /classify."""

    input: str | list[str | int | list[int]]
    use_activation: bool | None = None


class ScoreBody(PooledBody, kw_only=True):
    """POST /v1/score: the texts by one pair of names."""

    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    data_1: str | list[str] | None = None
    data_2: str | list[str] | None = None
    queries: str | list[str] | None = None
    documents: str | list[str] | None = None
    instruction: str | None = None
    """What is asked about the texts, where the model's template of pairs takes it."""
    use_activation: bool | None = None


class RerankDocument(Struct, frozen=True):
    """A document as an object."""

    text: str


class RerankBody(PooledBody, kw_only=True):
    """POST /v1/rerank."""

    query: str
    documents: list[str | RerankDocument]
    instruction: str | None = None
    """As ScoreBody has it."""
    top_n: int | None = None
    """Results to tell; null or 0: all."""
    return_documents: bool | None = None
    """Null: true."""
    use_activation: bool | None = None
    rank_fields: Ignored = None
    max_chunks_per_doc: Ignored = None


class PooledUsage(Struct, frozen=True):
    """Tokens of a response without an answer's."""

    prompt_tokens: int
    total_tokens: int


class PooledResponse(Struct, frozen=True, kw_only=True):
    """What most responses share."""

    id: str
    object: str = "list"
    created: int
    model: str
    usage: PooledUsage


class Embedding(Struct, frozen=True, kw_only=True):
    """One vector."""

    object: str = "embedding"
    index: int
    embedding: Sequence[float] | str


class EmbeddingResponse(PooledResponse, frozen=True, kw_only=True):
    """What /v1/embeddings answers."""

    data: Sequence[Embedding]


class PooledData(Struct, frozen=True, kw_only=True):
    """One vector of /pooling."""

    object: str = "pooling"
    index: int
    data: Sequence[float] | str


class PoolingResponse(PooledResponse, frozen=True, kw_only=True):
    """What /pooling answers."""

    data: Sequence[PooledData]


class Classification(Struct, frozen=True, kw_only=True):
    """The classes of one text."""

    index: int
    label: str
    """The likeliest."""
    probs: Sequence[float]
    num_classes: int


class ClassifyResponse(PooledResponse, frozen=True, kw_only=True):
    """What /classify answers."""

    data: Sequence[Classification]


class Score(Struct, frozen=True, kw_only=True):
    """How well two texts fit."""

    object: str = "score"
    index: int
    score: float


class ScoreResponse(PooledResponse, frozen=True, kw_only=True):
    """What /v1/score answers."""

    data: Sequence[Score]


class RerankResult(Struct, frozen=True, kw_only=True):
    """One document, the best first."""

    index: int
    """Among the request's."""
    document: RerankDocument | UnsetType = UNSET
    relevance_score: float


class RerankResponse(Struct, frozen=True, kw_only=True):
    """What /v1/rerank answers."""

    id: str
    model: str
    usage: PooledUsage
    results: Sequence[RerankResult]
