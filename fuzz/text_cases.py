"""Small tokenizers of every kind, and slow oracles for text: used by tests and fuzzers alike.

Each maker trains or builds a tokenizer of the tokenizers or tiktoken library in a few milliseconds.
The vocabularies are chosen for their borders: characters split over tokens, byte fallback, spaces.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer, UnigramTrainer, WordPieceTrainer

TEXT = (
    "The miller's daughter opened the door. 'Who is there?' she asked, and nobody answered.",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich! 12 + 30 = 42.",
    "Привет, мир. 你好，世界。こんにちは 👋🏽 naïve café — “quoted” … \t\n  indented\n\n",  # noqa: RUF001
    '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>',
)
SPECIAL = ("<s>", "</s>", "<|im_end|>")


ODD = ("<tool_call>", "Ġé", " two words ", "你好", "é")
"""Added tokens: not written in the alphabet of bytes, but some look as if they were."""


def make_byte_level(*, vocab_size: int = 400, odd: Sequence[str] = ODD) -> Tokenizer:
    """Byte-level BPE (GPT-2, Llama 3, Qwen), with odd added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=alphabet,
        special_tokens=list(SPECIAL),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in odd])
    return tokenizer


def make_sentencepiece(*, strip: bool = True, vocab_size: int = 300) -> Tokenizer:
    """SentencePiece-like BPE with byte fallback (Llama 2, Mistral; Gemma without strip)."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend("▁")] if strip else []), normalizers.Replace(" ", "▁")]
    )
    steps: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if strip:
        steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(steps)
    trainer = BpeTrainer(
        vocab_size=vocab_size + 256,
        limit_alphabet=60,
        special_tokens=["<unk>", *SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator((text.replace(" ", "▁") for text in TEXT), trainer)
    return _unspecial_bytes(tokenizer)


def make_unigram() -> Tokenizer:
    """Unigram with the Metaspace decoder (T5, XLM-R)."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = UnigramTrainer(
        vocab_size=300,
        special_tokens=["<unk>", *SPECIAL],
        unk_token="<unk>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def make_wordpiece() -> Tokenizer:
    """WordPiece (BERT): spaces come from the decoder, and it tidies punctuation."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = WordPieceTrainer(
        vocab_size=300, special_tokens=["[UNK]", *SPECIAL], show_progress=False
    )
    tokenizer.train_from_iterator((*TEXT, "do n't , I 'm ."), trainer)
    return tokenizer


def make_word_ends() -> Tokenizer:
    """BPE with a suffix at word ends (CLIP): a token's text depends on whether one follows."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    trainer = BpeTrainer(
        vocab_size=300,
        end_of_word_suffix="</w>",
        special_tokens=["<unk>", *SPECIAL],
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def make_words() -> Tokenizer:
    """Whole words and no decoder: the library joins them by spaces."""
    words = ["<unk>", *SPECIAL, *dict.fromkeys(" ".join(TEXT).split())]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": make_byte_level,
    "sentencepiece": make_sentencepiece,
    "sentencepiece-unstripped": lambda: make_sentencepiece(strip=False),
    "unigram": make_unigram,
    "wordpiece": make_wordpiece,
    "word-ends": make_word_ends,
    "words": make_words,
}


def write_tiktoken(path: Path) -> None:
    """Write a vocabulary in tiktoken's format: all bytes and the merges of a small BPE."""
    printable = make_byte_level()
    decoder = decoders.ByteLevel()
    tokens = {bytes((byte,)) for byte in range(256)}
    for token in printable.get_vocab():
        text = decoder.decode([token])
        if "\ufffd" not in text and token not in SPECIAL:
            tokens.add(text.encode())
    tokens |= {"你好".encode()[:4], "👋".encode()[1:3], "é".encode()[1:] + b"x"}
    ordered = sorted(tokens, key=lambda token: (len(token), token))
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(ordered)]
    path.write_text("".join(lines))


def _unspecial_bytes(tokenizer: Tokenizer) -> Tokenizer:
    """Let byte tokens be ordinary ones: the trainer can only make them special."""
    saved = json.loads(tokenizer.to_str())
    saved["added_tokens"] = [t for t in saved["added_tokens"] if not t["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(saved))


class Codec(Protocol):
    """The part of a tokenizer that strategies need."""

    @property
    def vocab_size(self) -> int: ...
    def encode(self, text: str) -> list[int]: ...


class Cut(NamedTuple):
    """What an answer's stop strings leave of its text."""

    text: str
    stop: str | None


def cut_slowly(text: str, stops: Sequence[str], *, include: bool, unarmed: int = 0) -> Cut:
    """Find the stop string that ends first, trying every end past text[:unarmed]."""
    for end in range(unarmed + 1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            stop = max(found, key=len)
            return Cut(text[: end if include else end - len(stop)], stop)
    return Cut(text, None)


def less_common(text: str, shown: str) -> str:
    """Return text without its common beginning with what is shown."""
    length = 0
    for a, b in zip(text, shown, strict=False):
        if a != b:
            break
        length += 1
    return text[length:]


def token_ids(tokenizer: Codec, *, max_size: int = 40) -> st.SearchStrategy[list[int]]:
    """Token ids: parts of real text and any ids, some of them outside the vocabulary."""
    real = tuple(tokenizer.encode("".join(TEXT)))
    span = st.tuples(st.integers(0, len(real) - 1), st.integers(1, 6))
    part = st.one_of(
        st.lists(st.integers(0, tokenizer.vocab_size + 2), min_size=1, max_size=4),
        span.map(lambda at: list(real[at[0] : at[0] + at[1]])),
    )
    return st.lists(part, max_size=max_size // 4).map(lambda parts: [i for p in parts for i in p])


def stop_strings() -> st.SearchStrategy[list[str]]:
    """Stop strings of few letters, so that they overlap, nest and repeat."""
    return st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=4)


def deltas() -> st.SearchStrategy[list[str]]:
    """A text of few letters, cut somehow."""
    return st.lists(st.text("abc", max_size=4), max_size=12)
