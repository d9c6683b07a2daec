"""What is asked of an output, as a grammar: outputs are what Python's own tools accept."""

from __future__ import annotations

import itertools
import json
import re
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from quire.engine.errors import ParamsError
from quire.engine.grammar.grammars import Compiled, Grammars
from quire.engine.grammar.source import MAX_SOURCE_BYTES, grammar_source
from quire.engine.structured import StructuredOutputsParams, Thought
from quire.fuzz.schema_suite import accepts, outputs_of

SPECIAL = ("<|end|>", "<|tool|>", "<|call|>")
LETTERS = "ab/\n"
WORDS = ["".join(word) for n in range(4) for word in itertools.product(LETTERS, repeat=n)]


def compiled(grammars: Grammars, **form: Any) -> Compiled:
    return grammars.compile(grammar_source(StructuredOutputsParams(**form), SPECIAL))


def drawn(grammars: Grammars, **form: Any) -> list[str]:
    outputs = outputs_of(grammars, StructuredOutputsParams(**form))
    assert outputs, "none ended"
    return [output.decode() for output in outputs]


def regexes() -> st.SearchStrategy[str]:
    """Patterns that mean the same to Python and to Rust."""
    letters = ("a", "b", "/", r"\/", "\n", r"\n", "\\\n", "[ab]", r"[^a/]", "[/]", ".", r"\x61", "")
    return st.recursive(
        st.sampled_from(letters),
        lambda inner: st.one_of(
            st.builds("".join, st.lists(inner, min_size=2, max_size=3)),
            st.builds(lambda parts: f"(?:{'|'.join(parts)})", st.lists(inner, min_size=2)),
            st.builds(
                lambda one, times: f"(?:{one}){times}",
                inner,
                st.sampled_from(("*", "+", "?", "{1,2}", "{2}", "{0}")),
            ),
        ),
        max_leaves=6,
    )


@settings(max_examples=60, deadline=None)
@given(pattern=regexes())
@example("")
@example("//")
@example(r"\\/")
def test_a_regex_accepts_what_the_whole_of_it_matches(grammars: Grammars, pattern: str) -> None:
    made = compiled(grammars, regex=pattern)
    expected = [word for word in WORDS if re.fullmatch(pattern, word)]
    assert [word for word in WORDS if accepts(made, word)] == expected


@pytest.mark.parametrize(
    "pattern",
    [
        r"\d{3}-[A-F]+",
        "(GET|POST) /[a-z/]*",
        r'"(\\"|[^"\\\n])*"',
        "(?i)yes|no",
        "^[ab]+$",
        r"[a-z]+@[a-z]+\.(com|org)",
        "é|ß+|[à-ü]{2}|😀",
        r"#\s?//.*",
    ],
)
def test_outputs_match_the_whole_regex(grammars: Grammars, pattern: str) -> None:
    for output in drawn(grammars, regex=pattern):
        assert re.fullmatch(pattern, output), output


ODD = ["", '"', "\\", "\\n", "\n", "\r\n", "\t", "\0", "\x1b", "\x7f", "\x80", "é", "😀", "\u2028"]
ODD += ["/", "/a/", "//x", "<|end|>", "<|tool|>", "<x>", "%json {}", "a|b", "a", "ab", "abc", "a b"]
texts = st.one_of(st.sampled_from(ODD), st.text(max_size=6))


@settings(max_examples=60, deadline=None)
@given(choices=st.lists(texts, min_size=1, max_size=8))
@example(ODD)
def test_a_choice_is_one_of_them_whatever_is_in_it(grammars: Grammars, choices: list[str]) -> None:
    """Also where one begins another, has quotes, or spells a special token."""
    made = compiled(grammars, choice=choices)
    for one in choices:
        assert accepts(made, one), one
        for beginning in (one[:end] for end in range(len(one))):
            assert accepts(made, beginning) == (beginning in choices), beginning
        assert accepts(made, one + "x") == (one + "x" in choices)
    assert {*drawn(grammars, choice=choices)} <= {*choices}


