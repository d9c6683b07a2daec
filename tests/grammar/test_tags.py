"""Structural tags: outputs are what a slow reader of the format accepts, and all of them end."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import jsonschema
import pytest
from quire.engine.errors import ParamsError
from quire.engine.grammar.grammars import Compiled, Grammars
from quire.engine.grammar.source import grammar_source
from quire.engine.structured import StructuredOutputsParams
from quire.fuzz.schema_suite import END, accepts, outputs_of

TOOL, CALL = END + 1, END + 2
SPECIAL = {"<|end|>": END, "<|tool|>": TOOL, "<|call|>": CALL}
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}


def const(value: str) -> dict[str, Any]:
    return {"type": "const_string", "value": value}


def regex(pattern: str) -> dict[str, Any]:
    return {"type": "regex", "pattern": pattern}


def schema(value: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": value}


def tag(begin: str, content: Any, end: Any) -> dict[str, Any]:
    return {"type": "tag", "begin": begin, "content": content, "end": end}


def several(kind: str, *elements: Any, **how: Any) -> dict[str, Any]:
    name = "elements" if kind in ("sequence", "or") else "tags"
    return {"type": kind, name: list(elements), **how}


ANY_TEXT = {"type": "any_text"}
A, B = tag("<a>", DIGIT, "</a>"), tag("<b>", regex("xy?"), "</b>")


def find_ends(form: Any, text: str, start: int) -> set[int]:
    """Return where a format that starts somewhere may end: the definition, tried everywhere."""
    every = range(start, len(text) + 1)
    match form.get("type"):
        case "const_string":
            return {start + len(form["value"])} if text.startswith(form["value"], start) else set()
        case "any_text":
            return {*every}
        case "regex":
            return {end for end in every if re.fullmatch(form["pattern"], text[start:end])}
        case "json_schema":
            return {end for end in every if is_valid(form["json_schema"], text[start:end])}
        case "or":
            return {end for one in form["elements"] for end in find_ends(one, text, start)}
        case "sequence":
            return in_a_row(form["elements"], text, {start})
        case "tag":
            content = form["content"]
            is_format = isinstance(content.get("type"), str) and content["type"] not in ("integer",)
            inside = content if is_format else schema(content)
            ends = form["end"] if isinstance(form["end"], list) else [form["end"]]
            last = several("or", *map(const, ends))
            return in_a_row([const(form["begin"]), inside, last], text, {start})
        case "triggered_tags":
            return triggered(form, text, start)
        case "tags_with_separator":
            return separated(form, text, start)
    raise AssertionError(form)


def in_a_row(forms: Iterable[Any], text: str, starts: set[int]) -> set[int]:
    for form in forms:
        starts = {end for start in starts for end in find_ends(form, text, start)}
    return starts


def is_valid(schema: Any, text: str) -> bool:
    try:
        jsonschema.validate(json.loads(text), schema)
    except (ValueError, jsonschema.ValidationError):
        return False
    return text == text.strip()


def triggered(form: Any, text: str, start: int) -> set[int]:
    """Free text up to the first trigger, where one of the tags must begin; again and again."""
    begins = tuple(one["begin"] for one in form["tags"])
    triggers = [one for one in form["triggers"] if any(b.startswith(one) for b in begins)]
    form = {**form, "triggers": triggers}
    todo, seen = [start], {start}
    ends = set() if form.get("at_least_one") else free(form, text, start)
    while todo:
        here = todo.pop()
        found = re.compile("|".join(map(re.escape, form["triggers"]))).search(text, here)
        if found is None:
            continue
        for one in form["tags"]:
            for end in find_ends({**one, "type": "tag"}, text, found.start()) - seen:
                seen.add(end)
                if form.get("stop_after_first"):
                    ends.add(end)
                else:
                    todo.append(end)
                    ends |= free(form, text, end)
    return ends


def free(form: Any, text: str, start: int) -> set[int]:
    return {
        end
        for end in range(start, len(text) + 1)
        if not any(trigger in text[start:end] for trigger in form["triggers"])
    }


def separated(form: Any, text: str, start: int) -> set[int]:
    one = several("or", *({**one, "type": "tag"} for one in form["tags"]))
    reached = new = find_ends(one, text, start)
    while new and not form.get("stop_after_first"):
        new = in_a_row([const(form["separator"]), one], text, new) - reached
        reached = reached | new
    return reached if form.get("at_least_one") else reached | {start}


def compiled(grammars: Grammars, form: Any) -> Compiled:
    asked = StructuredOutputsParams(structural_tag={"type": "structural_tag", "format": form})
    return grammars.compile(grammar_source(asked, SPECIAL))


def likes(token: bytes) -> bool:
    return token in (b"<", b">", b"/", b"a", b"b", b";", b"x")


FORMS: list[tuple[dict[str, Any], list[str], list[str]]] = [
    (const('"a\n'), ['"a\n'], ["", '"a', '"a\n\n']),
    (const(""), [""], ["a"]),
    (regex("a+/|"), ["", "aa/"], ["a", "/"]),
    (schema({"enum": [1, {"a": []}]}), ["1", '{"a": []}', '{"a":[]}'], ["2", "{}"]),
    (ANY_TEXT, ["", "é\n<a>"], []),
    (several("sequence", const("a"), const(""), schema(DIGIT), const("b")), ["a7b"], ["a7", "7b"]),
    (several("or", const(""), const("b"), const("bb"), A), ["", "b", "bb", "<a>1</a>"], ["bbb"]),
    (A, ["<a>1</a>"], ["<a>10</a>", "<a>1", "1"]),
    (tag("<", several("or", A, B), [">", "|", ""]), ["<<a>1</a>|", "<<b>x</b>"], ["<|", "<x>"]),
    (
        tag("<a>", ANY_TEXT, "</a>"),
        ["<a></a>", "<a>b</ a\n</a>"],
        ["<a>", "<a></a>b", "<a></a></a>"],
    ),
    (tag("<a>", ANY_TEXT, ["b", ";"]), ["<a>x;", "<a>b"], ["<a>", "<a>;;", "<a>b;"]),
    (tag("<a>", ANY_TEXT, ["b", ""]), ["<a>", "<a>x;", "<a>b"], ["<b>"]),
    (tag("<b>", regex(".*"), "</b>"), ["<b></b>", "<b>x<b></b>"], ["<b></b>x", "<b>\n</b>"]),
    (several("sequence", regex("[a-z]+"), const("b"), const("/")), ["ab/"], ["b/", "ab"]),
    (several("sequence", ANY_TEXT, A, ANY_TEXT), ["<a>1</a>", "x<a>1</a>y"], ["x", "<a>x</a>"]),
    (several("sequence", ANY_TEXT, regex("x"), regex("b")), ["xb", "axb"], ["b"]),
    (several("sequence", regex(""), regex("x")), ["x"], [""]),
    (several("sequence", regex("<*"), several("or", A, B)), ["<b>x</b>"], ["<<"]),
    (
        several("triggered_tags", A, B, triggers=["<a", "<b"]),
        ["", "x<", "<a>1</a>b<b>xy</b>"],
        ["<a"],
    ),
    (
        several("triggered_tags", A, B, triggers=["<"]),
        ["<a>1</a>", "x<b>x</b>"],
        ["<", "<x", "<a>1"],
    ),
    (
        several("triggered_tags", A, triggers=["<a", "</"], at_least_one=True),
        ["b<a>1</a>"],
        ["", "b"],
    ),
    (
        several("triggered_tags", A, triggers=["<a"], stop_after_first=True),
        ["", "b<a>1</a>"],
        ["<a>1</a>b"],
    ),
    (
        several("triggered_tags", A, B, triggers=["<"], stop_after_first=True, at_least_one=True),
        ["<a>1</a>", "b<b>x</b>"],
        ["", "b", "<b>x</b>b"],
    ),
    (
        several("tags_with_separator", A, B, separator=";"),
        ["", "<a>1</a>;<b>x</b>"],
        ["<a>1</a>;", ";"],
    ),
    (several("tags_with_separator", A, separator=""), ["", "<a>1</a><a>2</a>"], ["<a>"]),
    (several("tags_with_separator", A, separator=";", at_least_one=True), ["<a>1</a>"], [""]),
    (
        several("tags_with_separator", A, separator=";", stop_after_first=True),
        ["", "<a>1</a>"],
        ["<a>1</a>;<a>1</a>"],
    ),
]


@pytest.mark.parametrize(("form", "taken", "refused"), FORMS)
def test_outputs_are_what_the_definition_accepts(
    grammars: Grammars, form: dict[str, Any], taken: list[str], refused: list[str]
) -> None:
    asked = StructuredOutputsParams(structural_tag=json.dumps({"format": form}))
    for output in outputs_of(grammars, asked, likes=likes):
        text = output.decode()
        assert len(text) in find_ends(form, text, 0), text
    made = compiled(grammars, form)
    for text in taken:
        assert len(text) in find_ends(form, text, 0), f"not by the definition: {text!r}"
        assert accepts(made, text), text
    for text in refused:
        assert not accepts(made, text), text


def takes(made: Compiled, *parts: str | int) -> bool:
    """Tell whether a grammar takes a whole output. parts: texts by bytes, and tokens."""
    ids: list[int] = []
    for part in parts:
        ids += [part] if isinstance(part, int) else part.encode()
    matcher = made.start()
    return bool(matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting())


@pytest.mark.parametrize(
    ("form", "taken", "refused"),
    [
        (const("a<|tool|>b"), ["a", TOOL, "b"], ["a<|tool|>b"]),
        (tag("<|tool|>", DIGIT, "<|call|>"), [TOOL, "7", CALL], [TOOL, "7<|call|>"]),
        (tag("<|tool|>f", ANY_TEXT, "<|call|>"), [TOOL, "f<|call|>", CALL], [TOOL, "f"]),
        (
            tag("<a>", ANY_TEXT, ["</a>", "<|call|>"]),
            ["<a><|call|></", CALL],
            ["<a>", CALL, "</a>"],
        ),
        (several("sequence", ANY_TEXT, const("<|tool|>")), ["a", TOOL], ["a<|tool|>"]),
        # In free text a token is what triggers, not its spelling; part of a token is all of it.
        (
            several("triggered_tags", tag("<|tool|>f", DIGIT, ""), triggers=["<|tool|>"]),
            ["<|tool|>x", TOOL, "f7y"],
            [TOOL, "x"],
        ),
        (
            several("triggered_tags", tag("<|tool|>f", DIGIT, ""), triggers=["<|tool|>f"]),
            ["x", TOOL, "f7"],
            ["x", TOOL, "7"],
        ),
        (
            several("triggered_tags", tag("<|tool|>", DIGIT, "<|call|>"), triggers=["<|"]),
            ["<|x", TOOL, "7", CALL],
            ["x", TOOL, "y"],
        ),
    ],
)
def test_special_tokens_are_tokens(
    grammars: Grammars, form: dict[str, Any], taken: list[Any], refused: list[Any]
) -> None:
    made = compiled(grammars, form)
    assert takes(made, *taken) and not takes(made, *refused)
    assert not takes(made, *taken, TOOL)


def test_the_old_spelling_is_the_same(grammars: Grammars) -> None:
    """{"structures", "triggers"}: triggered tags whose contents are schemas."""
    old = {
        "type": "structural_tag",
        "structures": [
            {"begin": "<a>", "schema": DIGIT, "end": "</a>"},
            {"begin": "<b>", "schema": {"enum": ["x"]}},
        ],
        "triggers": ["<a", "<b"],
    }
    asked = StructuredOutputsParams(structural_tag=old)
    new = several("triggered_tags", A, tag("<b>", {"enum": ["x"]}, ""), triggers=["<a", "<b"])
    assert grammar_source(asked) == grammar_source(
        StructuredOutputsParams(structural_tag={"format": new})
    )
    made = grammars.compile(grammar_source(asked, SPECIAL))
    assert accepts(made, '<a>1</a>b<b>"x"<') and not accepts(made, "<a>")


def nested(depth: int, form: dict[str, Any]) -> dict[str, Any]:
    for _ in range(depth):
        form = several("triggered_tags", tag("<", form, ">"), triggers=["<"])
    return form


BROKEN: list[tuple[Any, str]] = [
    ("{", "structural_tag is not JSON"),
    ("true", "structural_tag is True: it must be an object"),
    ({}, r"structural_tag\.structures is None: it must be a list of objects"),
    ({"structures": [], "triggers": ["<"]}, r"structures is \[\]"),
    (
        {"structures": [{"begin": "<", "schema": {}}]},
        "triggers is None: it must be a list of texts",
    ),
    ({"structures": [{"begin": "<"}], "triggers": ["<"]}, r"structures\[0\]\.schema is None"),
    (
        {"structures": [{"begin": "a", "schema": {}}], "triggers": ["<", ""]},
        r"structures\[0\]\.begin is 'a': it must be a text that one of the triggers begins",
    ),
    ({"structures": [{"schema": {}}], "triggers": ["<"]}, r"structures\[0\]\.begin is None"),
    ({"format": 7}, "format.type is None: it must be const_string, json_schema"),
    ({"format": {"type": "wat"}}, "format.type is 'wat'"),
    ({"format": {"type": {}}}, r"format.type is \{\}"),
    ({"format": {"type": "const_string"}}, "format.value is None: it must be a text"),
    ({"format": const("\ud800")}, "not JSON|surrogate"),
    ({"format": {"type": "regex", "pattern": 3}}, "format.pattern is 3"),
    ({"format": regex("((")}, "unclosed group"),
    ({"format": schema(3)}, "format.json_schema is 3: it must be a JSON Schema"),
    ({"format": schema({"type": "wat"})}, "wat"),
    ({"format": several("sequence", const("a"), 3)}, "format.elements is"),
    ({"format": several("or", const("a"), {})}, r"format.elements\[1\].type is None"),
    ({"format": several("sequence", ANY_TEXT, const(3))}, r"format.elements\[1\].value is 3"),  # type: ignore[arg-type]
    ({"format": tag("a", None, "b")}, "format.content is None: it must be a JSON Schema"),
    ({"format": tag("a", {}, 3)}, "format.end is 3: it must be a text or some"),
    ({"format": tag("a", {}, [])}, r"format.end is \[\]"),
    ({"format": tag("a", {}, ["b", 3])}, r"format.end is \['b', 3\]"),
    ({"format": several("triggered_tags", {"begin": "a"})}, "format.triggers is None"),
    (
        {"format": several("triggered_tags", {"begin": "a"}, triggers=["a"])},
        r"format.tags\[0\].content is None",
    ),
    ({"format": several("tags_with_separator", A)}, "format.separator is None"),
    ({"format": nested(70, DIGIT)}, "too deep"),
    ({"format": nested(250, DIGIT)}, "too deep"),
    ({"format": several("or", *[regex("a")] * 3000)}, "more than 4096 parts"),
]


@pytest.mark.parametrize(("form", "words"), BROKEN)
def test_what_is_broken_is_refused_by_its_place(grammars: Grammars, form: Any, words: str) -> None:
    with pytest.raises(ParamsError) as caught:
        grammars.compile(grammar_source(StructuredOutputsParams(structural_tag=form), SPECIAL))
    assert caught.value.param == "structured_outputs"
    assert re.search(words, str(caught.value)), caught.value
    assert len(str(caught.value)) < 500
