"""Increments against the library's decoding of everything, for every kind of tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from hypothesis import example, given
from hypothesis import strategies as st
from quire.engine.text.detokenizer import (
    MAX_CHARACTER,
    WINDOW_CONTEXT,
    WINDOW_LIMIT,
    ByteDetokenizer,
    TextDetokenizer,
    start_detokenizer,
)
from quire.engine.text.files import TokenizerConfig
from quire.engine.text.pieces import BytePieces, TextPieces
from quire.engine.text.tokenizer import JsonTokenizer, Tokenizer, load_tokenizer
from quire.fuzz.text_cases import MAKERS, SPECIAL, TEXT, less_common, token_ids, write_tiktoken
from tokenizers.decoders import DecodeStream

EXACT = [kind for kind in MAKERS if kind != "word-ends"]


@cache
def make_pair(kind: str) -> tuple[JsonTokenizer, Any]:
    backend = MAKERS[kind]()
    return JsonTokenizer(backend, TokenizerConfig()), backend


def run(tokenizer: Tokenizer, prompt: list[int], answer: list[int], *, skip: bool) -> str:
    detokenizer = start_detokenizer(tokenizer, prompt, skip_special_tokens=skip)
    return "".join(map(detokenizer.push, answer)) + detokenizer.flush()


@pytest.mark.parametrize("kind", EXACT)
@given(data=st.data(), skip=st.booleans())
def test_increments_are_the_decoded_whole(kind: str, data: st.DataObject, skip: bool) -> None:
    tokenizer, backend = make_pair(kind)
    prompt = data.draw(token_ids(tokenizer, max_size=8), "prompt")
    answer = data.draw(token_ids(tokenizer), "answer")
    shown = backend.decode(prompt, skip_special_tokens=skip)
    whole = backend.decode(prompt + answer, skip_special_tokens=skip)
    assert run(tokenizer, prompt, answer, skip=skip) == less_common(whole, shown)


@pytest.mark.parametrize("kind", EXACT)
@given(data=st.data(), skip=st.booleans())
def test_decode_equals_the_library(kind: str, data: st.DataObject, skip: bool) -> None:
    tokenizer, backend = make_pair(kind)
    ids = data.draw(token_ids(tokenizer))
    assert tokenizer.decode(ids, skip_special_tokens=skip) == backend.decode(
        ids, skip_special_tokens=skip
    )


@pytest.mark.parametrize("kind", MAKERS)
@given(data=st.data())
def test_shown_text_is_never_taken_back(kind: str, data: st.DataObject) -> None:
    """Whatever follows, the text so far is a beginning of the final text."""
    tokenizer, _ = make_pair(kind)
    text = data.draw(st.sampled_from(TEXT))
    start = data.draw(st.integers(0, len(text)))
    prompt = tokenizer.encode(text[:start])
    answer = tokenizer.encode(text[start:])
    cut = data.draw(st.integers(0, len(answer)))
    other = answer[:cut] + data.draw(token_ids(tokenizer, max_size=6))
    detokenizer = start_detokenizer(tokenizer, prompt)
    so_far = "".join(map(detokenizer.push, answer[:cut]))
    assert run(tokenizer, prompt, answer, skip=True).startswith(so_far)
    assert run(tokenizer, prompt, other, skip=True).startswith(so_far)


@given(ids=st.lists(st.integers(1, 600), max_size=40), cut=st.integers(0, 40))
def test_window_gives_the_whole_for_decoders_that_look_ahead(ids: list[int], cut: int) -> None:
    tokenizer, backend = make_pair("word-ends")
    assert tokenizer.pieces is None
    known = [i for i in ids if i < tokenizer.vocab_size and i not in tokenizer.special_ids]
    prompt, answer = known[:cut], known[cut:]
    given_text = run(tokenizer, prompt, answer, skip=True)
    assert backend.decode(prompt) + given_text == backend.decode(known)


@pytest.mark.parametrize("kind", MAKERS)
@given(data=st.data())
def test_added_tokens_side_by_side_are_as_they_are_written(kind: str, data: st.DataObject) -> None:
    """vLLM's rule over the library's own stream."""
    tokenizer, backend = make_pair(kind)
    added = [token for token in map(backend.token_to_id, SPECIAL) if token is not None]
    words = [tokenizer.encode(word) for word in ("the door", "asked", "nobody. ")]
    parts = st.lists(st.sampled_from([*([token] for token in added), *words]), max_size=8)
    prompt, answer = ([*chain(*data.draw(parts, name))] for name in ("prompt", "answer"))
    stream = DecodeStream(skip_special_tokens=False)
    for token in prompt:
        stream.step(backend, token)
    expected, before = "", None
    for token in answer:
        text = stream.step(backend, token) or ""
        expected += backend.id_to_token(token) if {token, before} <= {*added} else text
        before = token
    detokenizer = start_detokenizer(
        tokenizer, prompt, skip_special_tokens=False, spaces_between_special_tokens=False
    )
    assert "".join(map(detokenizer.push, answer)) + detokenizer.flush() == expected


@pytest.mark.parametrize(
    ("spaces", "text"), [(True, "<s> <s> door <s>"), (False, "<s><s> door <s>")]
)
def test_spaces_come_from_decoders_that_write_some(spaces: bool, text: str) -> None:
    tokenizer, _ = make_pair("words")
    ids = [tokenizer.encode(word)[0] for word in ("<s>", "<s>", "door", "<s>")]
    assert tokenizer.added_tokens[ids[0]] == "<s>"
    detokenizer = start_detokenizer(
        tokenizer, [], skip_special_tokens=False, spaces_between_special_tokens=spaces
    )
    assert "".join(map(detokenizer.push, ids)) + detokenizer.flush() == text.replace(
        "door", tokenizer.token_text(ids[2]).strip()
    )


def test_window_is_bounded_when_text_never_becomes_certain() -> None:
    lengths: list[int] = []

    class Endless:
        pieces = None
        special_ids = frozenset[int]()
        added_tokens: Mapping[int, str] = {}

        def decode(self, ids: Sequence[int], **options: bool) -> str:
            lengths.append(len(ids))
            return "\ufffd" * len(ids)

    detokenizer = start_detokenizer(Endless(), [])
    text = "".join(map(detokenizer.push, range(500))) + detokenizer.flush()
    assert text == "\ufffd" * 500
    assert max(lengths) < WINDOW_CONTEXT + MAX_CHARACTER + WINDOW_LIMIT


def test_kinds_choose_their_tables() -> None:
    kinds = {kind: type(make_pair(kind)[0].pieces) for kind in MAKERS}
    assert kinds.pop("byte-level") is BytePieces
    assert kinds.pop("word-ends") is type(None)
    assert set(kinds.values()) == {TextPieces}


def test_character_split_over_prompt_and_answer_is_shown_once() -> None:
    tokenizer, _ = make_pair("byte-level")
    first, second, third = (tokenizer.encode(chr(c))[0] for c in (0, 1, 2))
    by_byte = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    first, second, third = (by_byte[bytes((b,))] for b in "你".encode())
    assert run(tokenizer, [first, second], [third], skip=True) == "你"
    assert run(tokenizer, [first], [second, third], skip=True) == "你"
    x = tokenizer.encode("x")
    assert run(tokenizer, [first, second], x, skip=True) == "x"
    assert run(tokenizer, [first, second], [], skip=True) == ""
    assert run(tokenizer, [first], [first], skip=True) == "\ufffd"


@pytest.mark.parametrize("cut", range(5))
@pytest.mark.parametrize("before", ["", "x", "é"])
def test_a_prompt_may_end_anywhere_in_a_character(cut: int, before: str) -> None:
    tokenizer, _ = make_pair("byte-level")
    by_byte = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    ids = [by_byte[bytes((byte,))] for byte in (before + "👋!").encode()]
    start = len(before.encode()) + cut
    assert run(tokenizer, ids[:start], ids[start:], skip=True) == ("👋!" if cut < 4 else "!")


def test_a_prompt_of_bytes_only_is_still_the_beginning_of_a_text() -> None:
    tokenizer, backend = make_pair("sentencepiece")
    space, word = backend.token_to_id("<0x20>"), backend.token_to_id("▁")
    assert backend.decode([space, word]) == " "
    assert backend.decode([space]) == ""
    assert run(tokenizer, [space], [word], skip=True) == " "
    assert run(tokenizer, [], [space, word], skip=True) == " "


@pytest.mark.parametrize("kind", EXACT)
def test_every_token_has_the_librarys_text(kind: str) -> None:
    tokenizer, backend = make_pair(kind)
    everything = list(range(tokenizer.vocab_size))
    assert run(tokenizer, [], everything, skip=False) == backend.decode(
        everything, skip_special_tokens=False
    )
    for token_id in everything:
        alone = backend.decode([token_id], skip_special_tokens=False)
        assert tokenizer.decode([token_id], skip_special_tokens=False) == alone
        assert run(tokenizer, [], [token_id], skip=False) == alone


def test_byte_fallback_run_waits_for_its_end() -> None:
    tokenizer, backend = make_pair("sentencepiece")
    good = [backend.token_to_id(f"<0x{byte:02X}>") for byte in "你".encode()]
    bad = backend.token_to_id("<0xFF>")
    word = backend.token_to_id("▁the") or backend.token_to_id("▁")
    detokenizer = start_detokenizer(tokenizer, tokenizer.encode("x"))
    assert [detokenizer.push(i) for i in (*good, word)][:3] == ["", "", ""]
    assert run(tokenizer, [word], [*good, word], skip=True).startswith("你 ")
    assert run(tokenizer, [word], [*good, bad], skip=True) == "\ufffd" * 4


def test_first_word_of_an_answer_keeps_its_space() -> None:
    tokenizer, _ = make_pair("sentencepiece")
    prompt = tokenizer.encode("The door.")
    word = tokenizer.encode("she")
    assert run(tokenizer, prompt, word, skip=True) == " she"
    assert run(tokenizer, [], word, skip=True) == "she"
    begin = sorted(tokenizer.special_ids)[:1]
    assert run(tokenizer, begin, word, skip=True) == "she"


@pytest.fixture(scope="module")
def tiktoken_pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, tiktoken.Encoding]:
    path: Path = tmp_path_factory.mktemp("tiktoken") / "tokenizer.model"
    write_tiktoken(path)
    tokenizer = load_tokenizer(path)
    return tokenizer, tokenizer._encoding  # type: ignore[attr-defined]  # the oracle inside


@given(data=st.data())
def test_tiktoken_increments_are_the_decoded_whole(
    tiktoken_pair: tuple[Tokenizer, tiktoken.Encoding], data: st.DataObject
) -> None:
    tokenizer, encoding = tiktoken_pair
    known = token_ids(tokenizer).map(lambda ids: [i for i in ids if i < tokenizer.vocab_size])
    prompt, answer = data.draw(known, "prompt"), data.draw(known, "answer")
    shown, whole = encoding.decode(prompt), encoding.decode(prompt + answer)
    assert run(tokenizer, prompt, answer, skip=False) == less_common(whole, shown)


@example(ids=[0x100, 5, 0x110000])
@given(ids=st.lists(st.integers(0, 2**31 - 1), max_size=10))
def test_ids_outside_the_vocabulary_have_no_text(ids: list[int]) -> None:
    for kind in MAKERS:
        tokenizer, _ = make_pair(kind)
        outside = [i + tokenizer.vocab_size for i in ids if i + tokenizer.vocab_size < 2**31]
        assert run(tokenizer, outside, outside, skip=True) == ""
        assert all(tokenizer.token_text(i) == "" for i in outside)


def test_long_answers_are_not_decoded_again() -> None:
    """All that is ever joined is each run of bytes once, and each token of the table once."""
    tokenizer, backend = make_pair("sentencepiece")
    joined: list[int] = []

    def join(tokens: list[str]) -> str:
        joined.append(len(tokens))
        text: str = backend.decoder.decode(tokens)
        return text

    ids = tokenizer.encode("水 the door. " * 500)
    pieces = TextPieces(backend.id_to_token, join, byte_fallback=True)
    detokenizer = TextDetokenizer(pieces, tokenizer.special_ids, ids)
    for token_id in ids:
        detokenizer.push(token_id)
    num_runs = 500
    assert sum(joined) < 8 * num_runs + 4 * tokenizer.vocab_size
    assert max(joined) < 8


def test_unfinished_characters_are_all_that_waits_in_byte_level() -> None:
    tokenizer, _ = make_pair("byte-level")
    detokenizer = start_detokenizer(tokenizer, [])
    assert isinstance(detokenizer, ByteDetokenizer)
    for token_id in range(tokenizer.vocab_size):
        detokenizer.push(token_id)
        assert len(detokenizer._pending) < MAX_CHARACTER
