"""The one array of a step: padding, alignment, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace
from quire.engine.device.buckets import Buckets, Padded, make_buckets
from quire.engine.device.inputs import ALIGNMENT, MOST_LAYOUTS, StepInputs
from quire.engine.device.link import HostLink
from quire.engine.device.sampling_rows import SamplingTable
from quire.engine.opset import choose_ops
from quire.engine.params import SamplingParams
from quire.engine.plan import Admitted, Drafts, StepPlan

NUM_SLOTS = 12
MAX_LEN = 50


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def make_plan(slots: list[int], starts: list[int], counts: list[int], samples: list[bool]) -> Any:
    none = ints()
    return StepPlan(
        step=0,
        admitted=(),
        released=none,
        block_slots=none,
        block_indices=none,
        block_ids=none,
        copy_sources=none,
        copy_targets=none,
        slots=ints(*slots),
        starts=ints(*starts),
        num_tokens=ints(*counts),
        samples=np.array(samples, dtype=np.bool_),
    )


def make_table() -> SamplingTable:
    table = SamplingTable(choose_ops("cpu", "reference"), HostLink(), NUM_SLOTS, 100)
    for slot in range(NUM_SLOTS):
        params = SamplingParams(
            temperature=0.5, top_k=3, top_p=0.5, min_p=0.25, max_tokens=None, seed=0
        )
        table.admit(Admitted(slot, ints(1), 1, params, slot + 1, ()))
    return table


def make_inputs(buckets: Buckets | None = None) -> StepInputs:
    return StepInputs(HostLink(), NUM_SLOTS, MAX_LEN, buckets or Buckets())


def test_decode_steps_are_padded_to_the_next_bucket() -> None:
    inputs = make_inputs(make_buckets(NUM_SLOTS))
    inputs.pack(make_plan([*range(8)], [9] * 8, [1] * 8, [True] * 8), make_table())
    step = inputs.pack(make_plan([5, 2, 7], [3, 0, 9], [1, 1, 1], [True] * 3), make_table())
    rows, sampling = step.tensors.rows, step.tensors.sampling
    assert (step.is_padded, step.num_tokens, step.num_samples) == (True, 4, 3)
    assert rows.slots.tolist() == [5, 2, 7, -1]
    assert rows.starts.tolist() == [3, 0, 9, 0]
    assert rows.query_starts.tolist() == [0, 1, 2, 3, 4]
    assert step.tensors.sample_slots.tolist() == [5, 2, 7, -1]
    assert step.tensors.sample_positions.tolist() == [4, 1, 10, 0]
    assert sampling.temperature.tolist() == [0.5, 0.5, 0.5, 0.0]
    assert sampling.top_k.tolist() == [3, 3, 3, 0]
    assert sampling.top_p.tolist() == [0.5, 0.5, 0.5, 1.0]
    assert sampling.min_p.tolist() == [0.25, 0.25, 0.25, 0.0]
    assert sampling.seeds.tolist() == [6, 3, 8, 0]
    assert sampling.indices.tolist() == [3, 0, 9, 0]
    assert step.tensors.tail is None


def test_a_step_with_a_chunk_keeps_its_rows() -> None:
    """A long chunk of a prompt reads its keys once for all of its tokens. What is left of the
    padded size is one row's, and other rows of padding have nothing."""
    inputs = make_inputs(make_buckets(NUM_SLOTS))
    inputs.pack(make_plan([*range(8)], [9] * 8, [1] * 8, [True] * 8), make_table())
    plan = make_plan([5, 2, 7], [3, 0, 9], [1, 30, 1], [True, False, True])
    step = inputs.pack(plan, make_table())
    assert (step.is_padded, step.num_tokens, step.num_samples) == (True, 32, 2)
    rows, tail = step.tensors.rows, step.tensors.tail
    assert rows.slots.tolist() == [5, 2, 7, -1, -1, -1, -1, -1]
    assert rows.starts.tolist() == [3, 0, 9, 0, 0, 0, 0, 0]
    assert rows.query_starts.tolist() == [0, 1, 31, 32, 32, 32, 32, 32, 32]
    assert tail is not None and tail.tokens.tolist() == [0, 31, 0, 0, 0, 0, 0, 0]
    assert tail.rows.query_starts.tolist() == list(range(9))
    assert step.tensors.sample_slots.tolist() == [5, 7, -1, -1, -1, -1, -1, -1]
    step = inputs.pack(make_plan([5, 2], [3, 0], [1, 30], [True, True]), make_table())
    assert step.tensors.rows.query_starts.tolist() == [0, 1, 31, *[32] * 6]


def test_steps_that_draw_nothing_are_not_padded() -> None:
    inputs = make_inputs(make_buckets(NUM_SLOTS))
    step = inputs.pack(make_plan([5, 2, 7], [3, 0, 9], [1, 1, 1], [False] * 3), make_table())
    assert (step.is_padded, step.num_tokens) == (False, 3)
    assert step.tensors.rows.slots.tolist() == [5, 2, 7]


