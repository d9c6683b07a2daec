"""Thoughts of a model whose chat template or reasoning parser says how it thinks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from quire import LLM, SamplingParams
from quire.engine.config import EngineConfig, ReasoningConfig
from quire.engine.parsing.choose import Parsers
from quire.engine.parsing.formats import REASONING_FORMATS
from quire.engine.structured import StructuredOutputsParams, Thought
from quire.engine.text.reasoning import find_markers, markers_of

END = "</think>"


@pytest.fixture(scope="module")
def llm() -> LLM:
    """The bundled model, which does not think, taken for one that does."""
    return LLM(reasoning_parser="deepseek_r1", num_kv_blocks=64, num_threads=1)


def prompt(llm: LLM) -> list[int]:
    """A prompt that ends with the beginning of a thought."""
    ids = [llm.get_tokenizer().encode(one, add_special_tokens=False) for one in ("Hi", "<think>")]
    return [*ids[0], *ids[1]]


@pytest.mark.parametrize("budget", [0, 5])
def test_a_budget_is_kept_with_the_markers_of_the_reasoning_parser(llm: LLM, budget: int) -> None:
    end = llm.get_tokenizer().encode(END, add_special_tokens=False)
    params = SamplingParams(thinking_token_budget=budget, max_tokens=40, ignore_eos=True)
    (output,) = llm.generate(prompt(llm), params, use_tqdm=False)
    ids = output.outputs[0].token_ids
    assert list(ids[budget : budget + len(end)]) == end


def test_a_form_holds_behind_the_thought(llm: LLM) -> None:
    form = StructuredOutputsParams(
        json={"type": "array", "items": {"type": "boolean"}, "maxItems": 3, "minItems": 1},
        thought=Thought("", END),
    )
    end = llm.get_tokenizer().encode(END, add_special_tokens=False)

    def stop_thinking(output_ids: list[int], logits: Any) -> Any:
        place = len(output_ids) - 3
        if 0 <= place < len(end):
            logits[end[place]] += 1e4
        return logits

    for seed in range(4):
        params = SamplingParams(
            structured_outputs=form, seed=seed, max_tokens=60, logits_processors=[stop_thinking]
        )
        (output,) = llm.generate(prompt(llm), params, use_tqdm=False)
        (answer,) = output.outputs
        assert answer.finish_reason == "stop" and list(answer.token_ids[3 : 3 + len(end)]) == end
        assert all(isinstance(one, bool) for one in json.loads(answer.text.partition(END)[2]))


def test_options_come_before_the_reasoning_parser(llm: LLM) -> None:
    tokenizer = llm.get_tokenizer()
    parsers = Parsers(None, REASONING_FORMATS["qwen3"])
    given = ReasoningConfig(reasoning_start_str="the", reasoning_end_str="cat")
    size = tokenizer.vocab_size
    own = markers_of(EngineConfig(reasoning_config=given), parsers, tokenizer, size)
    assert own == find_markers(given, tokenizer, size)
    found = markers_of(EngineConfig(), parsers, tokenizer, size)
    assert found is not None and found.end == tuple(tokenizer.encode(END, add_special_tokens=False))
    assert markers_of(EngineConfig(), Parsers(), tokenizer, size) is None
    assert markers_of(EngineConfig(), parsers, None, size) is None
