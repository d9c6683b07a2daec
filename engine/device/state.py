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
            lines = to_tensor(plan.block_slots), to_tensor(plan.block_indices)
            self.block_tables.index_put_(lines, to_tensor(plan.block_ids))

    def write(self, slots: IntArray, positions: IntArray, tokens: Tensor) -> None:
        """Write drawn tokens [n] int32 at positions of slots.

        A -1 (logits that were not finite) is written as 0: a step planned ahead may read it before
        the control plane ends that sequence.
        """
        self.tokens.index_put_((to_tensor(slots), to_tensor(positions)), tokens.clamp(min=0))


def to_tensor(array: IntArray) -> Tensor:
    """Copy to an int32 tensor; a plan's arrays may be read-only, which torch dislikes to share."""
    return torch.tensor(np.ascontiguousarray(array, dtype=np.int32))
