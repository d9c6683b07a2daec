"""The small routes: tokenizer, models, how the server is, cache and sleep."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quire import AsyncEngine, SamplingParams
from quire.api.server import Server, ServerOptions, bind
from quire.engine.errors import EngineError


async def get(url: str, status: int = 200) -> Any:
    """What GET gives."""
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert response.status == status, await response.text()
        return await response.json()


async def post(url: str, body: Any = None, status: int = 200) -> Any:
    """What POST gives."""
    async with aiohttp.ClientSession() as session, session.post(url, json=body) as response:
        assert response.status == status, await response.text()
        return await response.json()


@given(text=st.text(max_size=40))
@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_detokenize_gives_back_what_tokenize_took(live: Any, text: str) -> None:
    async def check() -> None:
        told = await post(f"{live.url}/tokenize", {"prompt": text, "return_token_strs": True})
        assert told["tokens"] == live.engine.tokenizer.encode(text)
        assert told["count"] == len(told["tokens"]) == len(told["token_strs"])
        assert told["max_model_len"] == live.engine.max_model_len
        back = await post(f"{live.url}/detokenize", {"tokens": told["tokens"]})
        assert back == {"prompt": text}

    asyncio.run(check())


async def test_messages_are_tokenized_as_a_chat_is(live: Any) -> None:
    messages = [{"role": "user", "content": "the cat"}]
    for extra in ({}, {"add_generation_prompt": False}, {"tools": [TOOL]}):
        told = await post(f"{live.url}/tokenize", {"messages": messages, **extra})
        assert told["token_strs"] is None
        body = {"messages": messages, "max_tokens": 1, "return_token_ids": True, **extra}
        answer = await post(f"{live.url}/v1/chat/completions", body)
        assert answer["choices"][0]["prompt_token_ids"] == told["tokens"]


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


async def test_a_prompt_longer_than_the_model_is_counted_whole(live: Any) -> None:
    text = "the cat " * 5000
    told = await post(f"{live.url}/tokenize", {"prompt": text})
    assert told["count"] == len(live.engine.tokenizer.encode(text)) > live.engine.max_model_len


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/tokenize", {}, "neither is"),
        ("/tokenize", {"prompt": "a", "messages": []}, "both are"),
        ("/tokenize", {"prompt": "a", "tools": []}, "tools needs messages"),
        ("/tokenize", {"messages": []}, "at least one"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"prompt": "a", "promt": 1}, "did you mean"),
        ("/detokenize", {"tokens": [-1]}, "-1"),
        ("/detokenize", {"tokens": [2**31]}, "2147483648"),
        ("/detokenize", {"tokens": [10**30]}, "tokens"),
        ("/detokenize", {}, "tokens is missing"),
    ],
)
async def test_bad_tokenizing_is_told(live: Any, path: str, body: Any, words: str) -> None:
    error = (await post(live.url + path, body, 400))["error"]
    assert words in error["message"]


async def test_another_model_is_not_here(live: Any) -> None:
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
        assert (await post(live.url + path, {"model": "x", **body}, 404))["error"]["code"]


async def test_unknown_tokens_have_no_text(live: Any) -> None:
    assert await post(f"{live.url}/detokenize", {"tokens": [2**31 - 1]}) == {"prompt": ""}
    assert await post(f"{live.url}/detokenize", {"tokens": []}) == {"prompt": ""}


async def test_tokenizer_info(live: Any) -> None:
    told = await get(f"{live.url}/tokenizer_info")
    assert told["eos_token"] == "<|im_end|>"
    assert told["added_tokens_decoder"]["2"] == {"content": "<|im_end|>", "special": True}
    assert told["chat_template"].startswith("{%- if tools")
    assert told["vocab_size"] == live.engine.tokenizer.vocab_size


async def test_models_have_vllms_fields(live: Any) -> None:
    (card,) = (await get(f"{live.url}/v1/models"))["data"]
    assert card["id"] == "tiny"
    assert card["root"] == live.engine.config.model
    assert card["parent"] is None
    assert card["max_model_len"] == live.engine.max_model_len
    (permission,) = card["permission"]
    assert permission["object"] == "model_permission"
    assert permission["allow_sampling"] is True
    assert (await get(f"{live.url}/v1/models/tiny"))["root"] == card["root"]


async def test_server_info_and_load(live: Any) -> None:
    info = await get(f"{live.url}/server_info")
    assert info["quire_config"]["served_model_name"] == "tiny"
    assert info["limits"]["max_nesting"] == 128
    text = (await get(f"{live.url}/server_info?config_format=text"))["quire_config"]
    assert "served_model_name='tiny'" in text
    for query in ("config_format=xml", "config_format=", "config_format=text&config_format=json"):
        await get(f"{live.url}/server_info?{query}", 400)
    assert await get(f"{live.url}/load") == {"server_load": 0}


async def test_health_is_of_the_living_and_ready_of_those_that_work(serve_fake: Any) -> None:
    fake = await serve_fake()
    engine, state = fake.engine, fake.server.state
    for change, word, lives, works in (
        ({}, "ok", 200, 200),
        ({"is_sleeping": True, "is_running": False}, "sleeping", 200, 503),
        ({"is_sleeping": False}, "stopped", 503, 503),
        ({"is_running": True, "draining": True}, "draining", 503, 503),
    ):
        for name, value in change.items():
            setattr(state if name == "draining" else engine, name, value)
        for path, status in (("/health", lives), ("/ping", lives), ("/ready", works)):
            assert await get(fake.url + path, status) == {"status": word}
        assert await post(f"{fake.url}/ping", status=lives) == {"status": word}


@pytest_asyncio.fixture
async def url(engine: AsyncEngine) -> AsyncIterator[str]:
    """A server around a real engine in the test's own loop."""
    server = Server(engine, ServerOptions())
    await server.start(bind("127.0.0.1", 0))
    yield server.url
    await server.stop()


