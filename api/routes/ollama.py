"""Ollama's API under /api: its clients ask as they ask Ollama, of the one model that is served.

A conversation goes the way of /v1/chat/completions.
"""

from __future__ import annotations

from aiohttp import web
from msgspec import Struct

from ...engine.params import PoolingParams
from ..answer import admit, answer, check_accepting, priority_of, respond_whole
from ..auth import cache_salt, tenant_of
from ..caller import Caller, caller_of
from ..choices import ChatChoices
from ..conversation import Asked, ask
from ..convert import chat_params, check_length, check_model, encode, prepare, renamed
from ..decode import read_body
from ..errors import ApiError
from ..ollama_convert import GENERATE_NAMES, LATEST, NAMES, chat_body, generate_body
from ..ollama_reply import OllamaReply, told_time
from ..ollama_schema import (
    OllamaBody,
    OllamaChatBody,
    OllamaEmbedBody,
    OllamaEmbedding,
    OllamaEmbeddings,
    OllamaEmbedOneBody,
    OllamaGenerateBody,
    OllamaModel,
    OllamaModels,
    OllamaShowBody,
    OllamaShown,
)
from ..pooled import Told, Wanted, check_pooled, prepare_vectors
from ..pooled_schema import PooledBody
from ..route import json_response
from ..schema import ChatBody
from ..state import STATE, Engine

NO_LIMIT = ("options.num_predict", None)
"""An answer ends where the model's length does, whatever it may have."""
GENERATE = "generate-"
"""How ids of its responses begin."""
ARCHITECTURE = "quire"


async def chat(request: web.Request) -> web.StreamResponse:
    """Answer a conversation."""
    body = await read_body(request, OllamaChatBody)
    asked_body = chat_body(body, _engine(request, body.model))
    if not body.messages:
        return json_response(_reply(request, body, "").loaded())
    with renamed(NAMES):
        asked = await ask(caller_of(request), asked_body, "chat-", NO_LIMIT)
    return await _answer(request, body, asked_body, asked)


async def generate(request: web.Request) -> web.StreamResponse:
    """Answer a prompt, or go on with it."""
    body = await read_body(request, OllamaGenerateBody)
    asked_body = generate_body(body, _engine(request, body.model))
    if not body.prompt:
        return json_response(_reply(request, body, "").loaded())
    with renamed(GENERATE_NAMES):
        if body.raw:
            asked = await _raw(caller_of(request), body.prompt, asked_body)
        else:
            asked = await ask(caller_of(request), asked_body, GENERATE, NO_LIMIT)
    return await _answer(request, body, asked_body, asked)


async def _raw(caller: Caller, text: str, body: ChatBody) -> Asked:
    """Let a text in that no template changes, and prepare it."""
    engine = caller.state.engine
    params = chat_params(body)
    admit(caller, 1)
    prompt = await encode(engine, text, add_special_tokens=True)
    check_length(("prompt", len(prompt.token_ids)), NO_LIMIT, engine.max_model_len)
    response_id = f"{GENERATE}{caller.state.new_id()}"
    prepared = await prepare(
        engine,
        prompt,
        params,
        body,
        request_id=response_id,
        priority=priority_of(caller, None),
        cache_salt=cache_salt(caller, None),
        tenant=tenant_of(caller),
    )
    return Asked(response_id, prepared, None)


def _engine(request: web.Request, model: str) -> Engine:
    """Return what generates. ApiError where it does not, or has another model."""
    state = request.app[STATE]
    check_accepting(state)
    _check_name(model, state.engine)
    return state.engine


def _check_name(model: str, engine: Engine) -> None:
    check_model(model.removesuffix(LATEST), engine.model_name.removesuffix(LATEST))


def _reply(request: web.Request, body: OllamaBody, response_id: str) -> OllamaReply:
    return OllamaReply(
        response_id=response_id,
        model=body.model,
        clock=request.app[STATE].clock,
        chats=isinstance(body, OllamaChatBody),
    )


async def _answer(
    request: web.Request, body: OllamaBody, asked_body: ChatBody, asked: Asked
) -> web.StreamResponse:
    reply = _reply(request, body, asked.response_id)
    reply.choices = ChatChoices(
        num_top=(asked_body.top_logprobs or 0) if asked_body.logprobs else None,
        token_bytes=request.app[STATE].engine.tokenizer.token_bytes,
        parsed=asked.parsed,
    )
    return await answer(request, [asked.prepared], reply, stream=bool(asked_body.stream))


async def tags(request: web.Request) -> web.Response:
    """The one model that is served."""
    state = request.app[STATE]
    name = state.engine.model_name
    model = OllamaModel(name=name, model=name, modified_at=told_time(state.created))
    return json_response(OllamaModels([model]))


async def show(request: web.Request) -> web.Response:
    """What is known of the model."""
    state = request.app[STATE]
    engine = state.engine
    body = await read_body(request, OllamaShowBody)
    name = body.model or body.name
    if name is None:
        raise ApiError("model is missing: it must be given.", param="model")
    _check_name(name, engine)
    parsers = engine.parsers
    does = "completion" if engine.pooling.beside else "embedding"
    found = {"tools": parsers.tools, "thinking": parsers.reasoning}
    return json_response(
        OllamaShown(
            modified_at=told_time(state.created),
            template=engine.tokenizer.chat_template or "",
            # Clients look for the length by the architecture's name.
            model_info={
                "general.architecture": ARCHITECTURE,
                "general.basename": engine.model_name,
                f"{ARCHITECTURE}.context_length": engine.max_model_len,
            },
            capabilities=[does, *(one for one, there in found.items() if there)],
        )
    )


async def embed(request: web.Request) -> web.StreamResponse:
    """Embed texts."""
    caller = caller_of(request)
    body = await read_body(request, OllamaEmbedBody)
    started_s = caller.state.timer()
    texts = [body.input] if isinstance(body.input, str) else body.input
    cuts = body.truncate is not False
    if not texts:
        # Asks for the model to be loaded, which it is.
        return json_response(
            OllamaEmbeddings(model=body.model, embeddings=[], total_duration=0, prompt_eval_count=0)
        )

    def word(told: Told) -> Struct:
        return OllamaEmbeddings(
            model=body.model,
            embeddings=[one.tolist() for one in told.vectors],
            total_duration=int((caller.state.timer() - started_s) * 1e9),
            prompt_eval_count=told.usage.prompt_tokens,
        )

    params = PoolingParams(dimensions=body.dimensions, truncate_prompt_tokens=-1 if cuts else None)
    return await _embed(request, body.model, Wanted("embed-", "input", texts, params, word))


async def embed_one(request: web.Request) -> web.StreamResponse:
    """Embed a text; its vector has the length that the model gives it."""
    body = await read_body(request, OllamaEmbedOneBody)

    def word(told: Told) -> Struct:
        return OllamaEmbedding(told.vectors[0].tolist())

    params = PoolingParams(truncate_prompt_tokens=-1, normalize=False)
    wanted = Wanted("embed-", "prompt", [body.prompt], params, word)
    return await _embed(request, body.model, wanted)


async def _embed(request: web.Request, model: str, wanted: Wanted) -> web.StreamResponse:
    caller = caller_of(request)
    check_pooled(caller, None, classifies=False)
    _check_name(model, caller.state.engine)
    return await respond_whole(request, *await prepare_vectors(caller, PooledBody(), wanted))
