"""Requests for vectors: from texts to prepared requests, and what words their response.

Texts are computed by the engine's own batching, each a request of its own; the response comes when
all are done.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from msgspec import Struct

from ..engine.params import PoolingParams
from ..engine.pooling import finish
from ..engine.request import RequestOutput, VectorRows
from ..engine.vectors import PoolingConfig
from .answer import admit, check_accepting, priority_of
from .auth import cache_salt, tenant_of
from .caller import Caller
from .convert import check_model, renamed
from .errors import SERVER, ApiError
from .pooled_schema import PooledBody, PooledUsage

if TYPE_CHECKING:
    from ..engine.text.pooled import TextPair
    from ..engine.text.prepare import Prepared


class Told(NamedTuple):
    """What a response is worded from."""

    response_id: str
    created: int
    model: str
    vectors: list[VectorRows]
    usage: PooledUsage


@dataclass(slots=True, eq=False)
class PooledReply:
    """A teller of vectors."""

    response_id: str
    model: str
    created: int
    params: PoolingParams
    config: PoolingConfig
    word: Callable[[Told], Struct]
    n: int = 1

    def keep_best(self, output: RequestOutput) -> RequestOutput:
        """See Teller."""
        return output

    def whole(self, outputs: Sequence[RequestOutput]) -> Struct:
        """See Teller."""
        num_tokens = sum(len(output.prompt_token_ids) for output in outputs)
        usage = PooledUsage(num_tokens, num_tokens)
        vectors = [finish(_vector(output), self.params, self.config) for output in outputs]
        return self.word(Told(self.response_id, self.created, self.model, vectors, usage))


def _vector(output: RequestOutput) -> VectorRows:
    if output.vector is None:
        raise ApiError("The request was ended before its vector was made.", status=503, kind=SERVER)
    return output.vector


class Wanted(NamedTuple):
    """What a body asks for."""

    prefix: str
    """Of the response's id."""
    field: str
    """Where the texts are, for errors."""
    texts: Sequence[str | list[int] | TextPair]
    params: PoolingParams
    word: Callable[[Told], Struct]


async def prepare_vectors(
    caller: Caller, body: PooledBody, wanted: Wanted
) -> tuple[list[Prepared], PooledReply]:
    """Let a request in, and prepare what is computed and who words it."""
    state, engine = caller.state, caller.state.engine
    most = state.limits.max_answers
    if len(wanted.texts) > most:
        raise ApiError(
            f"{wanted.field} has {len(wanted.texts)} texts: at most {most} are allowed.",
            param=wanted.field,
        )
    priority = priority_of(caller, body.priority)
    admit(caller, len(wanted.texts))
    response_id = f"{wanted.prefix}{body.request_id or state.new_id()}"
    salt, tenant = cache_salt(caller, body.cache_salt), tenant_of(caller, body.user)
    with renamed({"prompt": wanted.field}):
        prepared = [
            await engine.prepare(
                text,
                wanted.params,
                f"{response_id}-{index}",
                priority=priority,
                cache_salt=salt,
                tenant=tenant,
            )
            for index, text in enumerate(wanted.texts)
        ]
    reply = PooledReply(
        response_id=response_id,
        model=engine.model_name,
        created=int(state.clock()),
        params=wanted.params,
        config=engine.pooling,
        word=wanted.word,
    )
    return prepared, reply


def check_pooled(caller: Caller, model: str | None, *, classifies: bool | None) -> PoolingConfig:
    """Refuse what the model does not do, or does not do now. classifies: None where both may."""
    engine = caller.state.engine
    check_accepting(caller.state)
    check_model(model, engine.model_name)
    config = engine.pooling
    if classifies is None or classifies == (config.labels is not None):
        return config
    does, other = ("embeds", "/v1/embeddings") if classifies else ("classifies", "/classify")
    raise ApiError(
        f"The model {engine.model_name} {does}: ask {other} instead.",
        param="model",
        code="unsupported_model",
    )
