"""JSON Schema by keyword: what is generated is valid, what is valid is accepted, and no more."""

from __future__ import annotations

import datetime
import ipaddress
import json
import re
import uuid
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
from quire.engine.grammar.grammars import Grammars
from quire.engine.grammar.source import grammar_source
from quire.engine.structured import StructuredOutputsParams
from quire.fuzz.schema_suite import accepts, outputs_of, try_schema

CASES: dict[str, tuple[Any, list[Any], list[Any]]] = {
    # A schema, instances that it allows (keys in its order), and others.
    "true": (True, [None, 1, "a", [{}], {"a": {"b": [1.5]}}], []),
    "no keyword": ({}, [None, -7, "é\n", []], []),
    "null": ({"type": "null"}, [None], [0, "", False, "null"]),
    "boolean": ({"type": "boolean"}, [True, False], [0, "true", None]),
    "integer": ({"type": "integer"}, [0, -12, 10**20], [0.5, "1", None]),
    "number": ({"type": "number"}, [0, -1.25, 1e30, 12.0], ["1", None, []]),
    "string": ({"type": "string"}, ["", 'a "b" \\ /', "é😀", "\n\t\x01"], [1, None, ["a"]]),
    "types": ({"type": ["integer", "null", "string"]}, [3, None, "x"], [1.5, True, {}]),
    "enum": ({"enum": [1, "one", None, [1, {"a": 2}], "é"]}, [1, "one", None, "é"], [2, "on", [1]]),
    "enum of a type": ({"type": "string", "enum": ["a", 1, "ab"]}, ["a", "ab"], [1, "b"]),
    "const": ({"const": {"a": [1, None], "b": ""}}, [{"a": [1, None], "b": ""}], [{"a": [1]}, 1]),
    "minimum, maximum": (
        {"type": "integer", "minimum": -13, "maximum": 207},
        [-13, -9, 0, 99, 199, 207],
        [-14, 208, 1000, -100],
    ),
    "exclusive bounds": (
        {"type": "integer", "exclusiveMinimum": 9, "exclusiveMaximum": 12},
        [10, 11],
        [9, 12, 100],
    ),
    "bounds of numbers": (
        {"type": "number", "minimum": -0.5, "exclusiveMaximum": 10.5},
        [-0.5, 0, 3.14, 10.25],
        [-0.51, 10.5, 11],
    ),
    "only a minimum": ({"type": "integer", "minimum": 95}, [95, 100, 12345], [94, 9, -95]),
    "multipleOf": ({"type": "integer", "multipleOf": 7}, [0, 14, 700, -21], [1, 15, 701]),
    "multipleOf of a part": ({"type": "number", "multipleOf": 0.5}, [0, 1.5, 22], [0.25, 1.75]),
    "lengths": ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "é\n😀"], ["a", "abcd"]),
    "pattern": ({"type": "string", "pattern": "^[a-c]+[0-9]$"}, ["a1", "cab9"], ["a", "1", "xa1"]),
    "pattern inside": ({"type": "string", "pattern": "b+"}, ["b", "abba", "xb\n"], ["a", ""]),
    "pattern and length": (
        {"type": "string", "pattern": "^a*b*$", "minLength": 2, "maxLength": 4},
        ["ab", "aabb", "bbb"],
        ["a", "aabbb", "ba"],
    ),
    "pattern with quotes": ({"type": "string", "pattern": '^"\\\\?$'}, ['"', '"\\'], ["", "\\"]),
    "items": (
        {"type": "array", "items": {"type": "integer"}},
        [[], [1], [1, 2, 3]],
        [["a"], [1, None]],
    ),
    "counts of items": (
        {"type": "array", "items": {"enum": [1, 2]}, "minItems": 1, "maxItems": 3},
        [[1], [2, 1], [1, 1, 1]],
        [[], [1, 1, 1, 1], [3]],
    ),
    "prefixItems": (
        {
            "type": "array",
            "prefixItems": [{"type": "integer"}, {"type": "string"}],
            "items": {"type": "null"},
            "minItems": 1,
        },
        [[1], [1, "a"], [1, "a", None, None]],
        [[], ["a"], [1, 1], [1, "a", 2]],
    ),
    "prefixItems and no more": (
        {"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "items": False},
        [[], [1], [1, 2]],
        [[2], [1, 2, 3]],
    ),
    "properties": (
        {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "string"}, "c": {"const": 1}},
            "required": ["a", "c"],
            "additionalProperties": False,
        },
        [{"a": 1, "c": 1}, {"a": 1, "b": "", "c": 1}],
        [{}, {"a": 1}, {"a": "1", "c": 1}, {"a": 1, "c": 1, "d": 1}, []],
    ),
    "none required": (
        {
            "type": "object",
            "properties": {"a": {"type": "null"}, 'o"dd\n': {"type": "null"}},
            "additionalProperties": False,
        },
        [{}, {"a": None}, {'o"dd\n': None}, {"a": None, 'o"dd\n': None}],
        [{"b": None}, {"a": 1}],
    ),
    "additionalProperties": (
        {
            "type": "object",
            "properties": {"a": {"type": "integer"}},
            "additionalProperties": {"type": "boolean"},
        },
        [{}, {"a": 1}, {"a": 1, "b": True}, {"b": False, "c": True}],
        [{"a": True}, {"b": 1}, {"a": 1, "b": None}],
    ),
    "required without properties": (
        {"type": "object", "required": ["x"]},
        [{"x": 1}, {"x": {"y": []}}],
        [{}, {"y": 1}],
    ),
    "patternProperties": (
        {
            "type": "object",
            "patternProperties": {"^n_": {"type": "integer"}},
            "additionalProperties": False,
        },
        [{}, {"n_a": 1, "n_b": 2}],
        [{"n_a": "1"}, {"x": 1}],
    ),
    "counts of properties": (
        {
            "type": "object",
            "additionalProperties": {"const": 1},
            "minProperties": 1,
            "maxProperties": 2,
        },
        [{"a": 1}, {"a": 1, "b": 1}],
        [{}, {"a": 1, "b": 1, "c": 1}],
    ),
    "anyOf": (
        {"anyOf": [{"type": "integer", "minimum": 5}, {"type": "string"}, {"const": [1]}]},
        [5, "x", [1]],
        [4, [2], None],
    ),
    "anyOf beside a type": (
        {
            "type": "object",
            "properties": {"k": {"type": "integer"}},
            "anyOf": [{"required": ["k"]}],
        },
        [{"k": 1}],
        [{}, {"k": "a"}],
    ),
    "oneOf of other types": (
        {"oneOf": [{"type": "null"}, {"type": "string"}]},
        [None, "a"],
        [1, []],
    ),
    "allOf": (
        {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 20}, {"multipleOf": 5}]},
        [5, 20],
        [0, 25, 7],
    ),
    "allOf of objects": (
        {
            "allOf": [
                {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]},
            ]
        },
        [{"a": 1, "b": None}],
        [{"a": 1}, {"b": None}, {"a": None, "b": None}],
    ),
    "$ref": (
        {"$defs": {"small": {"type": "integer", "maximum": 3}}, "$ref": "#/$defs/small"},
        [3, -5],
        [4, "a"],
    ),
    "$ref with odd names": (
        {
            "definitions": {"a/b": {"const": 1}, "c~d": {"const": 2}, "e f": {"const": 3}},
            "anyOf": [{"$ref": f"#/definitions/{name}"} for name in ("a~1b", "c~0d", "e%20f")],
        },
        [1, 2, 3],
        [4],
    ),
    "a recursive list": (
        {
            "$defs": {
                "list": {
                    "type": "object",
                    "properties": {
                        "value": {"type": "integer"},
                        "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/list"}]},
                    },
                    "required": ["value", "next"],
                    "additionalProperties": False,
                }
            },
            "$ref": "#/$defs/list",
        },
        [{"value": 1, "next": None}, {"value": 1, "next": {"value": 2, "next": None}}],
        [{"value": 1}, {"value": 1, "next": {"value": 2}}, None],
    ),
    "a recursive root": (
        {"type": "array", "items": {"$ref": "#"}, "maxItems": 2},
        [[], [[]], [[[], []], []]],
        [[1], [[], [], []], {}],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_schema_gives_and_takes_what_is_valid(grammars: Grammars, name: str) -> None:
    schema, valid, others = CASES[name]
    validator = jsonschema.Draft202012Validator(schema)
    tests = [{"data": one, "valid": True} for one in valid]
    tests += [{"data": one, "valid": False} for one in others]
    for one in tests:
        assert validator.is_valid(one["data"]) == one["valid"], f"the test is wrong: {one}"
    tried = try_schema(grammars, schema, tests)
    assert tried.refused is None
    assert tried.wrong == ()
    assert tried.num_valid > 0
    assert tried.num_accepted == len(valid)


def is_time(text: str) -> bool:
    """RFC 3339, whose leap seconds Python has not."""
    datetime.time.fromisoformat(re.sub(r":60(?=[.Zz+-])", ":59", text).replace("z", "Z"))
    return re.fullmatch(r"\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", text) is not None


def is_date_time(text: str) -> bool:
    return is_date(text[:10]) and text[10] in "tT" and is_time(text[11:])


def is_date(text: str) -> bool:
    """The grammar does not tell leap years: every February may have 29 days."""
    leap = f"2024{text[4:]}" if text.endswith("-02-29") else text
    return datetime.date.fromisoformat(leap).isoformat() == leap


def is_uuid(text: str) -> bool:
    return str(uuid.UUID(text)) == text.lower()


FORMATS: dict[str, tuple[Callable[[str], object], list[str], list[str]]] = {
    "date": (is_date, ["2024-02-29", "1999-12-31"], ["2024-02-30", "2024-13-01", "24-01-01"]),
    "time": (is_time, ["23:59:60Z", "01:02:03.5+01:00"], ["25:00:00Z", "12:00:00", "12:60:00Z"]),
    "date-time": (is_date_time, ["2024-01-02T03:04:05Z"], ["2024-01-02", "2024-01-02 03:04:05"]),
    "ipv4": (ipaddress.IPv4Address, ["127.0.0.1", "255.255.255.255"], ["256.0.0.1", "1.2.3"]),
    "ipv6": (ipaddress.IPv6Address, ["::1", "fe80::1:2"], ["12345::", "1.2.3.4", ":::"]),
    "uuid": (is_uuid, ["123E4567-e89b-12d3-a456-426614174000"], ["123e4567", "x" * 36]),
    "email": (
        re.compile(r"[^@\s]+@[^@\s]+").fullmatch,
        ["a.b@example.org", "x+y@localhost"],
        ["a", "@", "a@b@c", "a b@c"],
    ),
    "hostname": (
        re.compile(r"([a-zA-Z0-9-]+\.)*[a-zA-Z0-9-]+").fullmatch,
        ["example.org", "a-1"],
        ["-a", "a..b", "a_b"],
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_a_text_has_its_format(grammars: Grammars, name: str) -> None:
    is_valid, valid, others = FORMATS[name]
    form = StructuredOutputsParams(json={"type": "string", "format": name})
    for output in outputs_of(grammars, form, count=20):
        assert is_valid(json.loads(output)), output
    made = grammars.compile(grammar_source(form))
    for text in valid:
        assert is_valid(text) and accepts(made, json.dumps(text)), text
    assert not [text for text in others if accepts(made, json.dumps(text))]


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"not": {"type": "string"}}, "not"),
        ({"if": {"type": "null"}, "then": {}, "else": False}, "else.*if.*then"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "contains": {"const": 1}}, "contains"),
        ({"type": "object", "propertyNames": {"maxLength": 2}}, "propertyNames"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
        ({"type": "object", "unevaluatedProperties": False}, "unevaluatedProperties"),
        ({"oneOf": [{"type": "integer"}, {"minimum": 3}]}, "oneOf"),
        ({"type": "string", "format": "json-pointer"}, "json-pointer"),
        ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"$ref": "http://127.0.0.1:9/x"}, "not fetch|not present"),
        ({"$ref": "file:///etc/hostname"}, "not fetch|not present"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "minimum.*maximum"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "'a'"),
        ({"enum": []}, "empty"),
        ({"type": "wat"}, "wat"),
        ({"properties": 3}, "properties"),
        ({"items": [1]}, "object or boolean"),
        ({"minimum": "a"}, "minimum"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, ""),
    ],
)
def test_what_cannot_be_followed_is_refused_and_not_left_out(
    grammars: Grammars, schema: Any, words: str
) -> None:
    """A keyword that is passed over would give outputs that are not valid."""
    refused = try_schema(grammars, schema).refused
    assert refused is not None and re.search(words, refused), refused
