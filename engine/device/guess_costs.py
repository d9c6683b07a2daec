"""What guessing costs on this device: some steps of one row are timed when an engine starts.

Only times come of it, and from them how many tokens sequences guess, which changes no token.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
from msgspec.structs import replace

from ..config import GuessCosts
from ..params import SamplingParams
from ..plan import Admitted, Drafts, StepPlan
from .runner import ModelRunner

NUM_KNOWN = 9
MAX_MODEL_LEN = 16
"""What every model can compute."""
FEW, MANY = 1, 5
"""Guesses of the rows that are compared."""
LEAST_RUNS, MOST_RUNS, SECONDS = 3, 60, 0.4
"""Of all kinds of steps."""


def measure_costs(runner: ModelRunner, *, on_device: bool) -> GuessCosts:
    """Time steps without and with guesses in a memory of their own."""
    scratch = runner.renewal(
        num_blocks=1,
        block_size=MAX_MODEL_LEN,
        max_num_seqs=1,
        max_model_len=MAX_MODEL_LEN,
        num_drafts=MANY,
    )()
    kinds = [None, *(_guesses(count, known=True) for count in (FEW, MANY))]
    if on_device:
        kinds += [_guesses(count, known=False) for count in (FEW, MANY)]
    plain, few, many, *guessed = _seconds(scratch, kinds)
    token = max(0.0, (many - few) / (MANY - FEW))
    step, following = few - plain - token, 0.0
    if on_device:
        one, more = guessed
        step = one - plain - token
        following = max(0.0, (more - one) / (MANY - FEW) - token)
    return GuessCosts(
        token=round(token / plain, 4),
        step=round(max(0.0, step / plain), 4),
        next=round(following / plain, 4),
        unit_s=round(plain, 6),
    )


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
