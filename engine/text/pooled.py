"""Prompts of requests for vectors: one text or a pair of them, checked, tokenized, cut.

A token of a pair's second text has its id plus vocab_size where the model tells texts apart. Every
fault is a ParamsError.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import numpy as np

from ..errors import ParamsError
from ..params import PoolingParams
from ..request import IntArray
from ..vectors import PoolingConfig
from .chat import ChatTemplate
from .ids import as_ids, check_unicode, wrong
from .tokenizer import Tokenizer

ROLES = {role: re.compile(rf"""['"]{role}['"]""") for role in ("query", "document")}
"""How a template that writes pairs names their roles."""
CHARS_PER_TOKEN = 64
"""A text longer than this for each token that it may have is tried by its beginning first."""


class TextPair(NamedTuple):
    """Two texts that a model compares."""

    first: str
    second: str
    instruction: str | None = None
    """What is asked about them, where the model's template of pairs takes it."""


class PooledIds(NamedTuple):
    """A prompt as the engine takes it, and its text where there was one."""

    token_ids: IntArray
    """[prompt] int32"""
    text: str | None
    start: int = 0
    """The first token whose state counts."""


class PooledPrompts:
    """Reads prompts for one model. Immutable: any thread may call it."""

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        config: PoolingConfig,
        vocab_size: int,
        max_prompt_len: int,
        template: ChatTemplate | None = None,
    ) -> None:
        """template: writes two texts as one prompt, as a chat of the roles query and document."""
        self._template = template
        self._tokenizer = tokenizer
        self._config = config
        self._vocab_size = vocab_size
        self._max_prompt_len = max_prompt_len

    @property
    def alone(self) -> bool:
        """Whether the model makes vectors and nothing else."""
        return not self._config.beside

    def read(self, prompt: Any, params: PoolingParams) -> PooledIds:
        """Return a prompt's ids. A prompt: a text, a pair, token ids, or a dict as elsewhere."""
        self._check_dimensions(params)
        most = params.truncate_prompt_tokens
        if most is not None:
            most = self._max_prompt_len if most < 0 else min(most, self._max_prompt_len)
        match prompt:
            case PooledIds():
                return prompt
            case TextPair() if self._template is not None:
                usual = self._before(params.prompt_name) or None
                pair = (
                    prompt if prompt.instruction is not None else prompt._replace(instruction=usual)
                )
                return self._write(self._template, pair, most)
            case TextPair(_, _, instruction) if instruction is not None:
                raise wrong("instruction", instruction, "left out: the model has no place for it")
            case TextPair(first, second):
                self._refuse_name(params, "two texts")
                return self._encode(first, second, most)
            case str():
                return self._prefixed(prompt, params, most)
            case {"prompt_token_ids": ids, **others} if others.keys() <= {"prompt"}:
                self._refuse_name(params, "token ids")
                shown = others.get("prompt")
                if shown is not None and not isinstance(shown, str):
                    raise wrong("prompt", shown, "a text beside prompt_token_ids")
                return self._take(ids, most)._replace(text=shown)
            case {"prompt": str(text), **others} if not others:
                return self._prefixed(text, params, most)
            case Mapping():
                allowed = "an object with prompt (text) or prompt_token_ids, no more"
                raise wrong("prompt", prompt, allowed)
        self._refuse_name(params, "token ids")
        return self._take(prompt, most)

    def _before(self, name: str | None) -> str:
        """Return what is written before a text: sentence-transformers' prompt of that name."""
        prompts = self._config.prompts
        name = self._config.default_prompt_name if name is None else name
        if not name:
            return ""
        if name not in prompts:
            allowed = f"empty or one of {sorted(prompts)}" if prompts else "left out: there is none"
            raise wrong("prompt_name", name, allowed)
        return prompts[name]

    def _refuse_name(self, params: PoolingParams, given: str) -> None:
        if params.prompt_name:
            raise wrong("prompt_name", params.prompt_name, f"left out with {given}")

    def _prefixed(self, text: str, params: PoolingParams, most: int | None) -> PooledIds:
        """Encode a text behind its prompt."""
        before = self._before(params.prompt_name)
        read = self._encode(before + text, None, most)
        if not before or self._config.includes_prompt:
            return read
        assert self._tokenizer is not None, "a text was encoded"
        start = min(_num_before(before, self._tokenizer), len(read.token_ids) - 1)
        return read._replace(start=start)

    def _check_dimensions(self, params: PoolingParams) -> None:
        config, asked = self._config, params.dimensions
        if asked is None:
            return
        if config.labels is not None:
            raise wrong("dimensions", asked, "left out: this model classifies")
        if config.dimensions is not None and asked not in config.dimensions:
            raise wrong("dimensions", asked, f"one of {list(config.dimensions)}")
        if asked > config.width:
            raise wrong("dimensions", asked, f"from 1 to {config.width}, as the model's vectors")

    def _take(self, ids: Any, most: int | None) -> PooledIds:
        array = as_ids(ids, self._vocab_size)
        if most is not None:
            array = array[:most]
        if len(array) > self._max_prompt_len:
            raise self._too_long(str(len(array)))
        return PooledIds(np.ascontiguousarray(array, dtype=np.int32), None)

    def _encode(self, first: str, second: str | None, most: int | None) -> PooledIds:
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise wrong("prompt", first, "a list of token ids: there is no tokenizer")
        for text in (first, second or ""):
            check_unicode(text)
        first, second = self._beginning(first, most), self._beginning(second, most)
        ids, num_first = tokenizer.encode_pair(first, second, most)
        taken = self._take(ids, None)
        if self._config.num_types > 1:
            taken.token_ids[num_first:] += self._vocab_size
        return taken._replace(text=first if second is None else None)

    def _write(self, template: ChatTemplate, pair: TextPair, most: int | None) -> PooledIds:
        """Write a pair by a template; where that is too long, its second text loses its end."""
        tokenizer = self._tokenizer
        if tokenizer is None:
            raise wrong("prompt", pair.second, "a list of token ids: there is no tokenizer")
        for text in pair:
            check_unicode(text or "")
        pair = pair._replace(
            first=self._beginning(pair.first, most), second=self._beginning(pair.second, most)
        )

        def written(num_chars: int) -> list[int]:
            text = template.render(_as_chat(pair._replace(second=pair.second[:num_chars])))
            return tokenizer.encode(text, add_special_tokens=False)

        low, high = 0, len(pair.second)
        ids = written(high)
        if most is not None and len(ids) > most:
            # What stands behind the text must stay, so that tokens cannot be cut.
            while low < high:
                middle = (low + high + 1) // 2
                low, high = (middle, high) if len(written(middle)) <= most else (low, middle - 1)
            ids = written(low)
        if most is not None and len(ids) > most:
            raise self._too_long(str(len(ids)))
        return self._take(ids, None)

    def _beginning(self, text: Any, most: int | None) -> Any:
        """Cut a text that is far too long, or refuse it, without tokenizing megabytes."""
        chars = self._max_prompt_len * CHARS_PER_TOKEN
        if text is None or len(text) <= chars:
            return text
        assert self._tokenizer is not None
        beginning = text[:chars]
        num_tokens = len(self._tokenizer.encode(beginning))
        if num_tokens <= self._max_prompt_len + CHARS_PER_TOKEN:
            return text
        if most is None:
            raise self._too_long(f"more than {num_tokens - CHARS_PER_TOKEN}")
        return beginning

    def _too_long(self, num_tokens: str) -> ParamsError:
        return ParamsError(
            f"The prompt has {num_tokens} tokens: it must have at most {self._max_prompt_len}, or "
            "truncate_prompt_tokens must be given.",
            "prompt",
        )


def pair_template(
    tokenizer: Tokenizer | None, own: str | None, clock: Callable[[], datetime]
) -> ChatTemplate | None:
    """Return what writes pairs: the tokenizer's chat template if it knows them, else `own`."""
    if tokenizer is None:
        return None
    source = tokenizer.chat_template
    if source is not None and all(ROLES[role].search(source) for role in ROLES):
        own = source
    return None if own is None else ChatTemplate(own, tokenizer.special_tokens, clock=clock)


def _num_before(text: str, tokenizer: Tokenizer) -> int:
    """Count a prompt's tokens as sentence-transformers does: with the special ones before it, and
    not with those behind it."""
    whole, bare = (tokenizer.encode(text, add_special_tokens=one) for one in (True, False))
    places = range(len(whole) - len(bare), -1, -1)
    begin = next((place for place in places if whole[place : place + len(bare)] == bare), 0)
    return begin + len(bare)


def _as_chat(pair: TextPair) -> list[dict[str, str]]:
    """Write a pair as templates take it."""
    asked = [] if pair.instruction is None else [{"role": "system", "content": pair.instruction}]
    texts = {"query": pair.first, "document": pair.second}
    return asked + [{"role": role, "content": text} for role, text in texts.items()]
