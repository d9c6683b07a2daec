"""Twin of reference.philox, for groups of 64 tokens: 16 counters of four words each."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...reference.philox import KEY_STEPS, MULTIPLIERS
from .activation import log, log_of_parts, split_exponent, split_mantissa
from .launch import inlined

GROUP = 64
"""Tokens whose noise is drawn together."""
_M0, _M1 = (np.uint64(m) for m in MULTIPLIERS)
_W0, _W1 = (np.uint64(w) for w in KEY_STEPS)
_WORD = np.uint64(0xFFFFFFFF)
_HIGH = np.uint64(32)
_ONE = np.float32(1.0)
_HALF = np.float32(0.5)
_UNIT = np.float32(2.0**-32)
_ROUNDS = 10


@inlined
def _block(counter: Any, index: int, seed: int) -> Any:
    """Return the four words of a counter, as uint64."""
    a, b, c, d = np.uint64(counter) & _WORD, np.uint64(index) & _WORD, np.uint64(0), np.uint64(0)
    low_key, high_key = np.uint64(seed) & _WORD, np.uint64(seed) >> _HIGH
    for _ in range(_ROUNDS):
        first, second = a * _M0, c * _M1
        a = (second >> _HIGH) ^ b ^ low_key
        b = second & _WORD
        c = (first >> _HIGH) ^ d ^ high_key
        d = first & _WORD
        low_key = (low_key + _W0) & _WORD
        high_key = (high_key + _W1) & _WORD
    return a, b, c, d


@inlined
def group_words(words: Any, group: int, index: int, seed: int) -> None:
    """Fill words, uint32[64], with those of tokens 64 * group .. 64 * group + 63."""
    for i in range(GROUP // 4):
        a, b, c, d = _block(group * (GROUP // 4) + i, index, seed)
        words[4 * i] = np.uint32(a)
        words[4 * i + 1] = np.uint32(b)
        words[4 * i + 2] = np.uint32(c)
        words[4 * i + 3] = np.uint32(d)


@inlined
def least_word(group: int, index: int, seed: int) -> Any:
    """Return the least of group_words, as uint64: less work than to have them in order."""
    least = _WORD
    for i in range(GROUP // 4):
        a, b, c, d = _block(group * (GROUP // 4) + i, index, seed)
        least = min(least, a, b, c, d)
    return least


@inlined
def gumbel(word: Any) -> Any:
    """Twin of reference.philox.gumbel, for one uint32. The greater the word, the less."""
    low = np.int32(word) >= np.int32(0)
    t = (np.float32(np.int32(word) if low else np.int32(~word)) + _HALF) * _UNIT
    y = _ONE - t if low else t
    k = split_exponent(y)
    r = -t if low and k == np.float32(0.0) else split_mantissa(y) - _ONE
    return -log(-log_of_parts(k, r))
