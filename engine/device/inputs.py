"""From a plan and the device table to the tensors of one forward pass.

Pure: reads the table, changes nothing. Geometry (who computes what, where) is small and made in
numpy; what lives in the table (tokens, blocks) is gathered by torch. No loop over rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ...reference.ops import Batch
from ..models.base import Tail
from ..plan import StepPlan
from ..request import IntArray
from .state import DeviceTable, to_tensor

_FIRST = np.zeros(1, dtype=np.int32)


class StepInputs(NamedTuple):
    """What DecoderModel.forward takes."""

    tokens: Tensor
    """[tokens] int32."""
    batch: Batch
    tail: Tail | None
    """None where every token yields a sample."""


def build_inputs(plan: StepPlan, table: DeviceTable) -> StepInputs:
    """Lay the tokens of the rows one after another. The table has the plan's diff already."""
    ends = np.cumsum(plan.num_tokens, dtype=np.int32)
    kv_lens = plan.starts + plan.num_tokens
    assert plan.num_tokens.min() > 0, plan.num_tokens
    assert kv_lens.max() <= table.max_model_len, (int(kv_lens.max()), table.max_model_len)
    token_slots, token_positions = plan.slots, plan.starts
    if ends[-1] > len(ends):
        token_slots = np.repeat(plan.slots, plan.num_tokens)
        token_positions = np.repeat(kv_lens - ends, plan.num_tokens)
        token_positions += np.arange(ends[-1], dtype=np.int32)
    batch = Batch(
        positions=to_tensor(token_positions),
        places=table.places_of(token_slots, token_positions),
        query_starts=to_tensor(np.concatenate((_FIRST, ends))),
        kv_lens=to_tensor(kv_lens),
        slots=to_tensor(plan.slots),
        block_tables=table.block_tables,
    )
    tokens = table.tokens_at(token_slots, token_positions)
    return StepInputs(tokens, batch, _tail(plan, batch, ends))


def _tail(plan: StepPlan, batch: Batch, ends: IntArray) -> Tail | None:
    """Choose the last token of every row that samples."""
    if len(batch.positions) == len(ends) and plan.samples.all():
        return None
    rows = torch.from_numpy(np.flatnonzero(plan.samples))
    tokens = torch.from_numpy(ends[plan.samples].astype(np.int64) - 1)
    return Tail(
        tokens,
        Batch(
            positions=batch.positions[tokens],
            places=batch.places[tokens],
            query_starts=torch.arange(len(rows) + 1, dtype=torch.int32),
            kv_lens=batch.kv_lens[rows],
            slots=batch.slots[rows],
            block_tables=batch.block_tables,
        ),
    )
