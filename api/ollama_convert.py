"""From Ollama's bodies to a chat's as OpenAI words it. Pure."""

from __future__ import annotations

from typing import Any

from msgspec.structs import asdict

from .decode import check_only, show
from .errors import ApiError
from .ollama_schema import (
    OllamaBody,
    OllamaChatBody,
    OllamaGenerateBody,
    OllamaMessage,
    OllamaOptions,
)
from .schema import ChatBody
from .state import Engine

LATEST = ":latest"
"""The tag that a model's name may have."""
EFFORTS = ("low", "medium", "high")
PASSED = (
    *("temperature", "top_k", "top_p", "min_p", "stop"),
    *("presence_penalty", "frequency_penalty"),
)
"""Options that a chat has by the same name."""
NAMES = {name: f"options.{name}" for name in (*PASSED, "seed")} | {
    "repetition_penalty": "options.repeat_penalty",
    "max_tokens": "options.num_predict",
    "response_format": "format",
}
"""Ollama's names of what OpenAI calls otherwise."""
GENERATE_NAMES = {**NAMES, "messages": "prompt"}
PENALTIES = {"repeat_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}
"""And the values that penalize nothing."""


def chat_body(body: OllamaChatBody, engine: Engine) -> ChatBody:
    """Return the conversation that a body of /api/chat asks to go on with. ApiError."""
    if body.tools and engine.parsers.tools is None:
        raise ApiError(
            f"tools are given: {show(engine.model_name)} does not support tools.", param="tools"
        )
    messages = [_message(one, f"messages[{i}]") for i, one in enumerate(body.messages or ())]
    return _body(body, engine, messages, body.tools)


def generate_body(body: OllamaGenerateBody, engine: Engine) -> ChatBody:
    """Return the conversation of a prompt and a system's message. ApiError."""
    if body.raw and (body.system or body.think):
        name = "system" if body.system else "think"
        raise ApiError(
            f"{name} is {show(getattr(body, name))} and raw true: a raw prompt is not put into "
            "the template, which alone can say so.",
            param=name,
        )
    messages = [{"role": "user", "content": body.prompt or ""}]
    if body.system:
        messages.insert(0, {"role": "system", "content": body.system})
    return _body(body, engine, messages, None)


def _body(
    body: OllamaBody,
    engine: Engine,
    messages: list[dict[str, Any]],
    tools: list[dict[str, Any]] | None,
) -> ChatBody:
    return ChatBody(
        model=engine.model_name,
        messages=messages,
        tools=tools,
        stream=body.stream is not False,
        response_format=_format(body.format),
        logprobs=body.logprobs,
        top_logprobs=body.top_logprobs,
        **_thinking(body.think, engine),
        **_options(body.options or OllamaOptions(), engine.max_model_len),
    )


def _message(message: OllamaMessage, name: str) -> dict[str, Any]:
    check_only(message, f"{name}.")
    told: dict[str, Any] = {"role": message.role, "content": message.content or ""}
    if message.thinking:
        told["reasoning"] = message.thinking
    if message.tool_calls:
        told["tool_calls"] = [
            {
                "type": "function",
                **({"id": call.id} if call.id else {}),
                "function": {"name": call.function.name, "arguments": call.function.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_name:
        told["name"] = message.tool_name
    if message.tool_call_id:
        told["tool_call_id"] = message.tool_call_id
    return told


def _options(options: OllamaOptions, max_model_len: int) -> dict[str, Any]:
    check_only(options, "options.")
    if options.num_ctx is not None and not 0 <= options.num_ctx <= max_model_len:
        raise ApiError(
            f"options.num_ctx is {options.num_ctx}: this model takes 0 to {max_model_len} tokens, "
            "and always as many as it can.",
            param="options.num_ctx",
        )
    _check_last(options)
    given = {name: getattr(options, name) for name in PASSED}
    given["repetition_penalty"] = options.repeat_penalty
    if options.repeat_last_n == 0:
        given |= dict.fromkeys(("repetition_penalty", "presence_penalty", "frequency_penalty"))
    if options.seed != -1:
        given["seed"] = options.seed
    if options.num_predict is not None and options.num_predict > 0:
        given["max_tokens"] = options.num_predict
    return given


def _check_last(options: OllamaOptions) -> None:
    """Refuse a window of penalties, where anything is penalized."""
    values = asdict(options)
    penalized = [name for name, no in PENALTIES.items() if values[name] not in (None, no)]
    if penalized and options.repeat_last_n not in (None, -1, 0):
        raise ApiError(
            f"options.repeat_last_n is {options.repeat_last_n} beside {penalized[0]}: it must be "
            "-1 (penalties look at all tokens) or 0 (nothing is penalized).",
            param="options.repeat_last_n",
        )


def _format(given: Any) -> dict[str, Any] | None:
    match given:
        case None | "":
            return None
        case "json":
            return {"type": "json_object"}
        case dict():
            return {"type": "json_schema", "json_schema": {"name": "format", "schema": given}}
        case _:
            raise ApiError(
                f'format is {show(given)}: it must be "json" or a JSON Schema.', param="format"
            )


def _thinking(think: bool | str | None, engine: Engine) -> dict[str, Any]:
    """Return what tells the template to think, by the names that templates know, and the server."""
    if think is None:
        return {}
    if isinstance(think, str) and think not in EFFORTS:
        raise ApiError(
            f"think is {show(think)}: it must be true, false or one of {', '.join(EFFORTS)}.",
            param="think",
        )
    if think and engine.parsers.reasoning is None:
        raise ApiError(
            f"think is {show(think)}: {show(engine.model_name)} does not support thinking.",
            param="think",
        )
    return {
        "chat_template_kwargs": {"enable_thinking": bool(think), "thinking": bool(think)},
        "reasoning_effort": think if isinstance(think, str) else None,
        "include_reasoning": bool(think),
    }