def test_a_choice_of_many(grammars: Grammars) -> None:
    """Ten thousand, many of which begin alike."""
    choices = [f"number {n}" for n in range(10_000)]
    made = compiled(grammars, choice=choices)
    for text, taken in (("number 9999", True), ("number 0", True), ("number 10000", False)):
        assert accepts(made, text) == taken, text


LARK = [
    ('start: "a" | "b" /[0-9]+/', "a|b[0-9]+"),
    ('start: WORD ("," WORD)*\nWORD: /[a-z]{2}/', "[a-z]{2}(,[a-z]{2})*"),
    ('%llguidance {}\n\nstart: x{2,3}\nx: "<" /[ab]/ ">"', "(<[ab]>){2,3}"),
    ('// a comment\nstart: %json {"enum": [1, "x"]} "!"', r'(1|"x")!'),
    ('\n\n  start : "a"\n', "a"),
    ("start: <|tool|> /[a-c]/ <|call|>", r"<\|tool\|>[a-c]<\|call\|>"),
]
GBNF = [
    ('root ::= "a" | "b" [0-9]+', "a|b[0-9]+"),
    ('root ::= item ("," item)*\nitem ::= [a-z] [a-z] # two', "[a-z]{2}(,[a-z]{2})*"),
    ('root ::= (\n  "x" "y"? |\n  "z"{2}\n)', "xy?|zz"),
    ('root ::= fooBar\nfooBar ::= [^a-y"/\\n] "\\"" "\\\\"', r'[^a-y"/\n]"\\'),
    ('# one\nroot ::= "a" b-c\nb-c ::= "\\x41" | "é"', "a(A|é)"),
]


@pytest.mark.parametrize(("grammar", "pattern"), [*LARK, *GBNF])
def test_a_grammar_in_lark_or_gbnf(grammars: Grammars, grammar: str, pattern: str) -> None:
    for output in drawn(grammars, grammar=grammar):
        assert re.fullmatch(pattern, output), output


@pytest.mark.parametrize("grammar", ['start: "(" start* ")"', 'root ::= "(" root* ")"'])
def test_a_grammar_that_is_no_regex(grammars: Grammars, grammar: str) -> None:
    made = compiled(grammars, grammar=grammar)
    for word in map("".join, itertools.product("()", repeat=6)):
        depths = list(itertools.accumulate(1 if char == "(" else -1 for char in word))
        balanced = depths[-1] == 0 and min(depths[:-1]) > 0
        assert accepts(made, word) == balanced, word


ANY: dict[str, Any] = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 4}
SPACED = re.compile(r"[\[\]\-,0-9]|(?:[ ]|\r?\n[ \t]{0,64})(?![ \n\r\t])")
"""JSON of integers with what space may stand between its tokens."""


def test_space_between_tokens_is_bounded(grammars: Grammars) -> None:
    """Otherwise a model may write space until its tokens are used up."""
    for schema in (ANY, json.dumps(ANY)):
        made = compiled(grammars, json=schema)
        for output in drawn(grammars, json=schema):
            assert SPACED.sub("", output) == "" and len(json.loads(output)) >= 2, output
        assert (
            accepts(made, "[1, 2]") and accepts(made, "[1,2]") and accepts(made, "[\n  1,\n  2\n]")
        )
        assert not accepts(made, "[1,  2]") and not accepts(made, "[1,\n\n2]")


@pytest.mark.parametrize("schema", [ANY, True, "true", {}, '{"type": ["array", "null"]}'])
def test_space_is_what_was_asked_for(grammars: Grammars, schema: Any) -> None:
    """Of every schema, true too: it has no place to say it."""
    plain = compiled(grammars, json=schema)
    none = compiled(grammars, json=schema, disable_any_whitespace=True)
    tildes = compiled(grammars, json=schema, whitespace_pattern="~~")
    for text, expected in (
        ("[1,2]", (True, True, True)),
        ("[1, 2]", (True, False, False)),
        ("[1,     2]", (False, False, False)),
        ("[~~1,~~2]", (False, False, True)),
    ):
        assert tuple(accepts(made, text) for made in (plain, none, tildes)) == expected, text


