"""Prompts of every kind, the seeds of requests, and what is refused with which words."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quire.engine.config import EngineConfig, ReasoningConfig
from quire.engine.errors import ConfigError, ParamsError
from quire.engine.params import SamplingParams
from quire.engine.text.chat import ChatTemplate
from quire.engine.text.files import TokenizerConfig
from quire.engine.text.prepare import ModelFacts, RequestBuilder, chat_prompt
from quire.engine.text.reasoning import Markers, find_markers
from quire.engine.text.tokenizer import JsonTokenizer
from quire.fuzz.text_cases import make_byte_level

TOKENIZER = JsonTokenizer(make_byte_level(odd=()), TokenizerConfig())
VOCAB = TOKENIZER.vocab_size


def make_builder(
    tokenizer: Any = TOKENIZER,
    *,
    length: int = 64,
    seed: int = 0,
    most: int = 20,
    markers: Markers | None = None,
) -> RequestBuilder:
    return RequestBuilder(
        tokenizer,
        ModelFacts(VOCAB, length, [1, 2]),
        seed=seed,
        max_logprobs=most,
        markers=markers,
    )


def make_request(prompt: Any, params: Any = None, **options: Any) -> Any:
    return make_builder().build(prompt, params, "r", **options)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a door", "a door"),
        ({"prompt": "a door"}, "a door"),
        (TOKENIZER.encode("a door"), None),
        (tuple(TOKENIZER.encode("a door")), None),
        (np.array(TOKENIZER.encode("a door")), None),
        (list(np.array(TOKENIZER.encode("a door"), np.uint16)), None),
        ({"prompt_token_ids": TOKENIZER.encode("a door")}, None),
        ({"prompt_token_ids": TOKENIZER.encode("a door"), "prompt": "shown"}, "shown"),
    ],
)
def test_a_prompt_of_every_kind(prompt: Any, text: str | None) -> None:
    request, shown = make_request(prompt)[:2]
    assert request.prompt_token_ids.tolist() == TOKENIZER.encode("a door")
    assert request.prompt_token_ids.dtype == np.int32
    assert shown == text
    assert request.eos_token_ids == (1, 2)


def test_a_request_carries_all_that_was_given() -> None:
    params = SamplingParams(seed=7)
    request, _ = make_request("a", params, priority=-3, arrival_s=1.5, cache_salt="x")[:2]
    assert (request.request_id, request.params, request.seed) == ("r", params, 7)
    assert (request.priority, request.arrival_s, request.cache_salt) == (-3, 1.5, "x")


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "prompt is .*at least one token"),
        ([], r"prompt is \[\]: it must be at least one token"),
        ({}, "an object with prompt"),
        ({"prompt": 5}, "an object with prompt"),
        ({"prompt": "a", "multi_modal_data": 1}, "no more"),
        ({"prompt_token_ids": [1], "x": 1}, "no more"),
        ({"prompt_token_ids": [1], "prompt": 5}, "prompt is 5: it must be a text"),
        ({"prompt_token_ids": "12"}, "prompt is '12': it must be a text or a list"),
        ({"prompt_token_ids": None}, "prompt is None"),
        (None, "prompt is None: it must be a text or a list of token ids"),
        (5, "prompt is 5"),
        (b"abc", "prompt is b'abc'"),
        ([1, "2"], r"prompt\[1\] is '2': it must be a token id"),
        ([1, 2.0], r"prompt\[1\] is 2.0"),
        ([1, True], r"prompt\[1\] is True"),
        ([1, None], r"prompt\[1\] is None"),
        ([[1]], r"prompt\[0\] is \[1\]"),
        ([1, -1], rf"prompt\[1\] is -1: it must be a token id, 0 to {VOCAB - 1}"),
        ([VOCAB], rf"prompt\[0\] is {VOCAB}: it must be a token id, 0 to {VOCAB - 1}"),
        ([1, 2**40], rf"prompt\[1\] is {2**40}"),
        ([1, 10**30], rf"prompt\[1\] is {10**30}"),
        ([-(10**30)], rf"prompt\[0\] is -{10**30}"),
        (np.array([1.0]), "a text or a list of token ids"),
        (np.array([[1]]), "a text or a list of token ids"),
        (np.array([2**63], np.uint64), rf"prompt\[0\] is {2**63}"),
        ([1] * 64, "has 64 tokens and the model length is 64: it must have at most 63"),
        ("door " * 60, "it must have at most 63"),
        ("a\ud800", "without lone surrogates"),
    ],
)
def test_wrong_prompts_are_refused(prompt: Any, message: str) -> None:
    with pytest.raises(ParamsError, match=message) as caught:
        make_request(prompt)
    assert caught.value.param == "prompt"
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"params": {"temperature": 1}}, "params"),
        ({"params": SamplingParams(stop_token_ids=[VOCAB])}, "stop_token_ids"),
        ({"priority": 2**31}, "priority"),
        ({"priority": 1.0}, "priority"),
        ({"priority": True}, "priority"),
        ({"request_id": ""}, "request_id"),
        ({"request_id": 5}, "request_id"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"cache_salt": 5}, "cache_salt"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], param: str) -> None:
    options = {"prompt": [1], "params": None, "request_id": "r"} | options
    with pytest.raises(ParamsError, match=f"{param} is .*: it must be ") as caught:
        make_builder().build(**options)
    assert caught.value.param == param


@pytest.mark.parametrize("name", ["logprobs", "prompt_logprobs"])
@pytest.mark.parametrize(
    ("most", "given", "expected"),
    [
        (20, 0, 0),
        (20, 20, 20),
        (20, 21, f"{21}: this engine tells at most 20 "),
        (20, -1, rf"-1 \(all {VOCAB} tokens\): this engine tells at most 20 "),
        (0, 1, "at most 0"),
        (VOCAB, -1, VOCAB),
        (-1, -1, VOCAB),
        (-1, VOCAB, VOCAB),
        (-1, VOCAB + 1, "at most"),
        (VOCAB + 5, VOCAB + 5, VOCAB),
    ],
)
def test_log_probabilities_have_a_limit(name: str, most: int, given: int, expected: Any) -> None:
    options: dict[str, Any] = {name: given}
    builder, params = make_builder(most=most), SamplingParams(**options)
    if isinstance(expected, str):
        with pytest.raises(ParamsError, match=f"^{name} is .*{expected}") as caught:
            builder.build([1], params, "r")
        assert caught.value.param == name
    else:
        request = builder.build([1], params, "r").request
        assert getattr(request.params, name) == expected


@pytest.mark.parametrize("name", ["logprobs", "prompt_logprobs"])
@pytest.mark.parametrize("given", [-2, 1.5, True, "3", 2**31])
def test_no_count_is_no_parameter(name: str, given: Any) -> None:
    with pytest.raises(ParamsError, match=f"{name} is .*an integer from -1"):
        SamplingParams(**{name: given})


def test_without_a_tokenizer_ids_only() -> None:
    builder = make_builder(None)
    assert builder.build([5], None, "r").request.prompt_token_ids.tolist() == [5]
    with pytest.raises(ParamsError, match="there is no tokenizer"):
        builder.build("text", None, "r")
    with pytest.raises(ParamsError, match="there is no tokenizer"):
        builder.build([5], SamplingParams(stop="x"), "r")


def test_ids_of_the_tokenizer_that_the_model_has_not_are_refused() -> None:
    builder = RequestBuilder(TOKENIZER, ModelFacts(10, 64, ()), seed=0, max_logprobs=20)
    with pytest.raises(ParamsError, match="a token id, 0 to 9"):
        builder.build("a door", None, "r")


@pytest.mark.parametrize(("seed", "expected"), [(0, 0), (-1, 2**64 - 1), (2**64 - 1, 2**64 - 1)])
def test_a_given_seed_is_taken_modulo_its_64_bits(seed: int, expected: int) -> None:
    assert make_request([1], SamplingParams(seed=seed)).request.seed == expected


def test_drawn_seeds_repeat_with_the_engines_seed_only() -> None:
    def seeds(seed: int) -> list[int]:
        builder = make_builder(seed=seed)
        return [builder.build([1], None, str(i)).request.seed for i in range(100)]

    assert seeds(1) == seeds(1)
    assert not set(seeds(1)) & set(seeds(2))
    assert len(set(seeds(1))) == 100
    assert all(0 <= seed < 2**53 for seed in seeds(1))


def test_given_seeds_do_not_move_the_drawn_ones() -> None:
    builder = make_builder()
    builder.build([1], SamplingParams(seed=3), "a")
    assert builder.build([1], None, "b").request.seed == make_request([1]).request.seed


def test_megabytes_of_text_are_refused_without_tokenizing_them() -> None:
    start = time.perf_counter()
    with pytest.raises(ParamsError, match="more than"):
        make_request("a door " * 4_000_000)
    assert time.perf_counter() - start < 1


def test_a_long_text_of_few_tokens_is_taken() -> None:
    class Lengths:
        """One token for each thousand characters."""

        special_ids = frozenset[int]()

        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            return [3] * (len(text) // 1000)

    request, _ = make_builder(Lengths()).build("x" * 50_000, None, "r")[:2]
    assert len(request.prompt_token_ids) == 50


@pytest.mark.parametrize(("given", "kept"), [(3, 3), (1, 1), (1000, 50), (-1, 50), (None, 50)])
def test_only_the_last_tokens_of_a_prompt_are_kept(given: int | None, kept: int) -> None:
    """What the others were does not matter, not even that they were too many."""
    params = SamplingParams(truncate_prompt_tokens=given, max_tokens=4)
    prompt = [*range(2, 52)]
    request = make_request(prompt, params).request
    assert request.prompt_token_ids.tolist() == prompt[-kept:]


def test_minus_one_keeps_what_leaves_room_for_the_answer() -> None:
    params = SamplingParams(truncate_prompt_tokens=-1, max_tokens=8)
    ids = [3] * 5000
    request = make_request(ids, params).request
    assert len(request.prompt_token_ids) == 64 - 8
    with pytest.raises(ParamsError, match="model length"):
        make_request(ids, SamplingParams(truncate_prompt_tokens=4000))


def test_a_chat_is_tokenized_without_more_special_tokens() -> None:
    source = "{{ bos_token }}{{ messages[0].content }}"
    template = ChatTemplate.from_tokenizer(TOKENIZER)
    template._sources["default"] = source
    template._special_tokens["bos_token"] = "<s>"
    prompt = chat_prompt(template, TOKENIZER, [{"role": "user", "content": "a door"}])
    request, text = make_request(prompt)[:2]
    assert text == "<s>a door"
    assert request.prompt_token_ids.tolist() == [0, *TOKENIZER.encode("a door")]


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(prompt=json_like | st.fixed_dictionaries({"prompt_token_ids": json_like}))
def test_any_prompt_is_taken_or_refused(prompt: Any) -> None:
    try:
        request, _ = make_request(prompt)[:2]
    except ParamsError:
        return
    ids = request.prompt_token_ids
    assert 0 < len(ids) < 64
    assert ids.min() >= 0
    assert ids.max() < VOCAB


def test_a_budget_of_thoughts_needs_markers() -> None:
    config = ReasoningConfig(reasoning_start_str="a door", reasoning_end_str="!")
    markers = find_markers(config, TOKENIZER, VOCAB)
    assert markers.start == tuple(TOKENIZER.encode("a door", add_special_tokens=False))
    builder = make_builder(markers=markers)
    asked = builder.build("a", SamplingParams(thinking_token_budget=5), "r").request.thinking
    assert asked is not None and asked.budget == 5 and (asked.start, asked.end) == markers
    free = SamplingParams(thinking_token_budget=-1)
    assert free == SamplingParams() and builder.build("a", free, "r").request.thinking is None
    with pytest.raises(ParamsError, match="thinking_token_budget is 5: .* no reasoning_config"):
        make_request("a", SamplingParams(thinking_token_budget=5))
    params = SamplingParams(thinking_token_budget=5, min_tokens=3, stop_token_ids=[markers.end[-1]])
    with pytest.raises(ParamsError, match="left out with min_tokens"):
        builder.build("a", params, "r")
    for wrong in (-2, 1.5, True, 2**31):
        with pytest.raises(ParamsError, match="thinking_token_budget is .* from -1 to"):
            SamplingParams(thinking_token_budget=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reasoning_start_str": "a"}, "must give"),
        ({}, "must give"),
        ({"reasoning_start_str": "a", "reasoning_end_token_ids": [1]}, "must give"),
        ({"think_start_str": "a"}, "think_start_str"),
        ({"reasoning_start_str": 5}, "Expected"),
    ],
)
def test_markers_are_checked_with_the_options(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineConfig(reasoning_config=given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"reasoning_start_str": "a", "reasoning_end_str": "a"}, "must differ"),
        ({"reasoning_start_str": "a", "reasoning_end_str": "door " * 200}, "1 to 128 tokens"),
        ({"reasoning_start_token_ids": (VOCAB,), "reasoning_end_token_ids": (1,)}, "from 0 to"),
        ({"reasoning_start_token_ids": (-1,), "reasoning_end_token_ids": (1,)}, "from 0 to"),
    ],
)
def test_markers_are_tokens_of_the_model(given: dict[str, Any], message: str) -> None:
    config = ReasoningConfig(**given)
    with pytest.raises(ConfigError, match=message):
        find_markers(config, TOKENIZER, VOCAB)
    if config.reasoning_start_str:
        with pytest.raises(ConfigError, match="there is no tokenizer"):
            find_markers(config, None, VOCAB)
