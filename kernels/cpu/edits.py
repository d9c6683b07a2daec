"""Twin of reference.edits.edit_logits: one pass over each edited row, then its history.

Only the rows that are edited are written. Tokens of a history are counted in a table of the
vocabulary, which is zeros again behind each row.
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
    place = 0
    while place < len(entries) and entries[place] < entry:
        place += 1
    return place


@compiled("void(UniTuple(int64, 22), int64, int64)")
def _edit(args: tuple[int, ...], start: int, end: int) -> None:
    logits, stride, is_half, vocab, known, known_stride, out = args[:7]
    size, num_biases, num_words, longest_word = args[7:11]
    rows, slots, lengths = int64s(args[11], size), int64s(args[12], size), int64s(args[13], size)
    prompts, denied = int64s(args[14], size), int64s(args[15], size)
    penalties, biased = float32s(args[16], 3 * size), int64s(args[17], num_biases)
    bias_tokens, biases = int64s(args[18], num_biases), float32s(args[19], num_biases)
    worded = int64s(args[20], num_words)
    bias, word = _first(biased, start), _first(worded, start)
    counts = np.zeros(vocab, np.int32)
    for i in range(start, end):
        x = float32s(out + rows[i] * vocab * 4, vocab)
        mask = booleans(denied[i], vocab if denied[i] else 0)
        if is_half:
            _copy(bfloat16s(logits + rows[i] * stride * 2, vocab), mask, x)
        else:
            _copy(float32s(logits + rows[i] * stride * 4, vocab), mask, x)
        history = int32s(known + slots[i] * known_stride * 4, lengths[i])
        while word < num_words and worded[word] == i:
            tokens = int32s(args[21] + word * longest_word * 4, longest_word)
            if _comes(tokens, history[prompts[i] :]):
                x[tokens[longest_word - 1]] = -_INFINITY
            word += 1
        while bias < num_biases and biased[bias] == i:
            x[bias_tokens[bias]] += biases[bias]
            bias += 1
        mine = penalties[3 * i : 3 * i + 3]
        if mine[0] != _ONE or mine[1] != _ZERO or mine[2] != _ZERO:
            _penalize(x, history, prompts[i], mine, counts)


def edit_logits(logits: Tensor, known: Tensor, edits: EditRows, out: Tensor) -> None:
    """Twin of reference.edits.edit_logits."""
    vocab, size = logits.shape[1], len(edits.rows)
    assert out.shape == logits.shape and out.dtype == torch.float32, (out.shape, out.dtype)
    assert known.dtype == torch.int32 and known.stride(1) == 1, (known.dtype, known.stride())
    if logits.stride(1) != 1:
        logits = logits.contiguous()
    denied = torch.zeros(size, dtype=torch.int64)
    for entry, mask in zip(edits.masked.tolist(), edits.denied, strict=True):
        denied[entry] = mask.data_ptr()
    fields = (
        *(edits.rows, edits.slots, edits.lengths, edits.prompts, denied),
        *(edits.penalties, edits.biased, edits.bias_tokens, edits.biases),
        *(edits.worded, edits.words),
    )
    is_half = int(logits.dtype == torch.bfloat16)
    matrices = (logits.data_ptr(), logits.stride(0), is_half, vocab)
    tables = (known.data_ptr(), known.stride(0), out.data_ptr())
    sizes = (size, len(edits.biased), len(edits.worded), edits.words.shape[1])
    args = (*matrices, *tables, *sizes, *(field.data_ptr() for field in fields))

    def call(start: int, end: int) -> None:
        _edit(args, start, end)

    run_ranges(call, size, size * vocab // _COST)
