"""POST /v1/chat/completions: one answer to a conversation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aiohttp import web

from ..answer import answer
from ..caller import Caller, caller_of
from ..choices import ChatChoices
from ..conversation import ask
from ..decode import read_body
from ..reply import Reply
from ..schema import ChatBody

if TYPE_CHECKING:
    from ...engine.text.prepare import Prepared


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """Answer a conversation."""
    caller = caller_of(request)
    body = await read_body(request, ChatBody)
    return await answer(request, *await prepare_chat(caller, body), stream=bool(body.stream))


async def prepare_chat(caller: Caller, body: ChatBody) -> tuple[list[Prepared], Reply]:
    """Let a request in, and prepare what is generated and who words it."""
    engine = caller.state.engine
    asked = await ask(caller, body, "chatcmpl-")
    options = body.stream_options
    reply = Reply(
        response_id=asked.response_id,
        model=engine.model_name,
        created=int(caller.state.clock()),
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
    return [asked.prepared], reply
