"""POST /v1/chat/completions: one answer to a conversation."""

from __future__ import annotations

from aiohttp import web

from ..answer import answer
from ..conversation import ask
from ..decode import read_body
from ..reply import ChatChoices, Reply
from ..schema import ChatBody
from ..state import STATE


async def chat_completions(request: web.Request) -> web.StreamResponse:
    """Answer a conversation."""
    state = request.app[STATE]
    body = await read_body(request, ChatBody)
    engine = state.engine
    asked = await ask(request, body, "chatcmpl-")
    options = body.stream_options
    reply = Reply(
        response_id=asked.response_id,
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
