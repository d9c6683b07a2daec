"""Prompts for vectors: cut as the tokenizers library cuts, told apart as BERT tells texts apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from quire.engine.errors import ParamsError
from quire.engine.params import PoolingParams
from quire.engine.text.files import TokenizerConfig
from quire.engine.text.ids import cut
from quire.engine.text.pooled import PooledPrompts, TextPair
from quire.engine.text.tokenizer import JsonTokenizer
from quire.engine.vectors import PoolingConfig
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ["[CLS]", "[SEP]", "[UNK]", "a", "b", "c", "d"]
VOCAB = len(WORDS)
CLS, SEP = 0, 1


def make_backend(*, types: bool = True) -> Any:
    """A tokenizer of whole words with BERT's special tokens."""
    backend = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    second = "$B:1 [SEP]:1" if types else "$B:0 [SEP]:0"
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair=f"[CLS] $A [SEP] {second}",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    return backend


def make_prompts(longest: int = 12, *, num_types: int = 2, **config: Any) -> PooledPrompts:
    tokenizer = JsonTokenizer(make_backend(), TokenizerConfig())
    pooling = PoolingConfig(**({"width": 8, "num_types": num_types} | config))
    return PooledPrompts(tokenizer, pooling, VOCAB, longest)


def read(prompt: Any, longest: int = 12, **params: Any) -> list[int]:
    taken = make_prompts(longest).read(prompt, PoolingParams(**params))
    return [int(one) for one in taken.token_ids]


texts = st.lists(st.sampled_from("abcd"), max_size=12).map(" ".join)


@given(texts, texts, st.integers(3, 20), st.booleans())
def test_pairs_are_cut_as_the_library_cuts_them(
    first: str, second: str, most: int, types: bool
) -> None:
    backend = make_backend(types=types)
    tokenizer = JsonTokenizer(make_backend(types=types), TokenizerConfig())
    backend.enable_truncation(most, strategy="longest_first")
    wanted = backend.encode(first, second)
    ids, num_first = tokenizer.encode_pair(first, second, most)
    assert ids == wanted.ids
    assert [int(i >= num_first) for i in range(len(ids))] == wanted.type_ids
    alone = backend.encode(first)
    assert tokenizer.encode_pair(first, None, most) == (alone.ids, len(alone.ids))


@given(st.lists(st.integers(0, 40), min_size=1, max_size=2), st.integers(0, 60))
def test_nothing_is_cut_that_fits_and_all_room_is_used(lengths: list[int], room: int) -> None:
    kept = cut(lengths, room)
    assert sum(kept) == min(sum(lengths), room)
    assert all(0 <= k <= n for k, n in zip(kept, lengths, strict=True))


def test_the_second_text_has_ids_of_its_own() -> None:
    assert read(TextPair("a b", "c")) == [0, 3, 4, 1, 5 + VOCAB, 1 + VOCAB]
    one_type = make_prompts(num_types=1).read(TextPair("a b", "c"), PoolingParams())
    assert one_type.token_ids.tolist() == [0, 3, 4, 1, 5, 1]
    assert read("a b c") == [0, 3, 4, 5, 1]


def test_a_text_that_is_too_long_is_refused_or_cut() -> None:
    text = "a b c d a b c d"
    with pytest.raises(ParamsError, match="has 10 tokens: it must have at most 6"):
        read(text, 6)
    assert read(text, 6, truncate_prompt_tokens=-1) == [0, 3, 4, 5, 6, 1]
    assert read(text, 6, truncate_prompt_tokens=4) == [0, 3, 4, 1]
    assert read(text, 6, truncate_prompt_tokens=99) == [0, 3, 4, 5, 6, 1]
    assert read([3, 4, 5], 6, truncate_prompt_tokens=2) == [3, 4]


