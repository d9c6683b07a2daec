"""Which formats a model writes: by name, or else by what its chat template has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from quire.engine.config import DEMO_MODEL, EngineConfig
from quire.engine.errors import ConfigError
from quire.engine.parsing.choose import Parsers, choose_parsers
from quire.engine.parsing.formats import REASONING_FORMATS, TOOL_FORMATS

THINK = "{{ content.split('</think>')[-1] }}"
TEMPLATES: list[tuple[str, str | None, str | None]] = [
    ("{{ message.content }}", None, None),
    ('<tool_call>\n{"name": ', "hermes", None),
    ('<tool_call>\n{"name": ' + THINK, "hermes", "qwen3"),
    ("<tool_call>\n<function=' + name + '>\n<parameter=' + key + '>", "qwen3_coder", None),
    ("<tool_call>' + name + '<arg_key>" + THINK, "glm45", "glm45"),
    ("{{ '[TOOL_CALLS]' }}", "mistral", None),
    ("[TOOL_CALLS] [THINK]", "mistral", "mistral"),
    ("<｜tool▁calls▁begin｜> '\\n```json\\n' " + THINK, "deepseek_v3", "qwen3"),
    ("<｜tool▁calls▁begin｜> " + THINK, "deepseek_v31", "qwen3"),
    ("<|tool_calls_section_begin|><|tool_call_begin|>", "kimi_k2", None),
    ("<|tool_call_begin|><think></think>", "kimi_k2", "kimi_k2"),
    ("<|start|>assistant<|channel|>analysis<|message|>", "openai", "openai_gptoss"),
    ('{"name": function name, "parameters": dictionary of argument name and its value}',
     "llama3_json", None),
    ("[func_name1(params_name1=params_value1)]", "pythonic", None),
    ("<|python_start|>[func_name1(params_name1=params_value1)]", "llama4_pythonic", None),
    ("<seed:tool_call><seed:think>", "seed_oss", "seed_oss"),
    ("Here is my thought process: Here is my response:", None, "granite"),
]  # fmt: skip


def choose(template: str, tools: str | None = None, reasoning: str | None = None) -> Parsers:
    return choose_parsers(
        tools, reasoning, templates=["", template], special_tokens=(), tell=lambda what, name: None
    )


@pytest.mark.parametrize(("template", "tools", "reasoning"), TEMPLATES)
def test_a_template_shows_the_formats(
    template: str, tools: str | None, reasoning: str | None
) -> None:
    chosen = choose(template)
    assert chosen.tools is (None if tools is None else TOOL_FORMATS[tools])
    assert chosen.reasoning is (None if reasoning is None else REASONING_FORMATS[reasoning])


def test_the_bundled_model_calls_as_hermes_does() -> None:
    template = (Path(DEMO_MODEL).parent / "chat_template.jinja").read_text()
    chosen = choose(template)
    assert chosen.tools is TOOL_FORMATS["hermes"] and chosen.reasoning is None


def test_a_name_comes_before_the_template() -> None:
    chosen = choose("<tool_call></think>", "mistral", "deepseek_r1")
    assert chosen.tools is TOOL_FORMATS["mistral"]
    assert chosen.reasoning is REASONING_FORMATS["deepseek_r1"]
    chosen = choose("<tool_call></think>", "none", "none")
    assert chosen.tools is None and chosen.reasoning is None


@pytest.mark.parametrize("option", ["tool_call_parser", "reasoning_parser"])
def test_an_unknown_name_is_refused_with_those_that_are_known(option: str) -> None:
    options: Any = {option: "hermés"}
    with pytest.raises(ConfigError, match=f"{option} is 'hermés'.*mistral, .*none"):
        EngineConfig(**options)


def test_nothing_is_read_where_there_is_no_format() -> None:
    none, hermes = Parsers(), Parsers(TOOL_FORMATS["hermes"], REASONING_FORMATS["qwen3"])
    assert not none.reads("text") and not none.reads("calls")
    assert none.reads("some call") and none.reads("named call")
    assert hermes.reads("calls", thinks=False) and not hermes.reads("text", thinks=False)
    assert hermes.reads("text")


@pytest.mark.parametrize(
    ("name", "prompt", "message", "place"),
    [
        ("qwen3", "hi", None, "ahead"),
        ("qwen3", "hi<think>\n", None, "open"),
        ("qwen3", "hi<think>\n\n</think>\n\n", None, "behind"),
        ("qwen3", "<think>, said the user", None, "ahead"),
        ("deepseek_r1", "hi", None, "open"),
        ("deepseek_r1", "hi</think>", None, "behind"),
        ("qwen3", "", "<think>so", "open"),
        ("qwen3", "", "<think>so</think>then", "behind"),
        ("qwen3", "", "then", "behind"),
        ("deepseek_r1", "", "so", "open"),
        ("openai_gptoss", "hi", None, "behind"),
    ],
)
def test_the_prompt_tells_where_the_thought_is(
    name: str, prompt: str, message: str | None, place: str
) -> None:
    parsers = Parsers(None, REASONING_FORMATS[name])
    assert parsers.thought_at(prompt, message) == place
