"""ModelRunner: executes StepPlans in order on one device.

Owns the KV memory and the device table (tokens, blocks, sampling parameters by slot). One thread
calls it. A plan is complete: nothing is asked back, and a plan's drawn tokens are in the table
before it returns, so that the next one may have been queued without knowing them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...reference.ops import Ops
from ..models.base import DecoderModel
from ..plan import StepPlan, StepResult
from . import warm_up
from .inputs import build_inputs
from .sampler import Drawn, draw
from .sampling_rows import SamplingTable
from .state import DeviceTable

_NOTHING = np.empty(0, dtype=np.int32)


class ModelRunner:
    """One model, its memory and its slots."""

    def __init__(
        self,
        model: DecoderModel,
        ops: Ops,
        *,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        max_model_len: int,
    ) -> None:
        """Block ids are below num_blocks, slots below max_num_seqs."""
        config = model.config
        assert max_model_len <= config.max_positions, (max_model_len, config.max_positions)
        self._model = model
        self._ops = ops
        self._block_size = block_size
        self._caches = model.new_caches(num_blocks, block_size)
        self._table = DeviceTable(max_num_seqs, max_model_len, block_size)
        self._sampling = SamplingTable(max_num_seqs, config.vocab_size)

    @torch.inference_mode()
    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step: admitted, new blocks, copies, forward, sample."""
        for admitted in plan.admitted:
            self._sampling.admit(admitted)
        self._table.apply(plan)
        if len(plan.copy_sources):
            self._copy(plan)
        if not len(plan.slots):
            return StepResult(step=plan.step, token_ids=_NOTHING)
        inputs = build_inputs(plan, self._table)
        logits = self._model.forward(inputs.tokens, inputs.batch, self._caches, inputs.tail)
        if not len(logits):
            return StepResult(step=plan.step, token_ids=_NOTHING)
        drawn = self._draw(plan, logits)
        return StepResult(step=plan.step, token_ids=drawn.tokens.numpy(), logprobs=drawn.logprobs)

    def warm_up(self) -> None:
        """Run every operation once, in a small memory of its own, so that all code is compiled.

        Compiling holds the interpreter's lock, which a server cannot afford later.
        """
        scratch = ModelRunner(
            self._model,
            self._ops,
            num_blocks=warm_up.NUM_BLOCKS,
            block_size=max(self._block_size, warm_up.MAX_MODEL_LEN),
            max_num_seqs=warm_up.NUM_SLOTS,
            max_model_len=warm_up.MAX_MODEL_LEN,
        )
        for plan in warm_up.PLANS:
            scratch.execute(plan)

    def _copy(self, plan: StepPlan) -> None:
        sources = torch.tensor(plan.copy_sources, dtype=torch.int64)
        targets = torch.tensor(plan.copy_targets, dtype=torch.int64)
        for cache in self._caches:
            self._ops.copy_blocks(cache, sources, targets)

    def _draw(self, plan: StepPlan, logits: Tensor) -> Drawn:
        """Draw the tokens of the rows that sample and write them into the table."""
        slots = plan.slots[plan.samples]
        positions = (plan.starts + plan.num_tokens)[plan.samples]
        drawn = draw(self._ops, logits, self._sampling.step(slots, positions))
        self._table.write(slots, positions, drawn.tokens)
        return drawn
