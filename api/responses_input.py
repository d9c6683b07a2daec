"""From the body of /v1/responses to that of a chat: items as messages, tools, formats. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .decode import check_only, show
from .errors import ApiError
from .responses_schema import COPIED, Item, ResponsesBody
from .schema import ChatBody

ITEMS = "message, function_call, function_call_output or reasoning"
ROLES = ("user", "assistant", "system", "developer")
TEXTS = ("input_text", "output_text", "text")
IDS = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
INCLUDED = "reasoning.encrypted_content"
"""Asks for thoughts that the client can give back: all are told in the open."""
NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
}
"""What clients call some fields of a ChatBody."""

Message = dict[str, Any]


def chat_body(body: ResponsesBody, items: Sequence[Item]) -> ChatBody:
    """Ask for an answer to items as a chat does. ApiError names what is not supported."""
    for one in body.include or ():
        if one != INCLUDED:
            raise ApiError(
                f"include has {show(one)}: only {INCLUDED} is supported.", param="include"
            )
    given = {name: getattr(body, name) for name in COPIED}
    choice, tools = _choice(body.tool_choice, [*_tools(body.tools)])
    return ChatBody(
        messages=to_messages(body.instructions, items),
        max_completion_tokens=body.max_output_tokens,
        tools=tools or None,
        tool_choice=choice,
        response_format=_format(body),
        reasoning_effort=body.reasoning.effort if body.reasoning is not None else None,
        **given,
    )


def read_items(given: str | list[dict[str, Any]], new_id: Callable[[], str]) -> list[Item]:
    """Check the input. Items without ids get some. ApiError names the one at fault."""
    if isinstance(given, str):
        given = [{"role": "user", "content": [{"type": "input_text", "text": given}]}]
    if not given:
        raise ApiError("input is empty: give a text or at least one item.", param="input")
    items = []
    for index, item in enumerate(given):
        kind = item.get("type") or ("message" if "role" in item else None)
        where = f"input[{index}]"
        match kind:
            case "message":
                _check_message(item, where)
            case "function_call":
                _check_texts(item, where, "call_id", "name", "arguments")
            case "function_call_output":
                _check_texts(item, where, "call_id")
                text_of(item.get("output"), f"{where}.output")
            case "reasoning":
                _thought(item, where)
            case _:
                raise _wrong(f"{where}.type", kind, ITEMS)
        name = item.get("id")
        if name is not None and not isinstance(name, str):
            raise _wrong(f"{where}.id", name, "a string")
        items.append({**item, "type": kind, "id": name or f"{IDS[kind]}_{new_id()}"})
    return items


def to_messages(instructions: str | None, items: Sequence[Item]) -> list[Message]:
    """Put items together as the messages of a chat. ApiError for an output without its call.

    A thought, the text and the calls that follow each other are one message of the assistant.
    """
    messages: list[Message] = []
    if instructions is not None:
        messages.append({"role": "system", "content": instructions})
    names: dict[str, str] = {}
    for item in items:
        match item["type"]:
            case "message" if item["role"] == "assistant":
                _said(messages, "content")["content"] = text_of(item["content"], "input")
            case "message":
                content = text_of(item["content"], "input")
                messages.append({"role": item["role"], "content": content})
            case "reasoning":
                _said(messages, "content", "reasoning")["reasoning"] = _thought(item, "input")
            case "function_call":
                names[item["call_id"]] = item["name"]
                function = {"name": item["name"], "arguments": item["arguments"]}
                call = {"id": item["call_id"], "type": "function", "function": function}
                _said(messages).setdefault("tool_calls", []).append(call)
            case _:
                messages.append(_result(item, names))
    return messages


def _said(messages: list[Message], *lacks: str) -> Message:
    """Return the assistant's last message, or a new one where that has what it shall lack.

    What lacks content lacks calls too: in a message, calls come last.
    """
    last = messages[-1] if messages else {}
    wanted = ("tool_calls", *lacks) if lacks else ()
    if last.get("role") != "assistant" or any(last.get(name) is not None for name in wanted):
        last = {"role": "assistant", "content": None}
        messages.append(last)
    return last


def _result(item: Item, names: Mapping[str, str]) -> Message:
    call_id = item["call_id"]
    if call_id not in names:
        raise ApiError(
            f"input has an output of call_id {show(call_id)}: no function_call before it has "
            "this call_id.",
            param="input",
        )
    content = text_of(item["output"], "input")
    return {"role": "tool", "tool_call_id": call_id, "name": names[call_id], "content": content}


def _check_message(item: Item, where: str) -> None:
    if item.get("role") not in ROLES:
        raise _wrong(f"{where}.role", item.get("role"), f"one of {', '.join(ROLES)}")
    text_of(item.get("content"), f"{where}.content")


def _check_texts(item: Item, where: str, *names: str) -> None:
    for name in names:
        if not isinstance(item.get(name), str):
            raise _wrong(f"{where}.{name}", item.get(name), "a string")


def text_of(content: Any, where: str, kinds: Sequence[str] = TEXTS) -> str:
    """Return the text of a content. ApiError for what is no text."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _wrong(where, content, "a string or a list of parts")
    texts = []
    for index, part in enumerate(content):
        match part:
            case {"type": "refusal", "refusal": str(text)}:
                texts.append(text)
            case {"type": kind, "text": str(text)} if kind in kinds:
                texts.append(text)
            case _:
                raise _wrong(
                    f"{where}[{index}]", part, f'{{"type": "{kinds[0]}", "text": ...}}: no images'
                )
    return "\n".join(texts)


