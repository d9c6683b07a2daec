"""Beam searches through the openai package: whole, streamed, and left by their client."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from msgspec.structs import replace
from quire.engine.errors import ParamsError
from quire.engine.llm import LLM
from quire.engine.params import BeamSearchParams
from quire.engine.request import RequestOutput

PROMPT = "the cat sat on the mat"
MESSAGES: Any = [{"role": "user", "content": "the cat"}]


@pytest.fixture(scope="module")
def client(live: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def search(live: Any, prompt: Any, **params: Any) -> RequestOutput:
    """What the engine itself gives."""

    async def run() -> Any:
        given = BeamSearchParams(**params)
        return [one async for one in live.engine.beam_search(prompt, None, given)]

    (output,) = asyncio.run_coroutine_threadsafe(run(), live.loop).result(60)
    assert isinstance(output, RequestOutput)
    return output


def beams(**others: Any) -> dict[str, Any]:
    return {"use_beam_search": True, "return_token_ids": True, **others}


def told(choices: Any) -> list[tuple[Any, ...]]:
    assert [one.index for one in choices] == list(range(len(choices)))
    return [(one.text, tuple(one.token_ids), one.finish_reason) for one in choices]


def expected(output: RequestOutput) -> list[tuple[Any, ...]]:
    return [(one.text, one.token_ids, one.finish_reason) for one in output.outputs]


def test_n_beams_are_n_choices_best_first(client: openai.OpenAI, live: Any) -> None:
    for penalty in (1.0, 0.0):
        given: Any = client.completions.create(
            model="tiny",
            prompt=PROMPT,
            max_tokens=9,
            n=3,
            temperature=0.7,
            logprobs=2,
            extra_body=beams(length_penalty=penalty),
        )
        output = search(live, PROMPT, beam_width=3, max_tokens=9, length_penalty=penalty)
        assert told(given.choices) == expected(output)
        for choice, one in zip(given.choices, output.outputs, strict=True):
            total = 0.0
            for logprob in choice.logprobs.token_logprobs:
                total += logprob
            assert total == one.cumulative_logprob
            assert all(2 <= len(top) <= 3 for top in choice.logprobs.top_logprobs)
            assert choice.seed is None
        assert given.usage.completion_tokens == sum(len(one.token_ids) for one in output.outputs)


def test_best_of_is_the_width_and_n_are_told(client: openai.OpenAI, live: Any) -> None:
    output = search(live, PROMPT, beam_width=4, max_tokens=7)
    given: Any = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=7, n=2, best_of=4, extra_body=beams()
    )
    assert told(given.choices) == expected(output)[:2]
    assert given.choices[0].logprobs is None
    given = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=7, n=2, extra_body=beams(best_of=4)
    )
    assert len(given.choices) == 2


def test_several_prompts_are_searched_at_once(client: openai.OpenAI, live: Any) -> None:
    prompts = ["the cat", "and then", "on the mat ate the cat"]
    given: Any = client.completions.create(
        model="tiny", prompt=prompts, max_tokens=6, n=2, extra_body=beams(ignore_eos=True)
    )
    every = [
        one
        for prompt in prompts
        for one in expected(search(live, prompt, beam_width=2, max_tokens=6, ignore_eos=True))
    ]
    assert told(given.choices) == every


@pytest.mark.parametrize("best_of", [3, 5])
def test_a_stream_tells_the_same_at_its_end(client: openai.OpenAI, best_of: int) -> None:
    options: Any = {
        "model": "tiny",
        "prompt": PROMPT,
        "max_tokens": 8,
        "n": 3,
        "best_of": best_of,
        "logprobs": 1,
        "extra_body": beams(),
    }
    whole: Any = client.completions.create(**options)
    stream: Any = client.completions.create(
        stream=True, stream_options={"include_usage": True}, **options
    )
    chunks = list(stream)
    choices = [choice for chunk in chunks for choice in chunk.choices]
    assert told(choices) == told(whole.choices)
    assert [one.logprobs for one in choices] == [one.logprobs for one in whole.choices]
    assert chunks[-1].usage == whole.usage


def test_a_chat_is_searched_and_its_stream_agrees(client: openai.OpenAI) -> None:
    options: Any = {
        "model": "tiny",
        "messages": MESSAGES,
        "max_completion_tokens": 8,
        "n": 2,
        "logprobs": True,
        "top_logprobs": 2,
        "extra_body": beams(length_penalty=0.5, early_stopping=True),
    }
    whole: Any = client.chat.completions.create(**options)
    assert [one.index for one in whole.choices] == [0, 1]
    texts, logprobs = ["", ""], [[], []]  # type: ignore[var-annotated]
    stream: Any = client.chat.completions.create(stream=True, **options)
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            logprobs[choice.index] += choice.logprobs.content if choice.logprobs else []
    assert texts == [one.message.content for one in whole.choices]
    assert logprobs == [one.logprobs.content for one in whole.choices]
    assert all(len(row.top_logprobs) == 2 for one in logprobs for row in one)


def test_truncation_and_salt_reach_a_search(client: openai.OpenAI) -> None:
    given: Any = client.completions.create(
        model="tiny",
        prompt="the cat " * 100,
        max_tokens=3,
        n=2,
        extra_body=beams(truncate_prompt_tokens=9, cache_salt="a", priority=3, user="me"),
    )
    assert given.usage.prompt_tokens == 9
    assert given.usage.prompt_tokens_details.cached_tokens == 0


def num_steps(live: Any) -> int:
    """Steps that the engine has launched."""
    return int(live.call(lambda: live.engine.front.core.scheduler.stats.num_steps))


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_goes_ends_its_search(live: Any, stream: bool) -> None:
    """Nothing of it is left: no sequence, no block."""
    body = {"prompt": "the cat", "max_tokens": 110, "n": 8, "stream": stream, "ignore_eos": True}
    before = num_steps(live)
    async with aiohttp.ClientSession() as session:
        asking = asyncio.create_task(
            session.post(f"{live.url}/v1/completions", json=body | {"use_beam_search": True})
        )
        while num_steps(live) < before + 5:  # noqa: ASYNC110 - a step has no event
            await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
    live.wait_until_empty()
    assert live.num_used_blocks() == 0


def test_texts_are_those_of_the_tokens(model_folder: Path) -> None:
    """Prompt and answer, as in vLLM; the end of sequence is shown where that is asked for."""
    options: dict[str, Any] = {"load_format": "dummy", "backend": "reference", "num_threads": 1}
    with LLM(str(model_folder), num_kv_blocks=64, **options) as llm:
        tokenizer = llm.get_tokenizer()
        eos = 2
        for include in (False, True):
            params = BeamSearchParams(
                beam_width=128,
                max_tokens=1,
                include_stop_str_in_output=include,
                skip_special_tokens=False,
                length_penalty=-16,  # for short ones
            )
            with pytest.raises(ParamsError, match="beam_width"):
                llm.beam_search(PROMPT, replace(params, beam_width=0))
            (output,) = llm.beam_search(PROMPT, params)
            ended = [one for one in output.sequences if one.finish_reason == "stop"]
            assert [one.tokens[-1] for one in ended] == [eos]
            assert ended[0].text == PROMPT + ("<|im_end|>" if include else "")
        (output,) = llm.beam_search(PROMPT, BeamSearchParams(beam_width=3, max_tokens=8))
        for one in output.sequences:
            assert one.text == tokenizer.decode(list(one.tokens))
            assert one.text is not None and one.text.startswith(PROMPT)
