"""Structural tags: free text that a tag may interrupt, inside which a schema holds. Pure.

Both spellings that vLLM takes: {"structures": [...], "triggers": [...]}, and {"format": ...} of
nested formats (xgrammar's). Written as Lark for llguidance.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec

from ..errors import ParamsError
from ..structured import FIELD
from .literals import quote, regex_literal, with_space

MAX_PARTS = 4096
MAX_DEPTH = 64
TEXT = r"/(.|\n)*/"


def tags_source(tag: Any, special_tokens: Collection[str]) -> str:
    """Return the grammar of a structural tag. ParamsError names what is wrong with it."""
    if not isinstance(tag, Mapping):
        raise _wrong("structural_tag", tag, "an object")
    writer = _Writer(special_tokens)
    if "format" in tag:
        start = writer.write(tag["format"], "format", 0)
    else:
        start = writer.triggered(
            [
                {"begin": one.get("begin"), "content": one.get("schema"), "end": one.get("end", "")}
                for one in _list(tag, "structures", "structural_tag", Mapping)
            ],
            _list(tag, "triggers", "structural_tag", str),
            "structures",
        )
    return "\n".join(["%llguidance {}", f"start: {start}", *writer.rules]) + "\n"


class _Writer:
    """Collects rules while formats are written."""

    def __init__(self, special_tokens: Collection[str]) -> None:
        self.rules: list[str] = []
        names = sorted(filter(_is_name, special_tokens), key=len, reverse=True)
        self._special = frozenset(names)
        self._splitter = re.compile("|".join(map(re.escape, names))) if names else None

    def write(self, form: Any, where: str, depth: int) -> str:
        """Return the expression of one format."""
        if depth > MAX_DEPTH:
            raise ParamsError(f"structured_outputs.structural_tag: {where} is too deep.", FIELD)
        kind = form.get("type") if isinstance(form, Mapping) else None
        match kind:
            case "const_string":
                return self._literal(_text(form, "value", where))
            case "json_schema":
                return f"%json {_json(with_space(form.get('json_schema')))}"
            case "regex":
                return self._rule(regex_literal(_text(form, "pattern", where)))
            case "any_text":
                return self._rule(TEXT)
            case "sequence" | "or":
                elements = _list(form, "elements", where, Mapping)
                parts = [
                    self.write(one, f"{where}.elements[{i}]", depth + 1)
                    for i, one in enumerate(elements)
                ]
                return "(" + (" " if kind == "sequence" else " | ").join(parts) + ")"
            case "tag":
                return self._tag(form, where, depth)
            case "triggered_tags":
                return self._triggered(form, where)
            case "tags_with_separator":
                tags = _list(form, "tags", where, Mapping)
                parts = [self._tag(one, f"{where}.tags[{i}]", depth) for i, one in enumerate(tags)]
                one = self._rule(" | ".join(parts))
                more = f" ({self._literal(_text(form, 'separator', where))} {one})*"
                whole = one if form.get("stop_after_first") else one + more
                return f"({whole})" if form.get("at_least_one") else f"({whole})?"
            case _:
                raise _wrong(
                    f"{where}.type",
                    kind,
                    "const_string, json_schema, regex, any_text, sequence, or, tag, "
                    "triggered_tags or tags_with_separator",
                )

    def triggered(
        self, tags: Sequence[Mapping[str, Any]], triggers: Sequence[str], where: str, **how: Any
    ) -> str:
        """Write text in which a trigger begins one of the tags."""
        by_trigger: dict[str, list[str]] = {}
        for index, tag in enumerate(tags):
            here = f"{where}[{index}]"
            begin = _text(tag, "begin", here)
            trigger = next((one for one in triggers if one and begin.startswith(one)), None)
            if trigger is None:
                raise _wrong(f"{here}.begin", begin, "a text that one of the triggers begins")
            rest = self._literal(begin[len(trigger) :])
            body = f"{rest} {self._content(tag, here, 0)} {self._end(tag, here)}"
            by_trigger.setdefault(trigger, []).append(body)
        options = []
        for trigger, bodies in by_trigger.items():
            body = "(" + " | ".join(bodies) + ")"
            if trigger in self._special:
                options.append(f"{self._rule(TEXT)} {trigger} {body}")
            else:
                head = self._rule(f"{self._terminal(TEXT)} {quote(trigger)}", lazy=True)
                options.append(f"{head} {body}")
        choice = self._rule(" | ".join(options))
        text = self._rule(self._terminal(TEXT))
        if how.get("stop_after_first"):
            return f"({choice})" if how.get("at_least_one") else f"({choice} | {text})"
        return f"({choice}{'+' if how.get('at_least_one') else '*'} {text})"

    def _triggered(self, form: Mapping[str, Any], where: str) -> str:
        return self.triggered(
            _list(form, "tags", where, Mapping),
            _list(form, "triggers", where, str),
            f"{where}.tags",
            at_least_one=form.get("at_least_one"),
            stop_after_first=form.get("stop_after_first"),
        )

    def _tag(self, form: Mapping[str, Any], where: str, depth: int) -> str:
        begin = self._literal(_text(form, "begin", where))
        return f"({begin} {self._content(form, where, depth)} {self._end(form, where)})"

    def _content(self, tag: Mapping[str, Any], where: str, depth: int) -> str:
        content = tag.get("content")
        if isinstance(content, Mapping) and "type" in content and _is_format(content):
            if content["type"] == "any_text" and isinstance(tag.get("end"), str) and tag["end"]:
                return ""  # the end's rule takes the text before it
            return self.write(content, f"{where}.content", depth + 1)
        return f"%json {_json(with_space(content))}"

    def _end(self, tag: Mapping[str, Any], where: str) -> str:
        end = tag.get("end", "")
        ends = [end] if isinstance(end, str) else end
        if not isinstance(ends, list) or not ends or not all(isinstance(e, str) for e in ends):
            raise _wrong(f"{where}.end", end, "a text or some")
        content = tag.get("content")
        if isinstance(content, Mapping) and content.get("type") == "any_text" and end:
            parts = [
                f"{self._rule(TEXT)} {one}"
                if one in self._special
                else self._rule(f"{self._terminal(TEXT)} {quote(one)}", lazy=True)
                for one in ends
            ]
        else:
            parts = [self._literal(one) or '""' for one in ends]
        return parts[0] if len(parts) == 1 else "(" + " | ".join(parts) + ")"

    def _literal(self, text: str) -> str:
        """Write a text, special tokens in it as what they are."""
        if not text:
            return ""
        if self._splitter is None:
            return quote(text)
        parts, last = [], 0
        for found in self._splitter.finditer(text):
            if found.start() > last:
                parts.append(quote(text[last : found.start()]))
            parts.append(found.group())
            last = found.end()
        if last < len(text):
            parts.append(quote(text[last:]))
        return " ".join(parts)

    def _rule(self, body: str, *, lazy: bool = False) -> str:
        return self._add(f"r{len(self.rules)}", body, "[lazy]" if lazy else "")

    def _terminal(self, body: str) -> str:
        return self._add(f"T{len(self.rules)}", body, "")

    def _add(self, name: str, body: str, attribute: str) -> str:
        if len(self.rules) >= MAX_PARTS:
            raise ParamsError(
                f"structured_outputs.structural_tag has more than {MAX_PARTS} parts.", FIELD
            )
        self.rules.append(f"{name}{attribute}: {body}")
        return name


FORMATS = (
    *("const_string", "json_schema", "regex", "any_text", "sequence", "or", "tag"),
    *("triggered_tags", "tags_with_separator"),
)


def _is_format(content: Mapping[str, Any]) -> bool:
    """Tell a format from a JSON Schema, which may stand in its place."""
    return content["type"] in FORMATS


def _is_name(text: str) -> bool:
    """Tell whether Lark takes a text as the name of a special token."""
    return bool(re.fullmatch(r"<[^<>\s\"/]+>", text))


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _text(form: Mapping[str, Any], name: str, where: str) -> str:
    value = form.get(name)
    if not isinstance(value, str):
        raise _wrong(f"{where}.{name}", value, "a text")
    return value


def _list(form: Mapping[str, Any], name: str, where: str, kind: type) -> list[Any]:
    value = form.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(v, kind) for v in value):
        what = "texts" if kind is str else "objects"
        raise _wrong(f"{where}.{name}", value, f"a list of {what}")
    return value


def _wrong(where: str, given: Any, allowed: str) -> ParamsError:
    return ParamsError(
        f"structured_outputs.structural_tag: {where} is {given!r:.80}: it must be {allowed}.", FIELD
    )
