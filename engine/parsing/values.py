"""Values that are written as text between tags: what they are says the tool's JSON Schema. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from .calls import escape

MAX_DEPTH = 32
KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "boolean"),
    (int, "integer"),
    (float, "number"),
    (str, "string"),
    (list, "array"),
    (dict, "object"),
    (type(None), "null"),
)
PYTHON = {"True": "true", "False": "false", "None": "null"}


class ValueText:
    """One value as it comes. A text is passed on at once, anything else when it is whole."""

    __slots__ = ("_held", "_is_text", "_kinds", "_lines", "_parts", "_started")

    def __init__(self, schema: Any, key: str, *, lines: bool) -> None:
        """lines: a new line before and behind the value is not its own."""
        self._kinds = kinds_of(property_schema(schema, key))
        self._is_text = self._kinds == {"string"}
        self._lines = lines
        self._parts: list[str] = []
        """Of what is told when it is whole."""
        self._held = ""
        self._started = False

    def push(self, text: str) -> str:
        """Take text; return what is new of the JSON."""
        said = ""
        if not self._is_text:
            self._parts.append(text)
            return ""
        self._held += text
        if not self._started and self._held:
            self._started, said = True, '"'
            if self._lines:
                self._held = self._held.removeprefix("\n")
        keep = 1 if self._lines and self._held.endswith("\n") else 0
        cut = len(self._held) - keep
        said += escape(self._held[:cut])
        self._held = self._held[cut:]
        return said

    def close(self) -> str:
        """Return the rest, where the tag has come that ends the value."""
        if self._is_text:
            return '"' if self._started else '""'
        text = "".join(self._parts)
        if self._lines:
            text = text.removeprefix("\n").removesuffix("\n")
        return as_json(text, self._kinds)

    def finish(self) -> str:
        """Return what was held, where the answer has ended inside the value."""
        return "" if self._is_text else "".join(self._parts).strip()


def as_json(text: str, kinds: frozenset[str]) -> str:
    """Write a value as JSON of one of some kinds (none: of any); a text if it is nothing else."""
    bare = text.strip()
    try:
        value = msgspec.json.decode(PYTHON.get(bare, bare).encode())
    except (msgspec.DecodeError, RecursionError, UnicodeError):
        return f'"{escape(text)}"'
    kind = next((name for types, name in KINDS if isinstance(value, types)), "")
    if kinds and kind not in kinds and not (kind == "integer" and "number" in kinds):
        return f'"{escape(text)}"'
    return PYTHON.get(bare, bare)


def property_schema(schema: Any, key: str) -> Any:
    """Return the schema of one argument, None where there is none."""
    schema = _resolve(schema, schema)
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    found = properties.get(key) if isinstance(properties, Mapping) else None
    return _resolve(found, schema)


def kinds_of(schema: Any, depth: int = 0) -> frozenset[str]:
    """Return the kinds of JSON values that a schema may allow; none: it does not say."""
    if not isinstance(schema, Mapping) or depth > MAX_DEPTH:
        return frozenset()
    named = schema.get("type")
    if isinstance(named, str):
        return frozenset({named})
    if isinstance(named, list):
        return frozenset(one for one in named if isinstance(one, str))
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list):
        return frozenset(
            name
            for value in values
            for name in [next((name for types, name in KINDS if isinstance(value, types)), "")]
        )
    for word in ("anyOf", "oneOf"):
        options = schema.get(word)
        if isinstance(options, list) and options:
            kinds = [kinds_of(one, depth + 1) for one in options]
            return frozenset().union(*kinds) if all(kinds) else frozenset()
    return frozenset()


def _resolve(schema: Any, root: Any) -> Any:
    """Follow a reference inside of the schema."""
    for _ in range(MAX_DEPTH):
        reference = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(reference, str) or not reference.startswith("#/"):
            return schema
        schema = root
        for name in reference[2:].split("/"):
            schema = schema.get(name) if isinstance(schema, Mapping) else None
    return None
