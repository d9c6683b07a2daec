"""The formats in which models call tools and think, by vLLM's names of their parsers. Pure data.

Of those whose telltales a chat template has, the first one is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .states import Exit, ReasoningFormat, State, ToolFormat


def _layout(*exits: Exit) -> State:
    return State(role="layout", exits=exits)


BRACE = Exit("{", "call", keep=True)

_MESSAGE_ENDS = (
    *(Exit(tag, "between") for tag in ("<|end|>", "<|call|>", "<|return|>")),
    *(Exit(tag, "header", keep=True) for tag in ("<|start|>", "<|channel|>")),
)
HARMONY = ToolFormat(
    states={
        "start": _layout(
            *(Exit(tag, "header", keep=True) for tag in ("<|start|>", "<|channel|>", "to="))
        ),
        "header": State(role="header", exits=(Exit("<|message|>", "content"),)),
        "thought": State(role="reasoning", exits=_MESSAGE_ENDS),
        "content": State(role="content", exits=_MESSAGE_ENDS),
        "arguments": State(role="json", exits=_MESSAGE_ENDS, then="between"),
        "between": _layout(*_MESSAGE_ENDS),
    },
    telltales=("<|channel|>", "<|message|>"),
)


def _deepseek(states: Mapping[str, State], *telltales: str) -> ToolFormat:
    head = Exit("<｜tool▁call▁begin｜>", "head")
    end = Exit("<｜tool▁call▁end｜>", "section")
    return ToolFormat(
        content=(Exit("<｜tool▁calls▁begin｜>", "section"), head),
        states={
            "section": _layout(head, Exit("<｜tool▁calls▁end｜>", "content")),
            "arguments": State(role="json", exits=(end,), then="close"),
            "close": _layout(Exit("```", "close"), end),
            **states,
        },
        telltales=("<｜tool▁calls▁begin｜>", *telltales),
    )


DEEPSEEK_V3 = _deepseek(
    {
        "head": State(role="kind", exits=(Exit("<｜tool▁sep｜>", "name"),)),
        "name": State(
            role="name", exits=(Exit("```json", "arguments"), Exit("{", "arguments", keep=True))
        ),
    },
    "```json",
)
DEEPSEEK_V31 = _deepseek({"head": State(role="name", exits=(Exit("<｜tool▁sep｜>", "arguments"),))})

KIMI_K2 = ToolFormat(
    content=(
        Exit("<|tool_calls_section_begin|>", "section"),
        Exit("<|tool_call_begin|>", "name"),
    ),
    states={
        "section": _layout(
            Exit("<|tool_call_begin|>", "name"), Exit("<|tool_calls_section_end|>", "content")
        ),
        "name": State(
            role="name",
            exits=(Exit("<|tool_call_argument_begin|>", "arguments"),),
            prefix="functions.",
            number=":",
        ),
        "arguments": State(
            role="json", exits=(Exit("<|tool_call_end|>", "section"),), then="close"
        ),
        "close": _layout(Exit("<|tool_call_end|>", "section")),
    },
    telltales=("<|tool_call_begin|>",),
)

GLM45 = ToolFormat(
    content=(Exit("<tool_call>", "name"),),
    states={
        "name": State(
            role="name",
            exits=(Exit("<arg_key>", "key"), Exit("</tool_call>", "content", ends=True)),
        ),
        "gap": _layout(Exit("<arg_key>", "key"), Exit("</tool_call>", "content", ends=True)),
        "key": State(role="key", exits=(Exit("</arg_key>", "between"),)),
        "between": _layout(Exit("<arg_value>", "value")),
        "value": State(role="value", exits=(Exit("</arg_value>", "gap"),)),
    },
    telltales=("<arg_key>", "<tool_call>"),
)


def _xml(tag: str, telltales: tuple[str, ...]) -> ToolFormat:
    end = f"</{tag}>"
    return ToolFormat(
        content=(Exit(f"<{tag}>", "open"), Exit("<function=", "name")),
        states={
            "open": _layout(Exit("<function=", "name")),
            "name": State(role="name", exits=(Exit(">", "gap"),)),
            "gap": _layout(
                Exit("<parameter=", "key"),
                Exit("</function>", "close", ends=True),
                Exit(end, "content", ends=True),
            ),
            "key": State(role="key", exits=(Exit(">", "value"),)),
            "value": State(
                role="value",
                # The second: models forget the first one at times.
                exits=(
                    Exit("</parameter>", "gap"),
                    Exit(f"</function>\n{end}", "content", ends=True),
                ),
                lines=True,
            ),
            "close": _layout(
                Exit(end, "content"), Exit("<function=", "name"), Exit(f"<{tag}>", "open")
            ),
        },
        telltales=telltales,
    )


QWEN3_CODER = _xml("tool_call", ("<function=", "<parameter="))
SEED_OSS = _xml("seed:tool_call", ("<seed:tool_call>",))

MISTRAL = ToolFormat(
    content=(Exit("[TOOL_CALLS]", "name"),),
    states={
        "name": State(
            role="name",
            exits=(
                Exit("[ARGS]", "arguments"),
                Exit("[CALL_ID]", "id"),
                Exit("{", "arguments", keep=True),
                Exit("[", "item", blank=True),
            ),
        ),
        "id": State(role="id", exits=(Exit("[ARGS]", "arguments"),)),
        "arguments": State(role="json", exits=(Exit("[TOOL_CALLS]", "name"),)),
        "item": _layout(BRACE, Exit("]", "content")),
        "call": State(role="call", then="more"),
        "more": _layout(Exit(",", "item"), Exit("]", "content")),
    },
    telltales=("[TOOL_CALLS]",),
    short_ids=True,
)

HERMES = ToolFormat(
    content=(Exit("<tool_call>", "open"),),
    states={
        "open": _layout(BRACE),
        "call": State(role="call", exits=(Exit("</tool_call>", "content"),), then="close"),
        "close": _layout(Exit("</tool_call>", "content"), Exit("<tool_call>", "open")),
    },
    telltales=("<tool_call>",),
)

_PYTHON = State(role="python", then="content")
LLAMA4_PYTHONIC = ToolFormat(
    first=(Exit("<|python_start|>", "open"), Exit("[", "bare", keep=True)),
    content=(Exit("<|python_start|>", "open"),),
    states={
        "open": _layout(Exit("[", "list", keep=True)),
        "list": State(role="python", then="close"),
        "close": _layout(Exit("<|python_end|>", "content")),
        "bare": State(role="python", bare=True),
    },
    telltales=("<|python_start|>", "[func_name1("),
)
PYTHONIC = ToolFormat(
    first=(Exit("[", "bare", keep=True),),
    states={"bare": State(role="python", bare=True)},
    telltales=("[func_name1(",),
)

LLAMA3_JSON = ToolFormat(
    first=(Exit("<|python_tag|>", "item"), Exit("{", "bare", keep=True)),
    content=(Exit("<|python_tag|>", "item"),),
    states={
        "item": _layout(BRACE),
        "call": State(role="call", then="more"),
        "bare": State(role="call", bare=True, then="more"),
        "more": _layout(Exit(";", "item")),
    },
    telltales=('"parameters": dictionary of argument name',),
)

FORCED = ToolFormat(
    first=(Exit("[", "item"),),
    states={
        "item": _layout(BRACE),
        "call": State(role="call", then="more"),
        "more": _layout(Exit(",", "item"), Exit("]", "content")),
    },
)
"""What a grammar has models write where a request demands some call."""
NAMED = ToolFormat(states={"first": State(role="named")})
"""And where it names the tool: the arguments alone."""

TOOL_FORMATS: Mapping[str, ToolFormat] = MappingProxyType(
    {
        "openai": HARMONY,
        "deepseek_v3": DEEPSEEK_V3,
        "deepseek_v31": DEEPSEEK_V31,
        "kimi_k2": KIMI_K2,
        "glm45": GLM45,
        "glm47": GLM45,
        "seed_oss": SEED_OSS,
        "qwen3_coder": QWEN3_CODER,
        "qwen3_xml": QWEN3_CODER,
        "mistral": MISTRAL,
        "llama4_pythonic": LLAMA4_PYTHONIC,
        "pythonic": PYTHONIC,
        "llama3_json": LLAMA3_JSON,
        "llama4_json": LLAMA3_JSON,
        "hermes": HERMES,
    }
)


def _think(*telltales: str, opened: bool = False, also: tuple[Exit, ...] = ()) -> ReasoningFormat:
    return ReasoningFormat(
        start="<think>", end="</think>", telltales=telltales, opened=opened, also=also
    )


REASONING_FORMATS: Mapping[str, ReasoningFormat] = MappingProxyType(
    {
        "openai_gptoss": ReasoningFormat(
            start="<|channel|>analysis<|message|>",
            end="<|end|>",
            telltales=HARMONY.telltales,
            messages=HARMONY.states,
        ),
        "mistral": ReasoningFormat(start="[THINK]", end="[/THINK]", telltales=("[THINK]",)),
        "granite": ReasoningFormat(
            start="Here is my thought process:",
            end="Here is my response:",
            telltales=("Here is my thought process:", "Here is my response:"),
        ),
        "seed_oss": ReasoningFormat(
            start="<seed:think>", end="</seed:think>", telltales=("<seed:think>",)
        ),
        "kimi_k2": _think(
            "<think>",
            "<|tool_call_begin|>",
            also=(Exit("<|tool_calls_section_begin|>", "section"),),
        ),
        "glm45": _think("</think>", "<arg_key>"),
        "glm47": _think("</think>", "<arg_key>"),
        "qwen3": _think("</think>"),
        "deepseek_v3": _think("</think>"),
        "deepseek_r1": _think("</think>", opened=True),
    }
)
