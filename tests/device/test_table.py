"""The device table and the inputs that are made of it."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from quire.engine.device.inputs import build_inputs
from quire.engine.device.state import DeviceTable
from quire.engine.params import SamplingParams
from quire.fuzz.step_plans import Asked, PlanMaker

NUM_SLOTS = 5
MAX_MODEL_LEN = 100


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


@pytest.mark.parametrize("block_size", [1, 3, 16])
@pytest.mark.parametrize("seed", range(3))
def test_inputs_equal_a_loop_over_rows(seed: int, block_size: int) -> None:
    """Follow random plans with dicts, and build every input token by token."""
    from quire.engine.plan import StepResult

    maker = make_maker(seed, block_size)
    table = DeviceTable(NUM_SLOTS, MAX_MODEL_LEN, block_size)
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
        inputs = build_inputs(plan, table)
        rows = list(zip(plan.slots, plan.starts, plan.num_tokens, plan.samples, strict=True))
        flat = [(slot, start + i) for slot, start, count, _ in rows for i in range(count)]
        ends = np.cumsum(plan.num_tokens)
        batch = inputs.batch
        assert inputs.tokens.tolist() == [tokens[key] for key in flat]
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
        assert [tensor.dtype for tensor in batch] == [
            torch.int32,
            torch.int64,
            torch.int32,
            torch.int32,
            torch.int32,
            torch.int32,
        ]
        sampling = [row for row, samples in enumerate(plan.samples) if samples]
        if len(sampling) == len(flat):
            assert inputs.tail is None
        else:
            assert inputs.tail is not None
            last = [int(ends[row]) - 1 for row in sampling]
            assert inputs.tail.tokens.tolist() == last
            tail = inputs.tail.batch
            assert tail.positions.tolist() == [flat[token][1] for token in last]
            assert tail.places.tolist() == [places[token] for token in last]
            assert tail.query_starts.tolist() == list(range(len(last) + 1))
            assert tail.kv_lens.tolist() == [batch.kv_lens[row] for row in sampling]
            assert tail.slots.tolist() == [plan.slots[row] for row in sampling]
        drawn = np.array([len(tokens) % 997 + i for i in range(len(sampling))], dtype=np.int32)
        slots = plan.slots[plan.samples]
        positions = (plan.starts + plan.num_tokens)[plan.samples]
        table.write(slots, positions, torch.from_numpy(drawn))
        for slot, position, token in zip(slots, positions, drawn, strict=True):
            tokens[slot, position] = int(token)
        maker.take(StepResult(step=plan.step, token_ids=drawn))


def test_a_token_that_is_none_is_written_as_zero() -> None:
    table = DeviceTable(2, 8, 4)
    slots, positions = np.array([1], dtype=np.int32), np.array([3], dtype=np.int32)
    table.write(slots, positions, torch.tensor([-1], dtype=torch.int32))
    assert table.tokens[1].tolist() == [0] * 8


def test_table_has_room_for_a_last_partial_block() -> None:
    assert DeviceTable(2, 9, 4).block_tables.shape == (2, 3)
