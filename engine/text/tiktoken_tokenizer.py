"""Vocabularies in tiktoken's format: lines of a base64 token and its rank.

Such a file names neither its splitting pattern nor its special tokens. They come from
tokenizer_config.json (`pat_str`, `added_tokens_decoder`) or are those of a known family: Llama 3
(the default), Qwen, Kimi.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import CheckpointError
from .files import TokenizerConfig
from .ids import cut
from .pieces import BytePieces

CANDIDATES = ("tiktoken.model", "tokenizer.model")
LONG_SPACE = re.compile(r"\s{20000}")
"""tiktoken's expression engine overflows its stack on longer runs of spaces: they are cut there."""

_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT_FORMS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_OPENING = r"[^\r\n\p{L}\p{N}]?"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"


class Family(NamedTuple):
    """How a family of models splits text, and its special tokens in the order of their ids."""

    pattern: str
    special_tokens: tuple[str, ...]
    num_special: int
    reserved: str
    """Name of the special tokens that have none, with a place for a number."""
    bos_token: str | None = None
    eos_token: str | None = None
    add_bos: bool = False


LLAMA3 = Family(
    pattern=rf"{_SHORT_FORMS}|{_OPENING}\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}",
    special_tokens=(
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|reserved_special_token_0|>",
        "<|reserved_special_token_1|>",
        "<|finetune_right_pad_id|>",
        "<|reserved_special_token_2|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|python_tag|>",
    ),
    num_special=256,
    reserved="<|reserved_special_token_{index}|>",
    bos_token="<|begin_of_text|>",
    eos_token="<|end_of_text|>",
    add_bos=True,
)
QWEN = Family(
    pattern=rf"{_SHORT_FORMS}|{_OPENING}\p{{L}}+|\p{{N}}|{_TAIL}",
    special_tokens=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    num_special=208,
    reserved="<|extra_{index}|>",
    eos_token="<|endoftext|>",
)
KIMI = Family(
    pattern="|".join(
        (
            r"[\p{Han}]+",
            f"{_OPENING}{_UPPER}*{_LOWER}+{_SHORT_FORMS}?",
            f"{_OPENING}{_UPPER}+{_LOWER}*{_SHORT_FORMS}?",
            rf"\p{{N}}{{1,3}}|{_TAIL}",
        )
    ),
    special_tokens=("[BOS]", "[EOS]"),
    num_special=258,
    reserved="<|reserved_token_{id}|>",
    bos_token="[BOS]",
    eos_token="[EOS]",
)


def find_tiktoken_file(path: Path) -> Path | None:
    """Return the vocabulary of a folder (or the file itself), recognized by its content."""
    names = [path]
    if path.is_dir():
        names = [path / name for name in CANDIDATES] + sorted(path.glob("*.tiktoken"))
    return next((name for name in names if name.is_file() and _looks_right(name)), None)


def load_tiktoken(path: Path, config: TokenizerConfig) -> TiktokenTokenizer:
    """Load a vocabulary. Raises CheckpointError that names the file and the line."""
    import tiktoken

    ranks = _read_ranks(path)
    family = _choose_family(path, config)
    special_ids = _special_ids(family, config, ranks)
    try:
        encoding = tiktoken.Encoding(
            name=path.name,
            pat_str=config.pattern or family.pattern,
            mergeable_ranks=ranks,
            special_tokens=special_ids,
        )
    except ValueError as error:  # a pattern that does not compile
        raise CheckpointError(f"{path}: tiktoken says: {error}") from error
    return TiktokenTokenizer(encoding, special_ids, family, config)


