"""DeviceTable: what the device remembers of every slot between steps, the scheduler's table's twin.

Owns tokens and block tables as tensors; changes only by applying a plan's diff and by the tokens
that steps draw. Sampling parameters are `sampling_rows.SamplingTable`. Released slots are not
cleared: their lines are undefined until the next admission.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..plan import StepPlan
from ..request import IntArray


class DeviceTable:
    """Tokens and blocks by slot."""

    def __init__(self, num_slots: int, max_model_len: int, block_size: int) -> None:
        max_blocks = -(-max_model_len // block_size)
        self.tokens = torch.zeros(num_slots, max_model_len, dtype=torch.int32)
        """[slots, max_model_len] int32, known tokens from position 0 on."""
        self.block_tables = torch.zeros(num_slots, max_blocks, dtype=torch.int32)
        """[slots, max_blocks] int32, contiguous."""
        self.block_size = block_size
        self.max_model_len = max_model_len

    def apply(self, plan: StepPlan) -> None:
        """Take in the admitted sequences' tokens and the new blocks."""
        for admitted in plan.admitted:
            num_tokens = len(admitted.token_ids)
            assert num_tokens <= self.max_model_len, (admitted.slot, num_tokens, self.max_model_len)
            self.tokens[admitted.slot, :num_tokens] = to_tensor(admitted.token_ids)
        if len(plan.block_ids):
            entries = _flat(self.block_tables, plan.block_slots, plan.block_indices)
            self.block_tables.put_(entries, to_tensor(plan.block_ids))

    def tokens_at(self, slots: IntArray, positions: IntArray) -> Tensor:
        """Return the tokens [n] int32 at positions [n] of slots [n]."""
        return self.tokens.take(_flat(self.tokens, slots, positions))

    def places_of(self, slots: IntArray, positions: IntArray) -> Tensor:
        """Return where keys and values at positions [n] of slots [n] go: [n] int64."""
        indices = positions // self.block_size
        blocks = self.block_tables.take(_flat(self.block_tables, slots, indices))
        return blocks.long() * self.block_size + to_tensor(positions - indices * self.block_size)

    def write(self, slots: IntArray, positions: IntArray, tokens: Tensor) -> None:
        """Write drawn tokens [n] int32 at positions of slots.

        A -1 (logits that were not finite) is written as 0: a step planned ahead may read it before
        the control plane ends that sequence.
        """
        self.tokens.put_(_flat(self.tokens, slots, positions), tokens.clamp(min=0))


def to_tensor(array: IntArray) -> Tensor:
    """Copy to an int32 tensor; a plan's arrays may be read-only, which torch refuses to share."""
    return torch.from_numpy(array.astype(np.int32))


def _flat(table: Tensor, lines: IntArray, columns: IntArray) -> Tensor:
    """Indices [n] int64 into a table as if it were one line."""
    return torch.from_numpy(lines.astype(np.int64) * table.shape[1] + columns)
