"""Budgets of thinking: which token each row of a step must draw, read off its known tokens.

Twin of reference.edits.due_token for many rows. Nothing is remembered: a marker is looked for in
the whole history, in every step that has such rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..request import ThinkingBudget

NEVER = 2**31 - 1
ANY = -1
"""Stands for every token in a pattern."""
Send = Callable[[Sequence[int]], Tensor]
"""From numbers to a tensor [n] int64 on the device."""


class ThinkingRow(NamedTuple):
    """A row of a step with a budget, on the host."""

    row: int
    slot: int
    length: int
    """Known tokens."""
    num_prompt: int
    thinking: ThinkingBudget


def end_thoughts(
    x: Tensor, known: Tensor, rows: Sequence[ThinkingRow], send: Send, *, max_elements: int
) -> None:
    """Leave rows of x [rows, vocab] float32 whose budget is spent one token to draw.

    known: [slots, width], the tokens of each slot. max_elements: of a temporary tensor.
    """
    groups: dict[tuple[tuple[int, ...], ...], list[ThinkingRow]] = {}
    for one in rows:
        groups.setdefault((one.thinking.start, one.thinking.end), []).append(one)
    for (start, end), group in groups.items():
        markers, most = (send(start), send(end)), len(end) - 1
        patterns = send(_beginnings(end)).view(most, most)
        width = max(one.length for one in group) * max(len(start), len(end))
        for turn in _turns(group, max(1, max_elements // width)):
            numbers = [
                number
                for one in turn
                for number in (one.row, one.slot, one.length, one.num_prompt, one.thinking.budget)
            ]
            row, slot, length, num_prompt, budget = send(numbers).view(-1, 5).unbind(1)
            longest = max(one.length for one in turn)
            thoughts = _count_thoughts(known[slot, :longest], length, num_prompt, markers)
            said = _count_said(known[slot], length, thoughts, patterns)
            due = markers[1][said]
            old = x[row]
            only = torch.full_like(old, -torch.inf).scatter_(1, due[:, None], 0.0)
            x[row] = torch.where((thoughts >= budget)[:, None], only, old)


def _turns(rows: list[ThinkingRow], size: int) -> Iterator[list[ThinkingRow]]:
    return (rows[first : first + size] for first in range(0, len(rows), size))


def _beginnings(end: tuple[int, ...]) -> list[int]:
    """Write the beginnings of a marker of n tokens, 1 to n - 1, below each other, right-aligned."""
    most = len(end) - 1
    patterns = np.full((most, most), ANY)
    for count in range(1, most + 1):
        patterns[count - 1, most - count :] = end[:count]
    flat: list[int] = patterns.ravel().tolist()
    return flat


def _count_thoughts(
    history: Tensor, length: Tensor, num_prompt: Tensor, markers: tuple[Tensor, Tensor]
) -> Tensor:
    """Count the tokens behind the marker that began a thought, [rows]; below 0: none is open.

    history: [rows, longest]; places behind length [rows] are undefined.
    """
    start, end = markers
    place = torch.arange(1, history.shape[1] + 1, device=history.device)
    is_known = place <= length[:, None]
    closed = torch.where(_ends(history, end) & is_known, place, 0).amax(1, keepdim=True)
    opens = _ends(history, start) & is_known & (place > closed)
    first = torch.where(opens, place, NEVER).amin(1)
    last = torch.where(opens & (place <= num_prompt[:, None]), place, 0).amax(1)
    return length - torch.where(last > 0, last, first)


def _ends(history: Tensor, marker: Tensor) -> Tensor:
    """Tell behind which tokens of history [rows, longest] a marker [n] has just ended."""
    found = torch.zeros_like(history, dtype=torch.bool)
    size = len(marker)
    if size <= history.shape[1]:
        found[:, size - 1 :] = (history.unfold(1, size, 1) == marker).all(2)
    return found


def _count_said(known: Tensor, length: Tensor, thoughts: Tensor, patterns: Tensor) -> Tensor:
    """Count the tokens of the end's marker that the thoughts end with, less than all: [rows]."""
    most = len(patterns)
    if not most:
        return torch.zeros_like(length)
    count = torch.arange(1, most + 1, device=known.device)
    places = (length[:, None] - count.flip(0)).clamp(min=0)
    tail = known.gather(1, places)[:, None]
    fits = ((tail == patterns) | (patterns == ANY)).all(2) & (count <= thoughts[:, None])
    return torch.where(fits, count, 0).amax(1)
