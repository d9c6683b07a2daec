"""Candidates of a row of logits: one int64 each, the negated order key of its value above its id.

So integers ascend in the order of candidates. Helpers of sampling and log probabilities.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...reference.activation import LOG2_E
from ...reference.sampling import WEIGHT_BITS
from .activation import exp2
from .launch import inlined, outlined
from .philox import GROUP
from .simd import INFINITY_KEY, from_order_key, order_key, widen

_LOG2_E = np.float32(LOG2_E)
_SCALE = np.float32(2.0**WEIGHT_BITS)
ID_MASK = 0xFFFFFFFF
LOWEST_KEY = np.int32(-INFINITY_KEY)
HIGHEST_KEY = np.int32(INFINITY_KEY)


@inlined
def weight(distance: Any) -> Any:
    """Twin of reference.sampling.weights."""
    return np.int64(exp2(distance * _LOG2_E) * _SCALE)


@inlined
def candidate(x: Any, token: Any) -> Any:
    return (-np.int64(order_key(x)) << 32) | np.int64(token)


@inlined
def value_of(candidate: Any) -> Any:
    return from_order_key(np.int32(-(candidate >> 32)))


@outlined
def scan(logits: Any, maxima: Any) -> Any:
    """Fill the greatest order key of each group; return (the greatest, whether the row is good)."""
    vocab = len(logits)
    greatest, least, smallest = LOWEST_KEY, HIGHEST_KEY, HIGHEST_KEY
    for group in range(vocab // GROUP):
        start = group * GROUP
        high, low, small = LOWEST_KEY, HIGHEST_KEY, HIGHEST_KEY
        for i in range(GROUP):
            key = order_key(widen(logits[start + i]))
            high, low, small = max(high, key), min(low, key), min(small, abs(key))
        maxima[group] = high
        greatest, least, smallest = max(greatest, high), min(least, low), min(smallest, small)
    if vocab % GROUP:
        high = LOWEST_KEY
        for i in range(vocab - vocab % GROUP, vocab):
            key = order_key(widen(logits[i]))
            high, least, smallest = max(high, key), min(least, key), min(smallest, abs(key))
        maxima[vocab // GROUP] = high
        greatest = max(greatest, high)
    is_number = greatest <= HIGHEST_KEY and least >= LOWEST_KEY
    return greatest, is_number and smallest < HIGHEST_KEY


@outlined
def first_of(logits: Any, maxima: Any, key: Any) -> int:
    """Return the first token whose order key is `key`, the greatest of all."""
    group = 0
    while maxima[group] != key:
        group += 1
    token = group * GROUP
    while order_key(widen(logits[token])) != key:
        token += 1
    return token


@outlined
def kth_greatest(keys: Any, k: int) -> Any:
    """Return the k-th greatest of keys, 1 <= k <= len(keys), by bisection of the values."""
    low, high = np.int64(LOWEST_KEY), np.int64(HIGHEST_KEY)
    while low < high:
        middle = (low + high + 1) >> 1
        bound = np.int32(middle)
        count = 0
        for i in range(len(keys)):
            count += 1 if keys[i] >= bound else 0
        if count >= k:
            low = middle
        else:
            high = middle - 1
    return np.int32(low)
