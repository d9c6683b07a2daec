"""What viewers of an engine are told agrees with its tables, and nobody pays who is not watched."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quire import LLM, SamplingParams
from quire.engine.config import EngineConfig
from quire.engine.core import EngineCore
from quire.engine.live import MAX_CELLS, NUM_STEPS, BlockState, LiveView, cells
from quire.engine.metrics import EngineMetrics
from quire.engine.plan import StepPlan, StepResult
from quire.engine.request import Request
from quire.engine.sched.scheduler import Scheduler, SchedulerLimits

NUM_BLOCKS = 16
SIZE = 4


class Echo:
    """An executor that draws the number of the step; some steps die."""

    def __init__(self) -> None:
        self.broken: set[int] = set()

    def submit(self, plan: StepPlan) -> Future[StepResult]:
        future: Future[StepResult] = Future()
        if plan.step in self.broken:
            future.set_exception(RuntimeError("device lost"))
        else:
            tokens = np.full(int(plan.samples.sum()), plan.step % 50, np.int32)
            future.set_result(StepResult(step=plan.step, token_ids=tokens))
        return future

    def abandon(self) -> None: ...
    def close(self) -> None: ...


class Clock:
    """Goes on by a second whenever it is asked."""

    now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def make_core(overlap: int = 1) -> tuple[EngineCore, Echo]:
    limits = SchedulerLimits(
        max_num_seqs=4,
        max_num_batched_tokens=16,
        max_model_len=48,
        block_size=SIZE,
        num_blocks=NUM_BLOCKS,
        enable_prefix_caching=True,
        policy="fcfs",
        overlap=overlap,
    )
    executor = Echo()
    return EngineCore(Scheduler(limits), executor, overlap=overlap), executor


def make_view(core: EngineCore) -> LiveView:
    config = EngineConfig(model="none", block_size=SIZE, max_num_batched_tokens=16, max_num_seqs=4)
    return LiveView(core, config, EngineMetrics("none"), Clock())


def make_request(name: str, prompt: list[int], max_tokens: int) -> Request:
    params = SamplingParams(max_tokens=max_tokens, temperature=0.0)
    return Request(
        request_id=name, prompt_token_ids=np.array(prompt, np.int32), params=params, seed=1
    )


def states_by_tables(core: EngineCore) -> list[int]:
    """The oracle, for a moment without a step in flight: who holds what, counted one by one."""
    memory = core.scheduler.memory
    held = Counter(
        block
        for slot, sequence in enumerate(memory.table.sequences)
        if sequence is not None
        for block in memory.blocks.row(slot).tolist()
    )
    cached = set(memory.index.keyed.nonzero()[0].tolist())
    return [
        BlockState.SHARED
        if held[block] > 1
        else BlockState.OWNED
        if held[block]
        else BlockState.CACHED
        if block in cached
        else BlockState.FREE
        for block in range(NUM_BLOCKS)
    ]


def test_the_map_is_what_the_tables_say() -> None:
    core, _ = make_core()
    view = make_view(core)
    view.open()
    for index in range(7):
        # Two families of prompts that share a first part, too much for the memory at once.
        core.add(make_request(f"r{index}", [index % 2] * 9 + [index] * 4, 14))
    seen: set[int] = set()
    while core.has_unfinished:
        core.launch()
        core.land()
        look = view.look()
        expected = states_by_tables(core)
        counts = Counter(expected)
        assert look.block_counts == tuple(counts[state] for state in range(BlockState.COPIED))
        for block, (told, right) in enumerate(zip(look.cells, expected, strict=True)):
            if told == BlockState.COPIED:
                assert right >= BlockState.OWNED, block
            else:
                assert told == right, block
        seen.update(look.cells)
    assert seen == set(BlockState), "the run has every state"
    assert view.look().stats.num_preemptions > 0


def test_a_copy_is_told_by_one_look() -> None:
    core, _ = make_core()
    view = make_view(core)
    view.open()
    core.add(make_request("parent", [1, 2, 3, 4, 5, 6], 20))
    core.launch()
    core.land()
    core.fork("parent", make_request("child", [1, 2, 3, 4, 5, 6], 20))
    before = view.look().cells
    core.launch()
    after, later = view.look(), view.look()
    assert BlockState.COPIED not in before
    assert after.stats.num_copies == 1 == list(after.cells).count(BlockState.COPIED)
    assert BlockState.COPIED not in later.cells
    core.land()
    assert view.look().steps[-1].num_copies == 1


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=40),
    st.integers(1, 7),
)
@settings(max_examples=200)
def test_a_cell_is_what_most_of_its_blocks_are(states: list[int], size: int) -> None:
    """A copy is always seen; of two that are equally many the busier one is."""
    found = cells(np.array(states, np.uint8), size).tolist()
    expected = []
    for start in range(0, len(states), size):
        part = states[start : start + size]
        most = max(BlockState, key=lambda state: (part.count(state), state))
        expected.append(BlockState.COPIED if size > 1 and BlockState.COPIED in part else most)
    assert found == expected


def test_a_large_pool_has_a_map_of_bounded_size() -> None:
    limits = SchedulerLimits(
        max_num_seqs=1,
        max_num_batched_tokens=16,
        max_model_len=48,
        block_size=SIZE,
        num_blocks=3 * MAX_CELLS + 1,
        enable_prefix_caching=True,
        policy="fcfs",
        overlap=1,
    )
    view = make_view(EngineCore(Scheduler(limits), Echo(), overlap=1))
    look = view.look()
    assert view.about.blocks_per_cell == 4
    assert len(look.cells) == -(-(3 * MAX_CELLS + 1) // 4) <= MAX_CELLS
    assert sum(look.block_counts) == 3 * MAX_CELLS + 1


@pytest.mark.parametrize("options", [{}, {"speculative_config": {"method": "ngram"}}])
@pytest.mark.parametrize("overlap", [1, 2])
def test_steps_add_up_to_what_was_counted(tiny: Path, options: Any, overlap: int) -> None:
    """By the scheduler and by each request's story: tokens, guesses, preemptions, copies."""
    with LLM(
        str(tiny),
        skip_tokenizer_init=True,
        num_threads=1,
        block_size=4,
        max_model_len=48,
        num_kv_blocks=12,
        max_num_batched_tokens=9,
        overlap=overlap,
        **options,
    ) as llm:
        view = LiveView(llm.core, llm._front.config, EngineMetrics("tiny"), Clock())
        view.open()
        prompts = [[i + 1, *[1, 2, 3] * (i + 1)] for i in range(6)]
        params = SamplingParams(max_tokens=20, ignore_eos=True, temperature=0.0)
        outputs = llm.generate(prompts, params, use_tqdm=False)
        look = view.look()
    stats, steps = look.stats, look.steps
    assert len(steps) == stats.num_steps < NUM_STEPS
    assert [step.step for step in steps] == list(range(1, len(steps) + 1))
    guesses = sum(step.num_guesses for step in steps)
    prefill = sum(step.num_prefill_tokens for step in steps)
    decode = sum(step.num_decode_tokens for step in steps)
    assert prefill + decode + guesses == stats.num_scheduled_tokens
    assert sum(step.num_preempted for step in steps) == stats.num_preemptions > 0
    assert sum(step.num_admitted for step in steps) == len(prompts) + stats.num_preemptions
    assert sum(step.num_copies for step in steps) == stats.num_copies
    assert guesses == stats.num_draft_tokens
    assert bool(guesses) == bool(options)
    stories = [output.timeline for output in outputs]
    right = sum(story.num_right_guesses for story in stories if story is not None)
    assert sum(step.num_right_guesses for step in steps) == right
    assert prefill >= sum(map(len, prompts)) - stats.prefix_hits
    # Each output is computed once as one, but for the last; what is computed again is prefill.
    assert decode <= sum(len(output.outputs[0].token_ids) - 1 for output in outputs)


