"""Text of a growing list of tokens, token by token: what is given out never changes afterwards.

One contract, three ways: byte pieces (a table and an incremental UTF-8 decoder), text pieces (a
table; runs of byte tokens wait for their end, because one bad byte makes every byte of its run
U+FFFD) and, for decoders that look at their neighbours, decoding a short window again and again.
Nothing here knows stop strings, requests or streams.

The law of this layer: the increments of an answer and a last `flush` together are the decoded text
of prompt and answer, less what the prompt alone shows of it (their common beginning). Where special
tokens are shown without spaces between them, `AdjacentDetokenizer` departs from it.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from .pieces import BytePieces, Pieces, TextPieces

WINDOW_CONTEXT = 8
"""Tokens before the new ones that a window keeps: enough for the decoder to see a neighbour."""
WINDOW_LIMIT = 32
"""New tokens after which a window gives out its text even if it ends in U+FFFD."""

MAX_CHARACTER = 4
"""Bytes, and so tokens, of the longest UTF-8 character."""

REPLACEMENT = "\ufffd"


class IncrementalDetokenizer(Protocol):
    """Turns token ids into text as they come."""

    def push(self, token_id: int) -> str:
        """Take one token, return the text that is certain now (often its own, sometimes none)."""

    def flush(self) -> str:
        """Return what was waiting for tokens that will not come. Nothing may be pushed after."""


class Decodes(Protocol):
    """What a detokenizer needs of a tokenizer."""

    @property
    def pieces(self) -> Pieces | None: ...
    @property
    def special_ids(self) -> frozenset[int]: ...
    @property
    def added_tokens(self) -> Mapping[int, str]: ...
    def decode(
        self,
        ids: Sequence[int],
        *,
        skip_special_tokens: bool = True,
        spaces_between_special_tokens: bool = True,
    ) -> str: ...


def start_detokenizer(
    tokenizer: Decodes,
    prompt_token_ids: Sequence[int],
    *,
    skip_special_tokens: bool = True,
    spaces_between_special_tokens: bool = True,
) -> IncrementalDetokenizer:
    """Return the detokenizer of one answer to the prompt. `prompt_token_ids`: Python ints."""
    hidden = tokenizer.special_ids if skip_special_tokens else frozenset[int]()
    plain = _start(tokenizer, prompt_token_ids, hidden, spaces=spaces_between_special_tokens)
    if skip_special_tokens or spaces_between_special_tokens or not tokenizer.added_tokens:
        return plain
    return AdjacentDetokenizer(plain, tokenizer.added_tokens)


def _start(
    tokenizer: Decodes, prompt_token_ids: Sequence[int], hidden: frozenset[int], *, spaces: bool
) -> IncrementalDetokenizer:
    match tokenizer.pieces:
        case BytePieces() as pieces:
            return ByteDetokenizer(pieces, hidden, prompt_token_ids)
        case TextPieces() as pieces:
            return TextDetokenizer(pieces, hidden, prompt_token_ids)
        case _:

            def decode(ids: list[int]) -> str:
                return tokenizer.decode(
                    ids, skip_special_tokens=False, spaces_between_special_tokens=spaces
                )

            return WindowDetokenizer(decode, hidden, prompt_token_ids)


class AdjacentDetokenizer:
    """For any detokenizer: an added token right behind another of the answer is as it is written.

    vLLM's meaning of spaces_between_special_tokens = False for tokenizers of the tokenizers
    library, whose decoders know no such option.
    """

    __slots__ = ("_added", "_behind_added", "_plain")

    def __init__(self, plain: IncrementalDetokenizer, added: Mapping[int, str]) -> None:
        self._plain = plain
        self._added = added
        self._behind_added = False

    def push(self, token_id: int) -> str:
        text = self._plain.push(token_id)
        written = self._added.get(token_id)
        if written is not None and self._behind_added:
            text = written
        self._behind_added = written is not None
        return text

    def flush(self) -> str:
        return self._plain.flush()


class ByteDetokenizer:
    """For tokens that are byte strings. About 0.2 microseconds a token."""

    __slots__ = ("_hidden", "_pending", "_pieces", "_shown")

    def __init__(
        self, pieces: BytePieces, hidden: frozenset[int], prompt_token_ids: Sequence[int]
    ) -> None:
        self._pieces = pieces
        self._hidden = hidden
        tail = b""
        for token_id in reversed(prompt_token_ids):
            # The bytes of an unfinished character are among the last three.
            if len(tail) >= 4:
                break
            if token_id not in hidden:
                tail = pieces.content(token_id) + tail
        _, used = codecs.utf_8_decode(tail, "replace", False)
        self._pending = tail[used:]
        self._shown = REPLACEMENT if self._pending else ""

    def push(self, token_id: int) -> str:
        if token_id in self._hidden:
            return ""
        piece = self._pieces[token_id]
        if not self._pending and type(piece) is str:
            return piece
        return self._advance(piece if isinstance(piece, bytes) else piece.encode(), final=False)

    def flush(self) -> str:
        return self._advance(b"", final=True)

    def _advance(self, content: bytes, *, final: bool) -> str:
        content = self._pending + content
        text, used = codecs.utf_8_decode(content, "replace", final)
        self._pending = content[used:]
        if text and self._shown:
            text, self._shown = _less(text, self._shown), ""
        return text


class TextDetokenizer:
    """For tokens that are strings, with runs of byte tokens between them."""

    __slots__ = ("_first", "_hidden", "_pieces", "_run", "_shown")

    def __init__(
        self, pieces: TextPieces, hidden: frozenset[int], prompt_token_ids: Sequence[int]
    ) -> None:
        self._pieces = pieces
        self._hidden = hidden
        run: list[str] = []
        self._first = True
        for token_id in reversed(prompt_token_ids):
            token = None if token_id in hidden else pieces.token(token_id)
            if token is None:
                continue
            if type(pieces[token_id]) is not bytes:
                self._first = False
                break
            run.append(token)
        self._run = run[::-1]
        """Byte tokens whose text depends on the next token."""
        self._shown = pieces.join(self._run, first=self._first) if run else ""

    def push(self, token_id: int) -> str:
        if token_id in self._hidden:
            return ""
        piece = self._pieces[token_id]
        if type(piece) is str and not self._run and not self._first:
            return piece
        token = self._pieces.token(token_id)
        if token is None:
            return ""
        self._run.append(token)
        return "" if type(piece) is bytes else self._end_run()

    def flush(self) -> str:
        return self._end_run() if self._run else ""

    def _end_run(self) -> str:
        text = self._pieces.join(self._run, first=self._first)
        self._run, self._first = [], False
        if self._shown:
            text, self._shown = _less(text, self._shown), ""
        return text


class WindowDetokenizer:
    """For any decoder: decodes a bounded number of last tokens again with each new one."""

    __slots__ = ("_decode", "_hidden", "_num_new", "_shown", "_window")

    def __init__(
        self,
        decode: Callable[[list[int]], str],
        hidden: frozenset[int],
        prompt_token_ids: Sequence[int],
    ) -> None:
        self._decode = decode
        self._hidden = hidden
        self._window = _last_visible(prompt_token_ids, hidden, WINDOW_CONTEXT)
        self._shown = decode(self._window) if self._window else ""
        self._num_new = 0

    def push(self, token_id: int) -> str:
        if token_id in self._hidden:
            return ""
        self._window.append(token_id)
        self._num_new += 1
        text = self._decode(self._window)
        certain = text.startswith(self._shown) and not text.endswith(REPLACEMENT)
        if not certain and self._num_new < WINDOW_LIMIT:
            return ""
        return self._slide(text)

    def flush(self) -> str:
        return self._slide(self._decode(self._window)) if self._num_new else ""

    def _slide(self, text: str) -> str:
        new = _less(text, self._shown)
        for length in range(WINDOW_CONTEXT, WINDOW_CONTEXT + MAX_CHARACTER):
            window = self._window[-length:]
            self._shown = self._decode(window)
            if not self._shown.startswith(REPLACEMENT):
                break  # the window begins with a character, not in the middle of one
        self._window = window
        self._num_new = 0
        return new


def _less(text: str, shown: str) -> str:
    """Return text without the beginning that it shares with what is shown already."""
    if text.startswith(shown):
        return text[len(shown) :]
    common = 0
    while text[common : common + 1] == shown[common : common + 1] != "":
        common += 1
    return text[common:]


def _last_visible(token_ids: Iterable[int], hidden: frozenset[int], count: int) -> list[int]:
    visible = [token_id for token_id in token_ids if token_id not in hidden]
    return visible[-count:]
