"""POST /v1/completions: one choice for each prompt, all generated at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from ...engine.params import BeamSearchParams, SamplingParams, num_kept
from ..answer import admit, answer, check_accepting, priority_of
from ..auth import cache_salt, tenant_of
from ..caller import Caller, caller_of
from ..choices import CompletionChoices
from ..convert import (
    TokenPrompt,
    check_length,
    check_model,
    completion_params,
    encode,
    is_prompt_alone,
    prepare,
    split_prompts,
)
from ..decode import read_body
from ..reply import Reply
from ..schema import CompletionBody
from ..state import ServerState

if TYPE_CHECKING:
    from ...engine.text.prepare import Prepared


async def completions(request: web.Request) -> web.StreamResponse:
    """Continue texts or tokens."""
    caller = caller_of(request)
    body = await read_body(request, CompletionBody)
    return await answer(request, *await prepare_texts(caller, body), stream=bool(body.stream))


async def prepare_texts(caller: Caller, body: CompletionBody) -> tuple[list[Prepared], Reply]:
    """Let a request in, and prepare what is generated and who words it."""
    state, engine = caller.state, caller.state.engine
    check_accepting(state)
    check_model(body.model, engine.model_name)
    params = completion_params(body)
    given = split_prompts(body.prompt, params.n, state.limits.max_answers)
    priority = priority_of(caller, body.priority)
    admit(caller, len(given) * params.n)
    prompts = await _token_prompts(state, body, given, params)
    response_id = f"cmpl-{body.request_id or state.new_id()}"
    salt = cache_salt(caller, body.cache_salt)
    tenant = tenant_of(caller, body.user)
    prepared = [
        await prepare(
            engine,
            prompt,
            params,
            body,
            request_id=f"{response_id}-{index}",
            priority=priority,
            cache_salt=salt,
            tenant=tenant,
        )
        for index, prompt in enumerate(prompts)
    ]
    options = body.stream_options
    tells_echo = body.echo and body.logprobs is not None
    reply = Reply(
        response_id=response_id,
        model=engine.model_name,
        created=int(state.clock()),
        n=body.n or 1,
        ranked=bool(body.use_beam_search),
        choices=CompletionChoices(
            n=body.n or 1,
            num_top=body.logprobs,
            echoes=_echoes(state, body, prompts) if body.echo else (),
            token_text=engine.tokenizer.token_text if tells_echo else None,
            tells_prompt=body.prompt_logprobs is not None,
            return_ids=bool(body.return_token_ids),
            as_ids=bool(body.return_tokens_as_token_ids),
            timeline=bool(body.timeline),
        ),
        object="text_completion",
        chunk_object="text_completion",
        prompt_alone=is_prompt_alone(body),
        include_usage=bool(options and options.include_usage),
        running_usage=bool(options and options.continuous_usage_stats),
    )
    return prepared, reply


async def _token_prompts(
    state: ServerState,
    body: CompletionBody,
    given: list[str | list[int]],
    params: SamplingParams | BeamSearchParams,
) -> list[TokenPrompt]:
    engine = state.engine
    last = num_kept(params, engine.max_model_len)
    special = body.add_special_tokens is not False
    prompts = []
    for prompt in given:
        if isinstance(prompt, str):
            tokens = await encode(engine, prompt, add_special_tokens=special, last=last)
        else:
            tokens = TokenPrompt(None, prompt if last is None else prompt[-last:])
        limit = ("max_tokens", body.max_tokens)
        check_length(("prompt", len(tokens.token_ids)), limit, engine.max_model_len)
        prompts.append(tokens)
    return prompts


def _echoes(state: ServerState, body: CompletionBody, prompts: list[TokenPrompt]) -> list[str]:
    skip = body.skip_special_tokens is not False
    decode = state.engine.tokenizer.decode
    return [
        decode(prompt.token_ids, skip_special_tokens=skip) if prompt.text is None else prompt.text
        for prompt in prompts
    ]
