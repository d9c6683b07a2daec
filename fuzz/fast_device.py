"""Twin of oracles.FakeDevice on arrays, for millions of steps.

Every place in memory holds a hash of the whole history that was written there, and every row of a
step is compared with all that it reads, as in FakeDevice; only the loops over places are numpy's.
tests/engine/test_virtual.py holds both against each other, on right plans and on wrong ones.
"""

from __future__ import annotations

from itertools import accumulate
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..engine.kv.block_pool import IdArray
from ..engine.plan import Admitted, StepPlan, StepResult
from ..engine.sched.limits import SchedulerLimits
from .oracles import draw_token, extend_history

UNWRITTEN = -1


class Rows(NamedTuple):
    """What a step computes. All arrays are [rows]."""

    slots: IdArray
    starts: IdArray
    counts: IdArray
    ends: IdArray
    samples: NDArray[np.bool_]


class FastDevice:
    """Executes plans in order and checks that each of them is possible and safe."""

    def __init__(
        self, limits: SchedulerLimits, roots: dict[int, int], is_new: bool = False
    ) -> None:
        """roots: as FakeDevice. is_new: slots may be released that it was never told of."""
        slots, blocks, size = limits.max_num_seqs, limits.num_blocks, limits.block_size
        width = -(-limits.max_model_len // size) + 1
        self.limits, self.roots, self.last_step = limits, roots, 0
        self.memory = np.full((blocks, size), UNWRITTEN, np.int64)
        """[blocks, block_size] hash of the history up to the token there."""
        self._admitted: dict[int, Admitted] = {}
        self._unknown = set(range(slots)) if is_new else set()
        self._histories = np.zeros((slots, limits.max_model_len + 2), np.int64)
        """[slots, tokens + 1] hash of each prefix, the empty one first."""
        self._lengths = np.zeros(slots, np.intp)
        self._computed = np.zeros(slots, np.intp)
        self._fresh = np.zeros(slots, np.bool_)
        """Admitted by the step that runs: such slots read after all writes."""
        self._tables = np.zeros((slots, width), np.intp)
        self._num_blocks = np.zeros(slots, np.intp)
        self._readers = np.zeros(blocks, np.intp)
        """[blocks] slots that have each, without fresh ones."""

    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step; asserts whatever could corrupt it."""
        assert plan.step > self.last_step, (plan.step, self.last_step)
        self.last_step = plan.step
        for array in (plan.released, plan.block_ids, plan.slots, plan.starts, plan.num_tokens):
            assert array.dtype == np.int32, array.dtype
        slots, starts = plan.slots.astype(np.intp), plan.starts.astype(np.intp)
        counts = plan.num_tokens.astype(np.intp)
        rows = Rows(slots, starts, counts, starts + counts, plan.samples)
        num_tokens = int(counts.sum())
        assert 0 < num_tokens <= self.limits.max_num_batched_tokens, counts
        assert len(set(slots.tolist())) == len(slots), slots
        self._change_slots(plan)
        if len(plan.block_slots):
            self._add_blocks(plan)
        targets = plan.copy_targets.tolist()
        for source, target in zip(plan.copy_sources.tolist(), targets, strict=True):
            assert source not in targets, (source, targets)
            assert not self._readers[target], (target, "a copy overwrites a block in use")
            self.memory[target] = self.memory[source]
        self._write(rows, num_tokens)
        self._read(rows)
        self._computed[slots] = rows.ends
        if plan.admitted:
            self._settle(plan)
        return StepResult(plan.step, self._sample(slots[rows.samples]))

    def forget(self) -> None:
        """Lose what is in memory, but no slot."""
        self.memory.fill(UNWRITTEN)

    def _change_slots(self, plan: StepPlan) -> None:
        for slot in plan.released.tolist():
            assert slot in self._admitted or slot in self._unknown, (slot, "is not occupied")
            self._clear(slot)
        for admitted in plan.admitted:
            slot = admitted.slot
            assert 0 <= slot < self.limits.max_num_seqs, slot
            self._clear(slot)
            tokens = admitted.token_ids.tolist()
            chain = accumulate(tokens, extend_history, initial=self.roots[admitted.seed])
            self._histories[slot, : len(tokens) + 1] = list(chain)
            self._lengths[slot] = len(tokens)
            self._fresh[slot] = True
            self._admitted[slot] = admitted

    def _clear(self, slot: int) -> None:
        self._unknown.discard(slot)
        if self._admitted.pop(slot, None) is not None and not self._fresh[slot]:
            self._readers[self._tables[slot, : self._num_blocks[slot]]] -= 1
        self._num_blocks[slot] = self._lengths[slot] = 0

    def _add_blocks(self, plan: StepPlan) -> None:
        lengths, tables = self._num_blocks, self._tables
        places = zip(
            plan.block_slots.tolist(),
            plan.block_indices.tolist(),
            plan.block_ids.tolist(),
            strict=True,
        )
        for slot, index, block in places:
            assert slot in self._admitted, (slot, "is not occupied")
            assert index == lengths[slot], (slot, index, lengths[slot])
            assert 0 <= block < self.limits.num_blocks, block
            assert block not in tables[slot, :index].tolist(), (slot, block)
            tables[slot, index] = block
            lengths[slot] = index + 1
            self._readers[block] += not self._fresh[slot]

    def _write(self, rows: Rows, num_tokens: int) -> None:
        slots, starts, counts, ends, samples = rows
        size, fresh, lengths = self.limits.block_size, self._fresh[slots], self._lengths[slots]
        fits = (counts > 0) & (starts >= 0) & (fresh | (self._computed[slots] == starts))
        fits &= (ends <= lengths) & (samples == (ends == lengths))
        fits &= (ends <= self._num_blocks[slots] * size) & (ends < self.limits.max_model_len)
        assert fits.all(), (rows, lengths, self._computed[slots], self._num_blocks[slots])
        writers, positions = slots, starts
        if num_tokens > len(slots):
            writers = slots.repeat(counts)
            positions = np.arange(num_tokens) + (starts - counts.cumsum() + counts).repeat(counts)
            fresh = self._fresh[writers]
        blocks = self._tables[writers, positions // size]
        others = self._readers[blocks] - ~fresh
        assert not others.any(), (blocks[others > 0], "are shared")
        self.memory[blocks, positions % size] = self._histories[writers, positions + 1]

    def _read(self, rows: Rows) -> None:
        """Attend to all positions before the ends: each must hold the sequence's own history."""
        size, width = self.limits.block_size, int(rows.ends.max())
        places = self.memory[self._tables[rows.slots, : -(-width // size)]]
        found = places.reshape(len(rows.slots), -1)[:, :width]
        foreign = found != self._histories[rows.slots, 1 : width + 1]
        foreign &= np.arange(width) < rows.ends[:, None]
        assert not foreign.any(), (rows.slots, foreign.nonzero(), "not its own history")

    def _settle(self, plan: StepPlan) -> None:
        """Count those who came with this step among the readers."""
        for admitted in plan.admitted:
            slot = admitted.slot
            if not self._fresh[slot]:
                continue
            assert (plan.slots == slot).any(), (slot, "came without a row")
            self._fresh[slot] = False
            self._readers[self._tables[slot, : self._num_blocks[slot]]] += 1

    def _sample(self, slots: IdArray) -> NDArray[np.int32]:
        lengths = self._lengths[slots]
        drawn, extended = [], []
        columns = (slots.tolist(), lengths.tolist(), self._histories[slots, lengths].tolist())
        for slot, length, history in zip(*columns, strict=True):
            one = self._admitted[slot]
            early = length - one.num_prompt_tokens < one.params.min_tokens
            barred = frozenset(one.stop_token_ids if early else ())
            token = draw_token(history, one.seed, barred)
            drawn.append(token)
            extended.append(extend_history(history, token))
        self._histories[slots, lengths + 1] = extended
        self._lengths[slots] = lengths + 1
        return np.array(drawn, np.int32)