def test_a_schema_may_say_its_own_space(grammars: Grammars) -> None:
    own = {**ANY, "x-guidance": {"whitespace_pattern": r"\t"}}
    made = compiled(grammars, json=own)
    assert accepts(made, "[1,\t2]") and not accepts(made, "[1, 2]")
    made = compiled(grammars, json=own, disable_any_whitespace=True)
    assert accepts(made, "[1,2]") and not accepts(made, "[1,\t2]")


def test_any_object(grammars: Grammars) -> None:
    for output in drawn(grammars, json_object=True):
        assert isinstance(json.loads(output), dict)
    made = compiled(grammars, json_object=True)
    assert accepts(made, '{"a": [1, {"b": null}], "é": "\\n"}')
    assert not accepts(made, "[]") and not accepts(made, "1")


def test_other_properties_can_be_disabled_everywhere(grammars: Grammars) -> None:
    """In what a schema holds too, but not where it allows them; the schema stays as it is."""
    inner = {"properties": {"x": {"type": "integer"}}}
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"in": {"$ref": "#/$defs/in"}, "of": {"type": "array", "items": inner}},
        "required": ["in", "of"],
        "$defs": {"in": {**inner, "additionalProperties": {"type": "null"}}},
    }
    before = json.dumps(schema)
    free = compiled(grammars, json=schema)
    closed = compiled(grammars, json=schema, disable_additional_properties=True)
    for text, in_closed in (
        ('{"in": {"x": 1}, "of": [{"x": 2}]}', True),
        ('{"in": {"x": 1, "y": null}, "of": []}', True),
        ('{"in": {}, "of": [{"x": 2, "y": 3}]}', False),
        ('{"in": {}, "of": [], "more": 1}', False),
    ):
        assert accepts(free, text) and accepts(closed, text) == in_closed, text
    assert json.dumps(schema) == before


ENDLESS: list[dict[str, Any]] = [
    {"grammar": "start: x x\nx: /a+/"},
    {"grammar": "root ::= x x\nx ::= [a]+"},
    {"grammar": 'start: x x\nx: /a+/\n%llguidance {"no_forcing": false}\n// the end'},
    {
        "json": {"type": "array", "items": {"const": None}, "minItems": 10**8},
        "disable_any_whitespace": True,
    },
    {"regex": "a{99999}{99999}"},
    {
        "structural_tag": {
            "format": {
                "type": "sequence",
                "elements": [
                    {"type": "regex", "pattern": "a+"},
                    {"type": "or", "elements": [{"type": "regex", "pattern": "a+b"}]},
                ],
            }
        }
    },
]


