"""Twin of reference.sampling.logprobs: a scan, the masses, and the first k candidates."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...reference.ops import Logprobs
from ...reference.sampling import WEIGHT_BITS
from .activation import log
from .candidates import (
    HIGHEST_KEY,
    ID_MASK,
    LOWEST_KEY,
    candidate,
    kth_greatest,
    scan,
    value_of,
)
from .launch import compiled, inlined, outlined, run_ranges
from .masses import sum_weights
from .philox import GROUP
from .simd import bfloat16s, float32s, from_order_key, int32s, int64s, order_key, widen
from .sorting import insert, sort_by_high_words

_MOST_INSERTED = 64
"""Candidates that are kept in order while they are found: their cost is that of k * k."""
_UNSCALE = np.float32(2.0**-WEIGHT_BITS)
_NAN = np.float32(np.nan)
_ZERO = np.float32(0.0)


@outlined
def _find_top(x: Any, maxima: Any, items: Any) -> None:
    """Fill items with the first candidates of the row, in order."""
    k = len(items)
    floor = kth_greatest(maxima, k) if k <= len(maxima) else LOWEST_KEY
    count = 0
    for group in range(len(maxima)):
        if maxima[group] >= floor:
            for token in range(group * GROUP, min((group + 1) * GROUP, len(x))):
                if order_key(x[token]) >= floor:
                    count = insert(items, count, candidate(x[token], token))


@inlined
def _sorts(k: int, vocab: int) -> bool:
    """Tell whether the first k candidates are found by sorting all: many are not inserted."""
    return k > max(_MOST_INSERTED, (vocab + GROUP - 1) // GROUP)


@outlined
def _sort(x: Any, items: Any, spare: Any) -> None:
    """Fill items with all candidates of the row, in order."""
    for i in range(len(x)):
        items[i] = candidate(x[i], i)
    sort_by_high_words(items, spare)


@outlined
def _logprobs_row(x: Any, token: int, scratch: Any, top_ids: Any, values: Any) -> Any:
    """Fill top_ids and values, return (sampled, rank). Twin of reference.sampling._logprobs_row."""
    maxima, items, spare = scratch
    k = len(top_ids)
    key, good = scan(x, maxima)
    if not good:
        for i in range(k):
            top_ids[i], values[i] = -1, _NAN
        return _NAN, 0
    top = from_order_key(key)
    log_total = _NAN
    if key < HIGHEST_KEY:
        log_total = log(np.float32(sum_weights(x, top)) * _UNSCALE)
    if k > 0:
        if _sorts(k, len(x)):
            _sort(x, items, spare)
        else:
            _find_top(x, maxima, items)
        for i in range(k):
            top_ids[i] = items[i] & ID_MASK
            values[i] = ((value_of(items[i]) - top) - log_total) + _ZERO
    if token < 0 or token >= len(x):
        return _NAN, 0
    rank = 1
    for i in range(len(x)):
        rank += 1 if x[i] > x[token] else 0
    return ((x[token] - top) - log_total) + _ZERO, rank


@compiled("void(UniTuple(int64, 13), int64, int64)")
def _logprobs(args: tuple[int, ...], start: int, end: int) -> None:
    logits, stride, is_half, vocab, rows, k = args[:6]
    asked = int64s(args[11], args[12])
    sorts = _sorts(k, vocab)
    items = np.empty(vocab if sorts else k, np.int64)
    spare = np.empty(vocab if sorts else 0, np.int64)
    scratch = (np.empty((vocab + GROUP - 1) // GROUP, np.int32), items, spare)
    widened = np.empty(vocab if is_half else 0, np.float32)
    tokens, sampled, ranks = int32s(args[6], rows), float32s(args[7], rows), int32s(args[8], rows)
    for place in range(start, end):
        r = asked[place] if len(asked) else place
        top_ids, top = int32s(args[9] + r * k * 4, k), float32s(args[10] + r * k * 4, k)
        x = widened
        if is_half:
            halves = bfloat16s(logits + r * stride * 2, vocab)
            for i in range(vocab):
                widened[i] = widen(halves[i])
        else:
            x = float32s(logits + r * stride * 4, vocab)
        sampled[r], ranks[r] = _logprobs_row(x, tokens[r], scratch, top_ids, top)


def logprobs(logits: Tensor, tokens: Tensor, k: int, asked: Tensor | None = None) -> Logprobs:
    """Twin of reference.sampling.logprobs."""
    num_rows, vocab = logits.shape
    assert 0 <= k <= vocab, (k, vocab)
    assert tokens.shape == (num_rows,) and tokens.dtype == torch.int32, (tokens.shape, tokens.dtype)
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    tokens = tokens.contiguous()
    new = torch.empty if asked is None else torch.zeros
    result = Logprobs(
        sampled=new(num_rows),
        ranks=new(num_rows, dtype=torch.int32),
        top_ids=new((num_rows, k), dtype=torch.int32),
        top=new((num_rows, k)),
    )
    size = num_rows if asked is None else len(asked)
    of_asked = (0, 0) if asked is None else (asked.data_ptr(), size)
    is_half = int(logits.dtype == torch.bfloat16)
    addresses = [field.data_ptr() for field in (tokens, *result)]
    args = (logits.data_ptr(), logits.stride(0), is_half, vocab, num_rows, k, *addresses, *of_asked)

    def call(start: int, end: int) -> None:
        _logprobs(args, start, end)

    run_ranges(call, size, size * vocab)
    return result
