"""What clients are told of their prompts: echo with logprobs, prompt_logprobs, no answer at all."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from quire.engine.async_engine import AsyncEngine
from quire.engine.params import RequestOutputKind, SamplingParams

PROMPT = "the cat sat on the mat and then the cat ate"
MESSAGES: Any = [{"role": "user", "content": "the cat"}]


@pytest.fixture(scope="module")
def client(live: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_an_echo_is_scored_as_the_answer_was(client: openai.OpenAI) -> None:
    """How evaluations score a text: every bit is that of having generated it."""
    options: Any = {"ignore_eos": True, "return_token_ids": True}
    answered = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=12, seed=3, logprobs=4, extra_body=options
    ).choices[0]
    prompt, answer = answered.prompt_token_ids, answered.token_ids  # type: ignore[attr-defined]
    given = client.completions.create(
        model="tiny", prompt=prompt + answer, max_tokens=0, echo=True, logprobs=4
    )
    scored, (choice,) = given.choices[0].logprobs, given.choices
    assert scored is not None and answered.logprobs is not None
    assert scored.token_logprobs and scored.top_logprobs and scored.tokens
    assert scored.token_logprobs[0] is None and scored.top_logprobs[0] is None
    assert len(scored.tokens) == len(prompt) + len(answer)
    assert None not in scored.token_logprobs[1:]
    assert scored.token_logprobs[len(prompt) :] == answered.logprobs.token_logprobs
    assert scored.top_logprobs[len(prompt) :] == answered.logprobs.top_logprobs
    assert "".join(scored.tokens[: len(prompt)]) == PROMPT
    starts = [len("".join(scored.tokens[:index])) for index in range(len(scored.tokens))]
    assert scored.text_offset == starts
    assert choice.text == PROMPT + answered.text
    assert choice.finish_reason == "length"
    assert given.usage is not None
    assert given.usage.completion_tokens == 0
    assert given.usage.prompt_tokens == len(prompt) + len(answer)


def test_a_drawn_token_comes_behind_the_echo(client: openai.OpenAI) -> None:
    """What lm-evaluation-harness sends: one token, which it cuts off."""
    options: Any = {"model": "tiny", "prompt": PROMPT, "echo": True, "logprobs": 1, "seed": 1}
    none = client.completions.create(max_tokens=0, **options).choices[0]
    one = client.completions.create(max_tokens=1, temperature=0, **options).choices[0]
    assert none.logprobs is not None and one.logprobs is not None
    for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
        assert getattr(one.logprobs, name)[:-1] == getattr(none.logprobs, name)
    assert one.text.startswith(none.text) and none.text == PROMPT
    plain = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=0, echo=True)
    assert (plain.choices[0].text, plain.choices[0].logprobs) == (PROMPT, None)


@pytest.mark.parametrize("max_tokens", [0, 6])
def test_a_streamed_echo_equals_the_whole_one(client: openai.OpenAI, max_tokens: int) -> None:
    asked: Any = {
        **{"model": "tiny", "prompt": [PROMPT, "a mat"], "max_tokens": max_tokens, "seed": 4},
        **{"logprobs": 2, "echo": True, "n": 2, "extra_body": {"prompt_logprobs": 3}},
    }
    whole = client.completions.create(**asked).choices
    told: list[Any] = [([], [], [], []) for _ in whole]
    texts = [""] * 4
    prompts: list[Any] = [[] for _ in whole]
    for chunk in client.completions.create(**asked, stream=True):
        (piece,) = chunk.choices
        texts[piece.index] += piece.text
        prompts[piece.index] += getattr(piece, "prompt_logprobs", None) or []
        if piece.logprobs is not None:
            logprobs = piece.logprobs
            parts: Any = (logprobs.tokens, logprobs.token_logprobs)
            parts = (*parts, logprobs.top_logprobs, logprobs.text_offset)
            for so_far, new in zip(told[piece.index], parts, strict=True):
                so_far.extend(new)
    for choice, kept, text, rows in zip(whole, told, texts, prompts, strict=True):
        assert choice.logprobs is not None
        logprobs = choice.logprobs
        assert kept[:2] == (logprobs.tokens, logprobs.token_logprobs)
        assert kept[2:] == (logprobs.top_logprobs, logprobs.text_offset)
        assert all(one is None or len(one) <= 3 for one in kept[2]), "no more than logprobs asks"
        assert text == choice.text
        assert rows == choice.prompt_logprobs


def test_prompt_logprobs_are_in_each_choice(client: openai.OpenAI, live: Any) -> None:
    given = client.completions.create(
        model="tiny", prompt=[PROMPT, "the"], n=2, max_tokens=3, extra_body={"prompt_logprobs": 2}
    )
    rows: list[Any] = [choice.prompt_logprobs for choice in given.choices]  # type: ignore[attr-defined]
    assert rows[0] == rows[1] and rows[2] == rows[3] == [None]
    ids = live.engine.tokenizer.encode(PROMPT)
    assert rows[0][0] is None and len(rows[0]) == len(ids)
    for token_id, row in zip(ids[1:], rows[0][1:], strict=True):
        assert next(iter(row)) == str(token_id)
        assert 2 <= len(row) <= 3
        own = row[str(token_id)]
        assert own["decoded_token"] == live.engine.tokenizer.token_text(token_id)
        assert own["rank"] >= 1 and own["logprob"] < 0
        assert {1, 2} <= {one["rank"] for one in row.values()} | {own["rank"]}
    assert given.choices[0].logprobs is None


def test_a_chat_tells_of_its_prompt_once(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "messages": MESSAGES, "max_tokens": 3, "n": 2, "seed": 5}
    asked["extra_body"] = {"prompt_logprobs": 1}
    whole: Any = client.chat.completions.create(**asked)
    assert whole.prompt_logprobs[0] is None
    assert len(whole.prompt_logprobs) == whole.usage.prompt_tokens
    chunks: list[Any] = list(client.chat.completions.create(**asked, stream=True))
    assert chunks[0].prompt_logprobs == whole.prompt_logprobs
    assert not any(hasattr(chunk, "prompt_logprobs") for chunk in chunks[1:])
    plain = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=1)
    assert not hasattr(plain, "prompt_logprobs")


async def test_all_of_the_vocabulary(model_folder: Any, serve_fake: Any) -> None:
    options: dict[str, Any] = {"load_format": "dummy", "backend": "reference", "num_threads": 1}
    async with AsyncEngine(
        model=str(model_folder), max_logprobs=-1, num_kv_blocks=64, **options
    ) as engine:
        fake = await serve_fake(engine)
        body: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 2, "logprobs": -1, "echo": True}
        body["return_tokens_as_token_ids"] = True
        async with fake.session.post(f"{fake.url}/v1/completions", json=body) as response:
            (choice,) = (await response.json())["choices"]
        tops = choice["logprobs"]["top_logprobs"]
        assert tops[0] is None
        assert all(len(top) == 320 for top in tops[1:])
        chat: dict[str, Any] = {"messages": MESSAGES, "max_tokens": 1, "logprobs": True}
        chat |= {"top_logprobs": -1, "prompt_logprobs": -1}
        async with fake.session.post(f"{fake.url}/v1/chat/completions", json=chat) as response:
            given = await response.json()
        assert len(given["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 320
        assert all(len(row) == 320 for row in given["prompt_logprobs"][1:])


async def test_deltas_all_have_what_is_known_of_the_prompt(engine: AsyncEngine) -> None:
    delta = RequestOutputKind.DELTA
    params = SamplingParams(
        max_tokens=4, prompt_logprobs=0, ignore_eos=True, n=2, output_kind=delta
    )
    outputs = [one async for one in engine.generate(PROMPT, params)]
    rows = outputs[0].prompt_logprobs
    assert rows is not None and rows[0] is None
    assert len(rows) == len(outputs[0].prompt_token_ids)
    assert all(one.prompt_logprobs == rows for one in outputs)


async def test_a_stream_closed_while_its_prompt_is_computed_leaves_nothing(
    engine: AsyncEngine,
) -> None:
    params, core = SamplingParams(max_tokens=4, prompt_logprobs=2), engine.front.core
    core.set_budget(5)
    closed = asyncio.create_task(anext(engine.generate([5] * 100, params)))
    for _ in range(10_000):
        if core.scheduler.stats.num_steps >= 3:
            break
        await asyncio.sleep(0)
    closed.cancel()
    outputs = [one async for one in engine.generate([5] * 40, params)]
    assert closed.cancelled()
    assert [len(one.prompt_logprobs or ()) for one in outputs] == [40] * len(outputs)
    assert engine.num_unfinished == 0