def test_a_step_with_a_few_tokens_of_prompts_is_a_decode_step_of_more_rows() -> None:
    inputs = make_inputs(make_buckets(NUM_SLOTS))
    inputs.pack(make_plan([*range(8)], [9] * 8, [1] * 8, [True] * 8), make_table())
    plan = make_plan([5, 2, 7], [3, 0, 9], [1, 3, 2], [True, False, True])
    step = inputs.pack(plan, make_table())
    assert (step.is_padded, step.num_tokens, step.num_samples) == (True, 8, 2)
    rows, tail = step.tensors.rows, step.tensors.tail
    assert rows.slots.tolist() == [5, 2, 2, 2, 7, 7, -1, -1]
    assert rows.starts.tolist() == [3, 0, 1, 2, 9, 10, 0, 0]
    assert step.tensors.sample_slots.tolist() == [5, 7, -1, -1, -1, -1, -1, -1]
    assert step.tensors.sample_positions.tolist() == [4, 11, 0, 0, 0, 0, 0, 0]
    assert step.tensors.sampling.temperature.tolist() == [0.5, 0.5, *[0.0] * 6]
    assert tail is not None and tail.tokens.tolist() == [0, 5, 0, 0, 0, 0, 0, 0]
    assert tail.rows.starts.tolist() == [3, 10, 0, 0, 0, 0, 0, 0]
    assert tail.rows.query_starts.tolist() == rows.query_starts.tolist() == list(range(9))


def test_a_step_with_guesses_is_a_decode_step_of_more_rows() -> None:
    """Guesses are rows of their own, so that there is one graph for so many tokens."""
    inputs = make_inputs(make_buckets(NUM_SLOTS))
    plan = make_plan([5, 2, 7], [3, 0, 9], [1, 3, 2], [True] * 3)
    drafts = Drafts(np.array([0, 2, 1], np.int32), np.array([4, 6, 8], np.int32))
    step = inputs.pack(replace(plan, drafts=drafts), make_table())
    assert (step.is_padded, step.num_tokens, step.num_samples) == (True, 8, 6)
    rows = step.tensors.rows
    assert rows.slots.tolist() == step.tensors.sample_slots.tolist() == [5, 2, 2, 2, 7, 7, -1, -1]
    assert rows.starts.tolist() == [3, 0, 1, 2, 9, 10, 0, 0]
    assert step.tensors.sample_positions.tolist() == [4, 1, 2, 3, 10, 11, 0, 0]
    assert rows.query_starts.tolist() == list(range(9))
    assert step.tensors.tail is None


def test_more_rows_than_any_bucket_are_not_padded() -> None:
    step = make_inputs(Buckets((1, 2), (2,))).pack(
        make_plan([5, 2, 7], [3, 0, 9], [1, 1, 1], [True] * 3), make_table()
    )
    assert (step.is_padded, step.num_tokens) == (False, 3)


def test_padding_alone() -> None:
    inputs = make_inputs(make_buckets(NUM_SLOTS))
    inputs.pack(make_plan([*range(8)], [9] * 8, [1] * 8, [True] * 8), make_table())
    step = inputs.pack_padding(Padded(8, 8, is_flat=True))
    assert (step.is_padded, step.num_tokens, step.num_samples) == (True, 8, 0)
    assert step.tensors.rows.slots.tolist() == step.tensors.sample_slots.tolist() == [-1] * 8
    assert step.tensors.rows.query_starts.tolist() == list(range(9))


def test_all_sections_are_aligned_and_contiguous() -> None:
    """Kernels take addresses, and are compiled for their alignment."""
    inputs = make_inputs()
    for size in range(1, NUM_SLOTS + 1):
        counts = [2] + [1] * (size - 1)
        for samples in ([True] * size, [False] + [True] * (size - 1), [False] * size):
            step = inputs.pack(make_plan([*range(size)], [0] * size, counts, samples), make_table())
            tail = step.tensors.tail
            assert tail is not None
            tensors = [
                *step.tensors.rows,
                *step.tensors.sampling,
                step.tensors.sample_slots,
                step.tensors.sample_positions,
                tail.tokens,
                *tail.rows,
            ]
            for tensor in tensors:
                assert tensor.is_contiguous()
                assert tensor.data_ptr() % (4 * ALIGNMENT) == 0
            assert step.tensors.sampling.seeds.dtype == tail.tokens.dtype == torch.int64
            assert step.num_samples == sum(samples)


def test_views_of_a_layout_are_made_once_and_not_kept_for_ever() -> None:
    inputs = make_inputs()
    plan = make_plan([1, 2], [0, 0], [1, 1], [True, True])
    first = inputs.pack(plan, make_table())
    again = inputs.pack(plan, make_table())
    assert first.tensors is again.tensors
    for size in range(MOST_LAYOUTS):
        inputs._views[(size, 0, False)] = inputs._views[(2, 2, False)]  # type: ignore[index]
    inputs.pack(make_plan([1], [0], [1], [True]), make_table())
    assert len(inputs._views) < MOST_LAYOUTS


def test_a_token_without_a_place_is_refused() -> None:
    inputs = make_inputs()
    inputs.pack(make_plan([1], [MAX_LEN - 1], [1], [False]), make_table())
    with pytest.raises(AssertionError):
        inputs.pack(make_plan([1], [MAX_LEN - 1], [1], [True]), make_table())
