"""DeviceTable: what the device remembers of every slot between steps, the scheduler's table's twin.

Owns tokens and block tables as tensors on the device; changes by a plan's diff, and the tokens that
steps draw are written into `tokens` by Ops.store_tokens. Sampling parameters are
`sampling_rows.SamplingTable`. Released slots are not cleared: their lines are undefined until the
next admission.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..plan import Admitted, StepPlan
from ..request import IntArray
from .link import Link


class DeviceTable:
    """Tokens and blocks by slot."""

    def __init__(self, link: Link, num_slots: int, max_model_len: int, block_size: int) -> None:
        max_blocks = -(-max_model_len // block_size)
        self._link = link
        self.tokens = torch.zeros(num_slots, max_model_len, dtype=torch.int32, device=link.device)
        """[slots, max_model_len] int32, known tokens from position 0 on."""
        self.block_tables = torch.zeros(
            num_slots, max_blocks, dtype=torch.int32, device=link.device
        )
        """[slots, max_blocks] int32, contiguous."""
        self.max_model_len = max_model_len

    @property
    def num_bytes(self) -> int:
        """Memory on the device."""
        return sum(table.numel() * table.itemsize for table in (self.tokens, self.block_tables))

    def apply(self, plan: StepPlan) -> None:
        """Take in the admitted sequences' tokens, the new blocks and the guesses."""
        if plan.admitted:
            self._admit(plan.admitted)
        size = len(plan.block_ids)
        if size:
            words = np.empty(3 * size, dtype=np.int32)
            entries = words[: 2 * size].view(np.int64)
            width = self.block_tables.shape[1]
            np.multiply(plan.block_slots, width, out=entries, dtype=np.int64)
            entries += plan.block_indices
            words[2 * size :] = plan.block_ids
            sent = self._link.upload(words)
            self.block_tables.put_(sent[: 2 * size].view(torch.int64), sent[2 * size :])
        if plan.drafts is not None and plan.drafts.token_ids is not None:
            self._guess(plan, plan.drafts.counts, plan.drafts.token_ids)

    def _guess(self, plan: StepPlan, counts: IntArray, token_ids: IntArray) -> None:
        """Put the guesses behind the known tokens, for this step to compute."""
        size = len(token_ids)
        words = np.empty(3 * size, dtype=np.int32)
        words[: 2 * size].view(np.int64)[:] = self._places(plan, counts)
        words[2 * size :] = token_ids
        sent = self._link.upload(words)
        self.tokens.put_(sent[: 2 * size].view(torch.int64), sent[2 * size :])

    def guesses(self, plan: StepPlan) -> Tensor:
        """Return the guesses of a plan that are in the table: [guesses] int32, row after row."""
        assert plan.drafts is not None, plan
        return self.tokens.take(self._link.upload(self._places(plan, plan.drafts.counts)))

    def _places(self, plan: StepPlan, counts: IntArray) -> NDArray[np.int64]:
        """Say where the guesses of a plan, counts [rows], are in the table: row after row."""
        behind = counts.cumsum().repeat(counts) - np.arange(int(counts.sum()))
        places: NDArray[np.int64] = plan.slots.repeat(counts).astype(np.int64)
        places *= self.max_model_len
        places += (plan.starts + plan.num_tokens).repeat(counts) - behind
        return places

    def _admit(self, admitted: Sequence[Admitted]) -> None:
        sizes = [len(one.token_ids) for one in admitted]
        assert max(sizes) <= self.max_model_len, (sizes, self.max_model_len)
        # concatenate copies: a plan's arrays may be read-only, which torch refuses to share.
        sent = self._link.upload(np.concatenate([one.token_ids for one in admitted]))
        for one, tokens in zip(admitted, torch.split(sent, sizes), strict=True):
            self.tokens[one.slot, : len(tokens)] = tokens
