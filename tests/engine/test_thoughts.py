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


BOOLEANS = {"type": "array", "items": {"type": "boolean"}, "maxItems": 3, "minItems": 1}


@pytest.mark.parametrize("options", [{}, {"speculative_config": {"method": "ngram"}}])
def test_a_budget_ends_the_thought_and_the_form_begins_behind_it(options: Any) -> None:
    """Alone and among others, with guesses and without, the same."""
    with LLM(reasoning_parser="deepseek_r1", num_kv_blocks=64, num_threads=1, **options) as llm:
        end = llm.get_tokenizer().encode(END, add_special_tokens=False)
        form = StructuredOutputsParams(json=BOOLEANS, thought=Thought("", END))
        asked = [
            SamplingParams(
                structured_outputs=form, thinking_token_budget=budget, seed=seed, max_tokens=80, n=2
            )
            for budget in (0, 1, 7, 20)
            for seed in range(2)
        ]
        together = llm.generate([prompt(llm)] * len(asked), asked, use_tqdm=False)
        for params, output in zip(asked, together, strict=True):
            budget = params.thinking_token_budget
            assert budget is not None
            for answer in output.outputs:
                ids = list(answer.token_ids)
                thought, found, rest = answer.text.partition(END)
                assert found and answer.finish_reason == "stop"
                if thought_is_cut := ids[budget : budget + len(end)] == end:
                    assert END not in llm.get_tokenizer().decode(ids[:budget])
                assert thought_is_cut or len(llm.get_tokenizer().encode(thought)) < budget + 8
                assert all(isinstance(one, bool) for one in json.loads(rest))
            (alone,) = llm.generate(prompt(llm), params, use_tqdm=False)
            assert [one.token_ids for one in alone.outputs] == [
                one.token_ids for one in output.outputs
            ]


def test_an_end_in_other_tokens_is_an_end(llm: LLM) -> None:
    """Behind it the form may say what the marker says, and nothing is put into it."""
    tokenizer = llm.get_tokenizer()
    letters = [tokenizer.encode(one, add_special_tokens=False) for one in END]
    assert len(letters) != len(tokenizer.encode(END, add_special_tokens=False))

    def spell_the_end(output_ids: list[int], logits: Any) -> Any:
        if len(output_ids) < len(letters):
            (token,) = letters[len(output_ids)]
            logits[token] += 1e4
        return logits

    params = SamplingParams(
        structured_outputs=StructuredOutputsParams(regex="[a-z</>]{40}", thought=Thought("", END)),
        thinking_token_budget=len(letters) + 2,
        logits_processors=[spell_the_end],
        max_tokens=80,
        seed=1,
    )
    (output,) = llm.generate(prompt(llm), params, use_tqdm=False)
    _, found, rest = output.outputs[0].text.partition(END)
    assert found and END not in rest and len(rest.strip()) == 40


def test_a_form_without_a_thought_has_none_to_bound(llm: LLM) -> None:
    form = StructuredOutputsParams(regex="<think>[a-z]{30}")
    given = {}
    for budget in (None, 2):
        params = SamplingParams(
            structured_outputs=form, thinking_token_budget=budget, seed=2, max_tokens=80
        )
        (output,) = llm.generate("Hi", params, use_tqdm=False)
        given[budget] = output.outputs[0].token_ids
    assert given[None] == given[2]


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
