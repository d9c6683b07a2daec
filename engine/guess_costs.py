"""What guessing costs on this machine: some steps of one row are timed when an engine starts.

Only times come of it, and from them how many tokens sequences guess, which changes no token.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
from msgspec.structs import replace

from .config import SEVERAL, GuessCosts
from .device.runner import ModelRunner
from .params import SamplingParams
from .plan import MAX_DRAFTS, Admitted, Drafts, StepPlan, StepResult
from .request import IntArray, Request
from .sched.limits import SchedulerLimits
from .sched.scheduler import Scheduler
from .spec.ngram import NgramDrafter

NUM_KNOWN = 9
LEAST_MODEL_LEN, MAX_MODEL_LEN = 16, 32
"""What every model can compute, and what most can."""
FEW, MANY, CROWD = 1, SEVERAL - 1, MAX_DRAFTS
"""Guesses of the rows that are compared; the last where the model takes as many."""
SCHEDULED = 256
"""Tokens of a sequence whose steps are scheduled to see what that takes."""
LEAST_RUNS, MOST_RUNS, SECONDS = 3, 60, 0.4
"""Of all kinds of steps."""


def measure_costs(runner: ModelRunner, *, on_device: bool) -> GuessCosts:
    """Time steps without and with guesses, in a memory of their own, and what the scheduler does
    for each."""
    fits = runner.model.config.max_positions >= MAX_MODEL_LEN
    longest, crowd = (MAX_MODEL_LEN, CROWD) if fits else (LEAST_MODEL_LEN, MANY)
    scratch = runner.renewal(
        num_blocks=1,
        block_size=longest,
        max_num_seqs=1,
        max_model_len=longest,
        num_drafts=crowd,
    )()
    kinds = [None, *(_guesses(count, known=True) for count in (FEW, MANY, crowd))]
    if on_device:
        kinds += [_guesses(count, known=False) for count in (FEW, MANY)]
    plain, few, many, most, *guessed = _seconds(scratch, kinds)
    token = max(0.0, (many - few) / (MANY - FEW))
    beyond = max(0.0, (most - many) / (crowd - MANY)) if crowd > MANY else token
    step, following = few - plain - token, 0.0
    if on_device:
        one, more = guessed
        step = one - plain - token
        following = max(0.0, (more - one) / (MANY - FEW) - token)
    idle, busy = _scheduling_seconds(0), _scheduling_seconds(FEW)
    unit, step = plain + idle, step + busy - idle
    return GuessCosts(
        token=round(token / unit, 4),
        crowd=round(beyond / unit, 4),
        step=round(max(0.0, step / unit), 4),
        next=round(following / unit, 4),
        unit_s=round(unit, 6),
    )


class _Wrong(NgramDrafter):
    """Always guesses token 0."""

    def propose(self, slot: int, token_ids: IntArray, count: int) -> Sequence[int]:
        """See Drafter; looks as if it had not found it."""
        super().propose(slot, token_ids, count)
        return [0] * count


def _scheduling_seconds(num_drafts: int) -> float:
    """Return what the scheduler spends on a step of one row that guesses num_drafts tokens."""
    limits = SchedulerLimits(
        max_num_seqs=1,
        max_num_batched_tokens=2 * SCHEDULED,
        max_model_len=2 * SCHEDULED,
        block_size=16,
        num_blocks=SCHEDULED // 8,
        num_drafts=num_drafts,
        guess_costs=GuessCosts(token=0.0, crowd=0.0, step=0.0),
    )
    scheduler = Scheduler(limits, drafter=_Wrong(1, 3) if num_drafts else None)
    params = SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True)
    prompt = np.arange(1, SCHEDULED + 1, dtype=np.int32)
    scheduler.add(Request(request_id="", prompt_token_ids=prompt, params=params, seed=0))
    times = []
    for _ in range(SCHEDULED // 2):
        start = time.process_time()
        decision = scheduler.plan()
        assert decision is not None
        plan = scheduler.commit(decision)
        drawn = np.ones(len(plan.sampled()[0]), np.int32)
        scheduler.retire(plan, StepResult(plan.step, drawn))
        times.append(time.process_time() - start)
    return sorted(times)[len(times) // 2]


def _seconds(runner: ModelRunner, kinds: Sequence[Drafts | None]) -> list[float]:
    """Return the least seconds that a step with each of these guesses took, all in turn.

    Of a CPU's own time, and the least: what else runs on the machine only makes steps longer.
    """
    clock = time.process_time if runner.model.device.type == "cpu" else time.perf_counter
    steps = _steps()
    runner.execute(next(steps))
    found: list[list[float]] = [[] for _ in kinds]
    begun = time.perf_counter()
    for number in range(MOST_RUNS):
        if number >= LEAST_RUNS and time.perf_counter() - begun > SECONDS:
            break
        for drafts, times in zip(kinds, found, strict=True):
            size = 0 if drafts is None else int(drafts.counts.sum())
            num_tokens = np.array([1 + size], np.int32)
            plan = replace(next(steps), num_tokens=num_tokens, drafts=drafts)
            start = clock()
            runner.execute(plan)
            times.append(clock() - start)
    return [min(times[1:]) for times in found]


def _guesses(count: int, *, known: bool) -> Drafts:
    tokens = np.zeros(count, np.int32) if known else None
    return Drafts(np.array([count], np.int32), tokens)


def _steps() -> Iterator[StepPlan]:
    """Yield a prompt's step, and then ever again the one behind it."""
    none, zero = np.zeros(0, np.int32), np.zeros(1, np.int32)
    params = SamplingParams(temperature=0.0, max_tokens=None)
    tokens = np.zeros(NUM_KNOWN - 1, np.int32)
    prompt = Admitted(0, tokens, NUM_KNOWN - 1, params, 0, ())
    first = StepPlan(
        step=0,
        admitted=(prompt,),
        released=none,
        block_slots=zero,
        block_indices=zero,
        block_ids=zero,
        copy_sources=none,
        copy_targets=none,
        slots=zero,
        starts=zero,
        num_tokens=np.array([NUM_KNOWN - 1], np.int32),
        samples=np.array([True]),
    )
    yield first
    starts = np.array([NUM_KNOWN - 1], np.int32)
    step = 0
    while True:
        step += 1
        yield replace(
            first,
            step=step,
            admitted=(),
            block_slots=none,
            block_indices=none,
            block_ids=none,
            starts=starts,
        )
