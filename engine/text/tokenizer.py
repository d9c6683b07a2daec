"""Text to token ids and back: the protocol, and how a checkpoint's tokenizer is found.

`tokenizer.json` goes through the tokenizers library, a vocabulary in tiktoken's format through
tiktoken; transformers is imported only for checkpoints that have neither (SentencePiece files).
Nothing here runs code of a checkpoint. A tokenizer is immutable after loading (its tables of pieces
fill lazily) and may be shared between threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from msgspec.structs import replace

from ..errors import CheckpointError
from .files import TokenizerConfig, read_template, read_tokenizer_config
from .ids import cut
from .pieces import Pieces, choose_pieces
from .tiktoken_tokenizer import TiktokenTokenizer, find_tiktoken_file, load_tiktoken

TOKENIZER_FILE = "tokenizer.json"


class Tokenizer(Protocol):
    """What the rest of Quire needs of a tokenizer."""

    @property
    def vocab_size(self) -> int:
        """One more than the highest id, added tokens included; a model may have more."""

    @property
    def bos_token_id(self) -> int | None: ...
    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokenizer's own; a checkpoint's generation_config.json may name others."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Tokens without text of their own: hidden where special tokens are skipped."""

    @property
    def added_tokens(self) -> Mapping[int, str]:
        """Tokens beside the vocabulary, special or not, as they are written; none where `decode`
        minds the spaces beside them."""

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """bos_token, eos_token, ... -> its text."""

    @property
    def chat_templates(self) -> Mapping[str, str]:
        """Chat templates by name."""

    @property
    def chat_template(self) -> str | None:
        """The default one."""

    @property
    def pieces(self) -> Pieces | None:
        """The text of single tokens; None where no token has one."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Return the ids of a text; special tokens written in it become special tokens."""

    def encode_batch(
        self, texts: Sequence[str], *, add_special_tokens: bool = True
    ) -> list[list[int]]:
        """Encode many texts, in parallel where the library can."""

    def encode_pair(
        self, first: str, second: str | None = None, most: int | None = None
    ) -> tuple[list[int], int]:
        """Return the ids of one text or of two, with special tokens, and how many of them belong to
        the first.

        most: tokens in all, at least as many as the special ones; the longer text loses its end.
        """

    def decode(
        self,
        ids: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> str:
        """Return the text of the ids; unknown ids have none, broken UTF-8 becomes U+FFFD.

        spaces_between_special_tokens: for slow tokenizers, which write spaces beside added tokens;
        others have no such option.
        """

    def token_text(self, token_id: int) -> str:
        """Return the text of one token in mid-sentence, special ones shown, "" for unknown ids."""

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes of one token in mid-sentence: part of a character where it is that."""


def load_tokenizer(path: Path | str, chat_template: str | None = None) -> Tokenizer:
    """Load the tokenizer of a checkpoint directory, or from a tokenizer file.

    chat_template: instead of those that it brings, a file's name or the template itself. Raises
    CheckpointError that names what is missing or broken, and ConfigError for chat_template.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: there is no tokenizer to load.")
    folder = path if path.is_dir() else path.parent
    config = read_tokenizer_config(folder)
    if chat_template is not None:
        config = replace(config, chat_templates={"default": read_template(chat_template)})
    json_file = path if path.suffix == ".json" else path / TOKENIZER_FILE
    if json_file.is_file():
        return JsonTokenizer(_read_backend(json_file), config)
    vocabulary = find_tiktoken_file(path)
    if vocabulary is not None:
        return load_tiktoken(vocabulary, config)
    return _load_with_transformers(folder, config)


class JsonTokenizer:
    """A tokenizer of the tokenizers library."""

    def __init__(self, backend: Any, config: TokenizerConfig) -> None:
        # Padding and cutting are for training; both may be saved in the file.
        backend.no_padding()
        backend.no_truncation()
        _complete(backend, config)
        self._backend = backend
        self._config = config
        added = backend.get_added_tokens_decoder()
        self.vocab_size = 1 + max(
            (*added, backend.get_vocab_size() - 1, backend.get_vocab_size(False) - 1)
        )
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.added_tokens: Mapping[int, str] = {i: token.content for i, token in added.items()}
        self.bos_token_id = self._special_id("bos_token")
        eos_token_id = self._special_id("eos_token")
        self.eos_token_ids = () if eos_token_id is None else (eos_token_id,)
        self.pieces = choose_pieces(backend.decoder, self._token)

    @property
    def special_tokens(self) -> Mapping[str, str]:
        return self._config.special_tokens

    @property
    def chat_templates(self) -> Mapping[str, str]:
        return self._config.chat_templates

    @property
    def chat_template(self) -> str | None:
        return self._config.chat_template

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def encode_batch(
        self, texts: Sequence[str], *, add_special_tokens: bool = True
    ) -> list[list[int]]:
        encoded = self._backend.encode_batch_fast(
            list(texts), add_special_tokens=add_special_tokens
        )
        return [entry.ids for entry in encoded]

    def encode_pair(
        self, first: str, second: str | None = None, most: int | None = None
    ) -> tuple[list[int], int]:
        texts = (first,) if second is None else (first, second)
        parts = [self._backend.encode(text, add_special_tokens=False) for text in texts]
        if most is not None:
            room = max(0, most - self._backend.num_special_tokens_to_add(second is not None))
            for part, length in zip(
                parts, cut([len(part.ids) for part in parts], room), strict=True
            ):
                part.truncate(length)
        whole = self._backend.post_process(*parts)
        types: list[int] = whole.type_ids
        return whole.ids, types.index(1) if 1 in types else len(types)

    def decode(
        self,
        ids: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> str:
        del spaces_between_special_tokens
        shown = [i for i in ids if not (skip_special_tokens and i in self.special_ids)]
        if self.pieces is not None:
            return self.pieces.decode(shown)
        known = [i for i in shown if 0 <= i < self.vocab_size]
        text: str = self._backend.decode(known, skip_special_tokens=False)
        return text

    def token_text(self, token_id: int) -> str:
        if self.pieces is None:
            return self.decode([token_id], skip_special_tokens=False)
        piece = self.pieces[token_id]
        return piece if isinstance(piece, str) else piece.decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        if self.pieces is None:
            return self.token_text(token_id).encode()
        return self.pieces.content(token_id)

    def _special_id(self, name: str) -> int | None:
        text = self._config.special_tokens.get(name)
        token_id: int | None = None if text is None else self._backend.token_to_id(text)
        return token_id

    def _token(self, token_id: int) -> str | None:
        if not 0 <= token_id < self.vocab_size:
            return None  # the library takes no negative ids
        token: str | None = self._backend.id_to_token(token_id)
        return token


def _read_backend(path: Path) -> Any:
    from tokenizers import Tokenizer as Backend

    try:
        return Backend.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise CheckpointError(f"{path} is not a tokenizer that can be read: {error}") from error


def _complete(backend: Any, config: TokenizerConfig) -> None:
    """Add what only tokenizer_config.json says, as transformers does.

    Tokens are added where they get the id that the file gives them; a special token that is in no
    vocabulary is left out, since the model has no embedding for it. add_bos_token and add_eos_token
    count where tokenizer.json itself adds nothing: transformers 4 let them win everywhere,
    transformers 5 ignores them, and DeepSeek's distilled models need them.
    """
    from tokenizers import AddedToken
    from tokenizers.processors import TemplateProcessing

    for token_id, added in sorted(config.added_tokens.items()):
        if backend.token_to_id(added.content) is None and token_id == backend.get_vocab_size():
            token = AddedToken(
                added.content,
                single_word=added.single_word,
                lstrip=added.lstrip,
                rstrip=added.rstrip,
                normalized=added.normalized,
                special=added.special,
            )
            backend.add_tokens([token])
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for text in (*config.special_tokens.values(), *config.more_special_tokens):
        if text not in known and backend.token_to_id(text) is not None:
            backend.add_special_tokens([AddedToken(text, special=True, normalized=False)])
    if backend.num_special_tokens_to_add(False):
        return
    specials: dict[str, int] = {}

    def wanted(name: str, flag: bool | None) -> list[str]:
        text = config.special_tokens.get(name)
        token_id = None if text is None else backend.token_to_id(text)
        if not flag or text is None or token_id is None:
            return []
        specials[text] = token_id
        return [text]

    bos = wanted("bos_token", config.add_bos_token)
    eos = wanted("eos_token", config.add_eos_token)
    if not specials:
        return
    backend.post_processor = TemplateProcessing(
        single=[*bos, "$A", *eos], special_tokens=list(specials.items())
    )


def _load_with_transformers(folder: Path, config: TokenizerConfig) -> Tokenizer:
    """Let transformers convert a checkpoint that has no tokenizer.json."""
    from transformers import AutoTokenizer

    try:
        loaded = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
    except Exception as error:  # anything: the library reads many formats
        raise CheckpointError(
            f"{folder} has no tokenizer that can be read: neither {TOKENIZER_FILE} nor a file in "
            f"tiktoken's format, and transformers says: {error}"
        ) from error
    if loaded.is_fast:
        return JsonTokenizer(loaded.backend_tokenizer, config)
    from .slow_tokenizer import SlowTokenizer

    return SlowTokenizer(loaded, config)


__all__ = ["JsonTokenizer", "TiktokenTokenizer", "Tokenizer", "load_tokenizer"]
