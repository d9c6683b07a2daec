"""Cached prefixes belong to the API key that wrote them, unless the server says otherwise."""

from __future__ import annotations

import hashlib

import aiohttp
import pytest
from quire import AsyncEngine
from quire.api.server import Server, ServerOptions, bind

IDS = list(range(100, 150))


async def cached(
    engine: AsyncEngine, asked: list[tuple[str, str | None]], *, share: bool = False
) -> list[int]:
    """Ask for the same tokens with each (key, cache salt); return what the cache gave to each."""
    server = Server(engine, ServerOptions(api_keys=["one", "two"], share_prefix_cache=share))
    await server.start(bind("127.0.0.1", 0))
    found = []
    try:
        async with aiohttp.ClientSession() as session:
            for key, salt in asked:
                body = {"prompt": IDS, "max_tokens": 1, "cache_salt": salt}
                headers = {"Authorization": f"Bearer {key}"}
                url = f"{server.url}/v1/completions"
                async with session.post(url, json=body, headers=headers) as response:
                    usage = (await response.json())["usage"]
                found.append(usage["prompt_tokens_details"]["cached_tokens"])
    finally:
        await server.stop()
    return found


async def test_a_key_finds_its_own_prefixes_only(engine: AsyncEngine) -> None:
    asked: list[tuple[str, str | None]] = [("one", None), ("two", None), ("one", None)]
    assert await cached(engine, asked) == [0, 0, 48]


async def test_a_shared_cache_is_found_by_every_key(engine: AsyncEngine) -> None:
    assert await cached(engine, [("one", None), ("two", None)], share=True) == [0, 48]


async def test_a_salt_divides_within_a_key_and_never_joins_two(engine: AsyncEngine) -> None:
    asked: list[tuple[str, str | None]] = [("one", "a"), ("one", None), ("two", "a"), ("one", "a")]
    assert await cached(engine, asked) == [0, 0, 0, 48]


async def test_nobody_can_take_the_salt_of_another_key(engine: AsyncEngine) -> None:
    """Not even who knows the name of the other's key."""
    name = f"key-{hashlib.sha256(b'one').hexdigest()[:16]}"
    asked: list[tuple[str, str | None]] = [("one", None), ("one", "x")]
    asked += [("two", name), ("two", f"{name} x"), ("two", "x")]
    assert await cached(engine, asked) == [0] * 5


async def test_an_empty_salt_is_still_refused(engine: AsyncEngine) -> None:
    with pytest.raises(KeyError, match="usage"):
        await cached(engine, [("one", "")])
