"""Prompts on their way to the engine: long texts leave the loop alone and are not read in vain."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from quire.api.convert import CHARS_PER_TOKEN, LONG_TEXT_CHARS, encode, split_prompts
from quire.api.errors import ApiError


class Recorder:
    """A tokenizer with one token for every `chars` characters that notes who calls it."""

    def __init__(self, chars: int) -> None:
        self.chars = chars
        self.lengths: list[int] = []
        self.threads: set[int] = set()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        self.lengths.append(len(text))
        self.threads.add(threading.get_ident())
        return [1] * add_special_tokens + [5] * (len(text) // self.chars)


def make_engine(chars: int, max_model_len: int) -> Any:
    return SimpleNamespace(tokenizer=Recorder(chars), max_model_len=max_model_len)


async def test_short_text_is_tokenized_at_once() -> None:
    engine = make_engine(1, 100)
    assert await encode(engine, "abc", add_special_tokens=True) == ("abc", [1, 5, 5, 5])
    assert await encode(engine, "abc", add_special_tokens=False) == ("abc", [5, 5, 5])
    assert engine.tokenizer.threads == {threading.get_ident()}


@pytest.mark.parametrize("special", [True, False])
async def test_long_text_is_tokenized_in_a_thread(special: bool) -> None:
    engine = make_engine(4, 100_000)
    text = "x" * LONG_TEXT_CHARS
    given = await encode(engine, text, add_special_tokens=special)
    assert given == (text, engine.tokenizer.encode(text, add_special_tokens=special))
    assert engine.tokenizer.lengths == [LONG_TEXT_CHARS] * 2
    assert len(engine.tokenizer.threads) == 2


async def test_hopeless_text_is_read_only_as_far_as_it_shows() -> None:
    engine = make_engine(4, 100)
    given = await encode(engine, "x" * 10**6, add_special_tokens=False)
    assert engine.tokenizer.lengths == [100 * CHARS_PER_TOKEN]
    assert len(given.token_ids) > 100


async def test_text_of_few_tokens_is_read_whole_however_long() -> None:
    engine = make_engine(10**5, 100)
    given = await encode(engine, "x" * 10**6, add_special_tokens=False)
    assert given.token_ids == [5] * 10


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([1, 2], [[1, 2]]),
        ([[1], [2, 3]], [[1], [2, 3]]),
    ],
)
def test_prompts_are_told_apart(prompt: Any, prompts: Sequence[Any]) -> None:
    assert split_prompts(prompt, 1, 2048) == prompts


@pytest.mark.parametrize("prompt", ["", [], [""], [[]], [1, "a"], [[1], "a"], [[1], 1]])
def test_bad_prompts_are_refused(prompt: Any) -> None:
    with pytest.raises(ApiError, match="prompt"):
        split_prompts(prompt, 1, 2048)