def test_nobody_is_told_who_does_not_watch() -> None:
    core, _ = make_core()
    view = make_view(core)
    clock = view._clock
    assert isinstance(clock, Clock)

    def work(name: str) -> None:
        core.add(make_request(name, [1, 2, 3], 3))
        while core.has_unfinished:
            core.launch()
            core.land()

    work("unseen")
    assert clock.now == 0, "the view was never asked"
    view.open()
    view.open()
    work("seen")
    view.close()
    assert len(view.look().steps) == 3, "the other one still watches"
    view.close()
    before = clock.now
    work("unseen again")
    assert clock.now == before
    assert view.look().steps == ()


def test_a_step_that_was_launched_before_or_died_is_not_told() -> None:
    core, executor = make_core(overlap=2)
    view = make_view(core)
    executor.broken = {4}
    core.add(make_request("one", [1, 2, 3], 6))
    core.launch()  # 1 and 2
    view.open()
    core.land()
    core.launch()
    core.land()
    core.land()
    core.launch()
    core.land()
    core.add(make_request("two", [1, 2, 3], 2))
    while core.has_unfinished:
        core.launch()
        core.land()
    steps = view.look().steps
    assert 3 in (numbers := [step.step for step in steps])
    assert not {1, 2, 4} & set(numbers)
    assert numbers == sorted(numbers)
    assert all(step.took_s > 0 for step in steps)
