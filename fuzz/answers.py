"""Answers in the formats of engine/parsing: their writers, and strategies for what they say.

A writer is what a chat template does with the calls of earlier messages: reading is its inverse.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from hypothesis import strategies as st

from ..engine.parsing.events import Arguments, CallBegin, Content, Event, Reasoning
from ..engine.parsing.formats import REASONING_FORMATS, TOOL_FORMATS


class Call(NamedTuple):
    """A call of a tool."""

    name: str
    arguments: dict[str, Any]


class Answer(NamedTuple):
    """What an answer says."""

    reasoning: str
    content: str
    calls: tuple[tuple[str, str], ...]
    """Names and arguments as text."""


def collect(events: Sequence[Event]) -> Answer:
    """Put the events of an answer together."""
    calls: list[list[str]] = []
    for event in events:
        if isinstance(event, CallBegin):
            calls.append([event.name, ""])
        elif isinstance(event, Arguments):
            calls[-1][1] += event.text
    return Answer(
        "".join(event.text for event in events if isinstance(event, Reasoning)),
        "".join(event.text for event in events if isinstance(event, Content)),
        tuple((name, text) for name, text in calls),
    )


def dump(value: Any) -> str:
    """Write JSON as chat templates do."""
    return json.dumps(value, ensure_ascii=False)


def plain(value: Any) -> str:
    """Write a value between tags: a text as it is, all else as JSON."""
    return value if isinstance(value, str) else dump(value)


def hermes(calls: Sequence[Call]) -> str:
    return "\n".join(
        f'<tool_call>\n{{"name": {dump(name)}, "arguments": {dump(arguments)}}}\n</tool_call>'
        for name, arguments in calls
    )


def llama3_json(calls: Sequence[Call]) -> str:
    return "; ".join(dump({"name": name, "parameters": args}) for name, args in calls)


def python(calls: Sequence[Call]) -> str:
    written = (
        f"{name}({', '.join(f'{key}={value!r}' for key, value in arguments.items())})"
        for name, arguments in calls
    )
    return f"[{', '.join(written)}]"


def mistral(calls: Sequence[Call]) -> str:
    return "".join(f"[TOOL_CALLS]{name}[ARGS]{dump(args)}" for name, args in calls)


def mistral_list(calls: Sequence[Call]) -> str:
    return "[TOOL_CALLS]" + dump([{"name": name, "arguments": args} for name, args in calls])


def qwen3_coder(calls: Sequence[Call], tag: str = "tool_call") -> str:
    return "\n".join(
        f"<{tag}>\n<function={name}>\n"
        + "".join(
            f"<parameter={key}>\n{plain(value)}\n</parameter>\n" for key, value in args.items()
        )
        + f"</function>\n</{tag}>"
        for name, args in calls
    )


def seed_oss(calls: Sequence[Call]) -> str:
    return qwen3_coder(calls, "seed:tool_call")


def deepseek_v3(calls: Sequence[Call]) -> str:
    return deepseek(
        [f"function<｜tool▁sep｜>{name}\n```json\n{dump(args)}\n```" for name, args in calls]
    )


def deepseek_v31(calls: Sequence[Call]) -> str:
    return deepseek([f"{name}<｜tool▁sep｜>{dump(args)}" for name, args in calls])


def deepseek(calls: Sequence[str]) -> str:
    written = "\n".join(f"<｜tool▁call▁begin｜>{one}<｜tool▁call▁end｜>" for one in calls)
    return f"<｜tool▁calls▁begin｜>{written}<｜tool▁calls▁end｜>"


def glm45(calls: Sequence[Call], line: str = "\n") -> str:
    return line.join(
        f"<tool_call>{name}{line}"
        + "".join(
            f"<arg_key>{key}</arg_key>{line}<arg_value>{plain(value)}</arg_value>{line}"
            for key, value in args.items()
        )
        + "</tool_call>"
        for name, args in calls
    )


def glm47(calls: Sequence[Call]) -> str:
    return glm45(calls, "")


def kimi_k2(calls: Sequence[Call]) -> str:
    written = "".join(
        f"<|tool_call_begin|>functions.{name}:{index}<|tool_call_argument_begin|>{dump(args)}"
        "<|tool_call_end|>"
        for index, (name, args) in enumerate(calls)
    )
    return f"<|tool_calls_section_begin|>{written}<|tool_calls_section_end|>"


def openai(calls: Sequence[Call]) -> str:
    return "<|call|>".join(
        f"<|start|>assistant<|channel|>commentary to=functions.{name} "
        f"<|constrain|>json<|message|>{dump(args)}"
        for name, args in calls
    )


class Format(NamedTuple):
    """How a format is written, and what it cannot say."""

    write: Callable[[Sequence[Call]], str]
    typed: bool = False
    """Values are text whose kind the tool's schema says."""
    closing: tuple[str, ...] = ()
    """Texts that no value may have."""
    after_content: bool = True
    """Calls may follow content."""
    parser: str | None = None
    """Whose name is not the parser's."""