BODY = {"prompt": list(range(10, 50)), "max_tokens": 4, "ignore_eos": True, "seed": 1}


async def cached(url: str) -> int:
    """Tokens of a prompt that came from the cache."""
    usage = (await post(f"{url}/v1/completions", BODY))["usage"]
    return int(usage["prompt_tokens_details"]["cached_tokens"])


async def test_the_prefix_cache_is_forgotten_when_asked(url: str) -> None:
    for _ in range(2):
        assert await cached(url) == 0
        assert await cached(url) > 0
        assert await post(f"{url}/reset_prefix_cache") == {"success": True}


async def test_a_cache_in_use_is_not_forgotten(url: str, engine: AsyncEngine) -> None:
    stream = engine.generate(list(range(10, 50)), SamplingParams(max_tokens=60, ignore_eos=True))
    async for _ in stream:
        break
    error = (await post(f"{url}/reset_prefix_cache", status=409))["error"]
    assert "1 answers" in error["message"]
    await stream.aclose()


async def test_sleep_gives_back_memory_and_waking_changes_no_answer(
    url: str, engine: AsyncEngine
) -> None:
    before = await post(f"{url}/v1/completions", BODY)
    runner = weakref.ref(engine.front.core._executor._runner)  # type: ignore[attr-defined]
    for _ in range(2):  # falling asleep twice is falling asleep
        assert await post(f"{url}/sleep?level=1") == {"success": True}
    assert runner() is None
    assert await get(f"{url}/is_sleeping") == {"is_sleeping": True}
    error = (await post(f"{url}/v1/completions", BODY, 503))["error"]
    assert error["code"] == "engine_sleeping"
    with pytest.raises(EngineError, match="sleeps"):
        async for _ in engine.generate([1, 2, 3]):
            pass
    assert (await post(f"{url}/tokenize", {"prompt": "the"}))["count"] > 0
    for _ in range(2):
        assert await post(f"{url}/wake_up") == {"success": True}
    assert await get(f"{url}/is_sleeping") == {"is_sleeping": False}
    after = await post(f"{url}/v1/completions", BODY)
    assert after["choices"] == before["choices"]
    assert after["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


async def test_what_was_begun_ends_before_sleep(engine: AsyncEngine) -> None:
    params = SamplingParams(max_tokens=40, ignore_eos=True, seed=1)
    stream = engine.generate(list(range(10, 20)), params)
    begun = [await anext(stream)]
    asleep = asyncio.create_task(engine.sleep())
    await asyncio.sleep(0)
    assert engine.is_sleeping
    assert not asleep.done()
    begun += [output async for output in stream]
    assert begun[-1].finished
    assert len(begun[-1].outputs[0].token_ids) == 40
    await asleep
    await engine.wake_up()


async def test_a_sleep_that_nobody_waits_for_goes_on(engine: AsyncEngine) -> None:
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    stream = engine.generate([10, 11], params)
    await anext(stream)
    asleep = asyncio.create_task(engine.sleep())
    await asyncio.sleep(0)
    asleep.cancel()
    await asyncio.gather(asleep, return_exceptions=True)
    waking = asyncio.create_task(engine.wake_up())
    async for _ in stream:
        pass
    await waking
    assert engine.is_running
    again = [output async for output in engine.generate([10, 11], params)]
    assert again[-1].finished


async def test_an_engine_that_cannot_wake_sleeps_on(
    url: str, engine: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await engine.sleep()

    def fail() -> Any:
        raise MemoryError("no room")

    renew = engine.front.renew_executor
    monkeypatch.setattr(engine.front, "renew_executor", fail)
    error = (await post(f"{url}/wake_up", status=503))["error"]
    assert "no room" in error["message"]
    assert engine.is_sleeping
    monkeypatch.setattr(engine.front, "renew_executor", renew)
    await engine.wake_up()
    assert await cached(url) == 0


@pytest.mark.parametrize("query", ["level=2", "level=", "mode=abort", "level=1&level=1"])
async def test_other_sleeps_are_refused(url: str, query: str) -> None:
    await post(f"{url}/sleep?{query}", status=400)
    assert await get(f"{url}/is_sleeping") == {"is_sleeping": False}


async def test_an_engine_stops_while_it_sleeps_or_falls_asleep(model_folder: Any) -> None:
    options: dict[str, Any] = {"load_format": "dummy", "backend": "reference"}
    for begins in (False, True):
        async with AsyncEngine(
            model=str(model_folder), num_kv_blocks=64, num_threads=1, **options
        ) as engine:
            if begins:
                stream = engine.generate([10], SamplingParams(max_tokens=100, ignore_eos=True))
                await anext(stream)
                asleep = asyncio.create_task(engine.sleep())
                await asyncio.sleep(0)
            else:
                await engine.sleep()
        if begins:
            await asyncio.gather(asleep, return_exceptions=True)
            await stream.aclose()
