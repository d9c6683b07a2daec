"""From response_format, structured_outputs and forced tools to the form of an output. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ..engine.errors import ParamsError
from ..engine.structured import FIELD, StructuredOutputsParams
from .decode import show
from .errors import ApiError
from .schema import ChatBody, GenerationBody

FORMATS = "text, json_object, json_schema or structural_tag"
FIELDS = tuple(name for name in StructuredOutputsParams.__struct_fields__ if name != "thought")


def output_form(body: GenerationBody) -> StructuredOutputsParams | None:
    """Return the form that a request asks of its output, if any. ApiError or ParamsError."""
    own = None if body.structured_outputs is None else _own(body.structured_outputs)
    form = None if body.response_format is None else _format(body.response_format)
    if own is not None and form is not None:
        raise ApiError(
            "response_format and structured_outputs both say what the output is: leave one out.",
            param="response_format",
        )
    return own or form


def _own(given: Mapping[str, Any]) -> StructuredOutputsParams:
    unknown = sorted(given.keys() - set(FIELDS))
    if unknown:
        raise ApiError(
            f"structured_outputs.{unknown[0]} is not a known field: it has {', '.join(FIELDS)}.",
            param="structured_outputs",
        )
    return StructuredOutputsParams(**{k: v for k, v in given.items() if v is not None})


def _format(given: Mapping[str, Any]) -> StructuredOutputsParams | None:
    match given.get("type"):
        case "text":
            return None
        case "json_object":
            return StructuredOutputsParams(json_object=True)
        case "json_schema":
            named = given.get("json_schema")
            schema = named.get("schema") if isinstance(named, dict) else None
            if not isinstance(schema, dict | bool):
                raise ApiError(
                    f"response_format.json_schema is {show(named)}: it must be "
                    '{"name": ..., "schema": {...}}.',
                    param="response_format",
                )
            return StructuredOutputsParams(json=schema)
        case "structural_tag":
            return StructuredOutputsParams(structural_tag=dict(given))
        case kind:
            raise ApiError(
                f"response_format.type is {show(kind)}: it must be {FORMATS}.",
                param="response_format",
            )


class ForcedTools(msgspec.Struct, frozen=True):
    """Tools of which the answer must be a call."""

    name: str | None
    """The one that was named: the output is its arguments."""
    form: StructuredOutputsParams


def forced_tools(body: ChatBody) -> ForcedTools | None:
    """Return what tool_choice forces; None for "auto" and "none". ApiError if it names no tool."""
    choice = body.tool_choice
    if choice in (None, "auto", "none"):
        return None
    functions = {tool["function"]["name"]: tool["function"] for tool in body.tools or ()}
    name = None
    if choice != "required":
        name = choice["function"]["name"]
        functions = {name: functions[name]}
    if body.response_format is not None or body.structured_outputs is not None:
        raise ApiError(
            "tool_choice forces a call, and response_format or structured_outputs another output: "
            "leave one out.",
            param="tool_choice",
        )
    if name is not None:
        return ForcedTools(name, _tag(_arguments(functions[name])))
    calls = [
        {
            "type": "tag",
            "begin": f'{{"name": {msgspec.json.encode(one).decode()}, "parameters": ',
            "content": _arguments(function),
            "end": "}",
        }
        for one, function in functions.items()
    ]
    how = {"separator": ", ", "at_least_one": True}
    if body.parallel_tool_calls is False:
        how["stop_after_first"] = True
    many = {"type": "tags_with_separator", "tags": calls, **how}
    ends = [{"type": "const_string", "value": text} for text in "[]"]
    return ForcedTools(None, _tag({"type": "sequence", "elements": [ends[0], many, ends[1]]}))


def _tag(form: Mapping[str, Any]) -> StructuredOutputsParams:
    return StructuredOutputsParams(structural_tag={"type": "structural_tag", "format": form})


def _arguments(function: Mapping[str, Any]) -> dict[str, Any]:
    schema = function.get("parameters") or {"type": "object"}
    if isinstance(schema, dict) and "type" not in schema and "$ref" not in schema:
        schema = {"type": "object", **schema}
    return {"type": "json_schema", "json_schema": schema}


def named_by_client(error: ParamsError, body: GenerationBody) -> ParamsError:
    """Word the fault of a form by the field that the client gave it in."""
    if error.param != FIELD or body.structured_outputs is not None:
        return error
    name = "tools" if body.response_format is None else "response_format"
    return ParamsError(str(error).replace(FIELD, name, 1), name)
