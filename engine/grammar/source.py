"""From StructuredOutputsParams to the text of a grammar that llguidance compiles. Pure.

What cannot be said is a ParamsError; whether it compiles is found out by compiling it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from ..errors import ParamsError
from ..structured import FIELD, StructuredOutputsParams
from .tags import tags_source

MAX_SOURCE_BYTES = 2**20
MAX_SCHEMA_NODES = 200_000
WHITESPACE = r"[ ]|\r?\n[ \t]{0,64}"
"""Between JSON's tokens: a space, or a new line with its indentation. Without a bound a model may
write space until its tokens are used up."""
PLAIN = {"\n": "n", "\r": "r", "/": "/"}
"""What a regular expression in Lark has behind a backslash."""


def grammar_source(asked: StructuredOutputsParams, special_tokens: Collection[str] = ()) -> str:
    """Return the grammar of an output. special_tokens: texts that are tokens of their own.

    ParamsError if what was asked is broken or too large.
    """
    if asked.regex is not None:
        source = _top({"lark_grammar": f"start: {regex_literal(asked.regex)}"})
    elif asked.choice is not None:
        source = "start: " + " | ".join(map(_quote, asked.choice))
    elif asked.grammar is not None:
        source = _lark(asked.grammar)
    elif asked.structural_tag is not None:
        tag = _object("structural_tag", asked.structural_tag)
        source = tags_source(tag, special_tokens)
    else:
        source = _top({"json_schema": _schema(asked)})
    if len(source.encode("utf-8", "surrogatepass")) > MAX_SOURCE_BYTES:
        raise ParamsError(
            f"structured_outputs is too large: its grammar takes {len(source)} characters, at most "
            f"{MAX_SOURCE_BYTES} bytes are allowed.",
            FIELD,
        )
    try:
        source.encode()
    except UnicodeEncodeError:
        raise ParamsError("structured_outputs has half of a surrogate pair.", FIELD) from None
    return source


def regex_literal(pattern: str) -> str:
    """Write a regular expression as Lark does, on one line."""
    written: list[str] = []
    escaped = False
    for char in pattern:
        if char in PLAIN:
            written.append(PLAIN[char] if escaped else "\\" + PLAIN[char])
        else:
            written.append(char)
        escaped = char == "\\" and not escaped
    return "/" + "".join(written) + "/"


def _quote(text: str) -> str:
    return msgspec.json.encode(text).decode()


def _top(grammar: dict[str, Any]) -> str:
    return msgspec.json.encode({"grammars": [grammar]}).decode()


def _lark(text: str) -> str:
    from llguidance.gbnf_to_lark import any_to_lark

    try:
        return str(any_to_lark(text))
    except Exception as error:  # the converter raises what it likes
        raise ParamsError(f"structured_outputs.grammar: {error!s:.300}", FIELD) from None


def _schema(asked: StructuredOutputsParams) -> Any:
    if asked.json_object:
        schema: Any = {"type": "object"}
    else:
        schema = _object("json", asked.json)
    if asked.disable_additional_properties:
        schema = _closed(schema)
    if not isinstance(schema, dict):
        return schema
    own = schema.get("x-guidance", {})
    options: dict[str, Any] = {"whitespace_pattern": WHITESPACE}
    if asked.disable_any_whitespace:
        options = {"whitespace_flexible": False}
    elif asked.whitespace_pattern is not None:
        options = {"whitespace_pattern": asked.whitespace_pattern}
    elif isinstance(own, dict) and own.keys() & {"whitespace_flexible", "whitespace_pattern"}:
        options = {}
    return {**schema, "x-guidance": {**own, **options} if isinstance(own, dict) else own}


def _object(name: str, value: Any) -> Any:
    """Read JSON text; an object is copied through JSON, so that it is nothing else."""
    try:
        data = value.encode() if isinstance(value, str) else msgspec.json.encode(value)
        found = msgspec.json.decode(data)
    except RecursionError:
        raise ParamsError(f"structured_outputs.{name} is nested too deeply.", FIELD) from None
    except (msgspec.MsgspecError, UnicodeEncodeError, TypeError, ValueError) as error:
        raise ParamsError(
            f"structured_outputs.{name} is not JSON: {error!s:.200}.", FIELD
        ) from None
    if not isinstance(found, dict | bool):
        raise ParamsError(
            f"structured_outputs.{name} is {found!r:.80}: it must be an object.", FIELD
        )
    return found


def _closed(schema: Any) -> Any:
    """Copy a schema in which each object that names properties has no others."""
    if not isinstance(schema, dict):
        return schema
    root: dict[str, Any] = dict(schema)
    todo: list[Any] = [root]
    num_nodes = 0
    while todo:
        node = todo.pop()
        num_nodes += 1
        if num_nodes > MAX_SCHEMA_NODES:
            raise ParamsError("structured_outputs.json has too many parts.", FIELD)
        if isinstance(node, dict):
            is_object = node.get("type") == "object" or isinstance(node.get("properties"), Mapping)
            if is_object and "additionalProperties" not in node:
                node["additionalProperties"] = False
        for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
            if isinstance(value, dict | list):
                node[key] = value.copy()
                todo.append(node[key])
    return root
