"""Vocabularies in tiktoken's format: recognized, given their family's special tokens, encoded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tiktoken
from quire.engine.errors import CheckpointError
from quire.engine.text.tiktoken_tokenizer import KIMI, LLAMA3, QWEN, Family, find_tiktoken_file
from quire.engine.text.tokenizer import Tokenizer, load_tokenizer
from quire.fuzz.text_cases import TEXT, write_tiktoken


def load(folder: Path, name: str = "tokenizer.model", **config: Any) -> Tokenizer:
    write_tiktoken(folder / name)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return load_tokenizer(folder)


def test_llama_adds_its_begin_token(tmp_path: Path) -> None:
    tokenizer = load(tmp_path)
    base = tokenizer.vocab_size - 256
    assert tokenizer.bos_token_id == base
    ids = tokenizer.encode("a door<|eot_id|>")
    assert ids[0] == base
    assert ids[-1] == base + 9
    assert tokenizer.encode("a door", add_special_tokens=False) == ids[1:-1]
    assert tokenizer.eos_token_ids == (base + 1,)
    assert tokenizer.token_text(base + 11) == "<|reserved_special_token_3|>"
    assert tokenizer.decode(ids) == "a door"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "<|begin_of_text|>a door<|eot_id|>"


def test_qwen_adds_nothing(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, "qwen.tiktoken")
    base = tokenizer.vocab_size - 208
    assert tokenizer.encode("<|im_end|>") == [base + 2]
    assert tokenizer.token_text(base + 3) == "<|extra_0|>"
    assert tokenizer.token_text(base + 207) == "<|extra_204|>"
    assert tokenizer.bos_token_id is None


def test_kimi_takes_its_special_tokens_from_the_config(tmp_path: Path) -> None:
    size = load(tmp_path, "tiktoken.model").vocab_size
    base = size - 258
    added = {base + 2: {"content": "<|im_end|>"}, base + 3: {"content": "<|im_user|>"}}
    tokenizer = load(
        tmp_path,
        "tiktoken.model",
        added_tokens_decoder=added,
        eos_token="<|im_end|>",
        tokenizer_class="TikTokenTokenizer",
    )
    assert tokenizer.vocab_size == size
    assert tokenizer.encode("<|im_user|>你")[0] == base + 3
    assert tokenizer.token_text(base) == f"<|reserved_token_{base}|>"
    assert tokenizer.eos_token_ids == (base + 2,)


@pytest.mark.parametrize("flag", [True, False])
def test_config_decides_on_the_begin_token(tmp_path: Path, flag: bool) -> None:
    tokenizer = load(tmp_path, add_bos_token=flag, add_eos_token=flag)
    ids = tokenizer.encode("a")
    assert (ids[0] == tokenizer.bos_token_id) is flag
    assert (ids[-1] in tokenizer.eos_token_ids) is flag


@pytest.mark.parametrize("family", [LLAMA3, QWEN, KIMI], ids=["llama3", "qwen", "kimi"])
def test_patterns_compile_and_lose_nothing(family: Family) -> None:
    bytes_only = {bytes((i,)): i for i in range(256)}
    encoding = tiktoken.Encoding(
        "x", pat_str=family.pattern, mergeable_ranks=bytes_only, special_tokens={}
    )
    for text in TEXT:
        assert encoding.decode(encoding.encode(text)) == text


def test_patterns_split_as_their_families_do(tmp_path: Path) -> None:
    tokenizer = load(tmp_path, pat_str=r"\d|\D+")
    assert len(tokenizer.encode("12345", add_special_tokens=False)) == 5
    with pytest.raises(CheckpointError, match="tokenizer.model: tiktoken says"):
        load(tmp_path, pat_str="(")


def test_long_runs_of_spaces_are_cut(tmp_path: Path) -> None:
    """tiktoken alone fails on a million of them."""
    tokenizer = load(tmp_path)
    for text in (" " * 1_000_000, "a" * 100_000, "x" + "\n" * 300_000 + "y"):
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("YQ== 0\nnonsense", "line 2 is not a token and its rank"),
        ("YQ== 0\nYQ== 1", "line 2: this token was there before"),
        ("YQ== 0\nYg== 0", "gives one rank to two tokens"),
        ("YQ== 0\n!!!! 1", "line 2 is not a token"),
    ],
)
def test_broken_vocabularies_are_named(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "tokenizer.model").write_text(lines)
    with pytest.raises(CheckpointError, match=f"tokenizer.model.*{message}"):
        load_tokenizer(tmp_path)


def test_other_model_files_are_not_taken_for_vocabularies(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    assert find_tiktoken_file(tmp_path) is None
    write_tiktoken(tmp_path / "other.tiktoken")
    assert find_tiktoken_file(tmp_path) == tmp_path / "other.tiktoken"
    assert load_tokenizer(tmp_path / "other.tiktoken").encode("a")
