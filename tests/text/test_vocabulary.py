"""What grammars see of tokenizers of every kind: their texts, and which tokens are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quire.engine.errors import ParamsError
from quire.engine.grammar.follower import Follower
from quire.engine.grammar.grammars import Grammars
from quire.engine.grammar.source import grammar_source
from quire.engine.structured import StructuredOutputsParams
from quire.engine.text.files import TokenizerConfig
from quire.engine.text.tokenizer import JsonTokenizer, load_tokenizer
from quire.engine.text.vocabulary import read_vocabulary
from quire.fuzz.text_cases import MAKERS, SPECIAL, TEXT, write_tiktoken

WITHOUT_PIECES = ("word-ends",)
KINDS = [kind for kind in (*MAKERS, "tiktoken") if kind not in WITHOUT_PIECES]
UNSEEN = "Nobody saw 12 millers, and none was at the door."
"""A text that no tokenizer here was trained on, so that it has many tokens."""
EXTRA = 5
"""Logits that a model has beyond its tokenizer's tokens."""


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param != "tiktoken":
        return JsonTokenizer(MAKERS[request.param](), TokenizerConfig())
    write_tiktoken(tmp_path / "tokenizer.tiktoken")
    return load_tokenizer(tmp_path)


def end_of(tokenizer: Any) -> int:
    return max(map(int, tokenizer.special_ids))


def masks(source: str, vocabulary: Any, outputs: list[int]) -> list[int]:
    """What may come after outputs."""
    follower = Follower(Grammars(lambda: vocabulary).resume(source), outputs)
    assert follower.fault is None, follower.fault
    mask = np.zeros(-(-len(vocabulary.tokens) // 32), np.uint32)
    follower.fill(mask)
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    return [int(token) for token in bits.nonzero()[0]]


def spelled(vocabulary: Any, ids: list[int]) -> tuple[str, list[int]]:
    """Return the longest of the first pieces of some tokens that is a whole text."""
    for start in range(4):
        for stop in range(len(ids), start, -1):
            data = b"".join(vocabulary.tokens[i] for i in ids[start:stop])
            try:
                return data.decode(), ids[start:stop]
            except UnicodeDecodeError:
                continue
    return "", []


def test_tokens_are_what_they_add_to_a_text(tokenizer: Any) -> None:
    """In mid-sentence, since an output follows a prompt: spaces before words are in them."""
    vocabulary = read_vocabulary(tokenizer, tokenizer.vocab_size + EXTRA, (end_of(tokenizer),))
    assert len(vocabulary.tokens) == tokenizer.vocab_size + EXTRA
    assert vocabulary.tokens[-EXTRA:] == [b""] * EXTRA
    for text in TEXT:
        first, *ids = tokenizer.encode(f"One {text}", add_special_tokens=False)
        before = tokenizer.decode([first], skip_special_tokens=False)
        whole = tokenizer.decode([first, *ids], skip_special_tokens=False)
        added = b"".join(vocabulary.tokens[i] for i in ids).decode("utf-8", "replace")
        assert before + added == whole


def test_the_tokenizers_own_tokens_follow_a_choice_of_their_text(tokenizer: Any) -> None:
    """Token by token, and then nothing but the end may come."""
    end, most = end_of(tokenizer), 0
    vocabulary = read_vocabulary(tokenizer, tokenizer.vocab_size + EXTRA, (end,))
    for text in (UNSEEN, *TEXT):
        found = tokenizer.encode(f"One {text}", add_special_tokens=False)[1:]
        wanted, ids = spelled(vocabulary, [i for i in found if i not in tokenizer.special_ids])
        source = grammar_source(StructuredOutputsParams(choice=[wanted]), vocabulary.special)
        assert masks(source, vocabulary, ids) == [end]
        most = max(most, len(ids))
    assert most >= 5


def test_no_text_spells_a_special_token(tokenizer: Any) -> None:
    """Nor one without a text; a grammar that names a token allows it."""
    end = end_of(tokenizer)
    vocabulary = read_vocabulary(tokenizer, tokenizer.vocab_size + EXTRA, (end,))
    assert {*vocabulary.special.values()} == {*tokenizer.special_ids}
    for text, token in vocabulary.special.items():
        assert tokenizer.token_text(token) == text
    free = masks(r"start: /(.|\n)*/", vocabulary, [])
    assert {*free} & {*tokenizer.special_ids} == {end}
    assert all(vocabulary.tokens[token] for token in free)
    named = next(iter({*SPECIAL, "<|endoftext|>"} & vocabulary.special.keys()), None)
    if named is not None:
        assert masks(f'start: {named} "a"', vocabulary, []) == [vocabulary.special[named]]


def test_the_models_ends_are_special_whatever_the_tokenizer_says(tokenizer: Any) -> None:
    """And what the model has no logits for is left out, on both sides."""
    ordinary = tokenizer.encode(TEXT[0], add_special_tokens=False)[-1]
    assert ordinary not in tokenizer.special_ids
    size = tokenizer.vocab_size
    vocabulary = read_vocabulary(tokenizer, size, (ordinary, size + 7))
    assert vocabulary.eos_token_ids == (ordinary,)
    assert ordinary in vocabulary.special.values()
    assert ordinary not in masks(r"start: /(.|\n)+/", vocabulary, [])
    smaller = read_vocabulary(tokenizer, ordinary, (0,))
    assert len(smaller.tokens) == ordinary
    assert max(smaller.special.values()) < ordinary


@pytest.mark.parametrize("kind", WITHOUT_PIECES)
def test_tokens_whose_text_depends_on_others_follow_no_grammar(kind: str) -> None:
    made = JsonTokenizer(MAKERS[kind](), TokenizerConfig())
    with pytest.raises(ParamsError, match="text of a token depends on its neighbours") as caught:
        read_vocabulary(made, made.vocab_size, (0,))
    assert caught.value.param == "structured_outputs"