@pytest.mark.parametrize("form", ENDLESS)
def test_what_must_come_may_be_without_end(grammars: Grammars, form: dict[str, Any]) -> None:
    """It is not computed ahead: a step that tries would never end, and all others wait."""
    matcher = compiled(grammars, **form).start()
    for _ in range(20):
        mask = matcher.compute_bitmask()
        first = next(index for index, byte in enumerate(mask) if byte)
        assert matcher.consume_token(8 * first + (mask[first] & -mask[first]).bit_length() - 1)
    assert not matcher.is_error() and not matcher.is_accepting()


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"regex": "(("}, "unclosed group"),
    ({"regex": r"\ba"}, "lookarounds"),
    ({"regex": "\ud800"}, "half of a surrogate pair"),
    ({"regex": "[a-z]" * 250_000}, f"too large.*{MAX_SOURCE_BYTES}"),
    ({"choice": ["a", "\udc00"]}, "half of a surrogate pair"),
    ({"grammar": "start: x"}, "unknown name"),
    ({"grammar": "hello"}, "neither Lark.*nor GBNF.*Expected ::="),
    ({"grammar": "\n" * 500_000}, "neither Lark.*nor GBNF"),
    ({"grammar": 'root ::= "a'}, "nor GBNF.*Unexpected end"),
    ({"grammar": "root ::= " + "(" * 5000}, "nor GBNF.*recursion"),
    (
        {"grammar": "root ::= a\n" + "".join(f"r{n} ::= r{n + 1}\n" for n in range(9000))},
        "too large",
    ),
    ({"grammar": 'root ::= "a"\n' + "#\n" * 200_000}, "too large"),
    ({"json": "{"}, "json is not JSON"),
    ({"json": '{"a": NaN}'}, "json is not JSON"),
    ({"json": {"a": object()}}, "json is not JSON"),
    ({"json": {"const": "\ud800"}}, "not JSON|surrogate"),
    ({"json": "[1]"}, r"json is \[1\]: it must be an object"),
    ({"json": '{"items":' * 100_000 + "{}" + "}" * 100_000}, "json is nested too deeply"),
    ({"json": {"enum": ["x" * MAX_SOURCE_BYTES]}}, "too large"),
    ({"json": False}, "false"),
    ({"json": {}, "whitespace_pattern": "("}, "unclosed group"),
    (
        {"json": {"enum": [[]] * 200_000}, "disable_additional_properties": True},
        "json has too many parts",
    ),
]


@pytest.mark.timeout(30)
@pytest.mark.parametrize(("form", "words"), BROKEN)
def test_what_is_broken_is_refused_with_a_reason(
    grammars: Grammars, form: dict[str, Any], words: str
) -> None:
    """And soon: nothing here may take a time that grows faster than the form."""
    with pytest.raises(ParamsError) as caught:
        compiled(grammars, **form)
    assert caught.value.param == "structured_outputs"
    assert re.search(words, str(caught.value)), caught.value
    assert len(str(caught.value)) < 1000


FORMS_WITH_TEXTS: list[tuple[dict[str, Any], str]] = [
    ({"regex": "a|b"}, "b"),
    ({"choice": ["a", "a/"]}, "a/"),
    ({"grammar": "start: x\nx: /b+/"}, "bb"),
    ({"json": {"const": {"a": 1}}}, '{"a": 1}'),
    ({"json_object": True}, '{"<think>": 1}'),
    ({"structural_tag": {"format": {"type": "const_string", "value": "<a>"}}}, "<a>"),
]


@pytest.mark.parametrize(("form", "text"), FORMS_WITH_TEXTS)
def test_a_form_begins_behind_a_thought(
    grammars: Grammars, form: dict[str, Any], text: str
) -> None:
    """Which may be left out where nothing has begun it, and must end where something has."""
    ahead = compiled(grammars, **form, thought=Thought("<think>", "</think>"))
    opened = compiled(grammars, **form, thought=Thought("", "</think>"))
    for thought in ("", "hm", "\n<think> < </think", text):
        for space in ("", "\n\n"):
            behind = f"{thought}</think>{space}{text}"
            assert accepts(ahead, f"<think>{behind}") and accepts(opened, behind)
    assert accepts(ahead, text) and not accepts(opened, text)
    for wrong in (f"<think>{text}", f"</think>{text}", f"<think>a</think>{text}</think>{text}"):
        assert not accepts(ahead, wrong)
    assert not accepts(opened, f"a</think>\n\n\n\n\n{text}")


def test_a_thought_may_end_with_a_special_token(grammars: Grammars) -> None:
    made = compiled(grammars, regex="[ab]+", thought=Thought("<|call|>", "<|tool|>"))
    call, tool = (grammars.vocabulary.special[name] for name in ("<|call|>", "<|tool|>"))
    matcher = made.start()
    assert matcher.try_consume_tokens([call, *b"so", tool, *b"\nab"]) == 7
    assert matcher.is_accepting()
    assert made.start().try_consume_tokens([*b"ab", tool]) == 2
