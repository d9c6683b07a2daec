"""The device table and the inputs that are made of it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from quire.engine.device.buckets import Buckets
from quire.engine.device.inputs import StepInputs
from quire.engine.device.link import HostLink
from quire.engine.device.sampling_rows import SamplingTable
from quire.engine.device.state import DeviceTable
from quire.engine.opset import choose_ops
from quire.engine.params import SamplingParams
from quire.engine.plan import StepResult
from quire.fuzz.step_plans import Asked, PlanMaker
from quire.reference.ops import Batch

NUM_SLOTS = 5
MAX_MODEL_LEN = 100
OPS = choose_ops("cpu", "auto")
DTYPES = [torch.int32, torch.int64, torch.int32, torch.int32, torch.int32, torch.int32]


def make_maker(seed: int, block_size: int) -> PlanMaker:
    rng = random.Random(seed)
    params = SamplingParams(max_tokens=5)
    requests = [
        Asked(tuple(rng.randrange(1, 1000) for _ in range(rng.randint(1, 40))), params, 0)
        for _ in range(8)
    ]
    num_blocks = -(-600 // block_size)
    return PlanMaker(
        requests, rng, block_size=block_size, num_blocks=num_blocks, num_slots=NUM_SLOTS
    )


def check_tail(tail: Batch, batch: Batch, rows: list[int], tokens: list[int]) -> None:
    """A row of one token for each that samples, with what it has in the whole step."""
    assert tail.positions.tolist() == batch.positions[tokens].tolist()
    assert tail.places.tolist() == batch.places[tokens].tolist()
    assert tail.query_starts.tolist() == list(range(len(tokens) + 1))
    assert tail.kv_lens.tolist() == batch.kv_lens[rows].tolist()
    assert tail.slots.tolist() == batch.slots[rows].tolist()


@pytest.mark.parametrize("block_size", [1, 3, 16])
@pytest.mark.parametrize("seed", range(3))
def test_inputs_equal_a_loop_over_rows(seed: int, block_size: int) -> None:
    """Follow random plans with dicts, and build every input token by token."""
    maker = make_maker(seed, block_size)
    link = HostLink()
    table = DeviceTable(link, NUM_SLOTS, MAX_MODEL_LEN, block_size)
    step_inputs = StepInputs(link, NUM_SLOTS, MAX_MODEL_LEN, Buckets())
    sampling = SamplingTable(OPS, HostLink(), NUM_SLOTS, 1000)
    tokens: dict[tuple[int, int], int] = {}
    blocks: dict[tuple[int, int], int] = {}
    while not maker.finished:
        plan = maker.plan()
        for one in plan.admitted:
            tokens.update({(one.slot, i): int(t) for i, t in enumerate(one.token_ids)})
        for slot, index, block in zip(
            plan.block_slots, plan.block_indices, plan.block_ids, strict=True
        ):
            blocks[slot, index] = int(block)
        table.apply(plan)
        step = step_inputs.pack(plan, sampling)
        given, batch = OPS.prepare(
            step.tensors.rows, table.tokens, table.block_tables, block_size, step.num_tokens
        )
        rows = list(zip(plan.slots, plan.starts, plan.num_tokens, plan.samples, strict=True))
        flat = [(slot, start + i) for slot, start, count, _ in rows for i in range(count)]
        ends = np.cumsum(plan.num_tokens)
        assert given.tolist() == [tokens[key] for key in flat]
        assert batch.positions.tolist() == [position for _, position in flat]
        places = [
            blocks[slot, position // block_size] * block_size + position % block_size
            for slot, position in flat
        ]
        assert batch.places.tolist() == places
        assert batch.query_starts.tolist() == [0, *ends]
        assert batch.kv_lens.tolist() == [start + count for _, start, count, _ in rows]
        assert batch.slots.tolist() == plan.slots.tolist()
        assert batch.block_tables is table.block_tables
        assert [tensor.dtype for tensor in batch] == DTYPES
        samples = np.flatnonzero(plan.samples).tolist()
        last = [int(ends[row]) - 1 for row in samples]
        assert step.num_samples == len(samples)
        assert step.tensors.sample_slots.tolist() == [plan.slots[row] for row in samples]
        assert step.tensors.sample_positions.tolist() == [flat[token][1] + 1 for token in last]
        assert (step.tensors.tail is None) == (len(samples) == len(flat))
        if step.tensors.tail is not None and samples:
            assert step.tensors.tail.tokens.tolist() == last
            tail_tokens, tail = OPS.prepare(
                step.tensors.tail.rows, table.tokens, table.block_tables, block_size, len(last)
            )
            assert tail_tokens.tolist() == [tokens[flat[token]] for token in last]
            check_tail(tail, batch, samples, last)
        drawn = np.array([len(tokens) % 997 + i for i in range(len(samples))], dtype=np.int32)
        slots = plan.slots[plan.samples]
        positions = (plan.starts + plan.num_tokens)[plan.samples]
        OPS.store_tokens(
            table.tokens,
            step.tensors.sample_slots,
            step.tensors.sample_positions,
            torch.from_numpy(drawn),
        )
        for slot, position, token in zip(slots, positions, drawn, strict=True):
            tokens[slot, position] = int(token)
        maker.take(StepResult(step=plan.step, token_ids=drawn))


def test_table_has_room_for_a_last_partial_block() -> None:
    assert DeviceTable(HostLink(), 2, 9, 4).block_tables.shape == (2, 3)


def test_tables_say_how_large_they_are() -> None:
    assert DeviceTable(HostLink(), 2, 9, 4).num_bytes == 2 * (9 + 3) * 4
