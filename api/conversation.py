"""From a conversation to what the engine is asked, and how its answers are read.

Tools are shown to the model by the chat template; its thoughts and calls are read out of the text
of its answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from ..engine.params import num_kept
from .answer import admit, check_accepting, priority_of
from .auth import cache_salt, tenant_of
from .caller import Caller
from .convert import (
    TokenPrompt,
    chat_limit,
    chat_names,
    chat_params,
    check_length,
    check_model,
    encode,
    prepare,
)
from .errors import ApiError
from .messages import template_messages, template_tools
from .parsed import ParsedAnswers
from .reading import read_answers
from .schema import ChatBody
from .state import Engine
from .structured import forced_tools

if TYPE_CHECKING:
    from ..engine.text.prepare import Prepared

ALL = 2**62
"""Tokens to keep of a prompt that may be longer than the model."""
OWN_OPTIONS = frozenset(
    {
        *("self", "messages", "tools", "add_generation_prompt"),
        *("continue_final_message", "chat_template"),
    }
)


Limit = tuple[str, int | None]
"""The field of the most tokens to generate, and their number where one is given."""


class Asked(NamedTuple):
    """A conversation that is ready to be answered."""

    response_id: str
    prepared: Prepared
    parsed: ParsedAnswers | None
    """What takes the answers apart; None where they are nothing but text."""


async def ask(caller: Caller, body: ChatBody, prefix: str, limit: Limit | None = None) -> Asked:
    """Admit a request and prepare it. ApiError or ParamsError, by the fields of a ChatBody.

    prefix: of the response's id; limit: what must fit behind the prompt, the body's if None.
    """
    state = caller.state
    engine = state.engine
    check_accepting(state)
    check_model(body.model, engine.model_name)
    tools = template_tools(body.tools, body.tool_choice)
    forced = forced_tools(body)
    params = chat_params(body)
    priority = priority_of(caller, body.priority)
    admit(caller, params.n)
    if forced is not None:
        params = replace(params, structured_outputs=forced.form)
    reading, params = read_answers(engine, body, forced, params)
    prompt = await token_prompt(engine, body, tools, num_kept(params, engine.max_model_len))
    params = reading.with_thought(body, prompt.text, params)
    limit = limit or chat_limit(body)
    check_length(("messages", len(prompt.token_ids)), limit, engine.max_model_len)
    response_id = f"{prefix}{body.request_id or state.new_id()}"
    salt = cache_salt(caller, body.cache_salt)
    tenant = tenant_of(caller, body.user)
    with chat_names(body):
        prepared = await prepare(
            engine,
            prompt,
            params,
            body,
            request_id=response_id,
            priority=priority,
            cache_salt=salt,
            tenant=tenant,
        )
    return Asked(response_id, prepared, reading.answers(body, prompt.text, state.new_id))


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
    for name in ("documents", "reasoning_effort"):
        value = getattr(body, name)
        if value is not None:
            options.setdefault(name, value)
    return options
