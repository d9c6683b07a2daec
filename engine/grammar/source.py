"""From StructuredOutputsParams to the text of a grammar that llguidance compiles. Pure.

What cannot be said is a ParamsError; whether it compiles is found out by compiling it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from ..errors import ParamsError
from ..structured import FIELD, StructuredOutputsParams, Thought
from .literals import quote, regex_literal, with_space
from .tags import tags_source, thought_alone, thought_source

MAX_SOURCE_BYTES = 2**20
MAX_SCHEMA_NODES = 200_000
MAX_GBNF_WORK = 2**25
"""Bytes of a grammar in GBNF times its rules and comments: what its converter's time grows with."""
OPTIONS = '%llguidance {"no_forcing": true}'
"""Without it llguidance computes as much as must come in each step, be it without end."""
_LARK = re.compile(r"(?m)^[^\S\n]*(?:%llguidance\b|start\s*:)")
"""What llguidance tells Lark from GBNF by; theirs takes a time quadratic in the empty lines."""


def grammar_source(asked: StructuredOutputsParams, special_tokens: Collection[str] = ()) -> str:
    """Return the grammar of an output. special_tokens: texts that are tokens of their own.

    ParamsError if what was asked is broken or too large.
    """
    try:
        source = _write(asked, special_tokens)
        size = len(source.encode())
    except UnicodeEncodeError:
        raise ParamsError("structured_outputs has half of a surrogate pair.", FIELD) from None
    if size > MAX_SOURCE_BYTES:
        raise ParamsError(
            f"structured_outputs is too large: its grammar takes {size} bytes, at most "
            f"{MAX_SOURCE_BYTES} are allowed.",
            FIELD,
        )
    return source


def thought_grammar(thought: Thought, special_tokens: Collection[str] = ()) -> str:
    """Return the grammar of what comes before a form, alone."""
    return f"{thought_alone(thought.start, thought.end, special_tokens)}\n{OPTIONS}\n"


def _write(asked: StructuredOutputsParams, special_tokens: Collection[str]) -> str:
    form = _form(asked, special_tokens)
    if asked.thought is not None:
        thought = asked.thought
        start = thought_source(thought.start, thought.end, special_tokens)
    elif isinstance(form, str):
        return f"{form}\n{OPTIONS}\n"
    else:
        start = "start: @form"
    named = {"lark_grammar": form} if isinstance(form, str) else {"json_schema": form["schema"]}
    parts = [{"lark_grammar": f"{start}\n{OPTIONS}"}, {"name": "form", **named}]
    return msgspec.json.encode({"grammars": parts}).decode()


def _form(asked: StructuredOutputsParams, special_tokens: Collection[str]) -> str | dict[str, Any]:
    """Return a form as Lark, or as {"schema": ...}."""
    if asked.regex is not None:
        return f"start: {regex_literal(asked.regex)}"
    if asked.choice is not None:
        # One terminal: as alternatives of a rule, 2,000 are the most.
        return "start: CHOICE\nCHOICE: " + " | ".join(map(quote, asked.choice))
    if asked.grammar is not None:
        return _lark(asked.grammar)
    if asked.structural_tag is not None:
        return tags_source(_object("structural_tag", asked.structural_tag), special_tokens)
    return {"schema": _schema(asked)}


def _lark(text: str) -> str:
    if _LARK.search(text) is not None:
        return text
    work = len(text) * (1 + text.count("::=") + text.count("#"))
    if len(text) > MAX_SOURCE_BYTES or work > MAX_GBNF_WORK:
        raise ParamsError("structured_outputs.grammar is too large for GBNF: write Lark.", FIELD)
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return str(gbnf_to_lark(text))
    except Exception as error:  # the converter raises what it likes
        raise ParamsError(
            f"structured_outputs.grammar is neither Lark, which has a rule named start, nor GBNF: "
            f"{error!s:.300}.",
            FIELD,
        ) from None


def _schema(asked: StructuredOutputsParams) -> Any:
    if asked.json_object:
        schema: Any = {"type": "object"}
    else:
        schema = _object("json", asked.json)
    if asked.disable_additional_properties:
        schema = _closed(schema)
    if asked.disable_any_whitespace:
        return with_space(schema, {"whitespace_flexible": False})
    if asked.whitespace_pattern is not None:
        return with_space(schema, {"whitespace_pattern": asked.whitespace_pattern})
    return with_space(schema)


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