FORMATS: dict[str, Format] = {
    "hermes": Format(hermes),
    "llama3_json": Format(llama3_json, after_content=False),
    "llama4_pythonic": Format(lambda calls: f"<|python_start|>{python(calls)}<|python_end|>"),
    "pythonic": Format(python, after_content=False),
    "mistral": Format(mistral),
    "mistral_list": Format(mistral_list, parser="mistral"),
    "qwen3_coder": Format(qwen3_coder, typed=True, closing=("</parameter>", "</function>")),
    "seed_oss": Format(seed_oss, typed=True, closing=("</parameter>", "</function>")),
    "deepseek_v3": Format(deepseek_v3),
    "deepseek_v31": Format(deepseek_v31),
    "glm45": Format(glm45, typed=True, closing=("</arg_value>",)),
    "glm47": Format(glm47, typed=True, closing=("</arg_value>",)),
    "kimi_k2": Format(kimi_k2),
    "openai": Format(openai),
}
"""All parsers' formats, in all of their forms."""

TAGS = sorted(
    {
        one.tag
        for form in TOOL_FORMATS.values()
        for state in form.states.values()
        for one in (*form.first, *form.content, *state.exits)
    }
    | {tag for form in REASONING_FORMATS.values() for tag in (form.start, form.end)}
)
FRAGMENTS = (
    *TAGS,
    *('{"name": "f"', '{"name": "f", "arguments": ', '{"a": "', '"}', "}", "]", '"', "\\", ", "),
    *(" ", "\n", "\n\n", "[f(", "a=", "'", ")", "[f(a=1)]", "to=functions.f", "functions.f:0", "f"),
    *("commentary", "analysis", "final", "```json\n{}", "[1]", "null", "é😀", "<", "<|", "</"),
)


LETTERS = st.characters(exclude_categories=["Cs"])


def texts(closing: Sequence[str] = ()) -> st.SearchStrategy[str]:
    """Texts in which there are tags, quotes, escapes and letters of all kinds."""
    piece = st.one_of(
        st.sampled_from(TAGS), st.text(LETTERS, max_size=4), st.sampled_from("'\"\\\n{}[]<é😀")
    )
    joined = st.lists(piece, max_size=4).map("".join)
    return joined.filter(lambda text: not any(end in text for end in closing))


def values(closing: Sequence[str] = ()) -> st.SearchStrategy[Any]:
    """JSON values, nested."""
    plain_values = st.one_of(
        texts(closing),
        st.none(),
        st.booleans(),
        st.integers(-(10**12), 10**12),
        st.floats(allow_nan=False, allow_infinity=False),
    )
    return st.recursive(
        plain_values,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(texts(closing), inner, max_size=3),
        ),
        max_leaves=6,
    )


IDENTIFIERS = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)


def calls(form: Format) -> st.SearchStrategy[list[Call]]:
    """Some calls that a format can say."""
    one = st.builds(
        Call, IDENTIFIERS, st.dictionaries(IDENTIFIERS, values(form.closing), max_size=4)
    )
    return st.lists(one, min_size=1, max_size=3)


def schemas(given: Sequence[Call]) -> dict[str, Any]:
    """JSON Schemas of the tools that some calls are of; kinds as their values have."""
    kinds: tuple[tuple[type | None, str], ...] = (
        (bool, "boolean"),
        (int, "integer"),
        (float, "number"),
        (str, "string"),
        (list, "array"),
        (dict, "object"),
        (type(None), "null"),
    )
    tools: dict[str, Any] = {}
    for name, arguments in given:
        properties = tools.setdefault(name, {"type": "object", "properties": {}})["properties"]
        for key, value in arguments.items():
            kind = next(word for one, word in kinds if isinstance(value, one or type(None)))
            properties.setdefault(key, {"type": kind})
    return tools


def consistent(given: Sequence[Call]) -> bool:
    """Tell whether each argument of a tool has one kind in all calls."""
    tools = schemas(given)
    return all(
        schemas([call])[call.name]["properties"][key] == tools[call.name]["properties"][key]
        for call in given
        for key in call.arguments
    )


def garbage() -> st.SearchStrategy[list[str]]:
    """Pieces of text: tags, parts of tags and numbered words, which no piece has inside."""
    pieces = st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.just("word")), max_size=24)
    return pieces.map(
        lambda found: [f"w{index}w" if one == "word" else one for index, one in enumerate(found)]
    )


def cuts(text: str) -> st.SearchStrategy[list[str]]:
    """Ways to cut a text into pieces."""
    places = st.lists(st.integers(0, len(text)), max_size=12).map(sorted)
    return places.map(
        lambda found: [
            text[start:end] for start, end in zip([0, *found], [*found, len(text)], strict=True)
        ]
    )


def parser_name(name: str) -> str:
    """The parser of a format of FORMATS."""
    return FORMATS[name].parser or name


def thought(name: str, text: str, *, opened: bool) -> str:
    """Write a thought as a reasoning format does, with what divides it from the answer."""
    form = REASONING_FORMATS[name]
    start = "" if opened else form.start
    return f"{start}\n{text}\n{form.end}\n\n"


def all_schemas() -> Mapping[str, Any]:
    """A tool named f, for garbage."""
    return {"f": {"type": "object", "properties": {"a": {"type": "string"}}}}