def _thought(item: Item, where: str) -> str:
    if item.get("encrypted_content") is not None:
        raise ApiError(
            f"{where}.encrypted_content is given: this server cannot read it.", param="input"
        )
    told = text_of(item.get("content") or [], f"{where}.content", ("reasoning_text",))
    return told or text_of(item.get("summary") or [], f"{where}.summary", ("summary_text",))


def _tools(tools: list[dict[str, Any]] | None) -> list[dict[str, Any]]:
    """Tools as a chat has them. ApiError for those that a server would have to run."""
    found = []
    for index, tool in enumerate(tools or ()):
        if tool.get("type") != "function":
            raise ApiError(
                f"tools[{index}].type is {show(tool.get('type'))}: only function is supported, "
                "tools that the client runs.",
                param="tools",
                code="unsupported_value",
            )
        if not isinstance(tool.get("name"), str):
            raise ApiError(
                f"tools[{index}].name is {show(tool.get('name'))}: it must be a string.",
                param="tools",
            )
        function = {name: value for name, value in tool.items() if name != "type"}
        found.append({"type": "function", "function": function})
    return found


def _choice(choice: Any, tools: list[dict[str, Any]]) -> tuple[Any, list[dict[str, Any]]]:
    """Return a chat's tool_choice, and the tools that it leaves."""
    match choice:
        case None | "none" | "auto" | "required":
            return choice, tools
        case {"type": "function", "name": str(name)}:
            return {"type": "function", "function": {"name": name}}, tools
        case {"type": "allowed_tools", "mode": "auto" | "required" as mode, "tools": [*allowed]}:
            names = [one.get("name") for one in allowed if isinstance(one, dict)]
            return mode, [one for one in tools if one["function"]["name"] in names]
        case _:
            raise ApiError(
                f"tool_choice is {show(choice)}: it must be none, auto, required, "
                '{"type": "function", "name": ...} or '
                '{"type": "allowed_tools", "mode": "auto", "tools": [...]}.',
                param="tool_choice",
            )


def _format(body: ResponsesBody) -> dict[str, Any] | None:
    if body.text is None:
        return None
    check_only(body.text, "text.")
    given = body.text.format
    match given:
        case None | {"type": "text" | "json_object"}:
            return given
        case {"type": "json_schema", "schema": dict() | bool()}:
            return {"type": "json_schema", "json_schema": given}
        case _:
            raise ApiError(
                f"text.format is {show(given)}: its type must be text, json_object, or "
                "json_schema with name and schema.",
                param="text.format",
            )


def _wrong(where: str, given: Any, allowed: str) -> ApiError:
    return ApiError(f"{where} is {show(given)}: it must be {allowed}.", param="input")