class TiktokenTokenizer:
    """A vocabulary of tiktoken. Twin of tokenizer.JsonTokenizer."""

    def __init__(
        self, encoding: Any, special_ids: Mapping[str, int], family: Family, config: TokenizerConfig
    ) -> None:
        self._encoding = encoding
        self._config = config
        self.vocab_size: int = encoding.n_vocab
        self.special_ids = frozenset(special_ids.values())
        self.added_tokens: Mapping[int, str] = {i: text for text, i in special_ids.items()}
        names = {"bos_token": family.bos_token, "eos_token": family.eos_token}
        named = {name: text for name, text in names.items() if text in special_ids}
        self.special_tokens: Mapping[str, str] = named | config.special_tokens  # type: ignore[assignment]  # None is in no dict of ids
        self.bos_token_id = special_ids.get(self.special_tokens.get("bos_token", ""))
        eos_token_id = special_ids.get(self.special_tokens.get("eos_token", ""))
        self.eos_token_ids = () if eos_token_id is None else (eos_token_id,)
        add_bos = family.add_bos if config.add_bos_token is None else config.add_bos_token
        self._before = [self.bos_token_id] if add_bos and self.bos_token_id is not None else []
        self._after = [*self.eos_token_ids] if config.add_eos_token else []
        self.pieces = BytePieces(self._token_bytes)

    @property
    def chat_templates(self) -> Mapping[str, str]:
        return self._config.chat_templates

    @property
    def chat_template(self) -> str | None:
        return self._config.chat_template

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = []
        start = 0
        for long in LONG_SPACE.finditer(text):
            ids += self._encoding.encode(text[start : long.end()], allowed_special="all")
            start = long.end()
        ids += self._encoding.encode(text[start:], allowed_special="all")
        return [*self._before, *ids, *self._after] if add_special_tokens else ids

    def encode_batch(
        self, texts: Sequence[str], *, add_special_tokens: bool = True
    ) -> list[list[int]]:
        return [self.encode(text, add_special_tokens=add_special_tokens) for text in texts]

    def encode_pair(
        self, first: str, second: str | None = None, most: int | None = None
    ) -> tuple[list[int], int]:
        texts = (first,) if second is None else (first, second)
        parts = [self.encode(text, add_special_tokens=False) for text in texts]
        if most is not None:
            room = max(0, most - len(self._before) - len(self._after))
            lengths = cut([len(part) for part in parts], room)
            parts = [part[:length] for part, length in zip(parts, lengths, strict=True)]
        ids = [*self._before, *(token for part in parts for token in part), *self._after]
        return ids, len(self._before) + len(parts[0])

    def decode(
        self,
        ids: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> str:
        del spaces_between_special_tokens
        hidden = self.special_ids if skip_special_tokens else frozenset[int]()
        return self.pieces.decode(i for i in ids if i not in hidden)

    def token_text(self, token_id: int) -> str:
        return self.pieces.content(token_id).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        return self.pieces.content(token_id)

    def _token_bytes(self, token_id: int) -> bytes | None:
        if not 0 <= token_id < self.vocab_size:
            return None
        try:
            content: bytes = self._encoding.decode_single_token_bytes(token_id)
        except KeyError:  # a hole between the ranks and the special tokens
            return None
        return content


def _looks_right(path: Path) -> bool:
    with path.open("rb") as file:
        line = file.readline(4096)
    if not line:
        raise CheckpointError(f"{path} is empty.")
    try:
        _parse_line(line)
    except ValueError:
        return False
    return True


def _parse_line(line: bytes) -> tuple[bytes, int]:
    token, rank = line.split()
    return base64.b64decode(token, validate=True), int(rank)


def _read_ranks(path: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = _parse_line(line)
        except (ValueError, binascii.Error) as error:
            raise CheckpointError(f"{path}, line {number} is not a token and its rank.") from error
        if token in ranks:
            raise CheckpointError(f"{path}, line {number}: this token was there before.")
        ranks[token] = rank
    if len(set(ranks.values())) != len(ranks):
        raise CheckpointError(f"{path} gives one rank to two tokens.")
    return ranks


def _choose_family(path: Path, config: TokenizerConfig) -> Family:
    if path.name == "qwen.tiktoken" or config.tokenizer_class.lower().startswith("qwen"):
        return QWEN
    if path.name == "tiktoken.model" or config.tokenizer_class == "TikTokenTokenizer":
        return KIMI
    return LLAMA3


def _special_ids(
    family: Family, config: TokenizerConfig, ranks: Mapping[bytes, int]
) -> dict[str, int]:
    """Return the special tokens after the ranks: the config's or family's, then reserved ones."""
    start = max(ranks.values()) + 1
    named = {i: token.content for i, token in config.added_tokens.items() if i >= start}
    if not named:
        named = dict(enumerate(family.special_tokens, start))
    first_reserved = sum(name.startswith("<|reserved_special") for name in named.values())
    ids = {text: token_id for token_id, text in named.items()}
    for token_id in range(start, start + family.num_special):
        if token_id not in named:
            text = family.reserved.format(index=first_reserved, id=token_id)
            first_reserved += 1
            ids.setdefault(text, token_id)
    return ids
