"""A tokenizer that only transformers itself can run: SentencePiece and others without a fast twin.

The last resort of `load_tokenizer`; twin of tokenizer.JsonTokenizer over PreTrainedTokenizer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from .files import TokenizerConfig


class SlowTokenizer:
    """A PreTrainedTokenizer behind the protocol; its text comes from windows of tokens."""

    pieces = None
    added_tokens: Mapping[int, str] = {}

    def __init__(self, backend: Any, config: TokenizerConfig) -> None:
        self._backend = backend
        self._config = config
        self.vocab_size = 1 + max(backend.get_vocab().values())
        self.special_ids = frozenset(backend.all_special_ids)
        self._added = {token_id: text for text, token_id in backend.get_added_vocab().items()}
        self.special_tokens: Mapping[str, str] = {
            name: str(text) for name, text in backend.special_tokens_map.items()
        }
        self.bos_token_id: int | None = backend.bos_token_id
        eos_token_id = backend.eos_token_id
        self.eos_token_ids: tuple[int, ...] = () if eos_token_id is None else (eos_token_id,)

    @property
    def chat_templates(self) -> Mapping[str, str]:
        return self._config.chat_templates

    @property
    def chat_template(self) -> str | None:
        return self._config.chat_template

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens)
        return ids

    def encode_batch(
        self, texts: Sequence[str], *, add_special_tokens: bool = True
    ) -> list[list[int]]:
        return [self.encode(text, add_special_tokens=add_special_tokens) for text in texts]

    def encode_pair(
        self, first: str, second: str | None = None, most: int | None = None
    ) -> tuple[list[int], int]:
        limits = {} if most is None else {"truncation": True, "max_length": most}
        whole = self._backend(first, second, return_token_type_ids=True, **limits)
        types: list[int] = whole["token_type_ids"]
        return whole["input_ids"], types.index(1) if 1 in types else len(types)

    def decode(
        self,
        ids: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> str:
        """As transformers 4 and vLLM: added tokens as they are written, the runs between them
        decoded each by itself, all joined by spaces or by nothing."""
        hidden = self.special_ids if skip_special_tokens else frozenset[int]()
        known = [i for i in ids if 0 <= i < self.vocab_size and i not in hidden]
        runs = groupby(known, lambda token_id: token_id in self._added)
        texts = [
            text
            for is_added, run in runs
            for text in (map(self._added.__getitem__, run) if is_added else (self._plain([*run]),))
        ]
        return (" " if spaces_between_special_tokens else "").join(texts)

    def _plain(self, ids: list[int]) -> str:
        text: str = self._backend.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return text

    def token_text(self, token_id: int) -> str:
        return self.decode([token_id], skip_special_tokens=False)

    def token_bytes(self, token_id: int) -> bytes:
        return self.token_text(token_id).encode()
