"""Twin of reference.edits.edit_logits: one pass over each edited row, then its history.

`sample` edits a row where it draws from it, so that it is written to the cache and not to memory.
Tokens of a history are counted in a table of the vocabulary, which is zeros again behind each row.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...reference.ops import EditRows
from .launch import compiled, inlined, outlined, run_ranges
from .simd import bfloat16s, booleans, float32s, int32s, int64s, widen

_INFINITY = np.float32(np.inf)
_ONE = np.float32(1.0)
_ZERO = np.float32(0.0)
_SIZE, _NUM_MASKS, _NUM_BIASES, _NUM_WORDS, _NUM_BANNED, _LONGEST_WORD, _KNOWN_STRIDE = range(7)
_ROWS, _SLOTS, _LENGTHS, _PROMPTS, _MASKED, _DENIED, _PENALTIES = range(7, 14)
_BIASED, _BIAS_TOKENS, _BIASES, _WORDED, _WORDS, _BANNED, _BANNED_TOKENS, _KNOWN = range(14, 22)
"""Places in `addresses`."""
_COST = 4
"""Logits that are copied in a nanosecond, about."""


@outlined
def _copy(logits: Any, denied: Any, x: Any) -> None:
    """Widen a row, -infinity for what is denied: nothing, or a mask of all tokens."""
    if len(denied):
        for token in range(len(x)):
            x[token] = -_INFINITY if denied[token] else widen(logits[token])
    else:
        for token in range(len(x)):
            x[token] = widen(logits[token])


@inlined
def _comes(word: Any, outputs: Any) -> bool:
    """Tell whether outputs end with all of a word but its last token."""
    place = len(outputs)
    for i in range(len(word) - 2, -1, -1):
        if word[i] < 0:
            return True
        place -= 1
        if place < 0 or outputs[place] != word[i]:
            return False
    return True


@outlined
def _penalize(x: Any, history: Any, num_prompt: int, penalties: Any, counts: Any) -> None:
    """Penalize what a history has, each token once. counts: int32[vocab] zeros, and so after."""
    repetition, frequency, presence = penalties[0], penalties[1], penalties[2]
    for i in range(num_prompt, len(history)):
        counts[history[i]] += 1
    for i in range(len(history)):
        token = history[i]
        count = counts[token]
        if count < 0:
            continue
        value = x[token]
        value = value / repetition if value > _ZERO else value * repetition
        if count > 0:
            value = value - frequency * np.float32(count)
            value = value - presence
        x[token] = value
        counts[token] = -1
    for i in range(len(history)):
        counts[history[i]] = 0


@inlined
def _first(entries: Any, entry: int) -> int:
    """Return the first place of ascending entries that is not below one of them."""
    low, high = 0, len(entries)
    while low < high:
        middle = (low + high) >> 1
        if entries[middle] < entry:
            low = middle + 1
        else:
            high = middle
    return low


@inlined
def entry_of(edits: Any, row: int) -> int:
    """Return the entry of a row of the logits among `addresses`; -1 where it is not edited."""
    rows = int64s(edits[_ROWS], edits[_SIZE])
    entry = _first(rows, row)
    return entry if entry < len(rows) and rows[entry] == row else -1


@outlined
def edit_row(edits: Any, i: int, logits: Any, x: Any, counts: Any) -> None:
    """Fill x, float32[vocab], with the logits of entry i, edited. counts: see _penalize."""
    size, slot = edits[_SIZE], int64s(edits[_SLOTS], edits[_SIZE])[i]
    masked = int64s(edits[_MASKED], edits[_NUM_MASKS])
    place = _first(masked, i)
    is_masked = place < len(masked) and masked[place] == i
    _copy(logits, booleans(edits[_DENIED] + place * len(x), len(x) if is_masked else 0), x)
    length, num_prompt = int64s(edits[_LENGTHS], size)[i], int64s(edits[_PROMPTS], size)[i]
    history = int32s(edits[_KNOWN] + slot * edits[_KNOWN_STRIDE] * 4, length)
    worded, longest = int64s(edits[_WORDED], edits[_NUM_WORDS]), edits[_LONGEST_WORD]
    place = _first(worded, i)
    while place < len(worded) and worded[place] == i:
        word = int32s(edits[_WORDS] + place * longest * 4, longest)
        if _comes(word, history[num_prompt:]):
            x[word[longest - 1]] = -_INFINITY
        place += 1
    biased = int64s(edits[_BIASED], edits[_NUM_BIASES])
    tokens, biases = int64s(edits[_BIAS_TOKENS], len(biased)), float32s(edits[_BIASES], len(biased))
    place = _first(biased, i)
    while place < len(biased) and biased[place] == i:
        x[tokens[place]] += biases[place]
        place += 1
    penalties = float32s(edits[_PENALTIES] + 12 * i, 3)
    if penalties[0] != _ONE or penalties[1] != _ZERO or penalties[2] != _ZERO:
        _penalize(x, history, num_prompt, penalties, counts)
    banned = int64s(edits[_BANNED], edits[_NUM_BANNED])
    tokens = int64s(edits[_BANNED_TOKENS], len(banned))
    place = _first(banned, i)
    while place < len(banned) and banned[place] == i:
        x[tokens[place]] = -_INFINITY
        place += 1


@compiled("void(UniTuple(int64, 5), UniTuple(int64, 22), int64, int64)")
def _edit(args: tuple[int, ...], edits: tuple[int, ...], start: int, end: int) -> None:
    logits, stride, is_half, vocab, out = args
    counts = np.zeros(vocab, np.int32)
    everything = booleans(0, 0)
    for row in range(start, end):
        x, entry = float32s(out + row * vocab * 4, vocab), entry_of(edits, row)
        if is_half:
            halves = bfloat16s(logits + row * stride * 2, vocab)
            if entry >= 0:
                edit_row(edits, entry, halves, x, counts)
            else:
                _copy(halves, everything, x)
        else:
            floats = float32s(logits + row * stride * 4, vocab)
            if entry >= 0:
                edit_row(edits, entry, floats, x, counts)
            else:
                _copy(floats, everything, x)


def addresses(edits: EditRows | None) -> tuple[int, ...]:
    """Return what kernels know of edits."""
    if edits is None:
        return (0,) * 22
    assert edits.known.dtype == torch.int32 and edits.known.is_contiguous()
    fields = (
        *(edits.rows, edits.slots, edits.lengths, edits.prompts, edits.masked, edits.denied),
        *(edits.penalties, edits.biased, edits.bias_tokens, edits.biases),
        *(edits.worded, edits.words, edits.banned, edits.banned_tokens, edits.known),
    )
    counted = (edits.rows, edits.masked, edits.biased, edits.worded, edits.banned)
    return (
        *map(len, counted),
        *(edits.words.shape[1], edits.known.stride(0)),
        *map(Tensor.data_ptr, fields),
    )


def edit_logits(logits: Tensor, edits: EditRows) -> Tensor:
    """Twin of reference.edits.edit_logits."""
    num_rows, vocab = logits.shape
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    out = torch.empty((num_rows, vocab))
    is_half = int(logits.dtype == torch.bfloat16)
    args = (logits.data_ptr(), logits.stride(0), is_half, vocab, out.data_ptr())
    of_edits = addresses(edits)

    def call(start: int, end: int) -> None:
        _edit(args, of_edits, start, end)

    run_ranges(call, num_rows, num_rows * vocab // _COST)
    return out
