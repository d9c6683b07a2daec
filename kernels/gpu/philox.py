"""Twin of reference.philox: noise without state, in products of 32 by 32 bits."""

from __future__ import annotations

import triton
import triton.language as tl

from ...reference.philox import KEY_STEPS, MULTIPLIERS, ROUNDS
from .math import log, log_of_parts, split

_M0, _M1 = (tl.constexpr(m) for m in MULTIPLIERS)
_W0, _W1 = (tl.constexpr(w) for w in KEY_STEPS)
_ROUNDS = tl.constexpr(ROUNDS)
_UNIT = tl.constexpr(2.0**-32)


@triton.jit
def block_words(seed, index, counters):
    """Return the words of tokens 4 * counters + 0, + 1, + 2, + 3: four of uint32, of one shape.

    seed: int64 and index: int32 scalars; counters: int32.
    """
    low_key, high_key = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    a = counters.to(tl.uint32)
    c = tl.zeros_like(a)
    b, d = c + index.to(tl.uint32), c
    for _ in tl.static_range(_ROUNDS):
        first, second = a.to(tl.uint64) * _M0, c.to(tl.uint64) * _M1
        a = (second >> 32).to(tl.uint32) ^ b ^ low_key
        b = second.to(tl.uint32)
        c = (first >> 32).to(tl.uint32) ^ d ^ high_key
        d = first.to(tl.uint32)
        low_key += _W0
        high_key += _W1
    return a, b, c, d


@triton.jit
def token_words(seed, index, tokens):
    """Return the word of each token (int32, any shape), whatever stands beside it."""
    a, b, c, d = block_words(seed, index, tokens >> 2)
    place = tokens & 3
    return tl.where(place < 2, tl.where(place == 0, a, b), tl.where(place == 2, c, d))


@triton.jit
def gumbel(words):
    """Twin of reference.philox.gumbel, for uint32."""
    signed = words.to(tl.int32, bitcast=True)
    low = signed >= 0
    t = (tl.where(low, signed, ~signed).to(tl.float32) + 0.5) * _UNIT
    k, m = split(tl.where(low, 1.0 - t, t))
    r = tl.where(low & (k == 0.0), -t, m - 1.0)
    return -log(-log_of_parts(k, r))
