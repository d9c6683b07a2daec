"""Structural tags: free text that a tag may interrupt, inside which a schema holds. Pure.

Both spellings that vLLM takes: {"structures": [...], "triggers": [...]}, and {"format": ...} of
nested formats (xgrammar's). Written as Lark for llguidance, whose patterns take all that they can:
where a text follows one (a tag's end, for instance), the pattern stops where that text first comes.
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
SPACE = r"/[ \n]{0,4}/"
"""Between a thought and what follows."""


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
                {
                    "begin": one.get("begin"),
                    "content": _schema(one, "schema", f"structures[{i}]"),
                    "end": one.get("end", ""),
                }
                for i, one in enumerate(_list(tag, "structures", "structural_tag", Mapping))
            ],
            _list(tag, "triggers", "structural_tag", str),
            "structures",
            0,
        )
    return "\n".join([f"start: {start}", *writer.rules])


def thought_source(start: str, end: str, special_tokens: Collection[str]) -> str:
    """Return the grammar of a thought and the grammar named "form" behind it.

    start: see structured.Thought.
    """
    writer = _Writer(special_tokens)
    behind = f"{writer.ended(TEXT, end)} SPACE @form"
    whole = f"@form | {writer.literal(start)} {behind}" if start else behind
    return "\n".join([f"start: {whole}", *writer.rules, f"SPACE: {SPACE}"])


def thought_alone(start: str, end: str, special_tokens: Collection[str]) -> str:
    """Return the grammar of a thought, from its start, if it has one, to its end."""
    writer = _Writer(special_tokens)
    begun = f"{writer.literal(start)} " if start else ""
    return "\n".join([f"start: {begun}{writer.ended(TEXT, end)}", *writer.rules])


class _Writer:
    """Collects rules while formats are written."""

    def __init__(self, special_tokens: Collection[str]) -> None:
        self.rules: list[str] = []
        names = sorted(filter(_is_name, special_tokens), key=len, reverse=True)
        self._special = frozenset(names)
        self._splitter = re.compile(f"({'|'.join(map(re.escape, names))})") if names else None

    def write(self, form: Any, where: str, depth: int) -> str:
        """Return the expression of one format."""
        if depth > MAX_DEPTH:
            raise ParamsError(
                f"structured_outputs.structural_tag: {where:.40}... is too deep.", FIELD
            )
        kind = form.get("type") if isinstance(form, Mapping) else None
        match kind:
            case "const_string":
                return self.literal(_text(form, "value", where))
            case "json_schema":
                return _json(_schema(form, "json_schema", where))
            case "regex" | "any_text":
                return self._alone(_pattern(form, where) or TEXT)
            case "sequence":
                return self._sequence(form, where, depth)
            case "or":
                parts = [
                    self.write(one, f"{where}.elements[{i}]", depth + 1)
                    for i, one in enumerate(_list(form, "elements", where, Mapping))
                ]
                return "(" + " | ".join(parts) + ")"
            case "tag":
                return self._tag(form, where, depth)
            case "triggered_tags":
                return self.triggered(
                    _list(form, "tags", where, Mapping),
                    _list(form, "triggers", where, str),
                    f"{where}.tags",
                    depth,
                    at_least_one=form.get("at_least_one"),
                    stop_after_first=form.get("stop_after_first"),
                )
            case "tags_with_separator":
                tags = _list(form, "tags", where, Mapping)
                parts = [self._tag(one, f"{where}.tags[{i}]", depth) for i, one in enumerate(tags)]
                one = self._rule(" | ".join(parts))
                more = f" ({self.literal(_text(form, 'separator', where))} {one})*"
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
        self,
        tags: Sequence[Mapping[str, Any]],
        triggers: Sequence[str],
        where: str,
        depth: int,
        **how: Any,
    ) -> str:
        """Write text in which a trigger begins one of the tags."""
        by_trigger: dict[str, list[str]] = {}
        for index, tag in enumerate(tags):
            here = f"{where}[{index}]"
            begin = _text(tag, "begin", here)
            trigger = next((one for one in triggers if one and begin.startswith(one)), None)
            if trigger is None:
                raise _wrong(f"{here}.begin", begin, "a text that one of the triggers begins")
            token = self._parts(begin)[0]
            if token in self._special and token.startswith(trigger):
                trigger = token  # part of a token does not come without the rest
            rest = self.literal(begin[len(trigger) :])
            by_trigger.setdefault(trigger, []).append(f"{rest} {self._inside(tag, here, depth)}")
        options = [
            f"{self.ended(TEXT, trigger)} ({' | '.join(bodies)})"
            for trigger, bodies in by_trigger.items()
        ]
        choice = self._rule(" | ".join(options))
        text = self._alone(TEXT)
        if how.get("stop_after_first"):
            return f"({choice})" if how.get("at_least_one") else f"({choice} | {text})"
        return f"({choice}{'+' if how.get('at_least_one') else '*'} {text})"

    def _sequence(self, form: Mapping[str, Any], where: str, depth: int) -> str:
        """Write elements in a row; a pattern ends where the text that follows it begins."""
        parts: list[str] = []
        pattern: str | None = None
        for index, one in enumerate(_list(form, "elements", where, Mapping)):
            here = f"{where}.elements[{index}]"
            before, pattern = pattern, _pattern(one, here)
            if pattern is not None:
                pattern = pattern if before is None else f"{before} {pattern}"
            elif before is None:
                parts.append(self.write(one, here, depth + 1))
            elif one.get("type") == "const_string":
                parts.append(self.ended(before, _text(one, "value", here)))
            elif one.get("type") == "tag":
                parts.append(self._tag(one, here, depth, before))
            else:
                parts += self._alone(before), self.write(one, here, depth + 1)
        if pattern is not None:
            parts.append(self._alone(pattern))
        return f"({' '.join(parts)})"

    def _tag(
        self, form: Mapping[str, Any], where: str, depth: int, before: str | None = None
    ) -> str:
        """Write a tag. before: a pattern in front of it."""
        begin = _text(form, "begin", where)
        head = self.literal(begin) if before is None else self.ended(before, begin)
        return f"({head} {self._inside(form, where, depth)})"

    def _inside(self, tag: Mapping[str, Any], where: str, depth: int) -> str:
        """Write what a tag has behind its beginning."""
        end, content = tag.get("end", ""), tag.get("content")
        ends = [end] if isinstance(end, str) else end
        if not isinstance(ends, list) or not ends or not all(isinstance(e, str) for e in ends):
            raise _wrong(f"{where}.end", end, "a text or some")
        pattern = _pattern(content, f"{where}.content")
        if pattern is not None:
            return "(" + " | ".join(self.ended(pattern, one) for one in ends) + ")"
        if isinstance(content, Mapping) and content.get("type") in FORMATS:
            written = self.write(content, f"{where}.content", depth + 1)
        else:
            written = _json(_schema(tag, "content", where))
        return f"{written} ({' | '.join(self.literal(one) for one in ends)})"

    def ended(self, pattern: str, text: str) -> str:
        """Write a pattern and a text behind it, which ends it where it first comes."""
        parts = self._parts(text)
        if parts and parts[0] not in self._special:
            parts[0] = self._rule(f"{self._terminal(pattern)} {parts[0]}", lazy=True)
        else:
            parts.insert(0, self._alone(pattern))
        return " ".join(parts)

    def _alone(self, pattern: str) -> str:
        """Write a pattern that takes all that it can."""
        return self._rule(self._terminal(pattern))

    def literal(self, text: str) -> str:
        """Write a text."""
        return " ".join(self._parts(text)) or '""'

    def _parts(self, text: str) -> list[str]:
        """Split a text at special tokens, and write its parts."""
        found = [text] if self._splitter is None else self._splitter.split(text)
        return [one if one in self._special else quote(one) for one in found if one]

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


def _pattern(form: Any, where: str) -> str | None:
    """Return the regular expression of a format that is nothing else."""
    match form.get("type") if isinstance(form, Mapping) else None:
        case "any_text":
            return TEXT
        case "regex":
            return regex_literal(_text(form, "pattern", where))
        case _:
            return None


def _is_name(text: str) -> bool:
    """Tell whether Lark takes a text as the name of a special token."""
    return bool(re.fullmatch(r"<[^<>\s\"/]+>", text))


def _json(schema: Any) -> str:
    return f"%json {msgspec.json.encode(with_space(schema)).decode()}"


def _schema(form: Mapping[str, Any], name: str, where: str) -> Any:
    value = form.get(name)
    if not isinstance(value, Mapping | bool):
        raise _wrong(f"{where}.{name}", value, "a JSON Schema")
    return value


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
