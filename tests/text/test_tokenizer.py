"""Loading tokenizers from checkpoint folders, and what they must agree on with transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quire.engine.errors import CheckpointError
from quire.engine.text.detokenizer import start_detokenizer
from quire.engine.text.files import TokenizerConfig
from quire.engine.text.slow_tokenizer import SlowTokenizer
from quire.engine.text.tokenizer import JsonTokenizer, load_tokenizer
from quire.fuzz.text_cases import MAKERS, TEXT, make_byte_level, make_sentencepiece
from tokenizers import processors
from transformers import ByT5Tokenizer

PLAIN = JsonTokenizer(make_byte_level(odd=()), TokenizerConfig())
BYT5 = ByT5Tokenizer(extra_ids=5)
NAMES = {"bos_token": "<s>", "eos_token": "</s>"}


def write(folder: Path, *, kind: str = "byte-level", **config: Any) -> Path:
    MAKERS[kind]().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("kind", MAKERS)
def test_encode_and_decode_as_the_library(kind: str, tmp_path: Path) -> None:
    backend = MAKERS[kind]()
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    for text in (*TEXT, "", " ", "a <s> b</s>"):
        assert tokenizer.encode(text) == backend.encode(text).ids
    assert tokenizer.encode_batch(TEXT) == [tokenizer.encode(text) for text in TEXT]
    assert tokenizer.vocab_size == backend.get_vocab_size()


@given(text=st.text())
def test_text_survives_a_byte_level_tokenizer(text: str) -> None:
    assert PLAIN.decode(PLAIN.encode(text), skip_special_tokens=False) == text


@pytest.mark.parametrize("flags", [{}, {"add_bos_token": True}, {"add_bos_token": False}])
def test_begin_and_end_tokens_of_the_file_stay_as_in_transformers(
    tmp_path: Path, flags: dict[str, bool]
) -> None:
    from transformers import AutoTokenizer

    backend = make_byte_level()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(NAMES | flags))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    theirs = AutoTokenizer.from_pretrained(str(tmp_path))
    ours = load_tokenizer(tmp_path)
    for add in (True, False):
        expected = theirs.encode("a door", add_special_tokens=add)
        assert ours.encode("a door", add_special_tokens=add) == expected
        assert ours.encode_batch(["a door"], add_special_tokens=add) == [expected]
    assert ours.bos_token_id == theirs.bos_token_id == 0
    assert ours.eos_token_ids == (theirs.eos_token_id,) == (1,)


@pytest.mark.parametrize("bos", [None, True, False])
@pytest.mark.parametrize("eos", [None, True, False])
@pytest.mark.parametrize("processor", [None, processors.ByteLevel()])
def test_flags_count_where_the_file_adds_nothing(
    tmp_path: Path, bos: bool | None, eos: bool | None, processor: Any
) -> None:
    backend = make_byte_level()
    backend.post_processor = processor
    backend.save(str(tmp_path / "tokenizer.json"))
    flags = {"add_bos_token": bos, "add_eos_token": eos}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(NAMES | flags))
    tokenizer = load_tokenizer(tmp_path)
    plain = backend.encode("a door").ids
    assert tokenizer.encode("a door") == [*([0] if bos else []), *plain, *([1] if eos else [])]
    assert tokenizer.encode("a door", add_special_tokens=False) == plain


def test_tokens_of_the_config_are_added_where_they_fit(tmp_path: Path) -> None:
    size = make_byte_level().get_vocab_size()
    write(
        tmp_path,
        added_tokens_decoder={
            str(size): {"content": "<think>", "special": False},
            str(size + 1): {"content": "<|end|>", "special": True},
            str(size + 9): {"content": "<|far|>", "special": True},
        },
        eos_token={"content": "<|end|>", "lstrip": False},
        pad_token="<|nowhere|>",
    )
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size == size + 2
    assert tokenizer.encode("<think><|end|>") == [size, size + 1]
    assert tokenizer.eos_token_ids == (size + 1,)
    assert tokenizer.decode([size, size + 1]) == "<think>"
    assert tokenizer.special_tokens == {"eos_token": "<|end|>", "pad_token": "<|nowhere|>"}


def test_a_word_of_the_vocabulary_that_the_config_calls_special_is_hidden(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path, kind="words", eos_token="opened"))
    ids = tokenizer.encode("daughter opened the door.")
    assert tokenizer.decode(ids) == "daughter the door."
    assert tokenizer.decode(ids, skip_special_tokens=False) == "daughter opened the door."
    assert tokenizer.eos_token_ids == (ids[1],)


def test_padding_and_cutting_saved_in_the_file_are_ignored(tmp_path: Path) -> None:
    backend = make_byte_level()
    expected = backend.encode(TEXT[0]).ids
    backend.enable_truncation(3)
    backend.enable_padding(length=500)
    backend.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode(TEXT[0]) == expected
    assert 3 < len(expected) < 500


def test_token_text_and_bytes_are_those_in_mid_sentence() -> None:
    backend = make_sentencepiece()
    tokenizer = JsonTokenizer(backend, TokenizerConfig())
    word = next(token for token in backend.get_vocab() if token[:1] == "▁" != token)
    ids = backend.get_vocab()
    assert tokenizer.token_text(ids[word]) == word.replace("▁", " ")
    byte = ids["<0xE4>"]
    assert (tokenizer.token_text(byte), tokenizer.token_bytes(byte)) == ("\ufffd", b"\xe4")
    assert tokenizer.token_text(ids["</s>"]) == "</s>"


def test_chat_templates_from_every_place(tmp_path: Path) -> None:
    write(tmp_path, chat_template="inline")
    assert load_tokenizer(tmp_path).chat_template == "inline"
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    write(tmp_path, chat_template=named)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.chat_template == "d"
    assert tokenizer.chat_templates == {"default": "d", "tool_use": "t"}
    (tmp_path / "chat_template.json").write_text('{"chat_template": "json"}')
    assert load_tokenizer(tmp_path).chat_template == "json"
    (tmp_path / "chat_template.jinja").write_text("file")
    assert load_tokenizer(tmp_path).chat_template == "file"
    assert load_tokenizer(write(tmp_path / "..")).chat_template is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{}", "tokenizer.json is not a tokenizer"),
        ("tokenizer.json", "{", "tokenizer.json is not a tokenizer"),
        ("tokenizer_config.json", "{", "tokenizer_config.json is not valid JSON"),
        ("tokenizer_config.json", "[]", "tokenizer_config.json holds list"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"x": {}}}', "added_tokens_decoder"),
        ("tokenizer_config.json", '{"chat_template": [1]}', "chat_template"),
        ("chat_template.json", "{}", "chat_template.json has no text"),
        ("tokenizer.model", "", "tokenizer.model is empty"),
        ("vocab.txt", "a", "has no tokenizer that can be read"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    if name not in ("tokenizer.model", "vocab.txt"):
        write(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=message):
        load_tokenizer(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        load_tokenizer(tmp_path / "nowhere")


def test_transformers_converts_what_has_no_tokenizer_json(tmp_path: Path) -> None:
    """Vocabulary and merges in files of their own, as GPT-2's and Qwen's slow tokenizers."""
    backend = make_byte_level()
    backend.model.save(str(tmp_path))
    added = {i: t.content for i, t in backend.get_added_tokens_decoder().items() if t.special}
    config = {
        "tokenizer_class": "GPT2Tokenizer",
        "added_tokens_decoder": {i: {"content": text} for i, text in added.items()},
        "eos_token": "</s>",
        "bos_token": "<s>",
        "unk_token": "<s>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert isinstance(tokenizer, JsonTokenizer)
    ids = tokenizer.encode(TEXT[0] + "</s>")
    assert ids == backend.encode(TEXT[0] + "</s>").ids
    assert tokenizer.decode(ids) == TEXT[0]


def test_a_slow_tokenizer_streams_by_windows() -> None:
    class Slow:
        """PreTrainedTokenizer's face over a SentencePiece-like vocabulary."""

        backend = make_sentencepiece()
        all_special_ids: Any = (backend.token_to_id("<s>"), backend.token_to_id("</s>"))
        special_tokens_map = NAMES
        bos_token_id, eos_token_id = all_special_ids

        def get_vocab(self) -> dict[str, int]:
            return self.backend.get_vocab()

        def get_added_vocab(self) -> dict[str, int]:
            return {}

        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return [self.bos_token_id] * add_special_tokens + self.backend.encode(text).ids

        def decode(self, ids: list[int], **options: bool) -> str:
            assert options == {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
            return self.backend.decode(ids, skip_special_tokens=False)

    tokenizer = SlowTokenizer(Slow(), TokenizerConfig())
    for text in (*TEXT, "水火木金土" * 10):
        prompt, answer = tokenizer.encode("The"), tokenizer.encode(text, add_special_tokens=False)
        detokenizer = start_detokenizer(tokenizer, prompt)
        shown = "".join(map(detokenizer.push, answer)) + detokenizer.flush()
        assert shown == " " + text
        assert tokenizer.decode([*prompt, tokenizer.vocab_size]) == "The"
    assert tokenizer.encode_batch(["The"]) == [tokenizer.encode("The")]
    assert tokenizer.eos_token_ids == (Slow.eos_token_id,)


def join_slowly(backend: Any, ids: list[int], *, space: str) -> str:
    """What transformers 4 decodes: runs of a vocabulary's tokens, and added ones, joined."""
    added = {token_id: text for text, token_id in backend.get_added_vocab().items()}
    texts: list[str] = []
    run: list[int] = []
    for token_id in [*ids, None]:
        if run and (token_id is None or token_id in added):
            texts.append(backend.convert_tokens_to_string(backend.convert_ids_to_tokens(run)))
            run = []
        if token_id in added:
            texts.append(added[token_id])
        elif token_id is not None:
            run.append(token_id)
    return space.join(texts)


@given(data=st.data(), skip=st.booleans(), spaces=st.booleans())
def test_a_slow_tokenizer_puts_spaces_beside_added_tokens(
    data: st.DataObject, skip: bool, spaces: bool
) -> None:
    """Of transformers itself: ByT5's tokens are bytes. Whole and as it comes."""
    backend: Any = BYT5
    tokenizer = SlowTokenizer(backend, TokenizerConfig())
    added = sorted(backend.get_added_vocab().values())
    part = st.one_of(
        st.sampled_from(added).map(lambda one: [one]),
        st.sampled_from(("a", " ", "door", "naïve ", "你")).map(
            lambda text: backend.encode(text, add_special_tokens=False)
        ),
    )
    prompt, answer = ([*chain(*data.draw(st.lists(part, max_size=6)))] for _ in range(2))
    ids = prompt + answer
    options = {"skip_special_tokens": skip, "spaces_between_special_tokens": spaces}
    shown = [one for one in ids if not (skip and one in tokenizer.special_ids)]
    whole = tokenizer.decode(ids, **options)
    assert whole == join_slowly(backend, shown, space=" " if spaces else "")
    if not spaces:
        assert whole == backend.decode(shown), "what transformers 5 always gives"
    detokenizer = start_detokenizer(tokenizer, prompt, **options)
    text = "".join(map(detokenizer.push, answer)) + detokenizer.flush()
    assert whole == tokenizer.decode(prompt, **options) + text


def test_loading_a_tokenizer_json_imports_neither_transformers_nor_jinja2(tmp_path: Path) -> None:
    write(tmp_path)
    code = (
        "import sys; from quire.engine.text import output, prepare, tokenizer\n"
        "heavy = {'tokenizers', 'tiktoken', 'transformers', 'jinja2', 'torch'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        f"tokenizer.load_tokenizer({str(tmp_path)!r})\n"
        "assert not {'transformers', 'jinja2', 'torch'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
