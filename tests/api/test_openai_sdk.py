"""The openai package against the server, unchanged: what it sends and how it reads the answers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from msgspec.structs import replace
from quire.engine.params import RequestOutputKind, SamplingParams

PROMPT = "the cat sat on the mat"
MESSAGES: Any = [{"role": "user", "content": "the cat"}]


@pytest.fixture(scope="module")
def client(live: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models_are_listed_and_shown(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "tiny"
    assert model.owned_by == "quire"
    assert model.created > 1_700_000_000
    assert model.max_model_len == 128  # type: ignore[attr-defined]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")


def test_completion_equals_what_the_engine_gives(client: openai.OpenAI, live: Any) -> None:
    given = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=12, seed=5, extra_body={"ignore_eos": True}
    )
    params = SamplingParams(max_tokens=12, seed=5, ignore_eos=True)
    assert given.object == "text_completion"
    (choice,) = given.choices
    assert choice.text == _engine_text(live, PROMPT, params)
    assert choice.finish_reason == "length"
    assert given.usage is not None
    num_prompt = len(live.engine.tokenizer.encode(PROMPT))
    assert given.usage.prompt_tokens == num_prompt
    assert given.usage.completion_tokens == 12
    assert given.usage.total_tokens == num_prompt + 12
    assert given.system_fingerprint


def _engine_text(live: Any, prompt: Any, params: SamplingParams) -> str:
    import asyncio

    params = replace(params, output_kind=RequestOutputKind.DELTA)

    async def run() -> str:
        text = ""
        async for output in live.engine.generate(prompt, params):
            text += output.outputs[0].text
        return text

    return asyncio.run_coroutine_threadsafe(run(), live.loop).result(30)


def test_token_prompts_equal_text_prompts(client: openai.OpenAI, live: Any) -> None:
    ids = live.engine.tokenizer.encode(PROMPT)
    texts = [
        choice.text
        for prompt in (PROMPT, ids, [PROMPT], [ids])
        for choice in client.completions.create(
            model="tiny", prompt=prompt, max_tokens=8, seed=1
        ).choices
    ]
    assert len(texts) == 4
    assert len(set(texts)) == 1


def test_several_prompts_give_choices_in_order(client: openai.OpenAI) -> None:
    prompts = ["the cat", "and then", "on the mat ate the cat"]
    together = client.completions.create(model="tiny", prompt=prompts, max_tokens=9, seed=3)
    assert [choice.index for choice in together.choices] == [0, 1, 2]
    alone = [
        client.completions.create(model="tiny", prompt=prompt, max_tokens=9, seed=3)
        for prompt in prompts
    ]
    assert [choice.text for choice in together.choices] == [one.choices[0].text for one in alone]
    assert together.usage is not None
    assert together.usage.prompt_tokens == sum(
        one.usage.prompt_tokens for one in alone if one.usage is not None
    )


def test_stream_pieces_make_the_whole(client: openai.OpenAI) -> None:
    whole = client.completions.create(model="tiny", prompt=PROMPT, max_tokens=20, seed=8)
    chunks = list(
        client.completions.create(
            model="tiny",
            prompt=PROMPT,
            max_tokens=20,
            seed=8,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert "".join(one.choices[0].text for one in chunks if one.choices) == whole.choices[0].text
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_chat_and_its_stream_agree(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_completion_tokens=15, seed=2
    )
    assert whole.object == "chat.completion"
    message = whole.choices[0].message
    assert message.role == "assistant"
    stream = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_completion_tokens=15, seed=2, stream=True
    )
    pieces = [chunk.choices[0].delta for chunk in stream]
    assert pieces[0].role == "assistant"
    assert "".join(piece.content or "" for piece in pieces) == message.content


def test_an_answer_without_a_seed_can_be_replayed(client: openai.OpenAI) -> None:
    first = client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=20)
    seed = first.choices[0].seed  # type: ignore[attr-defined]
    assert isinstance(seed, int)
    again = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=20, seed=seed
    )
    assert again.choices[0].message.content == first.choices[0].message.content


def test_second_time_the_prompt_is_cached(client: openai.OpenAI) -> None:
    ids = list(range(40, 90))
    cached = []
    for _ in range(2):
        given = client.completions.create(model="tiny", prompt=ids, max_tokens=1)
        assert given.usage is not None
        assert given.usage.prompt_tokens_details is not None
        cached.append(given.usage.prompt_tokens_details.cached_tokens)
    assert cached == [0, 48]


def test_a_salt_of_its_own_hits_nothing(client: openai.OpenAI) -> None:
    ids = list(range(100, 150))
    cached = []
    for salt in ("a", "b", "a"):
        given = client.completions.create(
            model="tiny", prompt=ids, max_tokens=1, extra_body={"cache_salt": salt}
        )
        cached.append(given.usage.prompt_tokens_details.cached_tokens)  # type: ignore[union-attr]
    assert cached == [0, 0, 48]


def test_completion_logprobs(client: openai.OpenAI) -> None:
    given = client.completions.create(
        model="tiny",
        prompt=PROMPT,
        max_tokens=10,
        seed=4,
        logprobs=3,
        extra_body={"ignore_eos": True},
    )
    logprobs = given.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens and logprobs.token_logprobs and logprobs.top_logprobs
    assert len(logprobs.tokens) == 10
    offset = 0
    for token, at in zip(logprobs.tokens, logprobs.text_offset or [], strict=True):
        assert at == offset
        offset += len(token)
    for token, logprob, top in zip(
        logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
    ):
        assert 1 <= len(top) <= 4
        assert logprob <= 0
        assert top[token] >= logprob
        assert sum(math.exp(one) for one in top.values()) <= 1 + 1e-4


def test_streamed_logprobs_equal_whole_ones(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "prompt": PROMPT, "max_tokens": 10, "seed": 4, "logprobs": 2}
    whole = client.completions.create(**asked).choices[0].logprobs
    tokens: list[str] = []
    numbers: list[float] = []
    offsets: list[int] = []
    for chunk in client.completions.create(**asked, stream=True):
        piece = chunk.choices[0].logprobs
        if piece is not None:
            tokens += piece.tokens or []
            numbers += [one or 0.0 for one in piece.token_logprobs or []]
            offsets += piece.text_offset or []
    assert (tokens, numbers, offsets) == (whole.tokens, whole.token_logprobs, whole.text_offset)


def test_chat_logprobs(client: openai.OpenAI) -> None:
    given = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=12,
        seed=9,
        logprobs=True,
        top_logprobs=3,
        extra_body={"skip_special_tokens": False, "ignore_eos": True},
    )
    choice = given.choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content
    for entry in choice.logprobs.content:
        assert len(entry.top_logprobs) == 3
        numbers = [one.logprob for one in entry.top_logprobs]
        assert numbers == sorted(numbers, reverse=True)
        assert entry.logprob <= numbers[0]
    data = b"".join(bytes(entry.bytes or []) for entry in choice.logprobs.content)
    content = choice.message.content or ""
    assert data.decode(errors="replace") == content
    plain = client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=12,
        seed=9,
        logprobs=True,
        extra_body={"skip_special_tokens": False, "ignore_eos": True},
    )
    assert plain.choices[0].logprobs is not None
    assert all(not entry.top_logprobs for entry in plain.choices[0].logprobs.content or [])
    assert plain.choices[0].message.content == content


def test_stop_string_ends_the_text_before_it(client: openai.OpenAI) -> None:
    whole = client.completions.create(
        model="tiny", prompt=PROMPT, max_tokens=30, seed=4, extra_body={"ignore_eos": True}
    ).choices[0]
    stop = whole.text[5:8]
    cut = client.completions.create(
        model="tiny",
        prompt=PROMPT,
        max_tokens=30,
        seed=4,
        stop=stop,
        extra_body={"ignore_eos": True},
    ).choices[0]
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.stop_reason == stop  # type: ignore[attr-defined]


def test_vendor_fields_reach_the_engine(client: openai.OpenAI) -> None:
    given = client.completions.create(
        model="tiny",
        prompt=PROMPT,
        max_tokens=6,
        extra_body={
            "top_k": 1,
            "min_p": 0.1,
            "min_tokens": 6,
            "return_token_ids": True,
            "priority": -1,
            "skip_special_tokens": False,
            "stop_token_ids": [3],
        },
    )
    choice: Any = given.choices[0]
    assert len(choice.token_ids) == 6
    assert 3 not in choice.token_ids
    greedy = client.completions.create(
        model="tiny",
        prompt=PROMPT,
        max_tokens=6,
        temperature=0,
        extra_body={"min_tokens": 6, "stop_token_ids": [3], "return_token_ids": True},
    )
    assert choice.token_ids == greedy.choices[0].token_ids  # type: ignore[attr-defined]


def test_tokens_can_be_told_as_ids(client: openai.OpenAI) -> None:
    choice: Any = client.completions.create(
        model="tiny",
        prompt=PROMPT,
        max_tokens=3,
        logprobs=0,
        extra_body={"return_tokens_as_token_ids": True, "return_token_ids": True},
    ).choices[0]
    assert choice.logprobs.tokens == [f"token_id:{one}" for one in choice.token_ids]


def test_harmless_parameters_of_clients_are_accepted(client: openai.OpenAI) -> None:
    client.chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=2,
        n=1,
        user="me",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        parallel_tool_calls=True,
        presence_penalty=0.0,
        frequency_penalty=0,
        logit_bias={},
        response_format={"type": "text"},
        prompt_cache_key="k",
        safety_identifier="s",
        reasoning_effort="low",
    )


def test_several_choices_are_those_of_their_seeds(client: openai.OpenAI) -> None:
    def ask(**options: Any) -> Any:
        return client.chat.completions.create(
            model="tiny", messages=MESSAGES, max_tokens=5, temperature=1, **options
        )

    alone = [ask(seed=3 + i).choices[0].message.content for i in range(3)]
    whole = ask(seed=3, n=3)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert [choice.message.content for choice in whole.choices] == alone
    assert whole.usage.prompt_tokens == ask(seed=3).usage.prompt_tokens
    texts, roles, ends = ["", "", ""], [0, 0, 0], [0, 0, 0]
    for chunk in ask(seed=3, n=3, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        roles[choice.index] += choice.delta.role is not None
        ends[choice.index] += choice.finish_reason is not None
    assert texts == alone and roles == ends == [1, 1, 1]


def test_choices_of_several_prompts_are_numbered_through(client: openai.OpenAI) -> None:
    options: Any = {"model": "tiny", "max_tokens": 3, "temperature": 1, "seed": 5, "echo": True}
    both = client.completions.create(prompt=["one", "two"], n=2, **options)
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    for place, prompt in enumerate(("one", "two")):
        mine = [choice.text for choice in both.choices[2 * place : 2 * place + 2]]
        single = client.completions.create(prompt=prompt, n=2, **options)
        assert mine == [choice.text for choice in single.choices]
        assert all(text.startswith(prompt) for text in mine)
    texts = ["", "", "", ""]
    for chunk in client.completions.create(prompt=["one", "two"], n=2, stream=True, **options):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in both.choices]


def test_prompts_are_truncated_where_asked(client: openai.OpenAI) -> None:
    long = "the cat " * 500
    for extra, num in (({"truncate_prompt_tokens": 9}, 9), ({"truncate_prompt_tokens": -1}, 126)):
        completion = client.completions.create(
            model="tiny", prompt=long, max_tokens=2, extra_body=extra
        )
        assert completion.usage is not None and completion.usage.prompt_tokens == num
        messages: Any = [{"role": "user", "content": long}]
        chat = client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=2, extra_body=extra
        )
        assert chat.usage is not None and chat.usage.prompt_tokens == num


def test_the_best_of_several_are_told(client: openai.OpenAI) -> None:
    """The likeliest by a token, of those that their seeds give alone; all are counted."""
    options: Any = {"model": "tiny", "prompt": PROMPT, "max_tokens": 4, "temperature": 1, "seed": 7}
    every = client.completions.create(n=5, logprobs=0, **options)

    def likelihood(choice: Any) -> float:
        return float(np.mean(choice.logprobs.token_logprobs))

    ranked = sorted(every.choices, key=likelihood, reverse=True)
    best = client.completions.create(n=2, best_of=5, **options)
    assert [choice.text for choice in best.choices] == [choice.text for choice in ranked[:2]]
    assert [choice.index for choice in best.choices] == [0, 1]
    assert best.choices[0].logprobs is None
    assert best.usage == every.usage


def test_biases_and_bans_decide_what_comes(client: openai.OpenAI) -> None:
    def ids(**options: Any) -> list[int]:
        extra = {"return_token_ids": True} | options.pop("extra", {})
        choice: Any = client.completions.create(
            model="tiny", prompt=PROMPT, max_tokens=6, temperature=0, extra_body=extra, **options
        ).choices[0]
        return list(choice.token_ids)

    plain = ids()
    assert ids(logit_bias={str(plain[0]): -100}, extra={"ignore_eos": True})[0] != plain[0]
    assert set(ids(logit_bias={"7": 100}, extra={"ignore_eos": True})) == {7}
    assert set(ids(extra={"allowed_token_ids": [8, 9], "ignore_eos": True})) <= {8, 9}
    repeated = ids(presence_penalty=-2, frequency_penalty=-2, logit_bias={"7": 50})
    assert set(repeated[:3]) == {7}
    once = ids(frequency_penalty=2, presence_penalty=2, extra={"repetition_penalty": 1e4})
    assert len(set(once)) == len(once)


def test_bad_words_do_not_come(client: openai.OpenAI) -> None:
    def tokens(**options: Any) -> list[str]:
        choice: Any = client.completions.create(
            model="tiny", prompt=PROMPT, max_tokens=8, temperature=0, logprobs=0, extra_body=options
        ).choices[0]
        return list(choice.logprobs.tokens)

    word = next(one for one in tokens() if one.isascii() and one.strip() == one)
    assert word not in tokens(bad_words=[word])


def test_tools_and_developer_messages_reach_the_template(client: openai.OpenAI) -> None:
    tool: Any = {"type": "function", "function": {"name": "look", "parameters": {}}}

    def num_prompt(**options: Any) -> int:
        messages: Any = [{"role": "developer", "content": "be"}, *MESSAGES]
        given = client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=1, **options
        )
        assert given.usage is not None
        return int(given.usage.prompt_tokens)

    plain = num_prompt()
    assert num_prompt(tools=[tool]) > plain
    assert num_prompt(tools=[tool], tool_choice="none") == plain


def test_a_developer_speaks_as_the_system(client: openai.OpenAI) -> None:
    ids = []
    for role in ("developer", "system", "user"):
        messages: Any = [{"role": role, "content": "be"}]
        given: Any = client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=1, extra_body={"return_token_ids": True}
        )
        ids.append(given.choices[0].prompt_token_ids)
    assert ids[0] == ids[1] != ids[2]


def test_text_parts_are_one_text(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "the"}, {"type": "text", "text": "cat"}]
    ids = []
    for content in (parts, "the\ncat"):
        messages: Any = [{"role": "user", "content": content}]
        given: Any = client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=1, extra_body={"return_token_ids": True}
        )
        ids.append(given.choices[0].prompt_token_ids)
    assert ids[0] == ids[1]


def test_errors_have_the_sdks_types(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="gpt-9", prompt="x")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as hot:
        client.completions.create(model="tiny", prompt="x", temperature=-1)
    assert hot.value.param == "temperature"
    assert "-1" in hot.value.message
    with pytest.raises(openai.BadRequestError) as long:
        client.completions.create(model="tiny", prompt=[5] * 500, stream=True)
    assert long.value.code == "context_length_exceeded"


async def test_async_client_streams_many_at_once(live: Any) -> None:
    import asyncio

    async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none") as client:

        async def one(seed: int) -> str:
            stream = await client.completions.create(
                model="tiny", prompt=PROMPT, max_tokens=10, seed=seed, stream=True
            )
            return "".join([chunk.choices[0].text async for chunk in stream])

        seeds = [1, 2, 3, 4] * 3
        texts = await asyncio.gather(*map(one, seeds))
    assert texts[:4] == texts[4:8] == texts[8:]
    assert len(set(texts)) > 1
    assert live.num_used_blocks() == 0
