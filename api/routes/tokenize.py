"""POST /tokenize and /detokenize, GET /tokenizer_info: the model's tokenizer, in vLLM's forms."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from aiohttp import web
from msgspec import UNSET, Struct, UnsetType

from ..conversation import ALL, token_prompt
from ..convert import LONG_TEXT_CHARS, TokenPrompt, check_model, encode
from ..decode import read_body
from ..errors import ApiError
from ..messages import template_tools
from ..route import json_response
from ..schema import ChatBody
from ..state import STATE, Engine


class TokenizeBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """POST /tokenize: a text, or messages as a chat has them."""

    model: str | None = None
    prompt: str | None = None
    add_special_tokens: bool | None = None
    """null: true for a text, false for messages, whose template writes them."""
    return_token_strs: bool | None = None
    messages: list[dict[str, Any]] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None


class Tokens(Struct, frozen=True, kw_only=True):
    """Tokens of a prompt."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class DetokenizeBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int]


class Detokenized(Struct, frozen=True):
    """The text of tokens."""

    prompt: str


class AddedToken(Struct, frozen=True):
    """A token beside the vocabulary."""

    content: str
    special: bool


class TokenizerInfo(Struct, frozen=True, kw_only=True):
    """GET /tokenizer_info, the names of tokenizer_config.json."""

    tokenizer_class: str
    vocab_size: int
    model_max_length: int
    added_tokens_decoder: dict[int, AddedToken]
    chat_template: str | None
    bos_token: str | UnsetType = UNSET
    eos_token: str | UnsetType = UNSET
    unk_token: str | UnsetType = UNSET
    sep_token: str | UnsetType = UNSET
    pad_token: str | UnsetType = UNSET
    cls_token: str | UnsetType = UNSET
    mask_token: str | UnsetType = UNSET


async def tokenize(request: web.Request) -> web.Response:
    """Tell the tokens of a text or of a conversation."""
    engine = request.app[STATE].engine
    body = await read_body(request, TokenizeBody)
    check_model(body.model, engine.model_name)
    ids = (await _encode(engine, body)).token_ids
    texts = None
    if body.return_token_strs:
        texts = list(map(engine.tokenizer.token_text, ids))
    return json_response(
        Tokens(count=len(ids), max_model_len=engine.max_model_len, tokens=ids, token_strs=texts)
    )


async def _encode(engine: Engine, body: TokenizeBody) -> TokenPrompt:
    if (body.prompt is None) == (body.messages is None):
        given = "both are" if body.prompt is not None else "neither is"
        raise ApiError(f"prompt or messages must be given: {given}.", param="prompt")
    if body.messages is None:
        _refuse_chat_fields(body)
        special = body.add_special_tokens is not False
        return await encode(engine, body.prompt or "", add_special_tokens=special, last=ALL)
    chat = ChatBody(
        messages=body.messages,
        tools=body.tools,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        chat_template=body.chat_template,
        chat_template_kwargs=body.chat_template_kwargs,
        add_special_tokens=body.add_special_tokens,
    )
    return await token_prompt(engine, chat, template_tools(body.tools, None), ALL)


def _refuse_chat_fields(body: TokenizeBody) -> None:
    """What is about messages says nothing of a text."""
    for name in (
        *("add_generation_prompt", "continue_final_message"),
        *("chat_template", "chat_template_kwargs", "tools"),
    ):
        if getattr(body, name) is not None:
            raise ApiError(f"{name} needs messages, and prompt was given.", param=name)


async def detokenize(request: web.Request) -> web.Response:
    """Tell the text of tokens, special ones too."""
    engine = request.app[STATE].engine
    body = await read_body(request, DetokenizeBody)
    check_model(body.model, engine.model_name)
    wrong = next((one for one in body.tokens if not 0 <= one < 2**31), None)
    if wrong is not None:
        raise ApiError(f"tokens has {wrong}: ids are from 0 to {2**31 - 1}.", param="tokens")
    work = partial(engine.tokenizer.decode, body.tokens, skip_special_tokens=False)
    text = work() if len(body.tokens) < LONG_TEXT_CHARS else await asyncio.to_thread(work)
    return json_response(Detokenized(text))


async def tokenizer_info(request: web.Request) -> web.Response:
    """Tell what kind of tokenizer the model has."""
    engine = request.app[STATE].engine
    tokenizer = engine.tokenizer
    names = TokenizerInfo.__struct_fields__
    named = {name: text for name, text in tokenizer.special_tokens.items() if name in names}
    added = {
        token_id: AddedToken(text, token_id in tokenizer.special_ids)
        for token_id, text in tokenizer.added_tokens.items()
    }
    return json_response(
        TokenizerInfo(
            tokenizer_class=type(tokenizer).__name__,
            vocab_size=tokenizer.vocab_size,
            model_max_length=engine.max_model_len,
            added_tokens_decoder=added,
            chat_template=tokenizer.chat_template,
            **named,
        )
    )