def test_megabytes_are_not_tokenized_to_be_refused_or_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, seen = make_prompts(8), list[int]()
    encode, pair = JsonTokenizer.encode, JsonTokenizer.encode_pair

    def watched(self: Any, text: str, **how: Any) -> list[int]:
        seen.append(len(text))
        return encode(self, text, **how)

    def watched_pair(self: Any, first: str, second: Any = None, most: Any = None) -> Any:
        seen.append(len(first))
        return pair(self, first, second, most)

    monkeypatch.setattr(JsonTokenizer, "encode", watched)
    monkeypatch.setattr(JsonTokenizer, "encode_pair", watched_pair)
    with pytest.raises(ParamsError, match="more than"):
        prompts.read("a " * 500_000, PoolingParams())
    cut_to = prompts.read("a " * 500_000, PoolingParams(truncate_prompt_tokens=-1))
    assert len(cut_to.token_ids) == 8
    assert max(seen) < 2000


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "at least one token"),
        ([VOCAB], f"a token id, 0 to {VOCAB - 1}"),
        ([-1], "a token id"),
        ([True], "a token id"),
        (5, "a text or a list of token ids"),
        ("a \ud800", "lone surrogates"),
        (TextPair("a", "\ud800"), "lone surrogates"),
        ({"text": "a"}, "an object with prompt"),
    ],
)
def test_what_is_no_prompt_is_refused(prompt: Any, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        make_prompts().read(prompt, PoolingParams())


def test_dimensions_are_those_that_the_model_has() -> None:
    for config, asked, message in (
        ({}, 9, "from 1 to 8"),
        ({"dimensions": (2, 4)}, 3, r"one of \[2, 4\]"),
        ({"labels": ("a",), "width": 1}, 1, "this model classifies"),
    ):
        with pytest.raises(ParamsError, match=message):
            make_prompts(**config).read("a", PoolingParams(dimensions=asked))


PROMPTS = {"query": "a b ", "document": ""}


def test_a_prompt_is_written_before_a_text_and_no_other() -> None:
    prompts = make_prompts(prompts=PROMPTS, default_prompt_name="query")
    for name, whole in ((None, "a b c"), ("query", "a b c"), ("document", "c"), ("", "c")):
        for text in ("c", {"prompt": "c"}):
            taken = prompts.read(text, PoolingParams(prompt_name=name))
            alone = make_prompts().read(whole, PoolingParams())
            assert taken.token_ids.tolist() == alone.token_ids.tolist()
            assert (taken.text, taken.start) == (whole, 0)
    assert prompts.read([3], PoolingParams()).token_ids.tolist() == [3]
    pair = prompts.read(TextPair("c", "c"), PoolingParams())
    assert pair.token_ids.tolist() == read(TextPair("c", "c"))


def test_a_prompt_that_does_not_count_is_skipped_as_far_as_there_is_more() -> None:
    prompts = make_prompts(prompts=PROMPTS, includes_prompt=False)
    how = PoolingParams(prompt_name="query")
    assert prompts.read("c d", how).start == 3  # [CLS] a b
    assert prompts.read("c d", PoolingParams()).start == 0
    assert prompts.read("c d", PoolingParams(prompt_name="document")).start == 0
    cut = prompts.read("c d", PoolingParams(prompt_name="query", truncate_prompt_tokens=3))
    assert (cut.token_ids.tolist(), cut.start) == ([CLS, 3, SEP], 2)


@pytest.mark.parametrize(
    ("prompt", "name", "message"),
    [
        ("a", "passage", r"prompt_name is 'passage': it must be empty or one of \['document', 'qu"),
        ([3], "query", "left out with token ids"),
        (TextPair("a", "b"), "query", "left out with two texts"),
    ],
)
def test_a_prompt_that_cannot_be_is_refused(prompt: Any, name: str, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        make_prompts(prompts=PROMPTS).read(prompt, PoolingParams(prompt_name=name))
    with pytest.raises(ParamsError, match="left out"):
        make_prompts().read(prompt, PoolingParams(prompt_name=name))


@pytest.mark.parametrize(
    "wrong",
    [
        {"dimensions": 0},
        {"prompt_name": 1},
        {"normalize": 1},
        {"truncate_prompt_tokens": 0},
        {"dimensions": True},
    ],
)
def test_parameters_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ParamsError, match=next(iter(wrong))):
        PoolingParams(**wrong)


def test_prompts_come_as_dicts_too() -> None:
    prompts = make_prompts()
    both = prompts.read({"prompt": "x", "prompt_token_ids": [3]}, PoolingParams())
    assert (both.token_ids.tolist(), both.text) == ([3], "x")
    assert prompts.read({"prompt": "a"}, PoolingParams()).token_ids.tolist() == [0, 3, 1]
    assert prompts.read(np.array([3, 4]), PoolingParams()).token_ids.dtype == np.int32
