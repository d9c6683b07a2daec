"""A form and a budget of thinking in one request: the thought ends in time, the form follows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from quire.engine.async_engine import AsyncEngine

from .conftest import served

FORM = {
    "type": "object",
    "properties": {"sure": {"type": "boolean"}},
    "required": ["sure"],
    "additionalProperties": False,
}
TOOL: Any = {"type": "function", "function": {"name": "look", "parameters": FORM}}
BUDGET = 6
MARKER = "</think>"


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """The bundled model, which does not think, taken for one that does."""
    engine = AsyncEngine(
        served_model_name="demo", reasoning_parser="deepseek_r1", num_kv_blocks=256, num_threads=1
    )
    with (
        served(engine) as live,
        openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def ask(client: Any, *, budget: int = BUDGET, **fields: Any) -> Any:
    """Ask for the rest of a message that thinks."""
    extra = {
        "thinking_token_budget": budget,
        "continue_final_message": True,
        "add_generation_prompt": False,
    }
    (choice,) = client.chat.completions.create(
        model="demo",
        messages=[
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "<think>"},
        ],
        max_completion_tokens=100,
        extra_body=extra,
        **fields,
    ).choices
    return choice


@pytest.mark.parametrize("seed", range(3))
def test_a_form_follows_a_thought_that_is_cut(client: Any, seed: int) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": FORM}}
    choice = ask(client, seed=seed, response_format=form)
    assert choice.finish_reason == "stop"
    assert set(json.loads(choice.message.content)) == {"sure"}
    assert MARKER not in choice.message.reasoning
    short = ask(client, seed=seed, response_format=form, budget=0)
    assert not short.message.reasoning and set(json.loads(short.message.content)) == {"sure"}


def test_a_demanded_call_follows_a_thought_that_is_cut(client: Any) -> None:
    named = {"type": "function", "function": {"name": "look"}}
    choice = ask(client, seed=1, tools=[TOOL], tool_choice=named)
    (call,) = choice.message.tool_calls
    assert call.function.name == "look" and set(json.loads(call.function.arguments)) == {"sure"}


def test_a_form_without_a_thought_takes_no_harm(client: Any) -> None:
    """A completion has no thoughts: its form begins at once."""
    given = client.completions.create(
        model="demo",
        prompt="a",
        max_tokens=60,
        extra_body={"thinking_token_budget": 1, "structured_outputs": {"json": FORM}},
    )
    assert set(json.loads(given.choices[0].text)) == {"sure"}
