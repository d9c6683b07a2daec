"""Sorting in kernels: one by one where few are kept, by digits of eight bits where all are."""

from __future__ import annotations

from typing import Any

import numpy as np

from .launch import outlined

_DIGITS = 256


@outlined
def insert(items: Any, count: int, item: int) -> int:
    """Insert item into the first `count` items, ascending; drop the last if full. Return count."""
    if count == len(items):
        if item >= items[count - 1]:
            return count
        count -= 1
    place = count
    while place > 0 and items[place - 1] > item:
        items[place] = items[place - 1]
        place -= 1
    items[place] = item
    return count + 1


@outlined
def sort_by_high_words(items: Any, spare: Any) -> None:
    """Sort items [n] int64 by their high 32 bits, signed; equal ones keep their order.

    spare: as items; destroyed.
    """
    ends = np.empty(_DIGITS, np.int64)
    source, target = items, spare
    for shift in range(32, 64, 8):
        flip = np.int64(_DIGITS // 2 if shift == 56 else 0)
        ends[:] = 0
        for i in range(len(source)):
            ends[((source[i] >> shift) & (_DIGITS - 1)) ^ flip] += 1
        end = np.int64(0)
        for digit in range(_DIGITS):
            end += ends[digit]
            ends[digit] = end - ends[digit]
        for i in range(len(source)):
            digit = ((source[i] >> shift) & (_DIGITS - 1)) ^ flip
            target[ends[digit]] = source[i]
            ends[digit] += 1
        source, target = target, source
