"""Candidates: tokens of a row in the order of sampling, as integers, and the scan of a row.

A candidate is one int64: the order key of its value above its id reversed, so that integers descend
in the order of candidates. A row is cut into chunks of tokens, a program each; what programs tell
each other are integers, so that neither the cut nor the order of atomics reaches a result.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ...reference.activation import LOG2_E
from ...reference.sampling import WEIGHT_BITS
from .launch import next_power_of_2
from .math import exp2

INFINITY_KEY = tl.constexpr(0x7F800000)
ID_BITS = tl.constexpr(31)
ID_MASK = tl.constexpr(2**31 - 1)
NONE = tl.constexpr(-(2**63))
"""No candidate: it comes after all others."""
_LOG2_E = tl.constexpr(LOG2_E)
_SCALE = tl.constexpr(2.0**WEIGHT_BITS)


def chunk_size(rows: int, vocab: int) -> int:
    """Return the tokens of a program, a power of two: few where there are few rows."""
    largest = 1024 if rows <= 4 else 2048 if rows <= 16 else 4096
    return min(largest, max(64, next_power_of_2(vocab)))


@triton.jit
def order_key(x):
    """Return int32 keys that order as float32 values do; both zeros have 0."""
    bits = x.to(tl.int32, bitcast=True)
    return tl.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))


@triton.jit
def candidate(x, tokens):
    """Return the candidate of each value and token."""
    return (order_key(x).to(tl.int64) << ID_BITS) + (tokens ^ ID_MASK)


@triton.jit
def token_of(candidates):
    """Return the token of each candidate, int32."""
    return ((candidates & ID_MASK) ^ ID_MASK).to(tl.int32)


@triton.jit
def value_of(candidates):
    """Return the float32 value of each candidate; zeros are positive."""
    return from_order_key((candidates >> ID_BITS).to(tl.int32))


@triton.jit
def from_order_key(key):
    """Return the float32 of an order key."""
    bits = tl.where(key >= 0, key, (-key) | -0x80000000)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def weights(distance):
    """Twin of reference.sampling.weights."""
    return (exp2(distance * _LOG2_E) * _SCALE).to(tl.int64)


@triton.jit
def scan_chunk(row_ptr, vocab, partials_ptr, chunks, chunk, CHUNK: tl.constexpr):
    """Write what `summary` reads of one chunk; the pointers are the row's."""
    tokens = chunk * CHUNK + tl.arange(0, CHUNK)
    valid = tokens < vocab
    x = tl.load(row_ptr + tokens, valid, other=0.0).to(tl.float32)
    key = order_key(x)
    partial_ptr = partials_ptr + chunk
    tl.store(partial_ptr, tl.max(tl.where(valid, candidate(x, tokens), NONE), 0))
    least = tl.min(tl.where(valid, key, INFINITY_KEY), 0)
    tl.store(partial_ptr + chunks, least.to(tl.int64))
    smallest = tl.min(tl.where(valid, tl.abs(key), INFINITY_KEY), 0)
    tl.store(partial_ptr + 2 * chunks, smallest.to(tl.int64))


@triton.jit
def summary(partials_ptr, chunks, CHUNKS: tl.constexpr):
    """Return a row's greatest candidate, its least logit, and whether it is free of NaN and has a
    finite logit.
    """
    i = tl.arange(0, CHUNKS)
    valid = i < chunks
    best = tl.max(tl.load(partials_ptr + i, valid, other=NONE), 0)
    least = tl.min(tl.load(partials_ptr + chunks + i, valid, other=INFINITY_KEY), 0)
    smallest = tl.min(tl.load(partials_ptr + 2 * chunks + i, valid, other=INFINITY_KEY), 0)
    is_number = ((best >> ID_BITS) <= INFINITY_KEY) & (least >= -INFINITY_KEY)
    is_good = is_number & (smallest < INFINITY_KEY)
    return best, from_order_key(least.to(tl.int32)), is_good
