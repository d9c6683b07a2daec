"""POST /v1/chat/completions: one answer to a conversation.

Tools are shown to the model by the chat template; its thoughts and calls are read out of the text
of its answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from aiohttp import web
from msgspec.structs import replace

from ...engine.params import num_kept
from ..answer import admit, answer, check_accepting
from ..auth import cache_salt, tenant_of
from ..convert import (
    TokenPrompt,
    chat_limit,
    chat_names,
    chat_params,
    check_length,
    check_model,
    encode,
    prepare,
)
from ..decode import read_body
from ..errors import ApiError
from ..messages import template_messages, template_tools
from ..reading import read_answers
from ..reply import ChatChoices, Reply
from ..schema import ChatBody
from ..state import STATE, Engine
from ..structured import forced_tools

if TYPE_CHECKING:
    from ...engine.text.prepare import Prepared
    from ..parsed import ParsedAnswers

OWN_OPTIONS = frozenset(
    {
        *("self", "messages", "tools", "add_generation_prompt"),
        *("continue_final_message", "chat_template"),
    }
)


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """Answer a conversation."""
    state = request.app[STATE]
    body = await read_body(request, ChatBody)
    engine = state.engine
    check_accepting(state)
    check_model(body.model, engine.model_name)
    response_id = f"chatcmpl-{body.request_id or state.new_id()}"
    asked = await ask(request, body, response_id, chat_limit(body))
    options = body.stream_options
    reply = Reply(
        response_id=response_id,
        model=engine.model_name,
        created=int(state.clock()),
        n=body.n or 1,
        ranked=bool(body.use_beam_search),
        choices=ChatChoices(
            num_top=(body.top_logprobs or 0) if body.logprobs else None,
            return_ids=bool(body.return_token_ids),
            as_ids=bool(body.return_tokens_as_token_ids),
            timeline=bool(body.timeline),
            token_bytes=engine.tokenizer.token_bytes,
            parsed=asked.parsed,
        ),
        object="chat.completion",
        chunk_object="chat.completion.chunk",
        tells_prompt=body.prompt_logprobs is not None,
        include_usage=bool(options and options.include_usage),
        running_usage=bool(options and options.continuous_usage_stats),
    )
    return await answer(request, [asked.prepared], reply, stream=bool(body.stream))


class Asked(NamedTuple):
    """A conversation that the engine takes, and what takes its answers apart, where one must."""

    prepared: Prepared
    parsed: ParsedAnswers | None


async def ask(
    request: web.Request, body: ChatBody, response_id: str, limit: tuple[str, int | None]
) -> Asked:
    """Let a conversation in and prepare it.

    limit: the field of the most tokens to generate, and the number that must fit.
    """
    state = request.app[STATE]
    engine = state.engine
    tools = template_tools(body.tools, body.tool_choice)
    forced = forced_tools(body)
    params = chat_params(body)
    admit(request, params.n)
    if forced is not None:
        params = replace(params, structured_outputs=forced.form)
    reading, params = read_answers(engine, body, forced, params)
    prompt = await token_prompt(engine, body, tools, num_kept(params, engine.max_model_len))
    params = reading.with_thought(body, prompt.text, params)
    check_length(("messages", len(prompt.token_ids)), limit, engine.max_model_len)
    salt = cache_salt(request, body.cache_salt, isolate=state.isolate_keys)
    tenant = tenant_of(request, body.user, by_key=state.has_keys)
    with chat_names(body):
        prepared = await prepare(
            engine, prompt, params, body, request_id=response_id, cache_salt=salt, tenant=tenant
        )
    return Asked(prepared, reading.answers(body, prompt.text, state.new_id))


async def token_prompt(
    engine: Engine, body: ChatBody, tools: list[dict[str, Any]] | None, last: int | None
) -> TokenPrompt:
    """Render and tokenize a conversation. last: tokens to keep of all, None for as many as fit."""
    text = engine.chat_prompt(
        template_messages(body.messages),
        tools=tools,
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final_message=bool(body.continue_final_message),
        chat_template=body.chat_template,
        **_template_options(body),
    )
    # The template writes the special tokens itself.
    special = bool(body.add_special_tokens)
    return await encode(engine, text, add_special_tokens=special, last=last)


def _template_options(body: ChatBody) -> dict[str, Any]:
    options = dict(body.chat_template_kwargs or {})
    taken = sorted(OWN_OPTIONS & options.keys())
    if taken:
        raise ApiError(
            f"chat_template_kwargs has {taken[0]}, which the server sets itself.",
            param="chat_template_kwargs",
        )
    if body.reasoning_effort is not None:
        options.setdefault("reasoning_effort", body.reasoning_effort)
    return options
