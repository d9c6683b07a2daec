"""StructuredOutputsParams: one form each, of the right type, or an error that names the field."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from quire import SamplingParams
from quire.engine.errors import ParamsError
from quire.engine.structured import FORMS, MAX_CHOICES, StructuredOutputsParams

GOOD: dict[str, list[Any]] = {
    "json": [{}, {"type": "object"}, "{}", True, False],
    "json_object": [True],
    "regex": ["", "a"],
    "choice": [["a"], ("a", ""), ["x"] * MAX_CHOICES],
    "grammar": ["start: /a/"],
    "structural_tag": ["{}", {"format": {}}],
}


@pytest.mark.parametrize("name", FORMS)
def test_each_form_alone_is_taken_and_comes_back_from_a_message(name: str) -> None:
    for value in GOOD[name]:
        form = StructuredOutputsParams(**{name: value, "disable_any_whitespace": True})
        assert getattr(form, name) == (tuple(value) if name == "choice" else value)
        again = msgspec.msgpack.decode(msgspec.msgpack.encode(form), type=StructuredOutputsParams)
        assert again == form


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "has none of its forms: give one of json, json_object, regex, choice, grammar"),
        ({"json_object": False}, "has none of its forms"),
        ({"whitespace_pattern": " "}, "has none of its forms"),
        ({"regex": "a", "choice": ["b"]}, "has regex and choice"),
        ({"json": False, "json_object": True}, "has json_object and json"),
        ({"json": 7}, r"\.json is 7: it must be a JSON Schema"),
        ({"json": ["a"]}, r"\.json is \['a'\]"),
        ({"json_object": 1}, r"\.json_object is 1: it must be true or false"),
        ({"regex": b"a"}, r"\.regex is b'a': it must be a regular expression"),
        ({"grammar": 1}, r"\.grammar is 1"),
        ({"structural_tag": [1]}, r"\.structural_tag is \[1\]: it must be an object or its JSON"),
        ({"choice": []}, rf"\.choice is \[\]: it must be 1 to {MAX_CHOICES} texts"),
        ({"choice": "abc"}, r"\.choice is 'abc'"),
        ({"choice": ["a", 1]}, r"\.choice is \['a', 1\]"),
        ({"choice": {"a": 1}}, r"\.choice is \{'a': 1\}"),
        ({"choice": ["x"] * (MAX_CHOICES + 1)}, r"\.choice is "),
        ({"json": {}, "disable_any_whitespace": 1}, r"\.disable_any_whitespace is 1"),
        ({"json": {}, "disable_additional_properties": "no"}, r"properties is 'no': it must be tr"),
        ({"json": {}, "whitespace_pattern": 3}, r"\.whitespace_pattern is 3"),
    ],
)
def test_what_is_no_form_is_refused(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(ParamsError) as caught:
        StructuredOutputsParams(**fields)
    assert caught.value.param == "structured_outputs"
    assert re.search(words, str(caught.value)), caught.value
    assert len(str(caught.value)) < 250


def test_params_take_the_form_and_nothing_else() -> None:
    form = StructuredOutputsParams(regex="a")
    assert SamplingParams(structured_outputs=form).structured_outputs == form
    for wrong in ({"regex": "a"}, "a"):
        with pytest.raises(ParamsError, match="must be StructuredOutputsParams"):
            SamplingParams(structured_outputs=wrong)  # type: ignore[arg-type]
