"""/v1/messages: Anthropic's Messages API."""

from __future__ import annotations

from aiohttp import web

from ..answer import answer
from ..caller import caller_of
from ..conversation import ALL, ask, token_prompt
from ..convert import check_model, renamed
from ..decode import read_body
from ..messages import template_tools
from ..messages_input import NAMES, messages_chat, prompt_chat
from ..messages_reply import MessagesReply
from ..messages_schema import CountBody, MessagesBody, TokenCount
from ..response_items import AnswerItems, OutputItems
from ..route import json_response
from ..state import STATE


async def create_message(request: web.Request) -> web.StreamResponse:
    """Answer a conversation."""
    caller = caller_of(request)
    state = caller.state
    body = await read_body(request, MessagesBody)
    with renamed(NAMES):
        thinks = state.engine.parsers.reasoning is not None
        asked = await ask(caller, messages_chat(body, thinks=thinks), "msg_")
    answered = AnswerItems(asked.parsed, OutputItems(state.new_id))
    reply = MessagesReply(asked.response_id, state.engine.model_name, answered)
    return await answer(request, [asked.prepared], reply, stream=bool(body.stream))


async def count_tokens(request: web.Request) -> web.Response:
    """Count the tokens of a prompt, which may be longer than the model."""
    engine = request.app[STATE].engine
    body = await read_body(request, CountBody)
    check_model(body.model, engine.model_name)
    with renamed(NAMES):
        chat = prompt_chat(body)
        tools = template_tools(chat.tools, chat.tool_choice)
        prompt = await token_prompt(engine, chat, tools, ALL)
    return json_response(TokenCount(len(prompt.token_ids)))
