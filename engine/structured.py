"""StructuredOutputsParams: what a request may ask of its output's form. vLLM's names and meanings.

Pure: one of the forms, checked for its type on construction; whether it can be served is found out
by compiling it (engine/grammar).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import force_setattr

from .errors import ParamsError

FORMS = ("json", "json_object", "regex", "choice", "grammar", "structural_tag")
MAX_CHOICES = 65536
FIELD = "structured_outputs"


class Thought(Struct, frozen=True):
    """Free text that comes before a form."""

    start: str
    """What begins it, where there is one; "": the prompt has begun it."""
    end: str


class StructuredOutputsParams(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The form of an output: exactly one of json, json_object, regex, choice, grammar and
    structural_tag.

    Raises ParamsError, on construction.
    """

    json: str | dict[str, Any] | bool | None = None
    """A JSON Schema, as an object or as text."""
    json_object: bool | None = None
    """Any JSON object."""
    regex: str | None = None
    """A regular expression (Rust's syntax) that the whole output matches."""
    choice: Sequence[str] | None = None
    """The output is one of these."""
    grammar: str | None = None
    """Lark's syntax as llguidance takes it, or GBNF."""
    structural_tag: str | dict[str, Any] | None = None
    """Free text with tags inside which the output follows a schema."""
    disable_any_whitespace: bool = False
    """json: no space between tokens."""
    disable_additional_properties: bool = False
    """json: objects have no other properties than those that the schema names."""
    whitespace_pattern: str | None = None
    """json: a regular expression of the space between tokens."""
    thought: Thought | None = None
    """What the form begins behind: a chat sets it for a model that thinks."""

    def __post_init__(self) -> None:
        given = [name for name in FORMS if getattr(self, name) not in (None, False)]
        if self.json is False:
            given.append("json")
        if len(given) != 1:
            raise ParamsError(
                f"structured_outputs has {' and '.join(given) or 'none of its forms'}: give one of "
                f"{', '.join(FORMS)}.",
                FIELD,
            )
        for name, kinds, allowed in (
            ("json", (str, Mapping, bool), "a JSON Schema, as an object or as text"),
            ("json_object", (bool,), "true or false"),
            ("regex", (str,), "a regular expression"),
            ("grammar", (str,), "a grammar, as text"),
            ("structural_tag", (str, Mapping), "an object or its JSON text"),
            ("whitespace_pattern", (str,), "a regular expression"),
        ):
            value = getattr(self, name)
            if value is not None and not isinstance(value, kinds):
                raise _wrong(name, value, allowed)
        for name in ("disable_any_whitespace", "disable_additional_properties"):
            if not isinstance(getattr(self, name), bool):
                raise _wrong(name, getattr(self, name), "true or false")
        if self.thought is not None and not isinstance(self.thought, Thought):
            raise _wrong("thought", self.thought, "a Thought")
        if self.choice is not None:
            allowed = f"1 to {MAX_CHOICES} texts"
            if isinstance(self.choice, str) or not isinstance(self.choice, Sequence):
                raise _wrong("choice", self.choice, allowed)
            texts = tuple(self.choice)
            if not 0 < len(texts) <= MAX_CHOICES or not all(isinstance(t, str) for t in texts):
                raise _wrong("choice", self.choice, allowed)
            force_setattr(self, "choice", texts)


def _wrong(name: str, given: Any, allowed: str) -> ParamsError:
    return ParamsError(f"structured_outputs.{name} is {given!r:.80}: it must be {allowed}.", FIELD)
