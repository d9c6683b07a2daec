"""Places: what rows of a step compute, gathered from the device's table of tokens and blocks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from ...reference.ops import Batch, Ops, StepRows
from ..models.base import Tail
from ..request import IntArray
from .inputs import PackedStep
from .link import Link
from .state import DeviceTable


class Places(NamedTuple):
    """Where a runner's sequences are: tokens and blocks by slot."""

    ops: Ops
    link: Link
    table: DeviceTable
    block_size: int

    def gather(self, rows: StepRows, num_tokens: int) -> tuple[Tensor, Batch]:
        """Gather what rows compute: (tokens [num_tokens] int32, Batch), row after row."""
        table = self.table
        return self.ops.prepare(rows, table.tokens, table.block_tables, self.block_size, num_tokens)

    def of_step(
        self, step: PackedStep, *, whole: bool = False
    ) -> tuple[Tensor, Batch, Tail | None]:
        """Gather what a step computes, and which of it yields samples; whole: all of it, None."""
        rows, tail = step.tensors.rows, step.tensors.tail
        tokens, batch = self.gather(rows, step.num_tokens)
        if tail is None or whole:
            return tokens, batch, None
        last, size = batch, len(tail.tokens)
        if size:
            _, last = self.gather(tail.rows, size)
        return tokens, batch, Tail(tail.tokens, last)

    def send(self, slots: IntArray, starts: IntArray, ends: IntArray) -> tuple[Tensor, Batch]:
        """Gather the tokens from starts [rows] to before ends [rows] of slots [rows]."""
        size = len(slots)
        laid = np.zeros(size + 1, np.int32)
        np.cumsum(ends - starts, out=laid[1:])
        words = self.link.upload(np.concatenate((slots, starts, laid)).astype(np.int32))
        rows = StepRows(words[:size], words[size : 2 * size], words[2 * size :])
        return self.gather(rows, int(laid[-1]))
