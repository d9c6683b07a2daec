"""Chat messages and tools of the API, checked. Pure; engine/text/chat.py checks what they hold."""

from __future__ import annotations

from typing import Any

from .decode import show
from .errors import ApiError

ROLES = ("system", "developer", "user", "assistant", "tool", "function")

Message = dict[str, Any]


def template_messages(messages: list[Message]) -> list[Message]:
    """Messages with the roles that templates know. ApiError names the one at fault."""
    if not messages:
        raise ApiError("messages is empty: give at least one message.", param="messages")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _message(message: Message, name: str) -> Message:
    role = message.get("role")
    if role not in ROLES:
        raise ApiError(
            f"{name}.role is {show(role)}: it must be one of {', '.join(ROLES)}.", param="messages"
        )
    if message.get("content") is None and role != "assistant":
        raise ApiError(
            f"{name}.content is missing: it must be a string or a list of text parts.",
            param="messages",
        )
    calls = message.get("tool_calls") or ()
    for index, call in enumerate(calls if isinstance(calls, list) else ()):
        if not _is_function(call):
            raise ApiError(
                f"{name}.tool_calls[{index}] is {show(call)}: it must be "
                '{"type": "function", "function": {"name": ..., "arguments": ...}}.',
                param="messages",
            )
    # What templates know is "system"; newer clients say "developer" for the same.
    return {**message, "role": "system" if role == "developer" else role}


def _is_function(item: Any) -> bool:
    """Whether a tool or a call names its function."""
    function = item.get("function") if isinstance(item, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def template_tools(
    tools: list[dict[str, Any]] | None, tool_choice: Any
) -> list[dict[str, Any]] | None:
    """Tools for a template, None where the model shall not see any."""
    for index, tool in enumerate(tools or ()):
        if not _is_function(tool):
            raise ApiError(
                f"tools[{index}] is {show(tool)}: it must be "
                '{"type": "function", "function": {"name": ...}}.',
                param="tools",
            )
    _check_choice(tools, tool_choice)
    return tools if tools and tool_choice != "none" else None


def _check_choice(tools: list[dict[str, Any]] | None, choice: Any) -> None:
    """Refuse a tool_choice that is none or that asks for a tool that is not there."""
    if choice in (None, "auto", "none"):
        return
    if choice != "required" and not _is_function(choice):
        raise ApiError(
            f"tool_choice is {show(choice)}: it must be none, auto, required or "
            '{"type": "function", "function": {"name": ...}}.',
            param="tool_choice",
        )
    names = [tool["function"]["name"] for tool in tools or ()]
    if choice == "required" and not names:
        raise ApiError("tool_choice is required, and there are no tools.", param="tool_choice")
    if choice != "required" and choice["function"]["name"] not in names:
        raise ApiError(
            f"tool_choice names {show(choice['function']['name'])}: the tools are {show(names)}.",
            param="tool_choice",
        )
