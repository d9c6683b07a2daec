"""From the body of /v1/messages to that of a chat, by way of the items of /v1/responses. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from .decode import show
from .errors import ApiError
from .messages_schema import CountBody, MessagesBody, Thinking
from .responses_input import to_messages
from .responses_schema import Item
from .schema import ChatBody

NAMES = {
    "input": "messages",
    "max_completion_tokens": "max_tokens",
    "response_format": "output_config.format",
    "stop": "stop_sequences",
    "thinking_token_budget": "thinking.budget_tokens",
}
"""What clients call some fields of a ChatBody."""


def messages_chat(body: MessagesBody, *, thinks: bool) -> ChatBody:
    """Ask for an answer as a chat does. thinks: whether the model has thoughts to bound."""
    chat = prompt_chat(body)
    chat.max_completion_tokens = body.max_tokens
    chat.stop = body.stop_sequences
    chat.stream, chat.seed = body.stream, body.seed
    chat.temperature, chat.top_p, chat.top_k = body.temperature, body.top_p, body.top_k
    chat.user = body.metadata.user_id if body.metadata is not None else None
    if thinks and body.thinking is not None:
        chat.thinking_token_budget = body.thinking.budget_tokens
    return chat


def prompt_chat(body: CountBody) -> ChatBody:
    """Return the chat that has the prompt of a body. ApiError names what is not supported."""
    items = read_messages(body.messages)
    last = items[-1]
    if last["type"] in ("function_call", "reasoning"):
        raise ApiError(
            f"messages ends with {show(body.messages[-1])}: the last block must be a text, or the "
            "result of a tool.",
            param="messages",
        )
    continues = last["type"] == "message" and last["role"] == "assistant"
    choice = body.tool_choice or {}
    config = body.output_config
    return ChatBody(
        model=body.model,
        messages=to_messages(_system(body.system), items),
        tools=_tools(body.tools) or None,
        tool_choice=_choice(choice),
        parallel_tool_calls=choice.get("disable_parallel_tool_use") is not True,
        response_format=_format(config.format) if config is not None else None,
        reasoning_effort=config.effort if config is not None else None,
        chat_template_kwargs=_thinking(body.thinking),
        continue_final_message=continues,
        add_generation_prompt=not continues,
    )


def read_messages(messages: list[dict[str, Any]]) -> list[Item]:
    """Return the blocks of messages as items; texts that follow each other are one."""
    if not messages:
        raise ApiError("messages is empty: give at least one message.", param="messages")
    items: list[Item] = []
    for index, message in enumerate(messages):
        where, role = f"messages[{index}]", message.get("role")
        if role not in ("user", "assistant"):
            raise _wrong(f"{where}.role", role, "user or assistant")
        content = message.get("content")
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        if not isinstance(content, list) or not content:
            raise _wrong(f"{where}.content", content, "a string or a list of blocks")
        texts: list[str] = []
        for place, block in enumerate(content):
            match block:
                case {"type": "text", "text": str(text)}:
                    texts.append(text)
                case _:
                    items += _text(role, texts)
                    texts = []
                    items.append(_item(role, block, f"{where}.content[{place}]"))
        items += _text(role, texts)
    return items


def _text(role: str, texts: list[str]) -> Iterator[Item]:
    if texts:
        yield {"type": "message", "role": role, "content": "\n".join(texts)}


def _item(role: str, block: Any, where: str) -> Item:
    match block:
        case {"type": "tool_result", "tool_use_id": str(call_id)} if role == "user":
            output = _texts(block.get("content") or "", f"{where}.content")
            return {"type": "function_call_output", "call_id": call_id, "output": output}
        case {"type": "tool_use", "id": str(call_id), "name": str(name), "input": dict(given)} if (
            role == "assistant"
        ):
            arguments = msgspec.json.encode(given).decode()
            return {
                "type": "function_call",
                "call_id": call_id,
                "name": name,
                "arguments": arguments,
            }
        case {"type": "thinking", "thinking": str(text)} if role == "assistant":
            return {"type": "reasoning", "content": [{"type": "reasoning_text", "text": text}]}
        case _:
            allowed = "tool_use or thinking" if role == "assistant" else "tool_result"
            raise _wrong(where, block, f"a block of text, {allowed}, with all of its fields")


def _texts(content: Any, where: str) -> str:
    if isinstance(content, str):
        return content
    texts = []
    for block in content if isinstance(content, list) else [content]:
        match block:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case _:
                raise _wrong(where, block, 'a string, or blocks like {"type": "text", "text": ...}')
    return "\n".join(texts)


def _system(system: str | list[dict[str, Any]] | None) -> str | None:
    return None if system is None else _texts(system, "system")


def _tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    found = []
    for index, tool in enumerate(tools or ()):
        match tool:
            case {"name": str(name), "input_schema": dict(schema)} if tool.get("type") in (
                None,
                "custom",
            ):
                function = {"name": name, "parameters": schema}
                if tool.get("description") is not None:
                    function["description"] = tool["description"]
                found.append({"type": "function", "function": function})
            case _:
                raise ApiError(
                    f"tools[{index}] is {show(tool)}: it must have a name and an input_schema; "
                    "tools that a server runs are not supported.",
                    param="tools",
                )
    return found


def _choice(choice: dict[str, Any]) -> Any:
    match choice:
        case {"type": "auto" | "none" as kind}:
            return kind
        case {"type": "any"}:
            return "required"
        case {"type": "tool", "name": str(name)}:
            return {"type": "function", "function": {"name": name}}
        case {} if not choice:
            return None
        case _:
            raise ApiError(
                f"tool_choice is {show(choice)}: its type must be auto, any, none, or tool with a "
                "name.",
                param="tool_choice",
            )


def _format(given: dict[str, Any] | None) -> dict[str, Any] | None:
    match given:
        case None:
            return None
        case {"type": "json_schema", "schema": dict(schema)}:
            return {"type": "json_schema", "json_schema": {"schema": schema}}
        case _:
            raise ApiError(
                f"output_config.format is {show(given)}: it must be "
                '{"type": "json_schema", "schema": {...}}.',
                param="output_config.format",
            )


def _thinking(thinking: Thinking | None) -> dict[str, Any] | None:
    """Return what templates know of it."""
    if thinking is None:
        return None
    if thinking.type not in ("enabled", "adaptive", "disabled"):
        raise ApiError(
            f"thinking.type is {show(thinking.type)}: it must be enabled, adaptive or disabled.",
            param="thinking.type",
        )
    return {"enable_thinking": thinking.type != "disabled"}


def _wrong(where: str, given: Any, allowed: str) -> ApiError:
    return ApiError(
        f"{where} is {show(given)}: it must be {allowed}.", param=where.partition("[")[0]
    )
