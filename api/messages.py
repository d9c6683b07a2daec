"""Chat messages and tools: checked, and brought into the form that chat templates read.

Pure. Templates want plain texts and argument objects, as vLLM and transformers give them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .decode import show
from .errors import ApiError

ROLES = ("system", "developer", "user", "assistant", "tool", "function")

Message = dict[str, Any]


def template_messages(messages: list[Message]) -> list[Message]:
    """Messages for a template. ApiError names the one at fault."""
    if not messages:
        raise ApiError("messages is empty: give at least one message.", param="messages")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _message(message: Message, name: str) -> Message:
    role = message.get("role")
    if role not in ROLES:
        raise ApiError(
            f"{name}.role is {show(role)}: it must be one of {', '.join(ROLES)}.", param="messages"
        )
    # What templates know is "system"; newer clients say "developer" for the same.
    result = {**message, "role": "system" if role == "developer" else role}
    calls = message.get("tool_calls")
    result["content"] = _content(message.get("content"), name, required=not calls)
    if calls is not None:
        if not isinstance(calls, list):
            raise ApiError(
                f"{name}.tool_calls is {show(calls)}: it must be a list.", param="messages"
            )
        result["tool_calls"] = [
            _tool_call(call, f"{name}.tool_calls[{index}]") for index, call in enumerate(calls)
        ]
    return result


def _content(content: Any, name: str, *, required: bool) -> str:
    """A text, or the joined texts of parts."""
    if isinstance(content, str):
        return content
    if content is None and not required:
        return ""
    if not isinstance(content, list):
        raise ApiError(
            f"{name}.content is {show(content)}: it must be a string or a list of text parts.",
            param="messages",
        )
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        text = part.get("text") if kind in {"text", "input_text"} else None
        if not isinstance(text, str):
            raise ApiError(
                f"{name}.content[{index}] is {show(part)}: only parts of type text "
                "are supported.",
                param="messages",
            )
        texts.append(text)
    return "\n".join(texts)


def _tool_call(call: Any, name: str) -> dict[str, Any]:
    """A call with its arguments as an object, the form that templates print."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ApiError(
            f"{name} is {show(call)}: it must have a function with a name.", param="messages"
        )
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = msgspec.json.decode(arguments)
        except msgspec.DecodeError:
            arguments = None
    if not isinstance(arguments, dict):
        raise ApiError(
            f"{name}.function.arguments is {show(function['arguments'])}: it must be a JSON object.",
            param="messages",
        )
    return {**call, "function": {**function, "arguments": arguments}}


def template_tools(
    tools: list[dict[str, Any]] | None, tool_choice: Any
) -> list[dict[str, Any]] | None:
    """Tools for a template, None where the model shall not see any."""
    for index, tool in enumerate(tools or ()):
        function = tool.get("function")
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ApiError(
                f"tools[{index}] is {show(tool)}: it must be "
                '{"type": "function", "function": {"name": ...}}.',
                param="tools",
            )
    if tool_choice not in (None, "auto", "none"):
        raise ApiError(
            f"tool_choice is {show(tool_choice)}: only auto and none are supported.",
            param="tool_choice",
            code="unsupported_value",
        )
    return tools if tools and tool_choice != "none" else None
