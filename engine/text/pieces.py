"""The text of single tokens: which tokenizers are concatenations of pieces, and what each is.

Owns two lazily filled tables from token id to piece. In both, a piece of type str is text on its
own, and one of type bytes is part of something that only later tokens complete. A tokenizer whose
text is not a concatenation of pieces (decoders that look at their neighbours) has no table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
ANCHOR = "a"
"""Stands before a token to ask a decoder for its text in mid-sentence."""

Joiner = Callable[[list[str]], str]


class BytePieces(dict[int, "str | bytes"]):
    """Tokens are byte strings and text is the UTF-8 of all bytes (byte-level BPE, tiktoken).

    `token_bytes` gives the bytes of an id, None for an id outside the vocabulary.
    """

    def __init__(self, token_bytes: Callable[[int], bytes | None]) -> None:
        super().__init__()
        self._token_bytes = token_bytes

    def __missing__(self, token_id: int) -> str | bytes:
        content = self.content(token_id)
        piece: str | bytes
        try:
            piece = content.decode()
        except UnicodeDecodeError:
            piece = content
        self[token_id] = piece
        return piece

    def content(self, token_id: int) -> bytes:
        """Return the token's bytes, none for an unknown id."""
        return self._token_bytes(token_id) or b""

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the text of the tokens, U+FFFD for what is not UTF-8."""
        return b"".join(map(self.content, token_ids)).decode("utf-8", "replace")


class TextPieces(dict[int, "str | bytes"]):
    """Tokens are strings that a decoder joins one by one, runs of byte tokens as a whole.

    `token` gives the string of an id, None for an unknown one; `joiner` is the decoder. The first
    token of a text may look different from the same token further on.
    """

    def __init__(
        self, token: Callable[[int], str | None], joiner: Joiner, *, byte_fallback: bool
    ) -> None:
        super().__init__()
        self.token = token
        self._joiner = joiner
        self._byte_fallback = byte_fallback

    def __missing__(self, token_id: int) -> str | bytes:
        token = self.token(token_id)
        piece: str | bytes
        if token is None:
            piece = ""
        elif self._byte_fallback and BYTE_TOKEN.fullmatch(token):
            piece = bytes((int(token[3:5], 16),))
        else:
            piece = self.join([token], first=False)
        self[token_id] = piece
        return piece

    def content(self, token_id: int) -> bytes:
        """Return the token's bytes in mid-sentence, none for an unknown id."""
        piece = self[token_id]
        return piece.encode() if isinstance(piece, str) else piece

    def join(self, tokens: list[str], *, first: bool) -> str:
        """Return the text of the tokens at the beginning of a text, or after something."""
        if first:
            return self._joiner(tokens)
        return self._joiner([ANCHOR, *tokens])[len(ANCHOR) :]

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the text of the tokens."""
        tokens = [token for token in map(self.token, token_ids) if token is not None]
        return self.join(tokens, first=True)


Pieces = BytePieces | TextPieces


def choose_pieces(decoder: Any, token: Callable[[int], str | None]) -> Pieces | None:
    """Return the table that gives what `decoder` (of the tokenizers library, or None) gives.

    None where a token's text depends on what follows.
    """
    if decoder is None:
        return TextPieces(token, " ".join, byte_fallback=False)
    steps = _steps(msgspec.json.decode(decoder.__getstate__()))
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return BytePieces(_byte_level(token))
    joins = all(_joins(step, after_fuse="Fuse" in kinds[:i]) for i, step in enumerate(steps))
    if not joins or decoder.decode([ANCHOR]) != ANCHOR:
        return None
    return TextPieces(token, decoder.decode, byte_fallback="ByteFallback" in kinds)


def _steps(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    """Flatten nested sequences of decoders."""
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for part in decoder["decoders"] for step in _steps(part)]


def _joins(step: dict[str, Any], *, after_fuse: bool) -> bool:
    """Tell whether this step leaves a text a concatenation of what its tokens give."""
    match step["type"]:
        case "Metaspace" | "ByteFallback" | "Fuse":
            return not after_fuse or step["type"] == "Fuse"
        case "WordPiece":
            return not after_fuse
        case "Replace":
            # A longer pattern could match across tokens that are fused already.
            pattern = step["pattern"].get("String", "")
            return bool(pattern) and (not after_fuse or len(pattern) == 1)
        case "Strip":
            # Two spaces could be taken from two tokens; the end of a text is never known.
            return not after_fuse or (step["start"] <= 1 and step["stop"] == 0)
        case _:
            return False


def _byte_level(token: Callable[[int], str | None]) -> Callable[[int], bytes | None]:
    """Undo GPT-2's writing of bytes as printable characters."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    to_byte = {chr(byte): byte for byte in printable}
    to_byte |= {chr(256 + i): byte for i, byte in enumerate(hidden)}

    def token_bytes(token_id: int) -> bytes | None:
        text = token(token_id)
        if text is None:
            return None
        try:
            return bytes(map(to_byte.__getitem__, text))
        except KeyError:  # an added token, written as it is
            return text.encode()

    return token_bytes
