"""How texts, regular expressions and schemas are written in a grammar. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

WHITESPACE = r"[ ]|\r?\n[ \t]{0,64}"
"""Between JSON's tokens: a space, or a new line with its indentation. Without a bound a model may
write space until its tokens are used up."""
SPACE_OPTIONS = {"whitespace_flexible", "whitespace_pattern"}
PLAIN = {"\n": "n", "\r": "r", "/": "/"}
"""What a regular expression in Lark has behind a backslash."""


def quote(text: str) -> str:
    """Write a text as Lark and JSON do."""
    return msgspec.json.encode(text).decode().replace("\x7f", "\\u007f")


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
    # Two slashes begin a comment.
    return "/" + ("".join(written) or "(?:)") + "/"


def with_space(schema: Any, options: Mapping[str, Any] | None = None) -> Any:
    """Say in a schema what space its JSON may have; options: None for WHITESPACE.

    What the schema says itself stays, where there are no options.
    """
    if schema is True:
        schema = {}
    if not isinstance(schema, dict):
        return schema
    own = schema.get("x-guidance", {})
    if not isinstance(own, dict):
        return schema
    if options is None:
        if own.keys() & SPACE_OPTIONS:
            return schema
        options = {"whitespace_pattern": WHITESPACE}
    rest = {name: value for name, value in own.items() if name not in SPACE_OPTIONS}
    return {**schema, "x-guidance": {**rest, **options}}
